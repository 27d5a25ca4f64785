"""All slots together by Triton: the same as slabs, written at awake positions alone, one graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from drowsy_kernels.launch import Launch
from mixing import Mixing, frames
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

import drowsy
from drowsy import Stream
from drowsy.video.areas import Box
from drowsy.video.captured import Captured, refusal
from drowsy.video.program import Program


def close(got: Any, exact: Any, eager: Any, dtype: torch.dtype = torch.float32) -> None:
    """Within the error budget: of the same network in eager torch and that number format."""
    for mine, want, theirs in zip(*map(tree_leaves, (got, exact, eager)), strict=True):
        assert mine.shape == want.shape
        error, budget = ((each.double() - want).abs().max() for each in (mine, theirs))
        assert error <= 2 * budget + 16 * torch.finfo(dtype).eps * want.abs().max()


def on_cpu(value: Any) -> Any:
    return tree_map_only(Tensor, Tensor.cpu, value)


class Small(nn.Module):
    """Seven rows in halves; strides, a pool, depthwise, a sum, a concatenation and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.mix = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = F.relu(self.depth(x) + x)
        y = self.mix(torch.cat([y, F.max_pool2d(x, 3, 1, 1)], 1))
        y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        return self.head(y.mean((2, 3)))


SIZE = (13, 11)


def small(device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return Small().eval().to(device, dtype)


def stream_of(device: torch.device, **options: Any) -> Stream:
    return Stream(drowsy.convert(small(device)), **{"cut": None, "backend": "triton", **options})


CASES = {
    "residual": ("bands", 0.5),
    "residual, even": ("change", 0.5),
    "even": ("quads", 0.75),
    "mobile": ("bands", 0.75),
    "fire": ("quads", 0.25),
    "dense": ("change", 0.75),
}


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_it_agrees_with_dense_maps_that_are_mixed(name: str, triton_device: torch.device) -> None:
    refresh, rate = CASES[name]
    model, size = networks.make(name)
    reference = Mixing(model)
    net = drowsy.convert(networks.make(name, torch.float32)[0].to(triton_device))
    stream = Stream(net, refresh=refresh, rate=rate, cut=None, backend="triton")
    slabs = Stream(net, refresh=refresh, rate=rate, cut=None, backend="torch")
    clip = frames(3, size, torch.float64)
    for frame in clip.split(1):
        shown = frame.float().to(triton_device)
        got, eager = stream(shown), slabs(shown)
        (look,) = stream.looks
        assert look is not None
        assert stream.looks == slabs.looks
        close(on_cpu(got), reference.frame(frame, look.boxes), on_cpu(eager))
    assert (stream.backend, slabs.backend) == ("triton", "torch")
    assert not look.dense


@torch.inference_mode()
def test_bfloat16(triton_device: torch.device) -> None:
    reference = Mixing(small(torch.device("cpu"), torch.float64))
    net = drowsy.convert(small(triton_device, torch.bfloat16))
    stream, slabs = (Stream(net, cut=None, backend=name) for name in ("triton", "torch"))
    for frame in frames(4, SIZE, torch.bfloat16).split(1):
        got, eager = (each(frame.to(triton_device)).cpu() for each in (stream, slabs))
        (look,) = stream.looks
        assert look is not None
        close(got, reference.frame(frame.double(), look.boxes), eager, torch.bfloat16)


def sleepers(program: Program, boxes: tuple[Box, ...], node: Any) -> Tensor:
    """A mask ``[h, w]`` of what is not in the boxes, on a node's map."""
    _, _, height, width = program.map_shapes[node]
    mask = torch.ones(height, width, dtype=torch.bool)
    for box in boxes:
        top, bottom, left, right = box.at((height, width))
        mask[top:bottom, left:right] = False
    return mask


@pytest.mark.parametrize("refresh", ["bands", "quads", "change"])
@torch.inference_mode()
def test_nothing_is_written_for_sleepers(refresh: str, triton_device: torch.device) -> None:
    stream = stream_of(triton_device, streams=2, refresh=refresh)
    clip = frames(6, SIZE, torch.float32).to(triton_device)
    stream(clip[:2])
    for slots in ([0, 1], [1]):
        program, captured = stream._program, stream._captured
        assert program is not None
        assert captured is not None
        listed = captured._listed
        assert listed is not None
        kept = {node: value.clone() for node, value in listed.maps.items()}
        marked = 12345.678
        # Awake neurons read what lies beside them: only the look beforehand tells who sleeps.
        stream(clip[: len(slots)], slots)
        awake = [look.boxes if look else () for look in stream.looks]
        for node, value in listed.maps.items():
            value.copy_(kept[node])
            for slot in slots:
                value[slot, :, sleepers(program, awake[slot], node).to(value.device)] = marked
            if slots == [1]:
                value[0] = marked
        captured.run(clip[: len(slots)], slots, [awake[slot] for slot in slots])
        written = 0
        for node, value in listed.maps.items():
            if node is program.input:
                continue
            for slot in range(2):
                asleep = sleepers(program, awake[slot], node) if slot in slots else None
                part = value[slot] if asleep is None else value[slot][:, asleep.to(value.device)]
                assert part.eq(marked).all(), node
                written += int(value[slot].ne(marked).sum())
        assert written
        stream.reset()
        stream(clip[:2])


@torch.inference_mode()
def test_slots_are_apart_in_any_order(triton_device: torch.device) -> None:
    clips = [frames(3, SIZE, torch.float32, seed).to(triton_device) for seed in range(3)]
    alone = [stream_of(triton_device, refresh="quads") for _ in clips]
    together = stream_of(triton_device, streams=3, refresh="quads")
    for time in range(3):
        shown = torch.stack([clip[time] for clip in clips])
        last, first = together(shown[[2, 0]], slots=[2, 0]), together(shown[1:2], slots=[1])
        got = torch.cat([last[1:], first, last[:1]])
        want = torch.cat([stream(shown[i : i + 1]) for i, stream in enumerate(alone)])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    # Had one read another's memory, it would have told: the cameras see different things.
    assert (want[0] - want[1]).abs().max() > 1e-3


@pytest.mark.parametrize("refresh", ["bands", "quads"])
@torch.inference_mode()
def test_on_a_still_picture_it_becomes_the_awake_network(
    refresh: str, triton_device: torch.device
) -> None:
    stream = stream_of(triton_device, refresh=refresh, rate=0.75 if refresh == "quads" else 0.5)
    clip = frames(2, SIZE, torch.float32).to(triton_device)
    stream(clip[:1])
    want = stream.net(clip[1:])
    assert (stream(clip[1:]) - want).abs().max() > 1e-4
    for _ in range(stream.settles - 1):
        got = stream(clip[1:])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_memory_is_told_before_it_is_taken(triton_device: torch.device) -> None:
    stream = stream_of(triton_device, streams=2)
    clip = frames(2, SIZE, torch.float32).to(triton_device)
    told = stream.bytes_for(clip)
    captured = stream._captured
    assert captured is not None
    assert captured._listed is None
    stream(clip)
    listed = captured._listed
    assert listed is not None
    maps = sum(value.untyped_storage().nbytes() for value in listed.maps.values())
    lists = 4 * 2 * sum(h * w for h, w in {(13, 11), (7, 6)})
    weights = 4 * (8 * 3 * 3 * 4 + 8 * 9 + 8 * 16 * 9)
    assert told == maps + lists + weights


# --- capture -------------------------------------------------------------------------------------


class Tape(TorchDispatchMode):
    """A CUDA graph's stand-in: what was called, to be called again on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def tapes(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ``captured`` capture tapes, where there is no GPU that would capture graphs."""
    if triton_device.type == "cuda":
        return
    launch = Launch.run

    @contextlib.contextmanager
    def capturing(tape: Tape) -> Iterator[None]:
        def note(self: Launch, device: torch.device) -> None:
            with _disable_current_modes():
                launch(self, device)
            tape.calls.append((launch, (self, device), {}, None))

        with monkeypatch.context() as patch, tape:
            patch.setattr(Launch, "run", note)
            yield

    class Aside:
        def wait_stream(self, other: Any) -> None:
            pass

    for name, value in {
        "CUDAGraph": Tape,
        "graph": capturing,
        "Stream": Aside,
        "current_stream": Aside,
        "stream": lambda _: contextlib.nullcontext(),
        "device": lambda _: contextlib.nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


def pair(clip: Tensor, **options: Any) -> tuple[Stream, Stream]:
    """A stream that captures, on the CPU as on CUDA, and one that does not."""
    streams = stream_of(clip.device, **options), stream_of(clip.device, **options)
    for stream, graph in zip(streams, (True, False), strict=True):
        stream.bytes_for(clip[:1])
        assert stream._program is not None
        stream._captured = Captured(stream._program, len(stream._slots), graph)
    return streams


def captures(stream: Stream) -> int:
    """How many graphs a stream has captured."""
    assert stream._captured is not None
    return stream._captured.captures


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("refresh", ["bands", "quads", "change"])
@torch.inference_mode()
def test_one_graph_serves_phases_blocks_rates_and_slots(
    refresh: str, triton_device: torch.device
) -> None:
    clip = frames(6, SIZE, torch.float32).to(triton_device)
    taped, plain = pair(clip, streams=2, refresh=refresh)
    for time, (rate, slots) in enumerate(
        [(0.5, [0, 1]), (0.5, [0, 1]), (0.5, [0, 1]), (0.75, [1, 0]), (0.75, [1]), (0.25, [0, 1])]
    ):
        for stream in (taped, plain):
            stream.set(rate)
            if time == 5:
                stream.reset(1)
        shown = clip[time : time + 1].repeat(len(slots), 1, 1, 1)
        got, want = taped(shown, slots), plain(shown, slots)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert taped.looks == plain.looks
    assert (captures(taped), captures(plain)) == (1, 0)


@pytest.mark.usefixtures("tapes")
@torch.inference_mode()
def test_a_graph_is_captured_anew_where_addresses_change(triton_device: torch.device) -> None:
    """And what is remembered stays."""
    clip = frames(4, SIZE, torch.float32).to(triton_device)
    taped, plain = pair(clip)
    for frame in clip[:2].split(1):
        taped(frame)
        plain(frame)
    before = taped(clip[2:3])
    plain(clip[2:3])
    for stream in (taped, plain):
        torch.manual_seed(9)
        stream.net.known.value("head").weight = nn.Parameter(
            torch.randn(5, 8, device=triton_device)
        )
    got, want = taped(clip[3:]), plain(clip[3:])
    assert captures(taped) == 2
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert not torch.allclose(before, got)


# --- what Triton does not serve ------------------------------------------------------------------


class Mixes(nn.Module):
    """Images that see each other, where there is more than one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y - y.mean()).mean((2, 3))


@pytest.mark.parametrize(("model", "why"), [(Mixes, "mean mixes images"), (Small, "float64")])
@torch.inference_mode()
def test_what_is_not_served_runs_by_slabs(
    model: type[nn.Module], why: str, triton_device: torch.device
) -> None:
    dtype = torch.float64 if model is Small else torch.float32
    net = drowsy.convert(model().eval().to(triton_device, dtype))
    frame = frames(1, SIZE, dtype).to(triton_device)
    with pytest.raises(ValueError, match=f"backend: got 'triton' for .*{why}"):
        Stream(net, backend="triton")(frame)
    stream = Stream(net, streams=2, backend="torch")
    stream(frame.repeat(2, 1, 1, 1))
    assert stream.backend == "torch"
    assert why in refusal(stream._program, 2)  # type: ignore[arg-type]


def test_backends_are_told(triton_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend: got 'cuda', allowed: auto, torch, triton"):
        stream_of(triton_device, backend="cuda")
    stream = stream_of(torch.device("cpu"), backend="auto")
    with pytest.raises(RuntimeError, match="backend: is known after the first frame"):
        _ = stream.backend
    stream.bytes_for(frames(1, SIZE, torch.float32))
    assert stream.backend == "torch"
    # As on CUDA, where Triton is asked first.
    monkeypatch.setattr("drowsy.video.stream.choose_backend", lambda *_: "triton")
    double = Stream(drowsy.convert(small(triton_device, torch.float64)))
    double.bytes_for(frames(1, SIZE, torch.float64).to(triton_device))
    assert double.backend.startswith("torch (frames of torch.float64, allowed: ")
