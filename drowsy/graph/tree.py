"""A copy of a model's module tree, in which some modules are others."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from drowsy.network.standin import COMPILED

# What holds parameters, and the names of buffers, which a copy shares.
_SHARED = frozenset(("_parameters", "_non_persistent_buffers_set"))


def copied(
    model: nn.Module, swaps: Mapping[int, nn.Module], *, own_state: bool = False
) -> nn.Module:
    """``model`` with its own containers, shared tensors and leaves, and some modules swapped.

    Copies are of the model's own classes, whose ``forward`` runs; no constructor is called.
    Wherever a module refers to another one (as a child, in a list, a dictionary or a tuple, by a
    method bound to it, by ``functools.partial``), its copy refers to that one's copy. Library
    modules without children are shared, and scripted ones, whose code cannot be changed.

    Args:
        model: any module.
        swaps: modules by the ``id`` of those in whose place they come.
        own_state: whether the copy has buffers, and tensors that are plain attributes, of its own:
            what its code does to them is not done to the model.
    """
    return _Copying(swaps, own_state).module(model)


class _Copying:
    def __init__(self, swaps: Mapping[int, nn.Module], own_state: bool) -> None:
        self._own_state = own_state
        self._made: dict[int, Any] = dict(swaps)
        # What is found by its ``id`` must not go before the copy is made.
        self._held: list[Any] = []

    def module(self, module: nn.Module) -> nn.Module:
        if id(module) in self._made:
            return self._made[id(module)]
        if _shared(module):
            return module
        # Not by its class, which may do more: one of fx.GraphModule would make another class.
        made: nn.Module = object.__new__(type(module))
        self._keep(module, made)
        for name, value in module.__dict__.items():
            if name == COMPILED:  # which would call the model
                continue
            if name not in _SHARED:
                value = self.value(value)
                # Hooks that come to the copy do not come to the model.
                if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                    value = value.copy() if hasattr(value, "copy") else value
            made.__dict__[name] = value
        return made

    def value(self, value: Any) -> Any:
        """An attribute's value, modules within it replaced by their copies."""
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, nn.Module):
            return self.module(value)
        if self._own_state and type(value) is torch.Tensor:
            clone = value.detach().clone()
            self._keep(value, clone)
            return clone
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.module(value.__self__))
        if type(value) is functools.partial:
            args, keywords = self.value(value.args), self.value(value.keywords)
            return functools.partial(self.value(value.func), *args, **keywords)
        if isinstance(value, dict) and type(value).__module__ in ("builtins", "collections"):
            made = value.copy()
            self._keep(value, made)
            for key in made:
                made[key] = self.value(made[key])
            return made
        if type(value) is list:
            grown: list[Any] = []
            self._keep(value, grown)
            grown.extend(map(self.value, value))
            return grown
        if type(value) in (tuple, set):
            made = type(value)(map(self.value, value))
            self._keep(value, made)
            return made
        return value

    def _keep(self, original: Any, made: Any) -> None:
        self._made[id(original)] = made
        self._held.append(original)


def _shared(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return True
    library = type(module).__module__.partition(".")[0] == "torch"
    return library and not module._modules and type(module).__dict__.get("forward") is not None
