"""What a launcher has decided: a kernel, its grid and every argument.

Launchers are split into a plan and its execution, so that offline compilation (``offline.py``)
compiles exactly what would be launched, from meta tensors and without a GPU. A launcher is written
once, as the plan, and ends in ``planned``; ``launched`` makes of it what runs, ``plan_of`` what
only plans:

    @launched
    def double(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        return planned(out, Launch(...), on=("x", x))

    plan_double = plan_of(double)  # x -> (out, launches)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, cast

import torch
import triton
from torch import Tensor

MAX_PROGRAMS = 2**31 - 1
ALL_REGISTERS = 255
# Of whatever a kernel addresses with 32 bits: one image's input, output or map.
MAX_ELEMENTS = 2**31 - 1

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# Pointers that may lie inside a buffer which layers share: one layer's threshold among those of
# all, a slice of a bias. How they are aligned differs from layer to layer, and a kernel made for it
# would be compiled twice. Nothing is lost: words are read from them one at a time.
VIEWS = (
    *("threshold", "scale", "clock", "bias", "slopes", "post_slopes"),
    *("count", "counts", "block_counts"),
)


@triton.jit
def _probe() -> None:
    pass


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1 before the import)."""
    return not isinstance(_probe, triton.JITFunction)


@dataclass(frozen=True)
class Launch:
    """One kernel launch: ``kernel[grid](**arguments)``.

    ``max_registers`` of a thread: what the compiler may use, where that decides how many programs
    share a multiprocessor. ``ALL_REGISTERS`` is worth saying: left to itself the assembler now and
    then prefers a spill.
    """

    kernel: Any
    grid: tuple[int]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    @classmethod
    def pick(
        cls,
        kernel: Any,
        programs: int,
        arguments: dict[str, Any],
        num_warps: int,
        num_stages: int,
        max_registers: int | None = None,
    ) -> Launch:
        """A launch with those of ``arguments`` that ``kernel`` takes."""
        taken = {name: arguments[name] for name in kernel.arg_names}
        return cls(kernel, (programs,), taken, num_warps, num_stages, max_registers)

    def options(self, arch: int) -> dict[str, Any]:
        """Compile options for a compute capability, 90 for sm_90.

        A multiply and an add may fuse, which Triton wants said. Before Hopper the operands of a
        matrix product lie in registers too, so a kernel may have all there are.
        """
        options = {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers if arch >= 90 else ALL_REGISTERS
        return options

    def run(self, device: torch.device) -> None:
        """Launch on the current stream of ``device``; an empty grid launches nothing."""
        if self.grid[0] == 0:
            return
        if self.grid[0] > MAX_PROGRAMS:
            raise ValueError(f"grid: got {self.grid[0]} programs, allowed: up to {MAX_PROGRAMS}")
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._launch(device)
        else:
            self._launch(device)

    def _launch(self, device: torch.device) -> None:
        self.kernel[self.grid](**self.arguments, **self.options(_capability(device)))


@functools.lru_cache
def _capability(device: torch.device) -> int:
    """90 for sm_90; 0 where there is no GPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def check_device(name: str, tensor: Tensor) -> torch.device:
    """The tensor's device, if kernels can run there.

    Raises:
        ValueError: a CPU tensor without Triton's interpreter, or another kind of device.
    """
    device = tensor.device
    if device.type == "cpu" and not interpreted():
        raise ValueError(
            f"{name}: got a CPU tensor, allowed: CUDA tensors, or CPU tensors under Triton's "
            "interpreter (set TRITON_INTERPRET=1 before drowsy_kernels is imported)"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: got a tensor on {device}, allowed: CUDA or CPU")
    return device


def check_operand(
    name: str,
    tensor: Tensor,
    *,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Raise unless a small operand is a contiguous tensor of this dtype, shape and device.

    A shape ``(1,)`` stands for any tensor of one element.
    """
    if tensor.dtype not in dtypes:
        allowed = " or ".join(map(str, dtypes))
        raise TypeError(f"{name}: got {tensor.dtype}, allowed: {allowed}")
    fits = tensor.numel() == 1 if shape == (1,) else tuple(tensor.shape) == shape
    if not fits or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: got shape {tuple(tensor.shape)} with strides {tensor.stride()}, "
            f"allowed: contiguous {shape}"
        )
    if tensor.device != device:
        raise ValueError(f"{name}: got a tensor on {tensor.device}, allowed: {device}")


# --- from a plan to its execution -----------------------------------------------------------------


@dataclass(frozen=True)
class _Plan(Generic[_Result]):
    """A launcher's result and what must run before it holds; ``on``: an operand and its name."""

    result: _Result
    launches: tuple[Launch, ...]
    on: tuple[str, Tensor]


def planned(result: _Result, *launches: Launch, on: tuple[str, Tensor]) -> _Result:
    """What a function under ``launched`` returns: its result, once ``launches`` have run.

    To its callers it returns the result, and is typed so.

    Args:
        result: of the launcher.
        launches: in their order.
        on: name and tensor of an operand, on whose device they run.
    """
    return cast(_Result, _Plan(result, launches, on))


def launched(plan: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The launcher that does what ``plan`` has planned."""

    @functools.wraps(plan)
    def launcher(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        made = cast(_Plan[_Result], plan(*args, **kwargs))
        device = check_device(*made.on)
        for launch in made.launches:
            launch.run(device)
        return made.result

    return launcher


def plan_of(
    launcher: Callable[_Arguments, _Result],
) -> Callable[_Arguments, tuple[_Result, tuple[Launch, ...]]]:
    """What ``launcher``, of ``launched``, would return and launch: ``(result, launches)``.

    Arguments are checked and the result is allocated as a launch would; nothing runs, so that
    operands may be meta tensors.
    """
    plan: Callable[_Arguments, _Result] = launcher.__wrapped__  # type: ignore[attr-defined]

    def planner(
        *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> tuple[_Result, tuple[Launch, ...]]:
        made = cast(_Plan[_Result], plan(*args, **kwargs))
        return made.result, made.launches

    return planner
