"""Compile launches for a GPU that is not there, and read what came out.

Triton compiles for any architecture given a target; the machine code then shows what decides
performance before anything runs: registers, spills, shared memory, which matrix instructions the
main loop uses and how long it is. Works without a GPU and without a driver; needs the CUDA tools
that ship with Triton (ptxas, cuobjdump), and kernels that are not interpreted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from drowsy_kernels.launch import Launch, interpreted
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.tools.tensor_descriptor import TensorDescriptor

ARCHITECTURES = (80, 90, 100)
# Shared memory of a multiprocessor, and what of it the system takes for each program.
_SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
_RESERVED = 1024

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
_DIVISIBLE_BY_16 = [["tt.divisibility", 16]]

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_BRANCH_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_TENSOR_MATH = ("HGMMA", "HMMA", "IMMA", "UTCHMMA", "UTCQMMA")
_SCALAR_MATH = ("FFMA", "FFMA2")
_GLOBAL_LOADS = ("LDG", "LDGSTS", "UTMALDG", "UBLKCP")


@dataclass(frozen=True)
class CompileReport:
    """What a compiled kernel is made of.

    Args:
        kernel: its name.
        arch: compute capability, 90 for sm_90.
        registers: per thread.
        spill_bytes: bytes per thread that spill loads and stores move, counted in the code.
        shared_bytes: shared memory of a program.
        programs: in the grid.
        resident: programs that share a multiprocessor, by shared memory and registers.
        narrowest_store: bytes of the narrowest store to global memory in the PTX; 0 without one.
        wgmma, mma, tcgen05: matrix instructions in the PTX, by generation.
        loop_instructions: machine instructions of a turn of the main loop that skips what can be
            skipped, such as the epilogue of a tile that goes on (0 where there is no loop: few K
            steps are unrolled for good).
        loop_global_loads: load and copy instructions from global memory in it.
        loop_products: matrix instructions in it, or multiply-adds where there are none.
        loop_steps: K steps that an iteration of it takes.
        step_instructions, step_loads: instructions and loads of one K step.
    """

    kernel: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    programs: int
    resident: int
    narrowest_store: int
    wgmma: int
    mma: int
    tcgen05: int
    loop_instructions: int
    loop_global_loads: int
    loop_products: int
    loop_steps: int
    step_instructions: float
    step_loads: float


def compile_launch(launch: Launch, arch: int) -> CompileReport:
    """Compile what ``launch`` would run for compute capability ``arch`` and describe the result.

    The plan may hold meta tensors. Pointers count as aligned to 16 bytes, but for those of which a
    launch does not ask it (``launch.VIEWS``).

    Raises:
        RuntimeError: under TRITON_INTERPRET=1, where there is nothing to compile.
    """
    compiled = _compile(launch, arch)
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    usage = _usage(cubin)
    # Disassembly takes as long as assembly: integers alone without a stack have nothing to show.
    shows = usage["STACK"] or re.search(r"\.b?f(16|32|64)|mma", ptx)
    sass = _disassembled(cubin) if shows else []
    loop = _main_loop(sass)
    loads = sum(line.operation in _GLOBAL_LOADS for line in loop)
    steps = _steps(loop, launch.arguments, 32 * launch.num_warps)
    registers = usage["REG"]
    shared = compiled.metadata.shared
    return CompileReport(
        kernel=launch.kernel.__name__,
        arch=arch,
        registers=registers,
        spill_bytes=_spilled(sass),
        shared_bytes=shared,
        programs=launch.grid[0],
        resident=_resident(arch, registers, launch.num_warps, shared),
        narrowest_store=min(_store_widths(ptx), default=0),
        wgmma=ptx.count("wgmma.mma_async"),
        mma=len(re.findall(r"\bmma\.sync", ptx)),
        tcgen05=len(re.findall(r"\btcgen05\.mma", ptx)),
        loop_instructions=len(loop),
        loop_global_loads=loads,
        loop_products=sum(line.operation in (*_TENSOR_MATH, *_SCALAR_MATH) for line in loop),
        loop_steps=steps,
        step_instructions=len(loop) / max(steps, 1),
        step_loads=loads / max(steps, 1),
    )


def spill_bytes(launch: Launch, arch: int) -> int:
    """That figure of ``compile_launch`` alone, sooner: what has no stack is not disassembled."""
    cubin = _compile(launch, arch).asm["cubin"]
    return _spilled(_disassembled(cubin)) if _usage(cubin)["STACK"] else 0


def _compile(launch: Launch, arch: int) -> CompiledKernel:
    if interpreted():
        raise RuntimeError(
            "offline compilation needs compiled kernels: unset TRITON_INTERPRET before "
            "drowsy_kernels is imported"
        )
    return triton.compile(
        _source(launch), target=GPUTarget("cuda", arch, 32), options=launch.options(arch)
    )


def _source(launch: Launch) -> ASTSource:
    """The specialisation that Triton's launcher would make of these arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
            if not parameter.do_not_specialize_on_alignment:
                attributes[(index,)] = _DIVISIBLE_BY_16
        elif isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{_POINTERS[value.base.dtype][1:]}{value.block_shape}>"
        elif parameter.do_not_specialize:
            signature[name] = "i32"
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(index,)] = _DIVISIBLE_BY_16
    return ASTSource(launch.kernel, signature, constants, attributes)


@dataclass(frozen=True)
class _Line:
    """One machine instruction; ``operation`` is LDG where ``name`` is LDG.E.128.

    ``guarded``: it is carried out only where a predicate holds.
    """

    address: int
    operation: str
    name: str
    operands: str
    guarded: bool


def _resident(arch: int, registers: int, warps: int, shared: int) -> int:
    """Programs that fit a multiprocessor: 64 Ki registers, dealt out to warps in units of 256."""
    by_registers = 65536 // (triton.cdiv(32 * registers, 256) * 256 * warps)
    by_shared = _SHARED_BYTES[arch] // (shared + _RESERVED)
    return min(by_registers, by_shared, 64 // warps)


def _dump(cubin: bytes, what: str) -> str:
    """What cuobjdump says of a cubin."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, f"--dump-{what}", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _usage(cubin: bytes) -> dict[str, int]:
    """Registers (REG) and stack bytes (STACK) of a thread, and what else a kernel takes."""
    found = re.findall(r"\b([A-Z]+):(\d+)", _dump(cubin, "resource-usage"))
    return {name: int(amount) for name, amount in found}


def _disassembled(cubin: bytes) -> list[_Line]:
    return [
        _Line(
            address=int(address, 16),
            operation=name.split(".")[0],
            name=name,
            operands=operands,
            guarded=bool(guard) or name.startswith("BRA.U"),
        )
        for address, guard, name, operands in _INSTRUCTION.findall(_dump(cubin, "sass"))
    ]


def _store_widths(ptx: str) -> list[int]:
    """Bytes that each store to global memory writes for a thread."""
    stores = re.findall(r"\bst\.global(?:\.[a-z]\w*)*?(?:\.v(\d))?\.[a-z](\d+)\b", ptx)
    return [int(count or 1) * int(bits) // 8 for count, bits in stores]


def _spilled(sass: list[_Line]) -> int:
    """Bytes that loads from and stores to local memory move."""
    widths = [
        re.search(r"\.(64|128)\b", line.name) for line in sass if line.operation in ("LDL", "STL")
    ]
    return sum(int(width[1]) // 8 if width else 4 for width in widths)


def _main_loop(sass: list[_Line]) -> list[_Line]:
    """The shortest turn of that innermost loop which multiplies most; empty without any."""
    tensor = any(line.operation in _TENSOR_MATH for line in sass)
    math = _TENSOR_MATH if tensor else _SCALAR_MATH

    def products(turn: list[_Line]) -> int:
        return sum(line.operation in math for line in turn)

    innermost: list[list[_Line]] = []
    for loop in sorted(_loops(sass), key=len):
        turn = _shortest_turn(loop, math)
        inside = any(loop[0].address <= kept[0].address <= loop[-1].address for kept in innermost)
        if products(turn) and not inside:
            innermost.append(turn)
    return max(innermost, key=products, default=[])


def _shortest_turn(loop: list[_Line], math: tuple[str, ...]) -> list[_Line]:
    """The way through a loop that multiplies most and, among these, is the shortest.

    Guarded branches ahead may go either way; empty if nothing leads to the loop's last branch.
    """
    index = {line.address: at for at, line in enumerate(loop)}
    # From an instruction to the end: multiplications (negated), instructions, what comes next.
    ways: list[tuple[int, int, int] | None] = [None] * len(loop)
    ways[-1] = (0, 1, len(loop))
    for at in range(len(loop) - 2, -1, -1):
        line = loop[at]
        leaves = line.operation in ("BRA", "EXIT")
        target = _BRANCH_TARGET.search(line.operands) if line.operation == "BRA" else None
        following = [at + 1] if line.guarded or not leaves else []
        if target is not None and index.get(int(target[1], 16), 0) > at:
            following.append(index[int(target[1], 16)])
        onward = [(*way[:2], step) for step in following if (way := ways[step]) is not None]
        if onward:
            products, length, step = min(onward)
            ways[at] = products - (line.operation in math), length + 1, step
    at, turn = 0, []
    while at < len(loop) and (way := ways[at]) is not None:
        turn.append(loop[at])
        at = way[2]
    return turn


def _steps(loop: list[_Line], arguments: dict[str, Any], threads: int) -> int:
    """K steps in the main loop, by the products that its instructions make."""
    made = 0.0
    for line in loop:
        shape = re.search(r"\.(\d+)x(\d+)x(\d+)", line.name)
        if line.operation == "HGMMA" and shape:
            # By four warps together.
            made += int(shape[1]) * int(shape[2]) * int(shape[3]) * threads / 128
        elif line.operation == "HMMA":
            # 16 x 8 by the depth in the name, by each warp.
            depth = re.search(r"\.168(\d+)", line.name)
            made += 16 * 8 * int(depth[1]) * threads / 32 if depth else 0
        elif line.operation in _SCALAR_MATH:
            made += threads * (2 if line.operation == "FFMA2" else 1)
        elif line.operation == "UTCHMMA":
            # One thread issues it for all; 128 bits of K, half or full height.
            x = arguments["x"]
            itemsize = (x.base if isinstance(x, TensorDescriptor) else x).element_size()
            made += arguments["BLOCK_M"] * arguments["BLOCK_N"] * 32 / itemsize
    blocks = [arguments.get(name) or 0 for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K")]
    products = blocks[0] * blocks[1] * blocks[2]
    return round(made / products) if products else 0


def _loops(sass: list[_Line]) -> Iterator[list[_Line]]:
    for line in sass:
        target = _BRANCH_TARGET.search(line.operands) if line.operation == "BRA" else None
        if target is not None and int(target[1], 16) < line.address:
            first = int(target[1], 16)
            yield [inside for inside in sass if first <= inside.address <= line.address]
