"""``DrowsyConv2d``: a drop-in for ``nn.Conv2d`` whose neurons can sleep."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from drowsy.backends.ops import NO_ONNX, NO_TRANSFORMS, choose_backend, on_cpu
from drowsy.knob.control import Control, exporting_onnx, untraced
from drowsy.network.inference import Inference, check_graph, in_graph, join, joined, running
from drowsy.network.prepared import DTYPES, Prepared, at_ease, is_kept, is_recorded, library_serves
from drowsy.network.settable import SettableConv2d
from drowsy.network.standin import plainly_called
from drowsy.network.tail import Tail, mark
from drowsy.neuron import FixedSleep, awake_conv2d
from drowsy.sleep import SleepSpec, levels, scale, simplest, threshold

_ANY_SLEEP = SleepSpec()
# Methods that are others for a while (``correction.interception``).
_REPLACEABLE = frozenset({"forward", "compute", "awake"})
# Attributes that a graph built from a layer depends on.
_BUILT_IN = frozenset({"sleep", "_fill", "stencil", "laid", "written"})


class DrowsyConv2d(SettableConv2d):
    """Convolution, bias, activation and sleep as one inference-only layer.

    Takes ``nn.Conv2d``'s arguments and keeps its ``state_dict`` keys. Beyond those:

    Args:
        activation: of the neuron: one of ``drowsy.neuron.ACTIVATIONS``, or somebody's module that
            applies one, which is asked at every call (``nn.PReLU``).
        sleep: source, grain, number of rate steps and stream of the sleep map.
        rate: fraction of neurons that sleep, a multiple of ``1/k`` in [0, 1).
        fill: what a sleeper outputs: ``zero`` (the paper's non-rescaled neuron); ``rescale`` (0,
            and awake outputs are multiplied by ``1 / (1 - rate)``); ``nearest``, ``interpolate``
            or, once the layer has a ``stencil``, ``stencil`` (from awake neighbours, where the
            grain's cells are single positions).
        backend: ``auto`` (Triton on CUDA, torch elsewhere), ``torch`` or ``triton``.

    Input ``[N, C, H, W]`` (or ``[C, H, W]``), float32, float16, bfloat16 (and float64 on the torch
    backend), contiguous or channels_last. Each inference draws fresh maps: the layer counts the
    images that it has seen. ``layer.control.reseed(seed, image)`` restarts the count.

    ``torch.compile``, ``torch.export``, ``torch.jit.trace``, ``make_fx`` and fx take the layer as
    one operator that goes on following rate, factor, seed and count. ``torch.onnx.export`` has no
    such operator: it gets the maps of the moment as constants, for the example's batch, and no
    other runtime saves anything by them.
    """

    _prepared: Prepared | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | nn.Module = "none",
        sleep: SleepSpec | None = None,
        rate: float | Fraction = 0.0,
        fill: str = "zero",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,  # type: ignore[arg-type]
            stride,  # type: ignore[arg-type]
            padding,  # type: ignore[arg-type]
            dilation,  # type: ignore[arg-type]
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        self._become_drowsy(activation, _ANY_SLEEP if sleep is None else sleep, fill, backend)
        # A rate of None is none, where ``set`` would leave what there is.
        self.set(rate=Fraction(threshold(rate, self.sleep.k), self.sleep.k))

    def _become_drowsy(self, activation: Any, sleep: SleepSpec, fill: str, backend: str) -> None:
        if not isinstance(sleep, SleepSpec):
            raise TypeError(
                f"sleep: got {sleep!r}, allowed: a drowsy.SleepSpec, such as "
                'SleepSpec("stratified", "position")'
            )
        self._activate_by(activation)
        self.register_buffer("stencil", None, persistent=False)
        self._set(sleep, self._check_fill(fill, sleep.grain))
        self.backend = backend
        choose_backend(backend, self.weight.device)
        self.control = Control(1, device=self.weight.device)
        self.index = 0
        # A network's layers share one Control, whose clock the network advances.
        self.owns_control = True
        # What the network's own code calls after this layer, and is in it already.
        self.tail: Tail | None = None
        self._become_folded()

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        norm: nn.Module | None = None,
        cache_folded: bool = True,
        activation: str | nn.Module = "none",
        sleep: SleepSpec | None = None,
        fill: str = "zero",
        backend: str = "auto",
    ) -> DrowsyConv2d:
        """Make a drowsy layer that shares a convolution's parameters.

        Args:
            conv: an ``nn.Conv2d``, or what is one at heart (``drowsy.network.convolutions``); its
                parameters are shared, not copied.
            norm: a batch norm with running statistics that follows ``conv``, folded into it, with
                the activation that it has of its own (``drowsy.network.norms``).
            cache_folded: fold once and keep the folded copy (``refresh`` folds again), or fold at
                every call from the live batch norm.
            activation, sleep, fill, backend: as for ``DrowsyConv2d``.

        Raises:
            ValueError: ``conv`` is no convolution at heart, ``norm`` no batch norm with running
                statistics in eval mode, or there would be two activations.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        own = layer._adopt(conv, norm, cache_folded)
        if activation != "none" and own != "none":
            raise ValueError(
                f"activation: got {activation!r} after a norm that applies {own} itself, allowed: "
                "none"
            )
        layer._become_drowsy(
            own if activation == "none" else activation,
            _ANY_SLEEP if sleep is None else sleep,
            fill,
            backend,
        )
        layer.refresh()
        return layer

    def absorb(
        self, norm: nn.Module | None, activation: str | nn.Module, tail: Tail | None
    ) -> None:
        """Compute a norm and an activation in the neuron; the model's code passes over ``tail``."""
        self._fold_in(norm)
        self._activate_by(activation)
        self.tail = tail
        self.refresh()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what graphs are built from counts in ``control.version``."""
        super().__setattr__(name, value)
        vars(self)["_prepared"] = None
        if name in _BUILT_IN and "control" in self._modules:
            self.control.version += 1

    # --- inference ------------------------------------------------------------------------------

    def forward(self, input: Tensor) -> Tensor:
        """Run the layer: ``[N, C, H, W]`` -> ``[N, OC, OH, OW]``.

        Raises:
            RuntimeError: gradients are enabled and something requires them, the layer being for
                inference; a transform of ``torch.func`` is at work; a correction is in force and
                ``torch.func.functional_call`` gives other weights.
            TypeError: a dtype that is not supported.
        """
        if not isinstance(input, torch.fx.Proxy):
            self._check_call(input)
            if input.dim() == 3:
                self._check_alone(self.tail)
                return self.forward(input[None])[0]
        if self.owns_control:
            y = self.compute(input)
            self.control.advance(input.shape[0])
            return y
        if in_graph(input) or (running() is None and is_recorded()):
            check_graph()
        else:
            join(self.control, self.index, input.shape[0])
        return self.compute(input)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As any module; what hooks make of the output is marked with the layer's tail."""
        if len(args) == 1 and not kwargs and plainly_called(self):
            begun = at_ease(args[0], self._modules["control"], self.index)  # type: ignore[arg-type]
            if begun is not None and (y := self._at_ease(args[0], begun)) is not None:
                return y
        y = super().__call__(*args, **kwargs)
        if self.tail is None or in_graph(y):
            return y
        return mark(y, self.tail, joined(self.control))

    def _at_ease(self, input: Tensor, begun: Inference) -> Tensor | None:
        """The output before what the model's code comes to; None where it is not prepared."""
        prepared = self._prepared
        if prepared is None or not prepared.holds():
            vars(self)["_prepared"] = prepared = self._prepare()
        if prepared is None or (prepared.serves is not None and not prepared.serves(input)):
            return None
        begun.images = max(begun.images, input.size(0))
        y = prepared.convolve(input)
        return y if prepared.tail is None else mark(y, prepared.tail, begun)

    def _prepare(self) -> Prepared | None:
        # A layer by itself asks its activation's module at every call.
        unusual = _REPLACEABLE & vars(self).keys() or (
            self.applied is not None and self.tail is None
        )
        on_cuda = self.weight.is_cuda
        if unusual or not self._keeps_parameters() or not (on_cuda or self.backend != "triton"):
            return None
        weight, bias = self.parameters_in_effect()
        spec, norm, tail = self.spec, self._norm, self.tail
        if tail is not None:
            # Of what belongs to the neuron, what is part of the norm's own module.
            spec = replace(spec, activation="none" if norm is None else norm.activation)
            tail = None if norm is None else (tail[0], None)
        serves = partial(library_serves, self.backend, weight, spec) if on_cuda else None
        kernel = weight.shape if self._pads_by_kernel() else None
        return Prepared((weight, bias), spec, kernel, self._sources(weight, bias), tail, serves)

    def compute(self, input: Tensor) -> Tensor:
        """``[N, C, H, W]`` -> ``[N, OC, OH, OW]``, whoever sleeps sleeping; the clock stands."""
        if self._idle(input):
            return self.awake(input)
        return self._drowse_on_cpu(input) if self._direct(input) else self._drowse(input)

    def _check_call(self, input: Tensor) -> None:
        if torch.is_grad_enabled() and (input.requires_grad or self._wants_gradient()):
            raise RuntimeError(
                "DrowsyConv2d is for inference and has no gradient: call the network under "
                "torch.inference_mode() or torch.no_grad()"
            )
        if input.dtype not in DTYPES:
            raise TypeError(f"input: got {input.dtype}, allowed: {', '.join(map(str, DTYPES))}")
        if not torch.compiler.is_compiling() and peek_interpreter_stack() is not None:
            raise RuntimeError(NO_TRANSFORMS)

    def _idle(self, input: Tensor) -> bool:
        """Whether nobody sleeps now and torch's own convolution can serve.

        On the CPU that spares the operator's dispatch, tens of microseconds that small layers
        notice; on CUDA cuDNN computes the layer where it is the faster. Not while a graph is made
        that outlives this rate: some tracers see subclasses of tensors, the others, compilers and
        captures say so.
        """
        if (
            torch.compiler.is_compiling()
            or type(input) is not Tensor
            or not self.control.awake(self.index)
            or torch.jit.is_tracing()
            or is_recorded()
        ):
            return False
        if not input.is_cuda:
            return self.backend != "triton"
        return library_serves(self.backend, self.weight, self.spec, input)

    def _direct(self, input: Tensor) -> bool:
        """Whether the CPU backend can be called without the operator, which nobody would see."""
        return (
            not torch.compiler.is_compiling()
            and type(input) is Tensor
            and input.device.type == "cpu"
            and not self.sleep.source.sees
            and input.dim() == 4
            and self.backend != "triton"
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._len_torch_function_stack()
        )

    def _drowse_on_cpu(self, input: Tensor) -> Tensor:
        return on_cpu(
            input,
            *self.parameters_in_effect(),
            self.control.thresholds,
            self.control.scales,
            self.control.clock,
            self.index,
            self.spec,
            self.sleep,
            self._fill_text,
            self.table,
            self.slopes,
        )

    def _drowse(self, input: Tensor) -> Tensor:
        if exporting_onnx():
            return self._fixed(input)
        sleep, detail = self._seen(input) if self.sleep.source.sees else (self._sleep_text, None)
        return torch.ops.drowsy.conv2d(
            input,
            *self.parameters_in_effect(),
            self.control.thresholds,
            self.control.scales,
            self.control.clock,
            self.table,
            self.index,
            *self.spec.arguments(),
            sleep,
            self._fill_text,
            self.backend,
            detail,
            self.slopes,
        )

    def _seen(self, input: Tensor) -> tuple[str, Tensor | None]:
        """The sleep of a layer whose source sees, as text, and what it sees in this inference."""
        # Tracers put other objects in the place of the control.
        begun = running() if in_graph(input) else joined(self.control)
        if begun is not None and begun.detail is not None:
            return self._sleep_text, begun.detail
        if self.control.awake(self.index) and not is_kept(input):
            # Nobody sleeps, whatever there is to see.
            return str(simplest(self.sleep, 0)), None
        raise ValueError(
            f"sleep: got source {self.sleep.source.name} for a layer that was called without its "
            "network, allowed: within a call of a network that is given pictures, or at rate 0"
        )

    def _fixed(self, input: Tensor) -> Tensor:
        """The layer with the maps of the clock's present time as constants, for other runtimes."""
        spec = self.spec
        if spec.padding_mode == "same" and torch.jit.is_tracing():
            # Worked out for this size: others, where a runtime is given them, must not pass.
            with untraced():
                size = [int(n) for n in input.shape]
            input, spec = input.reshape(size), spec.at(size[2:])
        y = awake_conv2d(input, *self.parameters_in_effect(), spec, self.slopes)
        j, k = self.control.settings[self.index], self.sleep.k
        if j == 0:
            return y
        if any(isinstance(size, torch.SymInt) for size in y.shape):
            raise RuntimeError(NO_ONNX)
        if self.sleep.source.sees:
            raise RuntimeError(
                f"source {self.sleep.source.name} sleeps by what is in the picture, and ONNX gets "
                "the example's maps as constants: export the network with another source, at rate "
                "0, or drowsy.revert(net)"
            )
        with untraced():
            shape = (int(y.shape[0]), int(y.shape[1]), int(y.shape[2]), int(y.shape[3]))
            drawn = levels(self.sleep, shape, self.control.present())
            factor = scale(j, k, self._fill)
            asleep = FixedSleep(drawn, j, factor, shape, y.dtype, self.sleep.grain, self._fill_text)
        # Nor must other sizes pass by broadcasting.
        return asleep(y.reshape(shape), self.table)

    def awake(self, input: Tensor) -> Tensor:
        """The layer's output with nobody asleep: ``[N, C, H, W]`` -> ``[N, OC, OH, OW]``."""
        return awake_conv2d(input, *self.parameters_in_effect(), self.spec, self.slopes)

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(
            "DrowsyConv2d cannot be compiled by torch.jit.script: use torch.jit.trace, "
            "torch.compile or torch.export, which follow its knob, or script the network that "
            "drowsy.revert(net) gives"
        )

    def extra_repr(self) -> str:
        """``nn.Conv2d``'s line, then the neuron's."""
        norm = ", norm folded" if self.norm is not None else ""
        return (
            f"{super().extra_repr()}, activation={self.activation}{norm}, "
            f"rate={self.rate}, fill={self.fill}, sleep={self.sleep}"
        )
