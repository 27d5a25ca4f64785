"""Convolution of compact rows through a table, against a gather and a matrix product in float64."""

from __future__ import annotations

import math
from typing import Any

import drowsy_kernels as kernels
import pytest
import torch
from torch import Tensor

from drowsy.neuron import activate
from tests.kernels.slopes import slopes_of

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    table: Tensor,
    residual: Tensor,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:
    """``act(residual + 2 act(conv + bias))``, all rows, in ``dtype``."""
    rows = torch.cat([x, x.new_zeros(1, x.shape[1])]).to(dtype)
    taps = weight.flatten(2).to(dtype)
    y = sum(rows[table[tap].long()] @ taps[:, :, tap].t() for tap in range(taps.shape[2]))
    slopes = slopes_of(activation, len(weight), weight)
    slopes = None if slopes is None else slopes.to(dtype)
    y = activate(y + bias.to(dtype), activation, slopes)
    return activate(residual.to(dtype) + 2 * y, activation, slopes)


@pytest.mark.parametrize("count", [0, 1, 50, 70])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("channels", "out_channels", "kernel", "activation"),
    [(64, 20, 3, "relu"), (3, 16, 3, "prelu"), (33, 70, 1, "relu"), (16, 9, 1, "prelu")],
)
def test_rows(
    channels: int,
    out_channels: int,
    kernel: int,
    activation: str,
    dtype: str,
    count: int,
    triton_device: torch.device,
) -> None:
    """Rows up to the count are right, the others untouched."""
    length, sources = 70, 45
    taps, depth = kernel * kernel, channels * kernel * kernel
    made = [
        torch.randn(sources, channels),
        torch.randn(out_channels, channels, kernel, kernel) / math.sqrt(depth),
        torch.randn(out_channels),
        torch.randn(length, out_channels),
    ]
    x, weight, bias, residual = (tensor.to(triton_device, DTYPES[dtype]) for tensor in made)
    table = torch.randint(-1, sources, (taps, length), dtype=torch.int32, device=triton_device)
    # Entries past the count name nothing.
    table[:, count:] = 2**30
    y = kernels.conv2d_rows(
        x,
        kernels.pack_weight(weight),
        bias,
        table=table,
        count=torch.tensor([count], dtype=torch.int32, device=triton_device),
        activation=activation,
        slopes=slopes_of(activation, out_channels, x),
        scale=torch.tensor([2.0], device=triton_device),
        residual=residual,
        post_activation=activation,
        post_slopes=slopes_of(activation, out_channels, x),
        out=torch.full((length, out_channels), math.nan, dtype=x.dtype, device=triton_device),
    )
    assert y[count:].isnan().all()
    if count == 0:
        return
    operands = (x, weight, bias, table[:, :count], residual[:count], activation)
    expected = reference(*operands, torch.float64)
    eager = reference(*operands, x.dtype).double()
    largest = expected.abs().max().clamp(min=1)
    order = torch.finfo(torch.float32).eps * math.sqrt(depth) * largest
    budget = (eager - expected).abs().max() + order + torch.finfo(x.dtype).eps / 2 * largest
    assert (y[:count].double() - expected).abs().max() <= budget


def test_one_tap_needs_no_table(triton_device: torch.device) -> None:
    x = torch.randn(40, 24, device=triton_device)
    weight = kernels.pack_weight(torch.randn(8, 24, 1, 1, device=triton_device))
    count = torch.tensor([33], dtype=torch.int32, device=triton_device)
    every = torch.arange(40, dtype=torch.int32, device=triton_device)[None]
    named = kernels.conv2d_rows(x, weight, table=every, count=count)
    assert torch.equal(kernels.conv2d_rows(x, weight, table=None, count=count)[:33], named[:33])


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [64, 80])
@pytest.mark.parametrize(
    "config", [c for c in kernels.SHIPPED_CONFIGS["half"] if c.block_m == 256], ids=str
)
def test_tall_tiles(
    config: kernels.ConvConfig, channels: int, kernel: int, triton_device: torch.device
) -> None:
    """What 64 rows at a time give, 256 rows at a time do, of one K step and of several."""
    length, taps = 600, kernel * kernel
    operands = (
        torch.randn(length, channels, device=triton_device).half(),
        kernels.pack_weight(
            torch.randn(160, channels, kernel, kernel, device=triton_device).half()
        ),
        torch.randn(160, device=triton_device),
    )
    table = torch.randint(-1, length, (taps, length), dtype=torch.int32, device=triton_device)
    options: dict[str, Any] = {
        "table": table if kernel > 1 else None,
        "count": torch.tensor([517], dtype=torch.int32, device=triton_device),
        "residual": torch.randn(length, 160, device=triton_device).half(),
        "post_activation": "relu",
    }
    low = kernels.ConvConfig(64, 32, 64, 4, 3)
    expected = kernels.conv2d_rows(*operands, config=low, **options)[:517]
    y = kernels.conv2d_rows(*operands, config=config, **options)[:517]
    assert torch.allclose(y.float(), expected.float(), rtol=2**-10, atol=1e-3)


def test_nothing_to_do(triton_device: torch.device) -> None:
    weight = kernels.pack_weight(torch.randn(8, 24, 1, 1, device=triton_device))
    count = torch.zeros(1, dtype=torch.int32, device=triton_device)
    x = torch.randn(0, 24, device=triton_device)
    assert kernels.conv2d_rows(x, weight, table=None, count=count).shape == (0, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(9, 7)}, "x: got shape"),
        ({"x": torch.zeros(9, 8, dtype=torch.float16)}, "x: got torch.float16"),
        ({"x": torch.zeros(8, 9).t()}, "x: got shape"),
        ({"table": torch.zeros(9, 5)}, "table: got torch.float32"),
        ({"table": torch.zeros(8, 5, dtype=torch.int32)}, "table: got shape"),
        ({"table": None}, "table: got None"),
        ({"count": torch.zeros(2, dtype=torch.int32)}, "count"),
        ({"bias": torch.zeros(3)}, "bias"),
        ({"out": torch.zeros(4, 4)}, "out"),
        ({"residual": torch.zeros(4, 4)}, "residual"),
        ({"precision": "fp8"}, "precision"),
        ({"groups": 2}, "weight: got 2 groups"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(
    change: dict[str, Any], message: str, triton_device: torch.device
) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(9, 8),
        "table": torch.zeros(9, 5, dtype=torch.int32),
        "count": torch.zeros(1, dtype=torch.int32),
        **change,
    }
    groups = arguments.pop("groups", 1)
    arguments = {
        name: value.to(triton_device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    weight = kernels.pack_weight(torch.zeros(4, 8 // groups, 3, 3, device=triton_device), groups)
    with pytest.raises((ValueError, TypeError), match=message):
        kernels.conv2d_rows(arguments.pop("x"), weight, **arguments)
