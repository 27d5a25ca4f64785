"""How a model becomes a drowsy network, and how the two are made to agree."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from drowsy.graph.agreement import copied as copied_values
from drowsy.graph.agreement import disagreement
from drowsy.graph.convolutions import geometry, left_awake, why_not
from drowsy.graph.default_fills import Choice, choose_fill
from drowsy.graph.nodes import (
    Neuron,
    absorbable,
    altered,
    common_neuron,
    neuron_of,
    observed_neuron,
)
from drowsy.graph.observing import Observed, observe
from drowsy.graph.tracing import CONVOLUTIONS, convolution_calls, trace
from drowsy.graph.tree import copied
from drowsy.knob.control import Control
from drowsy.network.inference import inference
from drowsy.network.known import KnownGraph
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet
from drowsy.network.report import LayerReport
from drowsy.network.tail import Absorbed, OtherWay, Tail, other_way
from drowsy.sleep import SleepSpec

# A layer with a smaller share of the multiplications saves nothing that could be measured.
SMALL_SHARE = 1e-3


@dataclass
class Settling:
    """How a network was asked for, and what has been compared of it.

    Attributes:
        sleep, fill, fold, backend, skip: as ``convert`` takes them.
        verify: whether to compare the network with its model.
        compared: methods of the model that have been.
        neurons: what layers compute besides their convolutions, of those that are known: by the
            graph, or what all methods that were observed have in common.
    """

    sleep: SleepSpec
    fill: str
    fold: bool
    backend: str
    skip: Sequence[str]
    verify: bool
    compared: frozenset[str] = frozenset()
    neurons: Mapping[str, Neuron] = field(default_factory=dict)

    # --- making it ------------------------------------------------------------------------------

    def network(self, model: nn.Module, seed: int, example: Any) -> DrowsyNet:
        """The network of a model, with what its graph tells of neurons, if there is one.

        Args:
            model: in eval mode.
            seed: of the sleep maps.
            example: a call of it ``(args, kwargs)``, which tells the order of layers where no graph
                does; None for none.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        graph, reason = None, "traced, not compared with the model yet"
        constants: dict[str, Tensor] = {}
        try:
            graph, constants = trace(model)
        except ValueError as error:
            reason = str(error)
        calls = {} if graph is None else convolution_calls(graph, modules)
        names = list(calls) if graph is not None else _in_order(model, modules, example)
        left = left_awake(names, modules, self.skip)
        layers = {name: modules[name] for name in names if name not in left}
        if not layers:
            reasons = [f"; {name}: {why_not(modules[name]) or left[name]}" for name in names]
            raise ValueError(f"model: has no nn.Conv2d to convert{''.join(reasons[:1])}")

        # Choices are made on the graph as it was written, before anything is absorbed.
        neurons = {
            name: common_neuron([neuron_of(node, modules) for node in calls[name]])
            if name in calls
            else Neuron()
            for name in layers
        }
        choices = {
            name: self._fill((neurons[name].absorbed or tuple(calls[name]))[-1], modules)
            if name in calls
            else self._fill(None, modules)
            for name in layers
        }
        control = Control(len(layers), seed, device=_device(model))
        made = {
            name: self._layer(conv, control, index, choices[name].fill)
            for index, (name, conv) in enumerate(layers.items())
        }
        swaps: dict[int, nn.Module] = {
            id(module): Absorbed(module) for module in modules.values() if absorbable(module)
        }
        swaps |= {id(layers[name]): layer for name, layer in made.items()}
        report = [
            LayerReport(name, geometry(modules[name]), None, None, None, left[name])
            if name in left
            else LayerReport(
                name,
                geometry(modules[name]),
                None,
                "none",
                choices[name].fill,
                choices[name].reason,
            )
            for name in names
        ]
        net = DrowsyNet.assemble(model, copied(model, swaps), made, control, report, self)
        self._absorb(net, neurons if graph is not None else {})
        if graph is not None:
            for neuron in neurons.values():
                _erase(graph, neuron)
        net.known = KnownGraph(net.model, graph, reason, constants)
        return net

    def _layer(self, conv: nn.Module, control: Control, index: int, fill: str) -> DrowsyConv2d:
        assert isinstance(conv, nn.Conv2d)
        layer = DrowsyConv2d.from_conv(
            conv,
            cache_folded=self.fold,
            sleep=replace(self.sleep, stream=index),
            fill=fill,
            backend=self.backend,
        )
        layer.control, layer.index, layer.owns_control = control, index, False
        return layer

    def _fill(self, node: fx.Node | None, modules: Mapping[str, nn.Module]) -> Choice:
        if self.fill != "auto":
            return Choice(self.fill, "as asked")
        return choose_fill(node, modules, self.sleep)

    # --- making it agree ------------------------------------------------------------------------

    @torch.no_grad()
    def settle(self, net: DrowsyNet, method: str, args: Any, kwargs: Any) -> None:
        """Compare the network with its model on a call; drop what was thought to be known of it.

        Raises:
            ValueError: nobody asleep and nothing folded, the network still computes another thing.
        """
        call = _Comparison(net, method, args, kwargs)
        if net.graph is None:
            self._observe(net, call)
        with net.uncorrected(), net.control.nobody_asleep():
            if self.verify:
                self._compare(net, call)
            else:
                call.run()
            if method == "forward" or not net.settled:
                net.resting = call.work.resting(whole=method == "forward")
        self.compared |= {method}

    def _observe(self, net: DrowsyNet, call: _Comparison) -> None:
        """Find from one run of the model's code what belongs to neurons, at all calls so far."""
        modules = {name: net.original.get_submodule(name) for name in net.layers}
        watched = [module for module in net.original.modules() if absorbable(module)]
        args, kwargs = call.given()
        seen = observe(net.original, [*modules.values(), *watched], call.method, args, kwargs)
        found = observed_neurons(seen, net.original, modules)
        both = {name: common_neuron([self.neurons.get(name, n), n]) for name, n in found.items()}
        self._absorb(net, {**self.neurons, **both})

    def _absorb(self, net: DrowsyNet, neurons: Mapping[str, Neuron]) -> None:
        """Let layers compute what belongs to their neurons; the others convolutions alone."""
        names = {id(module): name for name, module in net.original.named_modules()}
        report = {line.name: line for line in net.report}
        before = self.neurons
        self.neurons = {name: replace(neuron, absorbed=()) for name, neuron in neurons.items()}
        for name, layer in net.layers.items():
            neuron = self.neurons.get(name, Neuron())
            if neuron.same_kind(before.get(name, Neuron())):
                continue
            if self.compared and net.calibration is not None:
                warnings.warn(
                    f"net.calibration: dropped, it is of other neurons ({name})", stacklevel=2
                )
                net.calibration = None
            tail: Tail | None = None
            for step in reversed(neuron.steps):
                at = step if isinstance(step, str) else net.model.get_submodule(names[id(step)])
                assert isinstance(at, str | Absorbed)
                tail = (at, tail)
            layer.absorb(neuron.norm, neuron.applied, tail)
            report[name] = replace(
                report[name], norm=neuron.norm_name, activation=neuron.activation
            )
        net.report = list(report.values())

    def _compare(self, net: DrowsyNet, call: _Comparison) -> None:
        found = call.of_network()
        if found is not None and net.graph is not None:
            whose = "its code" if call.method == "forward" else f"its {call.method}"
            net.known = KnownGraph(net.model, None, f"{whose} does not follow its graph ({found})")
            if "forward" not in self.compared:
                # Neurons were the graph's word alone, on which other methods were compared too.
                self._absorb(net, {})
                self.compared = frozenset()
            self._observe(net, call)
            found = call.of_network()
        if found is not None:
            self._absorb(net, dict.fromkeys(net.layers, Neuron()))
            found = call.of_network()
        if found is not None:
            raise ValueError(
                f"model: at rate 0 the converted {type(net.original).__name__} does not compute "
                f"what the model does: {found}. If two calls of the model differ by themselves, "
                "convert it with verify=False"
            )
        if net.graph is None or call.method != "forward":
            return
        reason = call.of_graph()
        if reason is None:
            net.known.reason = "traced, agrees with the model"
        else:
            net.known = KnownGraph(net.model, None, reason)

    @torch.no_grad()
    def compare_graph(self, net: DrowsyNet, args: Any, kwargs: Any) -> None:
        """Drop a graph that no longer tells what the network's code computes."""
        call = _Comparison(net, "forward", args, kwargs)
        with net.control.nobody_asleep():
            reason = call.of_graph_to_code()
        if reason is not None:
            reason = f"what the network computes was changed since ({reason})"
            net.known = KnownGraph(net.model, None, reason)

    def take_other_way(self, net: DrowsyNet, reason: str) -> None:
        """Do without what was found of neurons: the model's code went another way than then."""
        warnings.warn(
            f"net: the model's code went another way than when it was compared ({reason}): layers "
            "sleep on their convolutions' outputs from now on, without norms and activations",
            stacklevel=5,
        )
        net.known = KnownGraph(net.model, None, f"the model's code takes several ways ({reason})")
        net.calibration = None
        self._absorb(net, dict.fromkeys(net.layers, Neuron()))


class _Comparison:
    """One call, of the model and of the network."""

    def __init__(self, net: DrowsyNet, method: str, args: Any, kwargs: Any) -> None:
        self.net, self.method = net, method
        self._args, self._kwargs = args, kwargs
        self._expected: Any = None
        self._ran = False
        # What is run again for its noise.
        self._reference = net.original
        self.work = _Work(net)

    def given(self) -> tuple[Any, Any]:
        """The arguments, which a call may overwrite."""
        return copied_values(self._args), copied_values(self._kwargs)

    @property
    def expected(self) -> Any:
        """What the model returns."""
        if not self._ran:
            args, kwargs = self.given()
            self._expected, self._ran = (
                self._call(self.net.original, args, kwargs),
                True,
            )
        return self._expected

    def run(self) -> Any:
        """What the network's own copy of the model's code returns."""
        args, kwargs = self.given()
        self.work = _Work(self.net)
        with inference(self.net.control) as begun, self.work.counted():
            output = self._call(self.net.model, args, kwargs)
        if (other := other_way(begun)) is not None:
            raise OtherWay(other)
        return output

    def of_network(self) -> str | None:
        """How the network differs; None where it does not."""
        try:
            return disagreement(self.run(), self.expected, self._rerun)
        except OtherWay as error:
            return str(error)

    def of_graph_to_code(self) -> str | None:
        """As ``of_graph``, but against what the network's code computes now."""
        self._reference = self.net.model
        try:
            self._expected, self._ran = self.run(), True
        except OtherWay as error:
            return str(error)
        return self.of_graph()

    def of_graph(self) -> str | None:
        """How the graph differs, or why it could not be compared; None where it agrees."""
        module = self.net.known.of(self._scratch(self.net.model)).module
        values = (*self._args, *self._kwargs.values())
        one = len(values) == 1 and isinstance(values[0], Tensor)
        if not one or module is None:
            return "graphs are of calls with one tensor alone, and it was called otherwise"
        if any(map(altered, self.net.layers.values())):
            return (
                "a layer has hooks or another forward, which a walk through a graph does not call"
            )
        args, kwargs = self.given()
        try:
            with inference(self.net.control, in_graph=True):
                output = module(*args, **kwargs)
        except Exception as error:  # the graph may hold what the model's code does not come to
            return f"its graph does not run ({type(error).__name__}: {error})"
        found = disagreement(output, self.expected, self._rerun)
        return None if found is None else f"its graph does not compute what it does ({found})"

    def _rerun(self, change: Any) -> Any:
        def changed(leaf: Any) -> Any:
            floating = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return change(leaf) if floating else leaf

        args, kwargs = tree_map(changed, self.given())
        with inference(self.net.control):
            return self._call(self._reference, args, kwargs)

    def _call(self, model: nn.Module, args: Any, kwargs: Any) -> Any:
        """What a model returns, hooks and all; its state is as it was."""
        scratch = self._scratch(model)
        called = scratch if self.method == "forward" else getattr(scratch, self.method)
        return called(*args, **kwargs)

    @staticmethod
    def _scratch(model: nn.Module) -> nn.Module:
        """A copy to run: of what its code sets and overwrites, nothing is left in the model."""
        ours = (m for m in model.modules() if type(m) is Absorbed or isinstance(m, DrowsyConv2d))
        return copied(model, {id(module): module for module in ours}, own_state=True)


def observed_neurons(
    seen: Observed, model: nn.Module, convolutions: Mapping[str, nn.Module]
) -> dict[str, Neuron]:
    """What belongs to the neurons of each convolution, by an observed run of a model."""
    names = {id(module): name for name, module in model.named_modules()}
    outputs: dict[int, list[Tensor]] = {}
    for call in seen.calls:
        outputs.setdefault(id(call.module), []).append(call.output)
    return {
        name: common_neuron([observed_neuron(y, seen, names) for y in outputs[id(module)]])
        for name, module in convolutions.items()
        if id(module) in outputs
    }


def _erase(graph: fx.Graph, neuron: Neuron) -> None:
    for node in neuron.absorbed:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.erase_node(node)


def _in_order(model: nn.Module, modules: Mapping[str, nn.Module], example: Any) -> list[str]:
    """Convolutions in order of execution on an example; else, and without one, of definition."""
    named: dict[int, str] = {}
    for name, module in modules.items():
        if isinstance(module, CONVOLUTIONS):
            named.setdefault(id(module), name)
    if example is None:
        return list(named.values())
    convolutions = [model.get_submodule(name) for name in named.values()]
    args, kwargs = copied_values(example)
    seen = observe(model, convolutions, "forward", args, kwargs)
    # What another input may bring to run comes last.
    ran = [named[id(call.module)] for call in seen.calls]
    return list(dict.fromkeys([*ran, *named.values()]))


class _Work:
    """What each layer multiplies, and for how many positions, while a network runs."""

    def __init__(self, net: DrowsyNet) -> None:
        self.multiplies = dict.fromkeys(net.layers, 0)
        self.positions = dict.fromkeys(net.layers, 0)
        self._layers = net.layers

    @contextmanager
    def counted(self) -> Iterator[None]:
        handles = [
            layer.register_forward_hook(functools.partial(self._count, name))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, name: str, layer: DrowsyConv2d, _: Any, y: Tensor) -> None:
        self.multiplies[name] += y.numel() * layer.weight[0].numel()
        self.positions[name] = max(self.positions[name], math.prod(y.shape[-2:]))

    def resting(self, whole: bool) -> dict[str, str]:
        """Layers that one rate for all leaves awake, and why; a ``whole`` run tells of all."""
        total, found = sum(self.multiplies.values()), {}
        for name, count in self.multiplies.items():
            if not (count or whole):
                continue
            if self.positions[name] == 1:
                # A whole image hangs on it.
                found[name] = "its output is one position"
            elif count < SMALL_SHARE * total:
                found[name] = f"it holds {count / total:.2%} of the multiplications"
        # A network of such layers alone has nothing else to sleep in.
        return found if len(found) < len(self.multiplies) else {}


def _device(model: nn.Module) -> torch.device | None:
    return next((tensor.device for tensor in model.parameters()), None)
