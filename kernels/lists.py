"""Lists of what is awake, compacted from the sleep bitmap on the device."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class AwakeCells:
    """Awake cells of a batch.

    Attributes:
        indices: int32 ``[N * PC * CC]``; item ``(n * PC + pc) * CC + cc``, ascending.
        count: int32 ``[1]``.
    """

    indices: Tensor
    count: Tensor


@dataclass(frozen=True, eq=False)
class AwakeRows:
    """Awake positions of a batch, for every channel cell.

    Attributes:
        indices: int32 ``[CC, N * P]``; item ``n * P + p``, ascending.
        counts: int32 ``[CC]``.
    """

    indices: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class AwakeChannels:
    """Awake channels of every image.

    Attributes:
        indices: int32 ``[N, C]``; item is a channel, ascending.
        counts: int32 ``[N]``.
    """

    indices: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class AwakeBlocks:
    """Blocks of ``block`` channels in which a channel is awake, of every image.

    Attributes:
        indices: int32 ``[N, ceil(C / block)]``; item is a block, ascending.
        counts: int32 ``[N]``.
        block: channels of a block.
    """

    indices: Tensor
    counts: Tensor
    block: int
