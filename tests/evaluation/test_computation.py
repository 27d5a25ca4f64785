"""The key of a result is what is computed, not the weights alone."""

from __future__ import annotations

import collections
import copy
import enum
import functools
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import drowsy
from drowsy.evaluation.identity import fingerprint_network, fingerprint_state

# --- networks of equal weights -------------------------------------------------------------------

Change = Callable[[nn.Sequential], object]


def model(change: Change = lambda _: None) -> nn.Module:
    """A network of fixed weights, changed before it is converted."""
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.LeakyReLU(0.1), nn.GroupNorm(2, 4), nn.MaxPool2d(2), Scaled(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    change(made)
    made.eval()
    with torch.no_grad():
        for number, tensor in enumerate(made.state_dict().values()):
            if tensor.is_floating_point():
                values = torch.arange(tensor.numel()).view(tensor.shape) * 7919 % 257
                tensor.copy_((values + number + 1) / 255)
    return made


class Scaled(nn.Module):
    """Reads a number, a buffer that ``state_dict`` does not have, and a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = 2.0
        self.register_buffer("shift", torch.ones(1), persistent=False)
        self.plain = nn.Identity()  # a place for a module that takes none of the above

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(x) * self.slope + self.shift


def replaced(place: int, *other: nn.Module) -> Change:
    def change(made: nn.Sequential) -> None:
        made[place] = other[0]

    return change


def attribute(place: int, name: str, value: object) -> Change:
    return lambda made: setattr(made[place], name, value)


CHANGES: dict[str, Change] = {
    "an activation in a neuron": replaced(2, nn.SiLU()),
    "an activation behind one": replaced(4, nn.LeakyReLU(0.2)),
    "no activation": replaced(2, nn.Identity()),
    "another order": lambda made: made.__setitem__(4, nn.ReLU()),
    "stride": attribute(6, "stride", 1),
    "dilation": lambda made: (
        setattr(made[3], "dilation", (2, 2)),
        setattr(made[3], "padding", (2, 2)),
    ),
    "padding mode": replaced(0, nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
    "epsilon of a batch norm": attribute(1, "eps", 1e-2),
    "epsilon of another norm": attribute(5, "eps", 1e-2),
    "groups of a norm": attribute(5, "num_groups", 4),
    "pooling": replaced(6, nn.AvgPool2d(2)),
    "a number that forward reads": attribute(7, "slope", 3.0),
    "a buffer that is not saved": attribute(7, "shift", torch.zeros(1)),
    "a module without weights": attribute(7, "plain", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_networks_of_equal_weights_that_compute_otherwise_differ(change: str) -> None:
    plain, other = drowsy.convert(model()), drowsy.convert(model(CHANGES[change]))
    assert fingerprint_state(other.state_dict()) == fingerprint_state(plain.state_dict())
    assert fingerprint_network(other) != fingerprint_network(plain)


def test_slopes_are_part_of_what_is_computed() -> None:
    made = model(replaced(4, nn.PReLU(4)))
    net = drowsy.convert(made)
    before = fingerprint_network(net)
    assert fingerprint_network(drowsy.convert(made)) == before
    assert fingerprint_network(drowsy.convert(made, skip=["3"])) != before
    with torch.no_grad():
        made[4].weight[2] += 0.5
    assert fingerprint_network(net) != before


@pytest.mark.parametrize("change", CHANGES)
def test_a_store_does_not_take_one_for_the_other(change: str) -> None:
    images, store = torch.randn(6, 3, 8, 8), drowsy.Store(":memory:")
    for made in (model(), model(CHANGES[change])):
        net = drowsy.convert(made)
        measured, fresh = (
            drowsy.Measurer(net, images, store=held).counts([(4, 4)]) for held in (store, None)
        )
        assert measured == fresh


# --- the same network ----------------------------------------------------------------------------

SAME: dict[str, Callable[[drowsy.DrowsyNet], drowsy.DrowsyNet]] = {
    "a deep copy": copy.deepcopy,
    "converted again": lambda net: drowsy.convert(net.original),
    "of equal weights": lambda _: drowsy.convert(model()),
    "another source, grain, fill and seed": lambda net: drowsy.convert(
        net.original, source="lattice", grain="position", fill="nearest", seed=5
    ),
    "channels last": lambda net: net.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "refreshed": lambda net: net.refresh() or net,  # type: ignore[func-returns-value]
    "turned": lambda net: net.set(0.5) or net,  # type: ignore[func-returns-value]
    "reseeded": lambda net: net.reseed(3, 17) or net,  # type: ignore[func-returns-value]
    "run": lambda net: (run(net), net)[1],
    "calibrated": lambda net: (net.set(0.5), drowsy.calibrate(net, torch.randn(4, 3, 8, 8)), net)[
        2
    ],
    "with stencils": lambda net: (drowsy.calibrate_stencils(net, torch.randn(4, 3, 8, 8)), net)[1],
}


@torch.inference_mode()
def run(net: drowsy.DrowsyNet) -> None:
    net(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("same", SAME)
def test_what_does_not_change_the_network_awake_does_not_count(same: str) -> None:
    before = fingerprint_network(drowsy.convert(model()))
    assert fingerprint_network(SAME[same](drowsy.convert(model()))) == before


def test_another_process_finds_the_same() -> None:
    """One that hashes text otherwise, by which sets are ordered."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import drowsy, test_computation as t\n"
        "from drowsy.evaluation.identity import fingerprint_network as f\n"
        "print(f(drowsy.convert(t.model())), f(t.Told()))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    mine = [fingerprint_network(drowsy.convert(model())), fingerprint_network(Told())]
    assert other.stdout.split() == mine


def test_it_does_not_depend_on_the_device(cuda_device: torch.device) -> None:
    net = drowsy.convert(model())
    before = fingerprint_network(net)
    assert fingerprint_network(net.to(cuda_device)) == before
    # Folded there, where other digits may be the last.
    assert fingerprint_network(drowsy.convert(model().to(cuda_device))) == before


def test_another_dtype_is_another_network() -> None:
    net = drowsy.convert(model())
    before = fingerprint_network(net)
    halved = fingerprint_network(net.half())
    assert halved != before
    # Folded in half precision, the weights in effect are others than those folded before.
    assert fingerprint_network(drowsy.convert(model().half())) != halved


@pytest.mark.parametrize(("name", "value"), [("pads_same", True), ("pads_first", (0, 1, 0, 1))])
def test_who_pads_in_another_way_is_another_network(name: str, value: object) -> None:
    net = drowsy.convert(model())
    before = fingerprint_network(net)
    setattr(next(iter(net.layers.values())), name, value)
    assert fingerprint_network(net) != before


# --- changes by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "10.bias"])
@pytest.mark.parametrize("through", ["the tensor", "its data"])
def test_a_measurer_follows_weights_that_change(name: str, through: str) -> None:
    net, images = drowsy.convert(model()), torch.randn(6, 3, 8, 8)
    measurer = drowsy.Measurer(net, images)
    before = measurer.counts([(4, 4)])
    tensor = net.state_dict(keep_vars=True)[name]
    with torch.no_grad():
        (tensor if through == "the tensor" else tensor.data).mul_(1.5)
        net.refresh()
    after = measurer.counts([(4, 4)])
    assert after == drowsy.Measurer(net, images).counts([(4, 4)])
    assert after != before


def test_weights_that_were_changed_and_not_refreshed_are_others() -> None:
    net = drowsy.convert(model())
    with torch.no_grad():
        net.original[1].running_var.mul_(2)
    stale = fingerprint_network(net)
    net.refresh()
    assert fingerprint_network(net) != stale


def test_a_network_that_changes_while_it_runs_is_told_of() -> None:
    made, calls = model(), torch.zeros(())
    made.get_submodule("10").calls = calls  # type: ignore[assignment]
    made.get_submodule("10").register_forward_hook(lambda *_: calls.add_(1) and None)
    measurer = drowsy.Measurer(drowsy.convert(made), torch.randn(6, 3, 8, 8))
    with pytest.warns(UserWarning, match="net: it changes while it runs") as told:
        measurer.measure([(4, 4)])
    assert told[0].filename == __file__


@pytest.mark.parametrize("which", ["images", "labels"])
def test_images_that_changed_in_place_are_refused(which: str) -> None:
    images, labels = torch.randn(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)
    measurer = drowsy.Measurer(drowsy.convert(model()), images, labels)
    {"images": images, "labels": labels}[which][0] = 1
    with pytest.raises(ValueError, match="images: they or their labels have been changed in place"):
        measurer.counts([(0, 0)])


# --- networks without a graph: what their own code does ------------------------------------------

NUMBER = 2.0


def helper(x: Tensor) -> Tensor:
    return x * NUMBER


class Kind:
    def __init__(self, slope: float) -> None:
        self.slope = slope


class Applied:
    def __call__(self, x: Tensor) -> Tensor:
        return x


class AppliedTwice(Applied):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x)


class Text(str):
    """Text with a class of its own."""


class Colour(enum.IntFlag):
    RED = 1
    BLUE = 2


class Told(nn.Module):
    """Every kind of thing that may decide what a module computes."""

    table = {"a": 1}

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.5)
        self.own = Kind(0.1)
        self.names = {"b", "c", "a"}
        self.act: Any = functools.partial(F.leaky_relu, negative_slope=0.1)
        self.hidden = [nn.ReLU()]
        self.mean = torch.zeros(3)
        for name, value in changes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = helper(x)
        return self.hidden[0](self.act(self.conv(x), self.own.slope))


class Doubled(Told):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Other(Told):
    table = {"a": 2}


def rewritten(source: str) -> type[nn.Module]:
    """The class as another version of a file has it: by the same name."""
    made: dict[str, Any] = {"Told": Told, "helper": helper}
    exec(f"class Again(Told):\n def forward(self, x):\n  {source}", made)
    return made["Again"]


def hooked() -> nn.Module:
    made = Told()
    made.conv.register_forward_hook(lambda _, args, output: output + 1)
    return made


def closing(slope: float) -> Callable[[Tensor], Tensor]:
    return lambda x: F.leaky_relu(x, slope)


def scripted(source: str) -> Any:
    return torch.jit.CompilationUnit(f"def f(x: Tensor):\n    return {source}\n").f


class Times(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x * self.number


def scripted_convolution(weight: float) -> nn.Module:
    made = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(weight)
    return torch.jit.trace(made.eval(), torch.zeros(1, 1, 2, 2))


def in_a_hidden_module() -> nn.Module:
    return Told(hidden=[nn.Sequential(nn.LeakyReLU(0.3))])


DIFFERENT: dict[str, Callable[[], nn.Module]] = {
    "as it is": Told,
    "another class": Doubled,
    "an attribute of the class": Other,
    "code": lambda: rewritten("return x")(),
    "more code": lambda: rewritten("return x + 1")(),
    "a constant in code": lambda: rewritten("return x + 2")(),
    "a nested function": lambda: rewritten("return (lambda y: y + 2)(x)")(),
    "a constant of a nested function": lambda: rewritten("return (lambda y: y + 3)(x)")(),
    "an object's number": lambda: Told(own=Kind(0.2)),
    "a function that remembers": lambda: Told(act=functools.lru_cache(closing(0.1))),
    "another that remembers": lambda: Told(act=functools.lru_cache(closing(0.2))),
    "a method of a number": lambda: Told(act=(5).__add__),
    "the method of another": lambda: Told(act=(6).__add__),
    "a scripted function": lambda: Told(act=scripted("x + 1")),
    "another scripted function": lambda: Told(act=scripted("x + 2")),
    "a scripted module": lambda: Told(hidden=[torch.jit.trace(nn.ReLU(), torch.zeros(1))]),
    "another scripted module": lambda: Told(hidden=[torch.jit.trace(nn.ELU(), torch.zeros(1))]),
    "a scripted module of other numbers": lambda: Told(
        hidden=[torch.jit.trace(nn.ELU(0.5), torch.zeros(1))]
    ),
    "a scripted convolution": lambda: Told(hidden=[scripted_convolution(0.0)]),
    "a scripted number": lambda: Told(hidden=[torch.jit.script(Times(0.1))]),
    "another scripted number": lambda: Told(hidden=[torch.jit.script(Times(0.2))]),
    "a frozen convolution": lambda: Told(hidden=[torch.jit.freeze(scripted_convolution(0.0))]),
    "a frozen one of other weights": lambda: Told(
        hidden=[torch.jit.freeze(scripted_convolution(1.0))]
    ),
    "one of other weights": lambda: Told(hidden=[scripted_convolution(1.0)]),
    "an object that is called": lambda: Told(own=Applied()),
    "another that is called": lambda: Told(own=AppliedTwice()),
    "a text": lambda: Told(own="a"),
    "a text of a class": lambda: Told(own=Text("a")),
    "another text of the class": lambda: Told(own=Text("b")),
    "a flag": lambda: Told(own=Colour.RED),
    "two flags": lambda: Told(own=Colour.RED | Colour.BLUE),
    "a queue": lambda: Told(own=collections.deque([1, 2])),
    "another queue": lambda: Told(own=collections.deque([1, 3])),
    "a set": lambda: Told(names={"b", "c"}),
    "an argument of a partial function": lambda: Told(
        act=functools.partial(F.leaky_relu, negative_slope=0.2)
    ),
    "a function of torch": lambda: Told(act=F.elu),
    "another of torch": lambda: Told(act=torch.sigmoid),
    "a closure": lambda: Told(act=closing(0.1)),
    "what a closure holds": lambda: Told(act=closing(0.2)),
    "a hidden module": lambda: Told(hidden=[nn.Tanh()]),
    "what is in a hidden module": in_a_hidden_module,
    "a plain tensor": lambda: Told(mean=torch.ones(3)),
    "a true number": lambda: Told(own=Kind(True)),
    "an integer": lambda: Told(own=Kind(1)),
    "a float": lambda: Told(own=Kind(1.0)),
    "a method of the instance": lambda: (
        lambda made: setattr(made, "forward", types.MethodType(lambda self, x: x, made)) or made
    )(Told()),
    "a hook": hooked,
    "a double": lambda: Told().double(),
}


def test_whatever_decides_what_a_module_computes_counts() -> None:
    found = {name: fingerprint_network(make()) for name, make in DIFFERENT.items()}
    assert len(set(found.values())) == len(found)
    assert {name: fingerprint_network(make()) for name, make in DIFFERENT.items()} == found


@pytest.mark.parametrize("name", ["helper", "NUMBER"])
def test_what_a_module_calls_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_network(Told())
    monkeypatch.setitem(globals(), name, {"helper": closing(0.1), "NUMBER": 3.0}[name])
    assert fingerprint_network(Told()) != before


def test_modules_by_two_names_are_told_apart() -> None:
    """Which of two modules a third name stands for."""

    def made(which: int) -> nn.Module:
        first, second = nn.ReLU(), nn.Tanh()
        return nn.ModuleDict({"a": first, "b": second, "c": (first, second)[which]})

    assert fingerprint_network(made(0)) != fingerprint_network(made(1))


def test_what_refers_to_itself_ends() -> None:
    made = Told()
    made.own.slope = made.own  # type: ignore[assignment]
    made.hidden = [made, made.hidden]
    assert fingerprint_network(made) == fingerprint_network(copy.deepcopy(made))


def test_code_that_branches_is_told_in_little_time() -> None:
    """Every function calls two of the next kind: by every path, they would be 2**2000."""
    made: dict[str, Any] = {"a0": helper, "b0": helper}
    for i in range(1, 2000):
        for name in "ab":
            exec(f"def {name}{i}(x): return a{i - 1}(x) + b{i - 1}(x)", made)
    told = fingerprint_network(Told(act=made["a1999"]))
    assert told == fingerprint_network(Told(act=made["a1999"]))
    assert told != fingerprint_network(Told(act=made["b1999"]))
