"""A stream computes the awake network in areas, and remembers everything else."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import networks
import pytest
import torch
from mixing import Mixing, frames
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import drowsy
from drowsy import Stream
from drowsy.video.areas import WHOLE

KINDS = [("bands", 0.5), ("bands", 0.25), ("bands", 0.75), ("quads", 0.75), ("quads", 0.25)]
KINDS += [("change", 0.5), ("change", 0.75)]


def assert_close(got: Any, want: Any, rtol: float = 1e-9) -> None:
    """All tensors of two outputs, to a share of the largest value."""
    for mine, theirs in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert mine.shape == theirs.shape
        error = (mine.double() - theirs.double()).abs().max()
        assert error <= rtol * theirs.abs().max()


def off(got: Any, want: Any) -> bool:
    """Whether some tensor of an output is another by far."""
    pairs = zip(tree_leaves(got), tree_leaves(want), strict=True)
    return any((a.double() - b.double()).abs().max() > 1e-4 * b.abs().max() for a, b in pairs)


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize(("refresh", "rate"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.inference_mode()
def test_it_agrees_with_dense_maps_that_are_mixed(
    name: str, refresh: str, rate: float, dtype: torch.dtype
) -> None:
    model, size = networks.make(name)
    reference = Mixing(model)
    net = drowsy.convert(networks.make(name, dtype)[0])
    stream = Stream(net, refresh=refresh, rate=rate, cut=None)
    clip = frames(9, size, torch.float64)
    differs = False
    for frame in clip.split(1):
        got = stream(frame.to(dtype))
        look = stream.looks[0]
        assert look is not None
        want = reference.frame(frame, look.boxes)
        assert_close(got, want, 1e-11 if dtype == torch.float64 else 2e-5)
        differs |= off(got, model(frame))
    assert differs, "nothing slept"


@pytest.mark.parametrize("name", networks.NETWORKS)
@pytest.mark.parametrize(("refresh", "rate"), KINDS)
@torch.inference_mode()
def test_on_a_still_picture_it_becomes_the_awake_network(
    name: str, refresh: str, rate: float
) -> None:
    model, size = networks.make(name)
    net = drowsy.convert(model)
    stream = Stream(net, refresh=refresh, rate=rate, cut=None)
    clip = frames(3, size, torch.float64)
    for frame in clip.split(1):
        stream(frame)
    still = clip[-1:].flip(3)
    want = net(still)
    assert off(stream(still), want)
    for _ in range(stream.settles - 1):
        got = stream(still)
    assert_close(got, want, 1e-11)


@torch.inference_mode()
def test_even_maps_are_computed_by_cells() -> None:
    for name, grid in (("residual, even", (7, 7)), ("even", (7, 7)), ("residual", None)):
        model, size = networks.make(name)
        stream = Stream(drowsy.convert(model), refresh="change")
        stream(frames(1, size, torch.float64))
        assert stream._program is not None
        assert stream._program.grid == grid


@torch.inference_mode()
def test_convolutions_of_one_layer_are_exact_after_one_cycle() -> None:
    """The bound is not merely large: a layer that reads the frame alone needs a turn of each."""
    net = drowsy.convert(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).double().eval())
    stream = Stream(net, rate=0.75, cut=None)
    clip = frames(2, (14, 9), torch.float64)
    stream(clip[:1])
    assert stream.settles == 4
    want = net(clip[1:])
    for _ in range(3):
        assert off(stream(clip[1:]), want)
    assert_close(stream(clip[1:]), want, 1e-12)


@pytest.mark.parametrize("refresh", ["bands", "quads", "change"])
@torch.inference_mode()
def test_nothing_of_a_slot_reaches_another(refresh: str) -> None:
    model, size = networks.make("residual")
    net = drowsy.convert(model)
    mine, other = frames(6, size, torch.float64), frames(6, size, torch.float64, seed=9)
    alone = Stream(net, refresh=refresh)
    want = [alone(frame) for frame in mine.split(1)]
    both = Stream(net, 2, refresh)
    together = [both(torch.stack(pair)) for pair in zip(other, mine, strict=True)]
    for got, expected in zip(together, want, strict=True):
        assert torch.equal(got[1:], expected)
    # Had it read the other's memory, it would have told: the cameras see different things.
    assert off(together[-1][:1], want[-1])


@torch.inference_mode()
def test_split_and_order_of_slots_do_not_matter() -> None:
    model, size = networks.make("fire")
    net = drowsy.convert(model)
    clips = [frames(5, size, torch.float64, seed=seed) for seed in range(3)]
    whole, parts = Stream(net, 3, "change"), Stream(net, 3, "change")
    for time in range(5):
        shown = torch.stack([clip[time] for clip in clips])
        want = whole(shown)
        last, first = parts(shown[[2, 0]], slots=[2, 0]), parts(shown[1:2], slots=[1])
        for name, expected in want.items():
            got = torch.cat([last[name][1:], first[name], last[name][:1]])
            assert torch.equal(got, expected)


@torch.inference_mode()
def test_a_slot_that_is_reset_starts_again_alone() -> None:
    model, size = networks.make("residual")
    net = drowsy.convert(model)
    clip = frames(6, size, torch.float64)
    stream = Stream(net, 2, cut=None)
    for time in range(3):
        stream(clip[[time, time]])
    stream.reset(1)
    got = stream(clip[[5, 5]])
    assert [look.why for look in stream.looks if look] == ["areas", "first"]
    assert_close(got[1:], net(clip[5:]))
    assert off(got[:1], net(clip[5:]))
    with pytest.raises(ValueError, match=r"slots: got .*2.*, allowed: at least one of 0 to 1"):
        stream.reset(2)


@pytest.mark.parametrize("refresh", ["bands", "change"])
@torch.inference_mode()
def test_a_cut_is_dense(refresh: str) -> None:
    model, size = networks.make("residual")
    net = drowsy.convert(model)
    a, b = (nn.functional.interpolate(frames(1, (5, 5), torch.float64, s), size) for s in (1, 2))
    stream, blind = Stream(net, refresh=refresh), Stream(net, refresh=refresh, cut=None)
    for frame in (a, a, b):
        got, unseen = stream(frame), blind(frame)
    (look,), (blind_look,) = stream.looks, blind.looks
    assert look is not None and blind_look is not None  # noqa: PT018
    assert (look.why, look.boxes, look.work, look.dense) == ("cut", (WHOLE,), 1.0, True)
    assert (blind_look.why, blind_look.dense) == ("areas", False)
    assert_close(got, net(b))
    assert off(unseen, net(b))


@pytest.mark.parametrize("refresh", ["bands", "quads", "change"])
@torch.inference_mode()
def test_the_knob_turns_between_frames(refresh: str) -> None:
    model, size = networks.make("residual")
    net = drowsy.convert(model)
    stream = Stream(net, refresh=refresh, rate=0.5, cut=None)
    reference = Mixing(model)
    work = []
    for rate, frame in zip(
        (0.5, 0.5, 0.75, 0.25, 0.5), frames(5, size, torch.float64), strict=False
    ):
        stream.set(rate)
        got, (look,) = stream(frame[None]), stream.looks
        assert look is not None
        work.append(look.work)
        assert_close(got, reference.frame(frame[None], look.boxes))
    assert work[0] == 1
    assert work[2] < work[1] < work[3] < 1
    stream.set(0)
    assert torch.equal(stream(frame[None]), net(frame[None]))
    assert stream.settles == 1
    stream.set(0.5)
    # Nothing was remembered while nobody slept.
    assert_close(stream(frame[None]), net(frame[None]))
    with pytest.raises(ValueError, match=r"rate: got 0.3"):
        stream.set(0.3)
    assert stream.rate == 0.5


@torch.inference_mode()
def test_work_is_counted_by_positions() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 50))
    net = drowsy.convert(nn.Sequential(conv, *head).double().eval())
    stream = Stream(net, cut=None)
    clip = frames(3, (7, 5), torch.float64)
    done = []
    for frame in clip.split(1):
        stream(frame)
        (look,) = stream.looks
        assert look is not None
        done.append(look.work)
    position, linear = 4 * 3 * 9, 200
    total = 35 * position + linear
    assert done == pytest.approx(
        [1, (20 * position + linear) / total, (15 * position + linear) / total]
    )
    assert stream.whole == ["_1", "_2", "_3", "output"]


@torch.inference_mode()
def test_memory_is_told_before_it_is_taken() -> None:
    net = drowsy.convert(networks.make("residual")[0])
    clip = frames(2, (37, 53), torch.float64)
    stream = Stream(net, 2)
    told = stream.bytes_for(clip[:1])
    assert all(slot._memory is None for slot in stream._slots)
    stream(clip)
    taken = {
        kept.untyped_storage().data_ptr(): kept.untyped_storage().nbytes()
        for slot in stream._slots
        if slot._memory is not None
        for kept in slot._memory.kept.values()
    }
    assert told == sum(taken.values())


@torch.inference_mode()
def test_outputs_are_not_the_streams_memory() -> None:
    model, size = networks.make("dense")
    stream = Stream(drowsy.convert(model), cut=None)
    clip = frames(3, size, torch.float64)
    first = stream(clip[:1])
    held = first.clone()
    stream(clip[1:2])
    assert torch.equal(first, held)
    first.zero_()
    again = Stream(drowsy.convert(model), cut=None)
    for frame in clip.split(1):
        want = again(frame)
    assert torch.equal(stream(clip[2:]), want)


@torch.inference_mode()
def test_frames_that_are_written_over_do_no_harm() -> None:
    """A camera may show all of its frames in one buffer."""
    model, size = networks.make("fire")
    net = drowsy.convert(model)
    clip = frames(5, size, torch.float64)
    plain, buffered = Stream(net, refresh="change"), Stream(net, refresh="change")
    buffer = torch.empty_like(clip[:1])
    for frame in clip.split(1):
        assert_close(buffered(buffer.copy_(frame)), plain(frame), 0)
        buffer.fill_(float("nan"))


@torch.inference_mode()
def test_new_weights_are_followed() -> None:
    model, size = networks.make("residual", torch.float32)
    net = drowsy.convert(model)
    stream = Stream(net, cut=None)
    clip = frames(3, size, torch.float32)
    stream(clip[:1])
    stream(clip[1:2])
    net.load_state_dict({name: value * 0.9 for name, value in net.state_dict().items()})
    got = stream(clip[2:])
    assert_close(got, net(clip[2:]), 1e-5)
    with torch.no_grad():
        net.layers["a1"].weight.mul_(2)
    net.refresh()
    assert_close(stream(clip[:1]), net(clip[:1]), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("name", ["slopes", "slope"])
def test_new_slopes_are_followed(name: str, replaced: bool) -> None:
    """Of a neuron, and of a PReLU after a sum."""
    model, size = networks.make("mobile", torch.float32)
    net = drowsy.convert(model)
    stream = Stream(net, cut=None)
    clip = frames(3, size, torch.float32)
    stream(clip[:1])
    stream(clip[1:2])
    prelu, before = net.model.get_submodule(name), net(clip[2:])
    if replaced:
        prelu.weight = nn.Parameter(-2 * prelu.weight)
    else:
        prelu.weight.mul_(-2)
    expected = net(clip[2:])
    assert not torch.allclose(expected, before)
    assert_close(stream(clip[2:]), expected, 1e-5)


@torch.inference_mode()
def test_bfloat16() -> None:
    model, size = networks.make("residual", torch.float32)
    reference = Mixing(networks.make("residual")[0])
    net = drowsy.convert(model).to(torch.bfloat16)
    stream = Stream(net, rate=0.75, cut=None)
    for frame in frames(6, size, torch.bfloat16).split(1):
        got, (look,) = stream(frame), stream.looks
        assert look is not None
        assert got.dtype == torch.bfloat16
        assert_close(got, reference.frame(frame.double(), look.boxes), 0.05)


def test_clear_errors(generator: torch.Generator) -> None:
    model, size = networks.make("residual", torch.float32)
    net = drowsy.convert(model)
    clip = frames(2, size, torch.float32)
    with pytest.raises(TypeError, match=r"net: got Residual, allowed: a DrowsyNet"):
        Stream(model)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="streams: got 0, allowed: an integer, 1 or more"):
        Stream(net, 0)
    with pytest.raises(ValueError, match="refresh: got 'lattice', allowed: bands, quads, change"):
        Stream(net, refresh="lattice")
    stream = Stream(net, 2)
    with pytest.raises(RuntimeError, match="settles: is known after the first frame"):
        _ = stream.settles
    with pytest.raises(TypeError, match=r"frames: got torch.int64, allowed: a floating-point"):
        stream(clip.long())
    with pytest.raises(ValueError, match=r"frames: got shape \(1, 3, 37, 53\), allowed: \[2, C"):
        stream(clip[:1])
    with pytest.raises(ValueError, match=r"slots: got \[0, 0\], allowed: at least one of 0 to 1"):
        stream(clip, slots=[0, 0])
    stream(clip)
    with pytest.raises(ValueError, match=r"frames: got shape .* a frame, allowed: .* as the first"):
        stream(clip[..., 1:])
    with pytest.raises(ValueError, match=r"frames: got dtype torch.float64 a frame"):
        stream(clip.double())
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match="autocast is on, which a stream does not follow"),
    ):
        stream(clip)
    net.set(0.5)
    with pytest.raises(ValueError, match=r"net: its layers sleep at rates of .*, allowed: net.set"):
        stream(clip)


@torch.inference_mode()
def test_a_frame_that_fails_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, or interrupted: the next frame starts again."""
    model, size = networks.make("residual")
    net = drowsy.convert(model)
    stream = Stream(net, cut=None)
    clip = frames(3, size, torch.float64)

    def fail(*_: Any) -> None:
        raise MemoryError("no memory")

    for index in (0, 1):
        with monkeypatch.context() as patch:
            patch.setattr("drowsy.video.program.Frame.run", fail)
            with pytest.raises(MemoryError):
                stream(clip[:1])
        got, (look,) = stream(clip[index + 1 : index + 2]), stream.looks
        assert look is not None
        assert look.why == "first"
        assert_close(got, net(clip[index + 1 : index + 2]))


class _Placed(nn.Module):
    """Inputs beside the frame, and a map that is the same whatever the frame shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.place = nn.Parameter(torch.rand(1, 4, 13, 9))
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
        return self.last(self.conv(x) * factor + self.place)


@torch.no_grad()
def test_constants_of_a_maps_size() -> None:
    net = drowsy.convert(_Placed().double().eval())
    stream = Stream(net, cut=None)
    clip = frames(2, (13, 9), torch.float64)
    assert_close(stream(clip[:1]), net(clip[:1]))
    for _ in range(stream.settles):
        got = stream(clip[1:])
    assert_close(got, net(clip[1:]))


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y if y.sum() > 0 else -y


def test_a_network_without_a_graph_is_refused() -> None:
    stream = Stream(drowsy.convert(_Branching().eval()))
    with pytest.raises(ValueError, match=r"a stream needs the network's graph, and there is none"):
        stream(torch.rand(1, 3, 8, 8))


COPIES: dict[str, Any] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda stream: pickle.loads(pickle.dumps(stream)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("frames", [0, 2])
def test_copies_have_not_seen_a_frame_yet(way: str, frames: int) -> None:
    torch.manual_seed(0)
    net = drowsy.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval())
    stream, clip = Stream(net, 2, "quads", rate=0.25, cut=0.3), torch.randn(4, 2, 3, 24, 24)
    stream.set(0.75)
    for seen in clip[:frames]:
        stream(seen)
    twin = COPIES[way](stream)
    assert (twin.net is net) is (way == "copy")
    assert (twin.refresh, twin.rate, twin.looks) == ("quads", 0.75, (None, None))
    # Neither sees what the other is shown.
    fresh = Stream(net, 2, "quads", rate=0.75, cut=0.3)
    for seen in clip[:2]:
        torch.testing.assert_close(twin(seen), fresh(seen))
        stream(clip[3])
    assert twin.looks == fresh.looks
