"""Convolutions and pools of a part of a map, read from a map that is kept.

A kept map has rows of padding above and below it (``Margin``), so a slab of the picture's full
width is read as it lies in memory, rows of its neighbours or padding included. Padding to the left
and right is the convolution's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from drowsy.graph.nodes import altered
from drowsy.network.layer import DrowsyConv2d
from drowsy.neuron import NO_ACTIVATION, Activation, ConvSpec, awake_conv2d, padded_input

if TYPE_CHECKING:
    from drowsy.backends.triton_areas import Positions

Size = tuple[int, int]
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class Margin:
    """Rows and columns around a kept map, of what windows read beyond its edge.

    Args:
        top, bottom, left, right: how many.
        value: what is in them.
    """

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    value: float = 0.0

    def __bool__(self) -> bool:
        return any((self.top, self.bottom, self.left, self.right))


@dataclass(frozen=True)
class Window:
    """Which part of its input an operation reads for a part of its output.

    Args:
        input, output: ``(h, w)`` of the maps.
        kernel, stride, dilation: ``(vertical, horizontal)``.
        padding: ``(left, right, top, bottom)``; what the windows of the last row reach to counts,
            whatever the operation calls it.
        value: of the padding.
    """

    input: Size
    output: Size
    kernel: Size
    stride: Size = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Size = (1, 1)
    value: float = 0.0

    def margin(self, sides: bool) -> Margin:
        """What the input must have around it; ``sides``: to the left and right too."""
        _, below, _, beyond = self.reads((0, self.output[0], 0, self.output[1]))
        left, _, top, _ = self.padding
        right = max(beyond - self.input[1], 0)
        across = (left, right) if sides else (0, 0)
        return Margin(top, max(below - self.input[0], 0), *across, self.value)

    @property
    def reads_own_position(self) -> bool:
        """Whether an output reads the input at its own position alone."""
        ones = (self.kernel, self.stride) == ((1, 1), (1, 1))
        return ones and not any(self.padding) and self.input == self.output

    @property
    def across(self) -> int | None:
        """The horizontal padding that an operation of the full width may add itself, if any."""
        left = self.padding[0]
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        same = (self.input[1] + 2 * left - reach) // self.stride[1] + 1 == self.output[1]
        return left if same and self.padding[1] >= 0 else None

    def extent(self, cell: Size) -> Size:
        """Rows and columns that are read for so many of the output."""
        top, bottom, left, right = self.reads((0, cell[0], 0, cell[1]))
        return bottom - top, right - left

    def reads(self, box: Rectangle) -> Rectangle:
        """The rows and columns that are read for a part of the output, beyond the map too."""
        top, bottom, left, right = box
        first_row, first_column = -self.padding[2], -self.padding[0]
        return (
            top * self.stride[0] + first_row,
            (bottom - 1) * self.stride[0] + first_row + self.dilation[0] * (self.kernel[0] - 1) + 1,
            left * self.stride[1] + first_column,
            (right - 1) * self.stride[1]
            + first_column
            + self.dilation[1] * (self.kernel[1] - 1)
            + 1,
        )

    def cut(self, kept: Tensor, margin: Margin, box: Rectangle) -> Cut:
        """What is read of a kept map for a part of the output."""
        top, bottom, left, right = self.reads(box)
        there = margin if margin.value == self.value else Margin()
        height, width = self.input
        above, below = max(-top - there.top, 0), max(bottom - height - there.bottom, 0)
        rows = kept[:, :, margin.top + top + above : margin.top + bottom - below]
        full = box[2:] == (0, self.output[1]) and kept.shape[3] == width
        if full and self.across is not None and not (above or below):
            return Cut(rows, (0, 0, 0, 0), self.across, self.value)
        before, after = max(-left - there.left, 0), max(right - width - there.right, 0)
        part = rows[:, :, :, margin.left + left + before : margin.left + right - after]
        return Cut(part, (before, after, above, below), 0, self.value)


@dataclass(frozen=True)
class Cut:
    """A part of a kept map, as an operation reads it.

    Args:
        part: a view of the map.
        pad: what is still to be added to it, as ``F.pad`` takes it.
        across: horizontal padding that the operation adds itself.
        value: of the padding.
    """

    part: Tensor
    pad: tuple[int, int, int, int]
    across: int
    value: float

    def read(self) -> Tensor:
        """The part with its padding."""
        return F.pad(self.part, self.pad, value=self.value) if any(self.pad) else self.part


class Operation:
    """A convolution or pool that is computed in parts.

    Attributes:
        window: what is read for which part.
        multiplies: a position of the output costs.
        bytes: of memory that it holds.
    """

    window: Window
    multiplies = 0
    bytes: int = 0

    @property
    def pads_whole(self) -> bool:
        """Whether parts are cut from the whole map ``padded``, and not from the map itself."""
        return False

    def padded(self, x: Tensor) -> Tensor:
        """The whole map with its padding."""
        return x

    def run(self, x: Tensor, across: int) -> Tensor:
        """The outputs of a part that was read, ``across`` columns of padding still to be added."""
        raise NotImplementedError

    def into(self, dest: Tensor, x: Tensor, across: int) -> None:
        """The same, written to ``dest``."""
        dest.copy_(self.run(x, across))

    def listed(
        self,
        x: Tensor,
        awake: Positions,
        out: Tensor,
        other: Tensor | None = None,
        then: Activation = NO_ACTIVATION,
    ) -> Callable[[], None]:
        """What computes the awake positions of a whole map ``out`` from a whole map ``x``.

        Of a convolution ``then(conv(x) + other)``.
        """
        raise NotImplementedError


class Pool(Operation):
    """A max or average pool."""

    def __init__(self, window: Window, function: Callable[..., Tensor]) -> None:
        self.window, self._function = window, function

    def run(self, x: Tensor, across: int) -> Tensor:
        return self._function(x, self.window.kernel, self.window.stride, (0, across))

    def listed(
        self,
        x: Tensor,
        awake: Positions,
        out: Tensor,
        other: Tensor | None = None,
        then: Activation = NO_ACTIVATION,
    ) -> Callable[[], None]:
        from drowsy.backends import triton_areas as areas

        window = self.window
        kind = "average" if self._function is F.avg_pool2d else "max"
        before = window.padding[2], window.padding[0]
        return partial(areas.pool, x, awake, out, kind, window.kernel, window.stride, before)


class Convolution(Operation):
    """A convolution with its bias and activation, of weights that nothing corrects."""

    def __init__(self, conv: nn.Conv2d, input: Size, output: Size) -> None:
        if isinstance(conv, DrowsyConv2d):
            self.weight, self.bias = conv.uncorrected_parameters()
            spec, self._slopes = conv.spec.at(input), conv.slopes
        else:
            self.weight, self.bias = conv.weight, conv.bias
            spec, self._slopes = ConvSpec.of_conv(conv), None
        kernel = (self.weight.shape[2], self.weight.shape[3])
        # Of other than zeros: it reads what may lie far away.
        self._padding = spec if spec.padding_mode != "zeros" else None
        left, right, top, bottom = spec.padding
        if self._padding is not None:
            input = (input[0] + top + bottom, input[1] + left + right)
            spec = replace(spec, padding=(0, 0, 0, 0), padding_mode="zeros")
        self._spec = spec
        self.window = Window(input, output, kernel, spec.stride, spec.padding, spec.dilation)
        self.multiplies = prod(self.weight.shape)
        self._packs: dict[tuple[int, ...], _Packed] = {}
        if _packs(self.weight):
            self.bytes = self.weight.numel() * self.weight.element_size()

    def run_single(self, x: Tensor) -> Tensor:
        """One position of each of several windows, which lie side by side: ``[1, OC, 1, N]``."""
        spec = replace(self._spec, stride=(self._spec.stride[0], self.window.extent((1, 1))[1]))
        packed = self._packed(x, 0, spec)
        if packed is not None:
            return packed.run(x, 0)
        spec = replace(spec, padding=(0, 0, 0, 0))
        return awake_conv2d(x, self.weight, self.bias, spec, self._slopes)

    def _packed(self, x: Tensor, across: int, spec: ConvSpec | None = None) -> _Packed | None:
        """For an input like this; made when it is first met: memory is told before it is taken."""
        if not self.bytes:
            return None
        key = (x.shape[0], x.shape[2], x.shape[3], across)
        found = self._packs.get(key)
        if found is None:
            spec = spec or self._spec
            found = _Packed(self.weight, self.bias, spec, self._slopes, x.shape, across)
            for other in self._packs.values():
                if other.order == found.order:
                    found.weight = other.weight
            self._packs[key] = found
        return found

    @property
    def groups(self) -> int:
        """Of its channels."""
        return self._spec.groups

    @property
    def pads_whole(self) -> bool:
        return self._padding is not None

    def padded(self, x: Tensor) -> Tensor:
        return x if self._padding is None else padded_input(x, self._padding)

    def run(self, x: Tensor, across: int) -> Tensor:
        packed = self._packed(x, across)
        if packed is not None:
            return packed.run(x, across)
        spec = replace(self._spec, padding=(across, across, 0, 0))
        return awake_conv2d(x, self.weight, self.bias, spec, self._slopes)

    def into(self, dest: Tensor, x: Tensor, across: int) -> None:
        packed = self._packed(x, across)
        if packed is not None and packed.into(dest, x, across):
            return
        dest.copy_(self.run(x, across))

    def listed(
        self,
        x: Tensor,
        awake: Positions,
        out: Tensor,
        other: Tensor | None = None,
        then: Activation = NO_ACTIVATION,
    ) -> Callable[[], None]:
        from drowsy.backends import triton_areas as areas

        compute = areas.Convolution(self.weight, self.bias, self._spec, self._slopes)
        return lambda: compute(self.padded(x), awake, out, other, then)

    def into_sum(
        self, dest: Tensor, other: Tensor, x: Tensor, across: int, then: Activation
    ) -> bool:
        """``dest = then(conv(x) + other)``, in one pass where the library can; else False."""
        packed = self._packed(x, across)
        return packed is not None and packed.into_sum(dest, other, x, across, then)


# Activations that oneDNN computes with the convolution.
_FUSED = {"none": "none", "relu": "relu"}


class _Packed:
    """A convolution by oneDNN with its weight in the library's own order.

    torch's convolution brings the weight into that order at every call, which takes longer than a
    slab of a deep layer itself.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        spec: ConvSpec,
        slopes: Tensor | None,
        shape: Sequence[int],
        across: int,
    ) -> None:
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        geometry = (0, across), spec.stride, spec.dilation, spec.groups
        self.weight: Tensor = pack(weight.detach().to_mkldnn(), *geometry, list(shape))
        self.order: bytes = (
            torch.ops.mkldnn._get_mkldnn_serialized_md(self.weight).numpy().tobytes()
        )
        self._bias = None if bias is None else bias.detach()
        self._activation = spec.activation
        self._fused = _FUSED.get(spec.activation, "none")
        rest = Activation(spec.activation, slopes)
        self._rest = NO_ACTIVATION if spec.activation in _FUSED else rest
        self._geometry = (spec.stride, spec.dilation, spec.groups)

    def run(self, x: Tensor, across: int) -> Tensor:
        y = torch.ops.mkldnn._convolution_pointwise(
            *(x, self.weight, self._bias, (0, across), *self._geometry),
            *(self._fused, [], ""),
        )
        return self._rest.apply(y)

    def into(self, dest: Tensor, x: Tensor, across: int) -> bool:
        if not dest.is_contiguous(memory_format=torch.channels_last):
            return False
        # Added to zeros: clearing memory takes less time than copying a result into it.
        self._add(dest.zero_(), x, across, self._fused)
        self._rest.apply(dest)
        return True

    def into_sum(
        self, dest: Tensor, other: Tensor, x: Tensor, across: int, then: Activation
    ) -> bool:
        if self._activation != "none" or not dest.is_contiguous(memory_format=torch.channels_last):
            return False
        self._add(dest.copy_(other), x, across, _FUSED.get(then.name, "none"))
        if then.name not in _FUSED:
            then.apply(dest)
        return True

    def _add(self, dest: Tensor, x: Tensor, across: int, then: str) -> None:
        torch.ops.mkldnn._convolution_pointwise_(
            *(dest, x, self.weight, self._bias, (0, across), *self._geometry),
            *("add", 1.0, None if then == "none" else then, [], ""),
        )


def _packs(weight: Tensor) -> bool:
    """Whether torch would leave a convolution by this weight to oneDNN."""
    mkldnn: Any = torch.backends.mkldnn
    if weight.device.type != "cpu" or not (mkldnn.is_available() and mkldnn.enabled):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def operation(
    node: fx.Node, modules: dict[str, Any], input: Size, output: Size
) -> Operation | None:
    """How a node that reads one map by windows is computed in parts; None where it is not known."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, DrowsyConv2d) or (type(module) is nn.Conv2d and not altered(module)):
            return Convolution(module, input, output)
        if type(module) in _POOL_MODULES and not altered(module):
            return _pool(_POOL_MODULES[type(module)], vars(module), input, output)
    elif node.op == "call_function" and node.target in _POOLS:
        given = dict(zip(_POOLS[node.target], node.args[1:], strict=False)) | node.kwargs
        return _pool(node.target, given, input, output)
    return None


# Functions by their arguments after the input.
_POOLS: dict[Any, tuple[str, ...]] = {
    F.max_pool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    F.avg_pool2d: (
        *("kernel_size", "stride", "padding"),
        *("ceil_mode", "count_include_pad", "divisor_override"),
    ),
}
_POOL_MODULES: dict[type, Any] = {nn.MaxPool2d: F.max_pool2d, nn.AvgPool2d: F.avg_pool2d}


def _pool(function: Any, given: Mapping[str, Any], input: Size, output: Size) -> Pool | None:
    """A pool of these arguments; None where a window's result depends on where it lies."""
    averages = function is F.avg_pool2d
    down, across = _pair(given.get("padding", 0))
    stride = given.get("stride")
    window = Window(
        input,
        output,
        _pair(given["kernel_size"]),
        _pair(given["kernel_size"] if stride in (None, [], ()) else stride),
        (across, across, down, down),
        value=0.0 if averages else float("-inf"),
    )
    if given.get("return_indices") or _pair(given.get("dilation", 1)) != (1, 1):
        return None
    if averages:
        # Of windows that reach over the edge not all divide by their size.
        _, last_row, _, last_column = window.reads((0, output[0], 0, output[1]))
        beyond = last_row > input[0] + down or last_column > input[1] + across
        counts = given.get("count_include_pad", True) or (down, across) == (0, 0)
        if beyond or not counts or given.get("divisor_override") is not None:
            return None
    return Pool(window, function)


def _pair(value: Any) -> Size:
    if isinstance(value, int):
        return value, value
    pair = tuple(value)
    return pair if len(pair) == 2 else (pair[0], pair[0])
