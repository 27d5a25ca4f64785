"""A module that stands in for another one: it shares its tensors and children and answers as it."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

COMPILED = "_compiled_call_impl"
"""Where a module keeps what ``nn.Module.compile`` makes of its own call."""

# Tracers put theirs in its place.
_CALL = nn.Module.__call__


def plainly_called(module: nn.Module) -> bool:
    """Whether calling a module runs its ``forward``, and no more: nobody has hooked to it."""
    return not (
        torch.compiler.is_compiling()
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl
        or _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
        or nn.Module.__call__ is not _CALL
    )


class Standin(nn.Module):
    """Stands in for a module: for whoever asks, the same children, tensors, attributes and class.

    A subclass says what it does differently. Its own attributes lie apart from the module's, so
    that neither sees the other's; where both have a name, the stand-in's is found first. What is
    set goes to the module, unless the subclass lists it in ``_own``.

    Hooks of the module are the stand-in's: a subclass calls the module's ``forward`` alone.
    """

    _own: frozenset[str] = frozenset()
    _module: nn.Module

    def __init__(self, module: nn.Module) -> None:
        # Not nn.Module.__init__: dictionaries of children and tensors are the module's own, so that
        # whatever walks or moves them walks and moves the module's.
        self.__dict__["_module"] = module

    @property
    def stood_for(self) -> nn.Module:
        """The module."""
        return self._module

    @property
    def __class__(self) -> type:
        """For ``isinstance``: of this class and of the module's. ``type`` tells this one alone."""
        module = self.__dict__.get("_module")
        return type(self) if module is None else _both(type(self), type(module))

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise AttributeError(
            f"__class__: got {value.__name__}, allowed: nothing, it is the module's"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As any module; what a call looks up, it looks up at the module, not through here."""
        if self._compiled_call_impl is None:
            if plainly_called(self._module):
                return self.forward(*args, **kwargs)
        elif is_in_torch_dispatch_mode(include_infra_modes=False):
            # Of which Dynamo compiles nothing: see ``drowsy.knob.uncompiled``.
            return self._call_impl(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__.get("_module")
        # Protocols of Python's own (copying, pickling) are the stand-in's, not the module's.
        if module is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in self._own or name == "__dict__"
        if own or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            setattr(self.stood_for, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            object.__delattr__(self, name)
        else:
            delattr(self.stood_for, name)

    def __dir__(self) -> list[str]:
        return sorted({*object.__dir__(self), *dir(self.stood_for)})

    def __reduce__(self) -> tuple[Any, ...]:
        # As of any module, what ``compile`` made of its call is not copied.
        state = {name: self.__dict__[name] for name in self.__dict__ if name != COMPILED}
        return _bare, (type(self),), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    # As a container, where the module is one; else they raise what they do for the module.

    @property
    def _items(self) -> Any:
        return self._module

    def __getitem__(self, key: Any) -> Any:
        return self._items[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._items[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._items[key]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __contains__(self, key: Any) -> bool:
        return key in self._items

    def __bool__(self) -> bool:
        return bool(self._module)

    # nn.Module finds these by attribute, where a child's name would be mistaken for a stand-in's.

    def get_submodule(self, target: str) -> nn.Module:
        return self.stood_for.get_submodule(target) if target else self

    def get_parameter(self, target: str) -> nn.Parameter:
        return self.stood_for.get_parameter(target)

    def get_buffer(self, target: str) -> Tensor:
        return self.stood_for.get_buffer(target)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.stood_for.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.stood_for.load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Standin:
        self.stood_for.train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Standin:
        self.stood_for._apply(fn, recurse)
        return self


_classes: dict[tuple[type, type], type] = {}


def _both(standin: type, of: type) -> type:
    """A class of both kinds, of which no instance is made."""
    found = _classes.get((standin, of))
    if found is None:
        try:
            found = types.new_class(f"{standin.__name__}{of.__name__}", (standin, of))
        except TypeError:  # their metaclasses do not go together
            found = standin
        _classes[standin, of] = found
    return found


def _bare(kind: type[Standin]) -> Standin:
    return kind.__new__(kind)
