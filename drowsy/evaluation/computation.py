"""What a network computes, told in values that are the same in every process.

Equal weights are not enough: another activation, stride, epsilon or buffer computes something else
under the same ``state_dict``. So a network is told by its graph, where it has one, and by each of
its modules: its class, with the code of classes that are not torch's; its attributes; its hooks;
its parameters and buffers, those included that are not part of ``state_dict``. What the knob says
(rates, clock), which fills and maps layers sleep by, corrections, and where tensors lie are not
told.
"""

from __future__ import annotations

import builtins
import enum
import functools
import hashlib
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from drowsy.knob.control import Control
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.standin import Standin

# Attributes of any module, most of which decide nothing in inference.
_OF_EVERY_MODULE = vars(nn.Module()).keys()
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# Objects that are not plain values are followed to the values in them, so many objects deep.
_DEPTH = 3
# Libraries whose code is told by its name.
_KNOWN = {"torch", "drowsy", "drowsy_kernels", "numpy", *sys.stdlib_module_names}
_KNOWN -= {"__main__", "builtins"}
_PLAIN = (bool, int, str, types.NoneType)
_WRITTEN = (
    *(int, float, complex, str, bytes, range, slice, Fraction, types.EllipsisType),
    *(torch.dtype, torch.memory_format, torch.layout),
)
# What differs from run to run where scripts are printed: numbers of names, places in memory, lines.
_PASSING = re.compile(r"___torch_mangle_\d+\.| at 0x[0-9a-f]+| # \S+:\d+:\d+")
# Numbers that are hashed at once.
_PART = 1 << 22


def tell(net: nn.Module) -> list[Any]:
    """What a network computes, JSON-able; tensors by ``digest_of``."""
    with torch.no_grad():
        return _Teller(net).network()


def fingerprint_value(value: Any) -> str:
    """SHA-256 of what a function or any other value is, told as an attribute of a network is."""
    teller = _Teller(nn.Module())
    told = [teller.value(value), *teller.further()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def digest_of(tensor: Tensor) -> str:
    """SHA-256 over dtype, shape and values; device and memory format do not count."""
    digest = hashlib.sha256()
    feed(digest, "", tensor)
    return digest.hexdigest()


def feed(digest: Any, name: str, tensor: Tensor) -> None:
    """Feed a name and a tensor's dtype, shape and values to a hash of ``hashlib``."""
    tensor = tensor.detach()
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if not tensor.numel():
        return
    # In parts, so that a large set of images is not copied whole into the order that counts.
    rows = max(_PART * len(tensor) // tensor.numel(), 1) if tensor.dim() else 1
    for part in tensor.split(rows) if tensor.dim() else [tensor]:
        digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy())


class _Teller:
    """Tells one network; every tensor is read once."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        walk = net.named_modules(remove_duplicate=False)
        self._modules = [(name, _itself(module)) for name, module in walk]
        # By its first name where it has several.
        self._names = {id(module): name for name, module in reversed(self._modules)}
        self._digests: dict[int, str] = {}
        # What is told in the end, and its numbers.
        self._further: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._open: set[int] = set()

    def network(self) -> list[Any]:
        graph = getattr(self._net, "graph", None)
        told = [self._graph(graph) if isinstance(graph, fx.Graph) else None]
        for name, module in self._modules:
            if not isinstance(module, Control):
                # A second name of a module is told by the first.
                first = self._names[id(module)] == name
                told.append([name, self._module(module) if first else self.value(module)])
        told += self.further()
        return told

    def further(self) -> Iterator[Any]:
        """What values named that is told once, in the end."""
        # There are more of them while they are told.
        yield from (self._once(each) for each in self._further)

    # --- modules and graphs -------------------------------------------------------------------

    def _module(self, module: nn.Module) -> list[Any]:
        if isinstance(module, DrowsyConv2d):
            return ["DrowsyConv2d", self._convolution(module)]
        attributes = {
            name: each
            for name, each in sorted(vars(module).items())
            if name not in _OF_EVERY_MODULE or name == "training"
        }
        hooks = [list(vars(module)[name].values()) for name in _HOOKS]
        scripted = isinstance(module, torch.jit.ScriptModule)
        return [
            self._class(type(module)),
            self._tensors(module),
            self.value(attributes),
            self.value(hooks),
            self._script(module) if scripted else None,
        ]

    def _script(self, module: Any) -> list[Any]:
        """The code, numbers and constants of a scripted module, of which Python sees nothing."""
        text = _PASSING.sub("", module._c.dump_to_str(True, True, False))
        try:
            return [text, self.value(module.code_with_constants[1].const_mapping)]
        except (AttributeError, RuntimeError):  # of modules without a forward
            return [text]

    def _convolution(self, layer: DrowsyConv2d) -> list[Any]:
        settings = {name: getattr(layer, name) for name in (*nn.Conv2d.__constants__, "activation")}
        # Of layers that pad in no way of their own nothing is told, as before these had names.
        settings |= {
            name: own for name in ("pads_same", "pads_first") if (own := getattr(layer, name))
        }
        if layer.prelu is not None:
            settings["prelu"] = layer.prelu
        parameters = dict(layer.named_parameters(recurse=False))
        return [
            self.value(each) for each in (settings, parameters, layer.norm, _left_behind(layer))
        ]

    def _tensors(self, module: nn.Module) -> list[Any]:
        own = [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False, remove_duplicate=False),
        ]
        return [[name, self.value(tensor)] for name, tensor in own]

    def _graph(self, graph: fx.Graph) -> list[Any]:
        """Its code, and what the names in it stand for."""
        code = graph.python_code("self")
        return [code.src, [[n, self.value(each)] for n, each in sorted(code.globals.items())]]

    def _class(self, kind: type) -> Any:
        """A class by its name; with its methods and attributes unless its code is known."""
        return _name(kind) if all(map(_is_known, kind.__mro__)) else self._later(kind)

    def _later(self, each: Any) -> list[Any]:
        """The name and number of what is told in the end, once: a function, class or module."""
        if id(each) not in self._numbers:
            self._numbers[id(each)] = len(self._further)
            self._further.append(each)
        return [_name(each if isinstance(each, type) else type(each)), self._numbers[id(each)]]

    def _once(self, each: Any) -> list[Any]:
        if isinstance(each, types.FunctionType):
            return list(self._function(each))
        if isinstance(each, nn.Module):
            children = [[name, self.value(child)] for name, child in each.named_children()]
            return [self._module(each), children]
        own = [kind for kind in each.__mro__ if not _is_known(kind)]
        return [[_name(kind), self._members(kind)] for kind in own]

    def _members(self, kind: type) -> list[Any]:
        told = []
        for name, member in sorted(vars(kind).items()):
            function = _function_of(member)
            if function is not None or not name.startswith("__"):
                told.append([name, self.value(member if function is None else function)])
        return told

    # --- values -------------------------------------------------------------------------------

    def value(self, value: Any, depth: int = _DEPTH) -> Any:
        """A value as JSON holds it, such that different ones are told differently."""
        if isinstance(value, nn.Module):
            value = _itself(value)
        kind = type(value)
        if kind in _PLAIN:
            return value
        if isinstance(value, enum.Enum):
            return [_name(kind), value.name, self.value(value.value)]
        if isinstance(value, _WRITTEN):
            return [_name(kind), repr(value)]
        if isinstance(value, Tensor):
            if id(value) not in self._digests:
                self._digests[id(value)] = digest_of(value)
            return [kind.__name__, self._digests[id(value)]]
        if isinstance(value, nn.Module) and id(value) in self._names:
            return ["module", self._names[id(value)]]
        if isinstance(value, torch.device):
            return "device"
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            data = repr(array.tolist()) if array.dtype.hasobject else array.tobytes()
            text = data.encode() if isinstance(data, str) else data
            return [array.dtype.str, list(array.shape), hashlib.sha256(text).hexdigest()]
        if isinstance(value, type):
            return ["class", _name(value)]
        if isinstance(value, (types.FunctionType, nn.Module)):
            # A module that is hidden from the tree, as one in a list is.
            return self._later(value)
        if id(value) in self._open:
            return ["again", _name(kind)]
        self._open.add(id(value))
        try:
            return [self._class(kind), *self._inside(value, depth)]
        finally:
            self._open.remove(id(value))

    def _inside(self, value: Any, depth: int) -> Iterator[Any]:
        """What something is made of."""
        if isinstance(value, Sequence):
            yield from (self.value(each, depth) for each in value)
        elif isinstance(value, Mapping):
            for key, each in value.items():
                yield [self.value(key, depth), self.value(each, depth)]
        elif isinstance(value, Set):
            yield from sorted((self.value(each, depth) for each in value), key=repr)
        elif isinstance(value, fx.Graph):
            yield self._graph(value)
        elif isinstance(value, torch.jit.ScriptFunction):
            yield value.code
        elif isinstance(value, types.MethodType):
            yield self.value(value.__func__)
            yield self.value(value.__self__, depth)
        elif isinstance(value, functools.partial):
            yield from (self.value(e, depth) for e in (value.func, value.args, value.keywords))
        elif isinstance(getattr(value, "__name__", None), str):
            # Built-in functions, operators, libraries; what others are made from.
            yield from (str(getattr(value, "__module__", "")), getattr(value, "__qualname__", ""))
            yield value.__name__
            yield [self.value(getattr(value, e, None), depth) for e in ("__self__", "__wrapped__")]
        elif depth and hasattr(value, "__dict__"):
            yield self.value(dict(sorted(vars(value).items())), depth - 1)
        elif " at 0x" not in (text := repr(value)):
            yield text

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        """A function by its name, and unless its code is known by what it does."""
        yield from (function.__module__, function.__qualname__)
        if _is_known(function):
            return
        yield self._code(function.__code__)
        yield self.value([function.__defaults__, function.__kwdefaults__])
        yield [self.value(cell.cell_contents) for cell in function.__closure__ or () if _full(cell)]
        # What it finds outside itself, as far as that is other functions or numbers.
        outside = {name: function.__globals__.get(name) for name in _names_in(function.__code__)}
        followed = (types.FunctionType, bool, int, float, str, tuple)
        yield [[n, self.value(e)] for n, e in sorted(outside.items()) if isinstance(e, followed)]

    def _code(self, code: types.CodeType) -> list[Any]:
        constants = [
            self._code(each) if isinstance(each, types.CodeType) else self.value(each)
            for each in code.co_consts
        ]
        return [code.co_code.hex(), list(code.co_names), list(code.co_varnames), constants]


def _itself(module: nn.Module) -> nn.Module:
    """What a stand-in stands for: of a network the model, all else is about the knob."""
    return module.stood_for if isinstance(module, Standin) else module


def _left_behind(layer: DrowsyConv2d) -> list[Tensor | None]:
    """The folded weight and bias, where these are not what the batch norm's folding gives.

    So it is after a change that ``refresh`` did not follow, and in another dtype than was folded.
    Otherwise weights and batch norm tell them, which do not depend on where they were folded.
    """
    if layer.folded_weight is None:
        return []
    kept = [layer.folded_weight, layer.folded_bias]
    number = torch.finfo(layer.folded_weight.dtype)
    # Other devices and processors round the last digits of wide numbers otherwise.
    near = 16 * number.eps if number.bits >= 32 else 0.0
    for mine, theirs, least in zip(kept, layer._fold(), (0.0, near), strict=True):
        if mine is None or theirs is None:
            if mine is not theirs:
                return kept
        elif not torch.equal(mine, theirs):
            atol = least * float(theirs.abs().max())
            if not torch.allclose(mine, theirs, rtol=near, atol=atol):
                return kept
    return []


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_known(each: Any) -> bool:
    library = str(each.__module__).partition(".")[0]
    return library in _KNOWN or getattr(builtins, each.__name__, None) is each


def _function_of(member: Any) -> types.FunctionType | None:
    """The function behind a class's member; None where there is none."""
    if isinstance(member, property):
        member = member.fget
    member = getattr(member, "__func__", member)
    return member if isinstance(member, types.FunctionType) else None


def _names_in(code: types.CodeType) -> set[str]:
    nested = (_names_in(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return set(code.co_names).union(*nested)


def _full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # not assigned yet
        return False
