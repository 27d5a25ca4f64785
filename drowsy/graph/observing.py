"""What a model's own code does with its convolutions, found from one observed run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from drowsy.graph.tree import copied
from drowsy.network.standin import Standin
from drowsy.network.tail import tells_no_values


@dataclass(frozen=True, eq=False)
class Reading:
    """One use of a tensor's values.

    Attributes:
        by: the module that reads it, or the function or method of torch.
        args, kwargs: of that call.
        output: what came of it.
    """

    by: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    def is_of(self, tensor: Tensor) -> bool:
        """Whether the tensor is what the call works on: its first argument, and no other tensor."""
        others = [*self.args[1:], *self.kwargs.values()]
        alone = not any(isinstance(leaf, Tensor) for leaf in tree_leaves(others))
        return bool(self.args) and self.args[0] is tensor and alone


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a watched module that gave a tensor."""

    module: nn.Module
    input: Any
    output: Tensor


@dataclass
class Observed:
    """What one run showed.

    Attributes:
        output: of the model.
        calls: of the watched modules, in order of execution.
    """

    output: Any = None
    calls: list[Call] = field(default_factory=list)
    _readings: dict[int, list[Reading]] = field(default_factory=dict)

    def readings(self, tensor: Tensor) -> Sequence[Reading]:
        """Who read a watched module's output, in order."""
        return self._readings.get(id(tensor), ())


def observe(
    model: nn.Module, watched: Sequence[nn.Module], method: str, args: Any, kwargs: Any
) -> Observed:
    """Run a copy of a model and note who reads what the watched modules put out.

    Calls of torch inside a watched module are its own. What reads a tensor unseen (a scripted
    function, say) is not noted.

    Args:
        model: stays as it was.
        watched: modules of it.
        method: which to call, ``forward`` mostly.
        args, kwargs: of that call.
    """
    observer = _Observer()
    standins = {id(module): _Watched(module, observer) for module in watched}
    copy = copied(model, standins, own_state=True)
    with observer:
        output = getattr(copy, method)(*args, **kwargs)
    observer.seen.output = output
    observer.read("the caller", (output,), {}, None)
    return observer.seen


class _Observer(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = Observed()
        self._inside = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """While a watched module runs."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with self.inside():
            output = func(*args, **kwargs)
        if not tells_no_values(func):
            self.read(func, args, kwargs, output)
        return output

    def read(self, by: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        if self._inside:
            return
        reading = Reading(by, args, kwargs, output)
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.seen._readings:
                self.seen._readings[id(leaf)].append(reading)

    def called(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        if self._inside:
            return
        self.read(module, args, kwargs, output)
        if isinstance(output, Tensor):
            # Held, so that no other tensor gets its ``id``.
            self.seen.calls.append(Call(module, args[0] if args else None, output))
            self.seen._readings.setdefault(id(output), [])


class _Watched(Standin):
    def __init__(self, module: nn.Module, observer: _Observer) -> None:
        super().__init__(module)
        self.__dict__["_observer"] = observer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        observer = self.__dict__["_observer"]
        with observer.inside():
            output = self.stood_for.forward(*args, **kwargs)
        observer.called(self.stood_for, args, kwargs, output)
        return output
