"""Triton kernels of drowsy: sleep maps and convolutions that skip what sleeps.

It knows tensors, not networks, and never imports ``drowsy``. Importing it needs neither a GPU nor a
driver. Launchers take CUDA tensors, or CPU tensors where ``TRITON_INTERPRET=1`` was set before the
import.

``kernels``, the folder around it, is no package (it has no ``__init__.py``): another project's
package of that name is found past it.
"""

if __name__ != "drowsy_kernels":
    raise ImportError(
        f"this package is drowsy_kernels and was imported as {__name__!r}: install it "
        "(pip install -e .) and import drowsy_kernels"
    )

from drowsy_kernels.areas import (
    BOX_FIELDS,
    POOLS,
    AreaLists,
    area_lists,
    list_areas,
    place_areas,
    plan_list_areas,
    plan_place_areas,
    plan_pool_areas,
    pool_areas,
)
from drowsy_kernels.conv2d import PRECISIONS, conv2d, output_size, plan_conv2d
from drowsy_kernels.conv2d_box import (
    BOX_CONFIGS,
    box_efficiency,
    box_supports,
    cells_in_box,
    choose_box,
    choose_box_config,
    conv2d_box,
    plan_conv2d_box,
)
from drowsy_kernels.conv2d_rows import conv2d_rows, plan_conv2d_rows
from drowsy_kernels.epilogue import ACTIVATIONS
from drowsy_kernels.fill import FILLS, fill_sleepers, plan_fill_sleepers
from drowsy_kernels.heuristics import SHIPPED_CONFIGS, ConvConfig, choose_config
from drowsy_kernels.launch import Launch, interpreted
from drowsy_kernels.lists import (
    COMBINATIONS,
    LIST_BLOCK,
    AwakeBlocks,
    AwakeCells,
    AwakeChannels,
    AwakeRows,
    awake_blocks,
    awake_cells,
    awake_channels,
    awake_rows,
    combine,
    plan_awake_blocks,
    plan_awake_cells,
    plan_awake_channels,
    plan_awake_rows,
)
from drowsy_kernels.sleep_map import SOURCES, plan_sleep_map, sleep_map
from drowsy_kernels.tables import (
    Geometry,
    expand_rows,
    fill_unread,
    join_rows,
    plan_expand_rows,
    plan_fill_unread,
    plan_join_rows,
    plan_row_index,
    plan_tap_table,
    row_index,
    tap_table,
)
from drowsy_kernels.weight import PackedWeight, pack_weight

__all__ = [
    "ACTIVATIONS",
    "BOX_CONFIGS",
    "BOX_FIELDS",
    "COMBINATIONS",
    "FILLS",
    "LIST_BLOCK",
    "POOLS",
    "PRECISIONS",
    "SHIPPED_CONFIGS",
    "SOURCES",
    "AreaLists",
    "AwakeBlocks",
    "AwakeCells",
    "AwakeChannels",
    "AwakeRows",
    "ConvConfig",
    "Geometry",
    "Launch",
    "PackedWeight",
    "area_lists",
    "awake_blocks",
    "awake_cells",
    "awake_channels",
    "awake_rows",
    "box_efficiency",
    "box_supports",
    "cells_in_box",
    "choose_box",
    "choose_box_config",
    "choose_config",
    "combine",
    "conv2d",
    "conv2d_box",
    "conv2d_rows",
    "expand_rows",
    "fill_sleepers",
    "fill_unread",
    "interpreted",
    "join_rows",
    "list_areas",
    "output_size",
    "pack_weight",
    "place_areas",
    "plan_awake_blocks",
    "plan_awake_cells",
    "plan_awake_channels",
    "plan_awake_rows",
    "plan_conv2d",
    "plan_conv2d_box",
    "plan_conv2d_rows",
    "plan_expand_rows",
    "plan_fill_sleepers",
    "plan_fill_unread",
    "plan_join_rows",
    "plan_list_areas",
    "plan_place_areas",
    "plan_pool_areas",
    "plan_row_index",
    "plan_sleep_map",
    "plan_tap_table",
    "pool_areas",
    "row_index",
    "sleep_map",
    "tap_table",
]
