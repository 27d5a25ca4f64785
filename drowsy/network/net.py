"""``DrowsyNet``: a converted network and its knob."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from drowsy.knob.control import Control, exporting_onnx
from drowsy.knob.schedule import LayerSetting, Schedule, named
from drowsy.knob.uncompiled import uncompiled
from drowsy.network.calibration import Calibration, Correction
from drowsy.network.converted import Converted, Settler
from drowsy.network.corrections import Corrections
from drowsy.network.known import KnownGraph
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.prepared import is_kept
from drowsy.network.report import LayerReport
from drowsy.network.sight import picture
from drowsy.network.standin import COMPILED, Standin
from drowsy.network.wishes import Rate, Scheduled, wishes
from drowsy.sleep import FILLS, Grain, scale


class DrowsyNet(Converted):
    """A network whose convolutions can sleep. Made by ``drowsy.convert``.

    Call it as the original network, under ``torch.inference_mode()``. Every inference draws fresh
    sleep maps; ``reseed`` makes them repeat.

    What runs is ``model``: a copy of the original's own module tree with drowsy layers in the place
    of convolutions. Its attributes and methods are the network's too, and ``isinstance`` takes the
    network for one of its class; where both have a name (``layers``, ``set``), the network's own is
    found, and the model's at ``net.model``.

    Threads may run one network side by side and turn its knob: an inference sees one setting whole,
    and the knob turns between inferences. They share one clock; for maps that repeat, give each
    thread a copy (``copy.deepcopy``).

    Attributes:
        control: the knob's tensors.
        report: what ``convert`` did with each convolution.
        known: of the model's graph, or why it is not.
        resting: layers that one rate for all leaves awake, with the reason; known once the network
            has run. A mapping or schedule sets them as any other.
    """

    _own = frozenset(
        {"control", "report", "known", "resting", "_layers", "_own_fills", "_corrections"}
        | {"_original", "_settler", "_trusting", "_uniform", "_rewritten", "_place", "_seeing"}
        | {COMPILED}
    )

    report: list[LayerReport]
    resting: dict[str, str]
    _original: nn.Module
    _layers: dict[str, DrowsyConv2d]
    _own_fills: dict[str, str]
    _corrections: Corrections
    _uniform: Rate | None
    # Of a parameter that original and network share: a move of either moves it.
    _place: tuple[nn.Parameter, torch.dtype, torch.device] | None
    # Indices of the layers whose source sees, and the control's version of which they are.
    _seeing: tuple[int | None, tuple[int, ...]]

    @classmethod
    def assemble(
        cls,
        original: nn.Module,
        model: nn.Module,
        layers: dict[str, DrowsyConv2d],
        control: Control,
        report: list[LayerReport],
        settler: Settler,
    ) -> DrowsyNet:
        """Stand in for ``model``, a copy of ``original`` with these layers in it; no graph yet."""
        net = cls(model)
        net.control, net.report, net.resting = control, report, {}
        net._original, net._layers = original, layers
        net._own_fills = {name: layer.fill for name, layer in layers.items()}
        net._corrections = Corrections(layers)
        net._settler, net._uniform = settler, 0
        net._trusting = net._rewritten = False
        net._seeing = None, ()
        net.known = KnownGraph(model, None, "not traced yet")
        net._note_place()
        return net

    # --- what is in it ------------------------------------------------------------------------

    @property
    def original(self) -> nn.Module:
        """The model this network was converted from; the two share their weights."""
        return self._original

    @property
    def layers(self) -> dict[str, DrowsyConv2d]:
        """Drowsy layers by name, in order of execution."""
        return self._layers

    @property
    def k(self) -> int:
        """Rates are multiples of ``1/k``."""
        return next(iter(self.layers.values())).sleep.k

    @property
    def schedule(self) -> Schedule:
        """The setting in force."""
        return self.schedule_of(self.control.settings)

    def schedule_of(self, thresholds: Sequence[int]) -> Schedule:
        """The schedule of these thresholds, one a layer, with the present grains and fills.

        It holds streams and phases if they are not those that ``convert`` gave the layers.
        """
        sleeps = {name: layer.sleep for name, layer in self.layers.items()}
        own = [(sleep.stream, sleep.phase) for sleep in sleeps.values()] == [
            (number, 0) for number in range(len(sleeps))
        ]
        return Schedule(
            self.k,
            {
                name: LayerSetting(
                    Fraction(j, self.k),
                    str(sleep.grain),
                    self.layers[name].fill,
                    None if own else sleep.stream,
                    None if own else sleep.phase,
                )
                for j, (name, sleep) in zip(thresholds, sleeps.items(), strict=True)
            },
        )

    @property
    def sleeps(self) -> tuple[str, ...]:
        """Of every layer, as text: what decides how its statistics shift, its rate aside."""
        return tuple(f"{layer.sleep}, {layer.fill}" for layer in self.layers.values())

    # --- the knob -------------------------------------------------------------------------------

    def set(
        self,
        setting: Rate | Mapping[str, Rate] | Schedule | Scheduled,
        *,
        fill: str | None = None,
    ) -> None:
        """Turn the knob, in place: nothing is rebuilt, and the next inference follows.

        Args:
            setting: one rate for all layers but those of ``resting``; or a mapping from layer names
                to rates (layers that it does not name stay as they are); or a ``Schedule`` or an
                ``OperatingPoint`` (layers that it does not name wake up; streams that it does not
                tell stay). These two also give the layers that they name their grains and fills.
            fill: also change every layer's fill: ``zero``, ``rescale``, ``nearest``,
                ``interpolate``, ``stencil``, or ``auto`` for what ``convert`` chose.

        Raises:
            ValueError: a rate that is not a multiple of ``1/k`` in [0, 1), an unknown layer or
                fill, a fill that a layer's grain does not allow, ``stencil`` for a layer without
                weights for it, a schedule for another ``k``. The network is then as it was.
        """
        with self._turning():
            fills = self._fills(fill)
            present = dict(zip(self.layers, self.control.settings, strict=True))
            wanted = wishes(setting, present, self.k)
            wanted |= {name: replace(wanted[name], fill=own) for name, own in fills.items()}
            uniform = not isinstance(getattr(setting, "schedule", setting), Mapping | Schedule)
            if uniform:
                wanted |= {name: replace(wanted[name], threshold=0) for name in self.resting}
            for name, wish in wanted.items():
                named(name, self.layers[name].check, fill=wish.fill, grain=wish.grain)
            scales = []
            for name, wish in wanted.items():
                layer = self.layers[name]
                layer.stage(fill=wish.fill, grain=wish.grain, stream=wish.stream, phase=wish.phase)
                scales.append(scale(wish.threshold, self.k, layer.fill))
            self.control.set([wish.threshold for wish in wanted.values()], scales)
            self._uniform = setting if uniform else None  # type: ignore[assignment]
            self._correct()

    def reseed(self, seed: int, image: int = 0) -> None:
        """Draw the next batch's maps for images ``image, image + 1, ...`` of this seed."""
        self.control.reseed(seed, image)

    def set_grain(self, grain: str | Grain) -> None:
        """Give every layer this grain.

        Raises:
            ValueError: an unknown grain, or one that a layer's fill does not allow. The network is
                then as it was.
        """
        grain = Grain.parse(grain)
        for name, layer in self.layers.items():
            named(name, layer.check, grain=grain)
        with self._turning():
            for layer in self.layers.values():
                layer.stage(grain=grain)
            self._correct()

    def refresh(self) -> None:
        """Fold batch norms again, after parameters or statistics were changed by hand."""
        with self._turning():
            for layer in self.layers.values():
                layer.refresh()
            # Written anew, over the weights as they are now.
            self._corrections.point = None
            self._correct()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Let a block turn the knob, correct and run; the network is then as it was.

        Settings, sources, streams, fills, backends, corrections and clock are given back, after an
        error too. A network that is compiled (``net.compile()``) runs by its own code within.
        """
        control, uniform = self.control, self._uniform
        before = [(layer, layer.sleep, layer.fill, layer.backend) for layer in self.layers.values()]
        with self._corrections.kept(), control.kept(), uncompiled(self):
            try:
                yield
            finally:
                with self._turning():
                    for layer, sleep, fill, backend in before:
                        layer.restore(sleep, fill, backend)
                self._uniform = uniform

    def _note_place(self) -> None:
        shared = next(self.original.parameters(), None)
        self._place = None if shared is None else (shared, shared.dtype, shared.device)

    def _follow_original(self) -> None:
        if self._place is None:
            return
        shared, dtype, device = self._place
        if shared.dtype == dtype and shared.device == device:
            return

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(shared.device, shared.dtype if tensor.is_floating_point() else None)

        # Tensors made in inference mode could not be used outside of it.
        with self._turning(), torch.inference_mode(False), torch.no_grad():
            self._move(moved)

    def _follow_settling(self) -> None:
        # One rate was set before it was known who rests.
        if self._uniform:
            self.set(self._uniform)

    # --- what it sees -------------------------------------------------------------------------

    def detail_of(self, pictures: Tensor) -> Tensor | None:
        """What layers see of a batch of pictures, as ``drowsy.sleep.levels`` takes it.

        None where no layer has a source that looks.
        """
        return torch.ops.drowsy.detail(pictures) if self._seers else None

    @property
    def _seers(self) -> tuple[int, ...]:
        """Indices of the layers whose source sees."""
        layers = self.layers.values()
        if torch.compiler.is_compiling():  # whose graph would be of one version
            return tuple(layer.index for layer in layers if layer.sleep.source.sees)
        version, seers = self._seeing
        if version != self.control.version:
            seers = tuple(layer.index for layer in layers if layer.sleep.source.sees)
            self._seeing = self.control.version, seers
        return seers

    def _see(self, args: Any, kwargs: Any) -> Tensor | None:
        if not self._seers or exporting_onnx():  # which layers refuse, but for those awake
            return None
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if all(map(self.control.awake, self._seers)) and not any(map(is_kept, tensors)):
            return None
        return self.detail_of(picture(tensors))

    # --- corrections ----------------------------------------------------------------------------

    @property
    def calibration(self) -> Calibration | None:
        """Corrections by operating point (``drowsy.calibrate``); ``set`` puts one in force.

        One of other weights is taken with a warning.

        Raises, when it is given:
            TypeError, ValueError: no calibration, or one of another network: other layers, shapes
                or ``k``. The network is then as it was.
        """
        return self._corrections.calibration

    @calibration.setter
    def calibration(self, calibration: Calibration | None) -> None:
        if calibration is None:
            self._corrections.drop()
            return
        if not isinstance(calibration, Calibration):
            raise TypeError(
                f"calibration: got {type(calibration).__name__}, allowed: a Calibration "
                "(drowsy.calibrate makes one, Calibration.load reads one)"
            )
        calibration.check(self.layers, self.k)
        # Resident: a change of the point must not wait for a copy from the host.
        self._corrections.take(calibration.to(self.control.thresholds.device))
        self._correct()

    @property
    def corrected_for(self) -> tuple[int, ...] | None:
        """Thresholds of the operating point whose correction is in force; None without any."""
        return self._corrections.point

    @property
    def corrected(self) -> Mapping[str, Correction]:
        """The corrections in force by layer; empty where nothing is corrected."""
        return self._corrections.in_force

    @contextmanager
    def uncorrected(self) -> Iterator[None]:
        """Compute without corrections for a while."""
        with self._corrections.rested():
            yield

    def _correct(self) -> None:
        """Let the corrections follow the knob, if there are any."""
        if self.calibration is not None:
            self._corrections.follow(tuple(self.control.settings), self.sleeps)

    def _apply(self, fn: Any, recurse: bool = True) -> DrowsyNet:
        """Corrections follow the network's device, never its dtype."""
        self._move(fn, recurse)
        # What holds parameters is the original's too, what holds buffers is not.
        mine = dict(self.model.named_modules(remove_duplicate=False))
        for name, module in self.original.named_modules():
            if not isinstance(mine.get(name, self), Standin | DrowsyConv2d):
                module._buffers.update(mine[name]._buffers)
        return self

    def _move(self, fn: Any, recurse: bool = True) -> None:
        super()._apply(fn, recurse)
        self._corrections.to(self.control.thresholds.device)
        self.known.follow()
        self._note_place()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's; folds batch norms again."""
        loaded = super().load_state_dict(*args, **kwargs)
        with torch.no_grad():
            self.refresh()
        return loaded

    def _fills(self, fill: str | None) -> dict[str, str]:
        if fill is None:
            return {}
        if fill == "auto":
            return dict(self._own_fills)
        if fill not in FILLS:
            raise ValueError(f"fill: got {fill!r}, allowed: auto, {', '.join(FILLS)}")
        return dict.fromkeys(self._layers, fill)


def check_network(net: object) -> None:
    """Raise TypeError unless ``net`` is converted."""
    if not isinstance(net, DrowsyNet):
        raise TypeError(f"net: got {type(net).__name__}, allowed: a DrowsyNet (drowsy.convert)")
