"""What a deployed network runs in the place of a layer, one module a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import drowsy_kernels as kernels
import torch
from drowsy_kernels import lists, tables
from drowsy_kernels.conv2d import Awake
from drowsy_kernels.tuning import Choice
from torch import Tensor, nn

from drowsy.backends.triton import convolve, precision
from drowsy.deployment.maps import Map, channels_last, wait
from drowsy.network.layer import DrowsyConv2d
from drowsy.neuron import Activation, padded
from drowsy.sleep import NEIGHBOUR_FILLS


@dataclass(frozen=True)
class Step:
    """How one drowsy layer of a deployed network runs.

    Args:
        layer: its name.
        output: ``compact`` (awake rows of a shared map) or ``full``.
        reads: ``compact``, ``full``, or what of the full input is skipped.
        computes: which neurons: ``awake rows``, ``awake cells``, ``awake channels``, or ``masked``.
        fused: residual sum and activation that became part of it.
    """

    layer: str
    output: str
    reads: str
    computes: str
    fused: str


def fill(layer: DrowsyConv2d) -> str:
    """A layer's fill; ``rescale`` is ``zero`` with a factor, and the factor is data."""
    return layer.fill if layer.fill in NEIGHBOUR_FILLS else "zero"


def _arguments(post: Activation) -> dict[str, Any]:
    """An activation after a sum as the kernels take it."""
    return {"post_activation": post.name, "post_slopes": post.slopes}


class Conv(nn.Module):
    """What both forms of a layer hold."""

    def __init__(self, layer: DrowsyConv2d, post: Activation) -> None:
        super().__init__()
        weight, bias = layer.parameters_in_effect()
        self._weight = kernels.pack_weight(weight.detach(), layer.groups)
        self.index, self.copied = layer.index, not self._weight.shares_memory(weight)
        self._bias = None if bias is None else bias.detach()
        self._slopes = None if layer.slopes is None else layer.slopes.detach()
        self._spec = layer.spec
        self._post = _arguments(post)
        self._shared = self._post | {"scale": layer.control.scales[layer.index]}


class FullConv(Conv):
    """A layer that writes the full map."""

    def __init__(
        self,
        layer: DrowsyConv2d,
        choice: Choice,
        drawn: Map,
        awake: Awake | None,
        blocks: lists.AwakeBlocks | None,
        zeros: Map | None,
        ready: torch.cuda.Event | None,
        post: Activation,
    ) -> None:
        super().__init__(layer, post)
        self._choice, self._drawn, self._awake, self._ready = choice, drawn, awake, ready
        self._blocks, self._zeros = blocks, zeros
        self._fill, self._table = fill(layer), layer.table

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        x, spec = padded(x, self._spec)
        wait(self._ready)
        bitmap, cell = self._drawn.bitmap, self._drawn.cell
        residual = channels_last(residual)
        y = convolve(
            self._choice,
            x,
            self._weight,
            self._bias,
            spec,
            slopes=self._slopes,
            bitmap=bitmap,
            cell=cell,
            awake=self._awake,
            x_blocks=self._blocks,
            residual=residual,
            **self._shared,
        )
        if self._zeros is not None:
            tables.fill_unread(
                y,
                bitmap,
                self._zeros.bitmap,
                self._bias,
                activation=spec.activation,
                slopes=self._slopes,
                residual=residual,
                **self._shared,
            )
        # Channel lists leave no sleeper to write, and neither does a masked convolution.
        elif self._fill != "zero" or isinstance(self._awake, (lists.AwakeRows, lists.AwakeCells)):
            kernels.fill_sleepers(
                y,
                bitmap,
                cell,
                self._fill,
                residual=residual,
                table=self._table,
                **self._post,
            )
        return y


class RowsConv(Conv):
    """A layer that writes the awake rows of a shared map."""

    def __init__(
        self,
        layer: DrowsyConv2d,
        rows: lists.AwakeRows,
        table: Tensor | None,
        ready: torch.cuda.Event | None,
        post: Activation,
    ) -> None:
        super().__init__(layer, post)
        self._count, self._table, self._ready = rows.counts, table, ready

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.dim() == 4:
            # The rows of a full map are its positions; those of a single image are but a view.
            x = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()
        wait(self._ready)
        return kernels.conv2d_rows(
            x,
            self._weight,
            self._bias,
            table=self._table,
            count=self._count,
            residual=residual,
            activation=self._spec.activation,
            slopes=self._slopes,
            precision=precision(x.device),
            **self._shared,
        )


class Expand(nn.Module):
    """Fills in the full map of a compact activation, and adds a full residual."""

    def __init__(
        self,
        index: Tensor,
        shape: tuple[int, int, int, int],
        ready: torch.cuda.Event | None,
        post: Activation,
    ) -> None:
        super().__init__()
        self._index, self._shape, self._ready = index, shape, ready
        self._post = _arguments(post)

    def forward(self, rows: Tensor, residual: Tensor | None = None) -> Tensor:
        wait(self._ready)
        residual = channels_last(residual)
        return tables.expand_rows(rows, self._index, self._shape, residual=residual, **self._post)


class Join(nn.Module):
    """Concatenates compact activations, awake rows alone."""

    def __init__(self, rows: lists.AwakeRows, ready: torch.cuda.Event | None) -> None:
        super().__init__()
        self._count, self._ready = rows.counts, ready

    def forward(self, *parts: Tensor) -> Tensor:
        wait(self._ready)
        return tables.join_rows(parts, self._count)
