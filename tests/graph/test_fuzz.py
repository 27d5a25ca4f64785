"""Small networks put together at random from habits of real code; what they promise.

At rate 0 the network computes what the model does, at calls of all kinds; the model is as it was;
and the evaluator computes what the network computes at any setting. With a graph and without.
"""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy.evaluation.evaluator import Evaluator
from drowsy.graph import settling
from drowsy.graph.convert import convert
from drowsy.network.net import DrowsyNet

CHANNELS, SEED = 4, 5

# A habit takes the network, one of its blocks and ``[N, CHANNELS, H, W]``, and gives another.
HABITS: dict[str, Callable[[Any, Any, Tensor], Tensor]] = {
    "modules": lambda n, b, x: b.act(b.norm(b.conv(x))),
    "one activation for all": lambda n, b, x: n.relu(b.norm(b.conv(x))),
    "one norm for all": lambda n, b, x: n.norm(b.conv(x)),
    "functions": lambda n, b, x: F.silu(b.norm(b.conv(x))),
    "norm by function": lambda n, b, x: F.batch_norm(
        b.conv(x), b.norm.running_mean, b.norm.running_var, b.norm.weight, b.norm.bias
    ),
    "between them": lambda n, b, x: b.norm(b.conv(x) * 2),
    "in place between them": lambda n, b, x: b.norm(b.conv(x).mul_(0.5)),
    "in place, result left": lambda n, b, x: (lambda y: (y.relu_(), y)[1])(b.norm(b.conv(x))),
    "beside its activation": lambda n, b, x: (lambda y: torch.sigmoid(y) * y)(b.conv(x)),
    "beside its norm": lambda n, b, x: (lambda y: b.norm(y) + y)(b.conv(x)),
    "slice": lambda n, b, x: b.norm(b.body[:1](x)),
    "sequential": lambda n, b, x: b.body(x),
    "list": lambda n, b, x: n.hidden[b.place][0](x),
    "dictionary": lambda n, b, x: n.by_name["act"](b.norm(b.conv(x))),
    "partial": lambda n, b, x: n.called(b.conv(x)),
    "bound method": lambda n, b, x: b.act(b.bound(x)),
    "closure": lambda n, b, x: b.closure(x),
    "twice": lambda n, b, x: b.act(b.conv(b.act(b.conv(x)))),
    "no batch": lambda n, b, x: x + b.act(b.conv(x[0])),
    "made in forward": lambda n, b, x: b.conv(x) * torch.ones(1, CHANNELS, 1, 1) + n.plain,
    "channels last": lambda n, b, x: b.act(b.conv(x.contiguous(memory_format=torch.channels_last))),
    "slopes": lambda n, b, x: b.slopes(b.norm(b.conv(x))),
    "one slope for all": lambda n, b, x: n.slope(b.conv(x)) + n.slope(x),
    "slopes by function": lambda n, b, x: F.prelu(b.conv(x), b.slopes.weight),
    "keyword": lambda n, b, x: b.act(input=b.norm(input=b.conv(input=x))),
    "hooked": lambda n, b, x: b.hooked(b.norm(b.conv(x))),
}


class Block(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm, self.act, self.hooked = norm(), nn.ReLU(inplace=True), nn.Sigmoid()
        self.body = nn.Sequential(self.conv, self.norm, nn.Tanh())
        self.hooked.register_forward_hook(lambda module, args, y: y * 2)
        self.hooked.register_forward_pre_hook(
            lambda module, args, kwargs: ((args[0] - 1,), kwargs), with_kwargs=True
        )
        self.slopes = nn.PReLU(CHANNELS)
        nn.init.normal_(self.slopes.weight)
        self.bound = self.conv.forward
        self.closure = lambda x: self.act(self.norm(self.conv(x)))


class Habitual(nn.Module):
    """Habits in a row, drawn by a seed; what ``more`` asks for is read beside them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.stem, self.fc = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Linear(CHANNELS, 5)
        self.blocks = nn.ModuleList(Block(place) for place in range(3))
        self.hidden = [(block.conv, block.norm) for block in self.blocks]
        self.relu, self.norm, self.plain = nn.ReLU(), norm(), torch.randn(CHANNELS, 1, 1)
        self.slope = nn.PReLU(init=-0.5)
        self.by_name, self.called = nn.ModuleDict({"act": nn.SiLU()}), functools.partial(self.relu)
        self.habits = [rng.choice([*HABITS]) for _ in self.blocks]

    def forward(self, x: Tensor, more: bool = False) -> Any:
        x, seen = self.stem(x), []
        for habit, block in zip(self.habits, self.blocks, strict=True):
            x = HABITS[habit](self, block, x)
            seen.append(x)
            if more:
                before = block.conv(x)
                seen += [before, block.norm(before)]
        logits = self.fc(x.mean((2, 3)))
        return {"logits": logits, "seen": seen} if more else logits


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(CHANNELS)
    for tensor in (made.weight, made.bias, made.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(made.running_var, 0.5, 2)
    return made


def state(model: nn.Module) -> dict[str, Any]:
    """Tensors by value; attributes and hooks, of every module, by identity."""
    kept: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, value in vars(module).items():
            held = [*map(id, value.values())] if isinstance(value, dict) else id(value)
            kept[f"{name}:{key}"] = held if not isinstance(value, bool | int) else value
    return kept


def by_the_network(net: DrowsyNet, images: Tensor, setting: tuple[int, ...]) -> Tensor:
    net.set({name: j / net.k for name, j in zip(net.layers, setting, strict=True)})
    net.reseed(SEED)
    logits = net(images.clone())
    net.set(0)
    return logits


def test_every_habit_is_drawn() -> None:
    assert {habit for seed in range(40) for habit in Habitual(seed).habits} == HABITS.keys()


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_networks_of_any_habits_keep_what_is_promised(
    seed: int, graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untraceable(model: nn.Module) -> None:
        raise ValueError("torch.fx cannot trace it (as told)")

    if not graph:
        monkeypatch.setattr(settling, "trace", untraceable)
    torch.manual_seed(seed)
    model, x = Habitual(seed).eval(), torch.randn(3, 3, 6, 6)
    before, tensors = state(model), copy.deepcopy(model.state_dict())
    rng = random.Random(seed)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of code that goes another way
        net = convert(model, x if seed % 2 else None, fill="zero")
        torch.testing.assert_close(net(x), model(x), rtol=1e-3, atol=1e-4)

        settings = sorted({tuple(rng.randrange(net.k) for _ in net.layers) for _ in range(3)})
        for setting, walked in Evaluator(net, x, seed=SEED)._way.walk(settings):
            assert torch.equal(walked, by_the_network(net, x, setting))

        for more in (True, False):
            found, expected = net(x, more=more), model(x, more=more)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert state(model) == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
