"""Every way to run a convolution that benchmarks compare, over the same tensors.

A ``Problem`` holds a convolution's tensors; ``Problem.copies`` gives the calls of one way, checked
against float64 before anybody times them.

Ways: the methods of the dispatcher (``drowsy_kernels.tuning``), where ``cudnn`` is the bare
convolution, and for comparison ``cudnn_neuron`` (convolution, bias and ReLU, fused by cuDNN where
it can) and ``inductor`` (``torch.compile``, max-autotune, its Triton template).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import drowsy_kernels as kernels
import torch
import torch.nn.functional as F
from drowsy_kernels.tuning import ConvShape
from torch import Tensor

from bench.timing import DTYPES, activations, copies_for, with_tf32
from drowsy.backends.triton import draw_bitmap
from drowsy.sleep import Grain, SleepSpec, expand_cells, unpack_bitmap

K = 8
LISTS = ("cells", "rows", "channels")
OURS = ("box", "pointer", *LISTS)
LIBRARY = ("cudnn", "cudnn_neuron", "inductor")
_SEED = 11


class RedCheck(AssertionError):
    """A way whose output is wrong is not timed."""


@dataclass(frozen=True)
class SleepMap:
    """A drawn map: its cells, its bitmap and the fraction of neurons that sleep."""

    spec: SleepSpec
    threshold: Tensor
    clock: Tensor
    cell: tuple[int, int]
    bitmap: Tensor
    slept: float


class Problem:
    """A convolution with bias and ReLU, its tensors drawn afresh.

    Args:
        shape, images, number: what to run; ``number`` as in ``drowsy_kernels.tuning.NUMBERS``.
        device: CUDA, or the CPU under Triton's interpreter.
        copies: of the tensors; by default as many as keep the L2 cache cold.
    """

    def __init__(
        self,
        shape: ConvShape,
        images: int,
        number: str,
        device: torch.device,
        copies: int | None = None,
    ) -> None:
        self.shape, self.images, self.number, self.device = shape, images, number, device
        self.dtype = DTYPES[number]
        with_tf32(number)
        generator = torch.Generator(device).manual_seed(_SEED)
        size = shape.elements(images) * self.dtype.itemsize
        weight = (shape.out_channels, shape.channels // shape.groups, *shape.kernel_size)

        def normal(*size: int) -> Tensor:
            drawn = torch.randn(*size, generator=generator, device=device)
            return drawn.to(self.dtype)

        self.inputs, self.weights = [], []
        for _ in range(copies or copies_for(size, device)):
            x = (images, shape.channels, *shape.size)
            self.inputs.append(activations(x, self.dtype, generator))
            drawn = normal(*weight) * math.sqrt(2 / shape.depth)
            self.weights.append(drawn.contiguous(memory_format=torch.channels_last))
        self.bias = normal(shape.out_channels)
        self.out_shape = (images, shape.out_channels, *shape.out_size)
        self._known: dict[bool, tuple[Tensor, Tensor]] = {}

    # --- sleep ------------------------------------------------------------------------------------

    def sleep_map(self, grain: str, rate: float) -> SleepMap:
        """Independent bits at this grain and rate (a multiple of 1/8)."""
        spec = SleepSpec("bernoulli", Grain.parse(grain), K)  # type: ignore[arg-type]
        cell = spec.grain.cell(self.shape.out_channels, self.shape.positions)
        threshold = torch.tensor([round(rate * K)], dtype=torch.int32, device=self.device)
        clock = torch.tensor([_SEED, 0], device=self.device)
        bitmap = draw_bitmap(spec, self.out_shape, cell, threshold, clock)
        cells = -(-self.shape.out_channels // cell[1])
        # Of eight images: a batch of unpacked bits would not fit beside its tensors.
        slept = unpack_bitmap(bitmap[:8], cells).float().mean().item()
        return SleepMap(spec, threshold, clock, cell, bitmap, slept)

    # --- ways -------------------------------------------------------------------------------------

    def copies(
        self,
        way: str,
        sleep: SleepMap | None = None,
        config: Any = None,
        *,
        with_map: bool = False,
        checked: bool = True,
    ) -> list[Callable[[], Tensor]]:
        """One call for each copy of the tensors.

        Args:
            way: one of ``OURS`` or ``LIBRARY``.
            sleep: who sleeps; None where nobody does. The library ways know no sleep.
            config: block shape; None for the kernel's own heuristic.
            with_map: draw the map, and build the list, in every call too.
            checked: compare with float64 first.

        Raises:
            RedCheck: the output is further from float64 than eager torch allows.
        """
        build = (
            self._library
            if way in LIBRARY
            else functools.partial(self._ours, sleep=sleep, config=config, with_map=with_map)
        )
        calls = [build(way, x, w) for x, w in zip(self.inputs, self.weights, strict=True)]
        if checked:
            self.check(calls[0](), way, sleep)
        return calls

    def _library(self, way: str, x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
        left, _, top, _ = self.shape.padding
        geometry = (self.shape.stride, (top, left), self.shape.dilation, self.shape.groups)
        if way == "cudnn":
            return lambda: F.conv2d(x, weight, None, *geometry)
        if way == "inductor":
            compiled = _inductor(*geometry)
            return lambda: compiled(x, weight, self.bias)
        fused = _fused(x, weight, self.bias, *geometry)
        return lambda: fused(x, weight, self.bias, *geometry)

    def _ours(
        self,
        way: str,
        x: Tensor,
        weight: Tensor,
        *,
        sleep: SleepMap | None,
        config: Any,
        with_map: bool,
    ) -> Callable[[], Tensor]:
        if way in LISTS and sleep is None:
            raise ValueError(f"sleep: got None, allowed: a map, of which {way} lists the awake")
        run = kernels.conv2d_box if way == "box" else kernels.conv2d
        packed = kernels.pack_weight(weight, self.shape.groups)
        out = torch.full(self.out_shape, math.nan, dtype=self.dtype, device=self.device)
        out = out.contiguous(memory_format=torch.channels_last)
        options: dict[str, Any] = {
            "padding": self.shape.padding,
            "dilation": self.shape.dilation,
            "activation": "relu",
            "precision": "tf32" if self.number == "tf32" else "ieee",
            "out": out,
            "config": config,
        }
        if way != "box":
            options["stride"] = self.shape.stride
        if sleep is not None:
            options |= {"bitmap": sleep.bitmap, "cell": sleep.cell}
        awake = None
        if sleep is not None and way in LISTS:
            compact = getattr(kernels, f"awake_{way}")
            awake = options["awake"] = compact(sleep.bitmap, self.out_shape, sleep.cell)

        def call() -> Tensor:
            if with_map and sleep is not None:
                self.draw(sleep)
                if awake is not None:
                    compact(sleep.bitmap, self.out_shape, sleep.cell, out=awake)
            run(x, packed, self.bias, **options)
            if sleep is not None and way in ("cells", "rows"):
                kernels.fill_sleepers(out, sleep.bitmap, sleep.cell, "zero")
            return out

        return call

    def draw(self, sleep: SleepMap) -> Tensor:
        """Draw the map again, in place."""
        return kernels.sleep_map(
            "bernoulli",
            self.out_shape,
            cell=sleep.cell,
            k=K,
            stream=sleep.spec.stream,
            threshold=sleep.threshold,
            clock=sleep.clock,
            out=sleep.bitmap,
        )

    def eligible(self, way: str, cell: tuple[int, int] | None) -> bool:
        """Whether a way of ours takes this shape on this device, with cells of this size."""
        if way == "box" and self.device.type == "cuda":
            return (
                kernels.box_supports(self.inputs[0], self._packed(0), stride=self.shape.stride)
                == ""
            )
        return eligible(way, self.shape, self.number, cell)

    def _packed(self, copy: int) -> kernels.PackedWeight:
        return kernels.pack_weight(self.weights[copy], self.shape.groups)

    # --- correctness ------------------------------------------------------------------------------

    def check(self, y: Tensor, way: str, sleep: SleepMap | None) -> None:
        """Raise unless the first and the last image of ``y`` are right.

        The budget is the error of eager torch in the same number format against float64, what the
        order of a sum of K terms adds in float32, and one rounding of the result.
        """
        some = [0, self.images - 1]
        exact, eager = self._expected(some, neuron=way != "cudnn")
        asleep = torch.zeros_like(exact, dtype=torch.bool)
        if sleep is not None:
            cells = unpack_bitmap(sleep.bitmap[some], -(-self.shape.out_channels // sleep.cell[1]))
            asleep = expand_cells(cells, tuple(exact.shape), sleep.spec.grain)  # type: ignore[arg-type]
        largest = exact.abs().max()
        order = torch.finfo(torch.float32).eps * math.sqrt(self.shape.depth)
        # Tensor cores may cut TF32 operands to 10 bits of mantissa where the library rounds them.
        rounding = 2.0**-10 if self.number == "tf32" else torch.finfo(self.dtype).eps / 2
        budget = (eager - exact).abs().max() + (order + rounding) * largest.clamp(min=1.0)
        error = (y[some].double() - exact.masked_fill(asleep, 0)).abs().max()
        if not error <= budget:
            raise RedCheck(
                f"{way} on {self.shape} x {self.images} {self.number}: error {error:.3e} against "
                f"float64, budget {budget:.3e}; not timed"
            )

    def _expected(self, images: list[int], *, neuron: bool) -> tuple[Tensor, Tensor]:
        """Float64's and eager torch's outputs when nobody sleeps, computed once."""
        if neuron not in self._known:
            x, weight = self.inputs[0][images], self.weights[0]
            left, _, top, _ = self.shape.padding
            geometry = (self.shape.stride, (top, left), self.shape.dilation, self.shape.groups)

            def run(dtype: torch.dtype) -> Tensor:
                bias = self.bias.to(dtype) if neuron else None
                y = F.conv2d(x.to(dtype), weight.to(dtype), bias, *geometry)
                return (y.relu_() if neuron else y).double()

            self._known[neuron] = run(torch.float64), run(self.dtype)
        return self._known[neuron]


def eligible(way: str, shape: ConvShape, number: str, cell: tuple[int, int] | None) -> bool:
    """Whether a way of ours takes a shape with cells of this size (None: nobody sleeps)."""
    if way == "box":
        x, packed = _hollow(shape, 1, number)
        return kernels.box_supports(x, packed, stride=shape.stride) == ""
    if way == "pointer":
        return True
    if cell is None or shape.depthwise:
        return False
    return {
        "cells": cell[0] > 1 and cell[1] > 1,
        "rows": cell[0] == 1 and cell[1] > 1,
        "channels": cell[0] >= shape.positions,
    }[way]


def _hollow(shape: ConvShape, images: int, number: str) -> tuple[Tensor, kernels.PackedWeight]:
    """Input and weight that hold nothing, for plans."""

    def meta(*size: int) -> Tensor:
        made = torch.empty(size, dtype=DTYPES[number], device="meta")
        return made.to(memory_format=torch.channels_last)

    weight = meta(shape.out_channels, shape.channels // shape.groups, *shape.kernel_size)
    return meta(images, shape.channels, *shape.size), kernels.pack_weight(weight, shape.groups)


def launches(
    way: str,
    shape: ConvShape,
    images: int,
    number: str,
    cell: tuple[int, int] | None,
    config: Any,
) -> list[kernels.Launch]:
    """What a way of ours would launch, the map and its list included, planned on tensors that hold
    nothing."""
    x, packed = _hollow(shape, images, number)
    bias = torch.empty(shape.out_channels, dtype=x.dtype, device="meta")
    options: dict[str, Any] = {
        "padding": shape.padding,
        "dilation": shape.dilation,
        "activation": "relu",
        "precision": "tf32" if number == "tf32" else "ieee",
        "config": config,
    }
    found: list[kernels.Launch] = []
    out_shape = (images, shape.out_channels, *shape.out_size)
    bitmap = None
    if cell is not None:
        bitmap, (drawing,) = kernels.plan_sleep_map(
            "bernoulli",
            out_shape,
            cell=cell,
            k=K,
            stream=0,
            threshold=torch.empty(1, dtype=torch.int32, device="meta"),
            clock=torch.empty(2, dtype=torch.int64, device="meta"),
        )
        options |= {"bitmap": bitmap, "cell": cell}
        found.append(drawing)
    if way == "box":
        return [*found, *kernels.plan_conv2d_box(x, packed, bias, **options)[1]]
    options["stride"] = shape.stride
    if way in LISTS:
        options["awake"], listing = getattr(kernels, f"plan_awake_{way}")(bitmap, out_shape, cell)
        found += listing
    y, planned = kernels.plan_conv2d(x, packed, bias, **options)
    found += planned
    if bitmap is not None and cell is not None and way in ("cells", "rows"):
        found += kernels.plan_fill_sleepers(y, bitmap, cell, "zero")[1]
    return found


def _fused(x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Callable[..., Tensor]:
    """cuDNN's convolution with bias and ReLU, or torch's three steps where it has none."""
    if x.is_cuda:
        try:
            torch.cudnn_convolution_relu(x, weight, bias, *geometry)
            return torch.cudnn_convolution_relu
        except RuntimeError:
            pass
    return lambda *arguments: F.conv2d(*arguments).relu_()


@functools.lru_cache(maxsize=1)
def _inductor(*geometry: Any) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(
        lambda x, weight, bias: F.conv2d(x, weight, bias, *geometry).relu(),
        dynamic=False,
        options={"max_autotune": True, "max_autotune_conv_backends": "TRITON"},
    )
