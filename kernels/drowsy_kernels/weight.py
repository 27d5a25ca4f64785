"""Convolution weights in the layout of the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from drowsy_kernels.launch import MAX_ELEMENTS
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Groups narrower than this are computed several at a time: a matrix instruction is 16 deep, and a
# tile 16 channels wide.
_NARROW = 16
# Below this many channels a filter row is a K step: see pack_input.py.
_FEW_CHANNELS = 8


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A convolution weight in the layout of the kernels; made by ``pack_weight``.

    Args:
        data: ``[OC, K]`` with rows of (ky, kx, input channel), zero-padded to 16 bytes; for a
            depthwise weight ``[KH * KW, OC]``.
        out_channels: ``OC``, of all groups.
        channels_per_group: input channels of a group.
        kernel_size: ``(KH, KW)``.
        groups: number of groups.
        merged: groups that are computed as one, whose rows hold zeros for each other's channels.
        pitch: channels that a tap takes in a row: those of the merged groups, or more where few
            input channels are padded.
    """

    data: Tensor
    out_channels: int
    channels_per_group: int
    kernel_size: tuple[int, int]
    groups: int
    merged: int
    pitch: int

    @property
    def in_channels(self) -> int:
        """Input channels of all groups."""
        return self.channels_per_group * self.groups

    @property
    def depthwise(self) -> bool:
        """Whether every group has a single input channel."""
        return _is_depthwise(self.channels_per_group, self.groups)

    @property
    def padded(self) -> bool:
        """Whether a pixel has more channels in a row of the weight than in the input."""
        return self.pitch > self.channels_per_group * self.merged

    def shares_memory(self, weight: Tensor) -> bool:
        """Whether this is a view of ``weight``, which follows in-place updates."""
        return self.data.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()


def _is_depthwise(channels_per_group: int, groups: int) -> bool:
    return groups > 1 and channels_per_group == 1


def pack_weight(weight: Tensor, groups: int = 1) -> PackedWeight:
    """Lay a weight out for ``conv2d``.

    Args:
        weight: ``[OC, IC / groups, KH, KW]``, any strides; float32, float16 or bfloat16.
        groups: number of groups; divides ``OC``.

    A channels_last weight whose rows are whole multiples of 16 bytes is not copied: the result is a
    view that follows in-place updates. Any other is copied.

    Groups of fewer than 16 channels are merged until they have as many, so a NaN or an infinity in
    the input of one makes NaN of its merged neighbours' outputs too.
    """
    if weight.dtype not in DTYPES:
        raise TypeError(f"weight: got {weight.dtype}, allowed: {', '.join(map(str, DTYPES))}")
    if weight.dim() != 4 or min(weight.shape[1:]) < 1:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, allowed: [OC, IC / groups, KH, KW], "
            "no dimension but OC empty"
        )
    out_channels, channels, kh, kw = weight.shape
    if groups < 1 or out_channels % groups:
        raise ValueError(f"groups: got {groups}, allowed: divisors of {out_channels} channels")
    depth = channels * kh * kw
    if out_channels * depth > MAX_ELEMENTS // 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, allowed: below 2**30 elements")
    if _is_depthwise(channels, groups):
        data = weight.reshape(out_channels, depth).t().contiguous()
        return PackedWeight(data, out_channels, channels, (kh, kw), groups, 1, 1)

    data = weight.permute(0, 2, 3, 1)
    merged = _merged(channels, out_channels // groups, groups)
    pitch = channels * merged
    if merged > 1:
        data = _block_diagonal(data, groups, merged)
    elif groups == 1 and channels < _FEW_CHANNELS and kw > 1:
        pitch = triton.next_power_of_2(max(channels, 4))
        data = torch.nn.functional.pad(data, (0, pitch - channels))
    data = data.reshape(out_channels, kh * kw * pitch)
    unit = 16 // weight.element_size()
    if data.shape[1] % unit:
        data = torch.nn.functional.pad(data, (0, -data.shape[1] % unit))
    return PackedWeight(data.contiguous(), out_channels, channels, (kh, kw), groups, merged, pitch)


def _merged(channels: int, out_channels: int, groups: int) -> int:
    """Groups to compute as one: enough to fill a matrix instruction both ways, not far more."""
    wanted = triton.cdiv(_NARROW, max(min(channels, out_channels), 1))
    return max(m for m in range(1, groups + 1) if groups % m == 0 and m < 2 * wanted)


def _block_diagonal(data: Tensor, groups: int, merged: int) -> Tensor:
    """``[OC, KH, KW, IC]`` of single groups to rows of ``merged`` groups, zero off the diagonal."""
    out_channels, kh, kw, channels = data.shape
    each = out_channels // groups
    rows = data.reshape(groups // merged, merged, each, kh, kw, 1, channels)
    member = torch.arange(merged, device=data.device)
    own = (member[:, None] == member).view(1, merged, 1, 1, 1, merged, 1)
    return torch.where(own, rows, 0).reshape(out_channels, kh, kw, merged * channels)
