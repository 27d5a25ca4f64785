"""Deployment: a converted network at full speed, its knob still turning.

``deploy`` rewrites the network's graph for one batch shape:

- Sleep maps, awake lists and tap tables depend on clock, rates and shapes, and where sources see on
  the input, but never on what layers put out. They are drawn into fixed buffers at the
  start of an inference, on a stream of their own beside the first layers.
- Layers that share a position map (``drowsy.align``) hand each other *compact* activations: the
  awake rows and nothing else. The full map is filled in only for what is not a convolution, a
  pointwise operation, a sum or a concatenation of layers of that map.
- A residual sum and the activation after it become part of the convolution that computes one of
  its operands.
- On CUDA all of it, the clock's advance included, is captured into one CUDA graph. Rates and seed
  are data, so that ``net.set`` and ``net.reseed`` take effect in the captured graph.

What is fixed when a graph is built: the layers' grains, sources, streams and fills (``zero`` and
``rescale`` are one here), tables of ``stencil``, which layers of a shared map have equal rates, and
where weights lie: a correction that comes or goes, ``net.refresh()``, a loaded ``state_dict``; and
the attributes of torch's modules and of norms, such as an ``eps`` or a ``negative_slope``. A call
that finds these changed builds and captures anew, which takes about as long as ``deploy`` did.
Whether anything changed at all is one comparison of ``net.control.version``, and whether attributes
are the objects that they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from drowsy.deployment.capturing import captured
from drowsy.files.tables import align
from drowsy.graph.overwriting import check_overwritten
from drowsy.graph.running import check_example, settled_graph
from drowsy.network.kept import Kept
from drowsy.network.net import DrowsyNet

if TYPE_CHECKING:
    from drowsy.deployment.steps import Step


_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def deploy(
    net: DrowsyNet, example: Tensor, *, compact: bool = True, graph: bool | None = None
) -> Deployed:
    """Make a fast copy of a converted network, for batches like ``example``.

    Args:
        net: a converted network; its knob (``net.set``, ``net.reseed``) and its clock are also the
            copy's. Weights are taken as they are now: after changing them by hand call
            ``net.refresh()``. So are attributes of modules that are neither torch's nor norms.
        example: a batch ``[N, C, H, W]``; float32, float16 or bfloat16, on the network's device.
        compact: keep activations compact between layers that share a position map.
        graph: capture a CUDA graph; by default on CUDA.

    Returns:
        a callable: a batch of the example's shape, dtype and device -> what ``net`` would return.

    Raises:
        TypeError, ValueError: an argument outside of what is listed here.
    """
    check_example(net, example)
    if example.dtype not in _DTYPES:
        raise TypeError(f"example: got {example.dtype}, allowed: {', '.join(map(str, _DTYPES))}")
    parameter = next(iter(net.layers.values())).weight
    if (parameter.dtype, parameter.device) != (example.dtype, example.device):
        raise ValueError(
            f"example: got {example.dtype} on {example.device}, allowed: the network's "
            f"{parameter.dtype} on {parameter.device}"
        )
    if net.training:
        raise ValueError("net: is in training mode; drowsy is for inference, call net.eval()")
    settled_graph(net, example, "deploy")
    check_overwritten(net, example)
    # Imported here: ``import drowsy`` must work where Triton finds no driver.
    from drowsy_kernels.launch import check_device

    check_device("example", example)
    if graph is None:
        graph = example.is_cuda
    if graph and not example.is_cuda:
        raise ValueError("graph: got True for a CPU tensor, allowed: CUDA tensors")
    return Deployed(net, example, compact=compact, graph=graph)


class Deployed:
    """A deployed network; made by ``deploy``.

    Attributes:
        net: the network whose knob this follows.
        steps: how its drowsy layers run, in order of execution.
    """

    def __init__(self, net: DrowsyNet, example: Tensor, *, compact: bool, graph: bool) -> None:
        self.net = net
        self._example = torch.empty_like(example, memory_format=torch.channels_last)
        self._compact, self._graph = compact, graph
        self._structure: object
        self._constants: Kept
        self._run: Callable[[Tensor], Any]
        self._version = net.control.version
        self._build()

    @property
    def steps(self) -> list[Step]:
        """How the drowsy layers run, in order of execution."""
        return self._steps

    def __call__(self, batch: Tensor) -> Any:
        """What the network returns for a batch; advances its clock.

        Raises:
            ValueError: a batch unlike the example.
        """
        like = self._example
        if (batch.shape, batch.dtype, batch.device) != (like.shape, like.dtype, like.device):
            raise ValueError(
                f"batch: got {batch.dtype} {tuple(batch.shape)} on {batch.device}, allowed: "
                f"{like.dtype} {tuple(like.shape)} on {like.device}, as deployed"
            )
        version, same = self.net.control.version, self._constants.holds()
        if not same:
            # Such an attribute may be one that the graph does not follow.
            settled_graph(self.net, batch, "deploy")
        if version != self._version or not same:
            if not same or self._structure != self._read_structure():
                self._build()
            self._version = version
        with torch.no_grad():
            return self._run(batch)

    def explain(self) -> str:
        """One line a layer: what it reads, computes and writes."""
        header = ["layer", "reads", "computes", "writes", "fused"]
        rows = [[s.layer, s.reads, s.computes, s.output, s.fused or "-"] for s in self.steps]
        return align([header, *rows])

    def _build(self) -> None:
        from drowsy.deployment.builder import Builder

        version = self.net.control.version
        constants = Kept(map(vars, _constant_modules(self.net)))
        with torch.no_grad():
            builder = Builder(self.net, self._example, self._compact)
            module = builder.build()
            self._run = self._captured(module) if self._graph else module
            # A captured graph knows addresses alone: weights, maps and tables must outlive it.
            self._module = module
            self._steps, self._copied = builder.steps, builder.copied
            structure = self._read_structure()
            # Where another thread turned the knob meanwhile, the next call builds anew.
            self._structure = structure if self.net.control.version == version else None
            self._constants = constants

    def _read_structure(self) -> object:
        from drowsy.deployment.builder import structure

        return structure(self.net, self._compact, self._copied)

    def _captured(self, module: nn.Module) -> Callable[[Tensor], Any]:
        """The module as a CUDA graph over fixed buffers."""
        given, clock = self._example, self.net.control.clock
        before = clock.clone()

        def warm() -> None:
            given.zero_()
            for _ in range(2):
                module(given)
            clock.copy_(before)

        replay, held = captured(lambda: module(given), given.device, warm)

        def run(batch: Tensor) -> Any:
            given.copy_(batch)
            replay()
            # The next replay overwrites what the graph holds.
            return fx.node.map_aggregate(
                held, lambda value: value.clone() if isinstance(value, Tensor) else value
            )

        return run


def _constant_modules(net: DrowsyNet) -> list[nn.Module]:
    """Modules of a network whose attributes no call changes.

    Torch's own without children, and what layers ask for norms and activations: the code of others
    may change what it keeps.
    """
    found = [m for m in net.parts.values() if type(m).__module__.startswith("torch.nn.")]
    found = [module for module in found if not module._modules]
    for layer in net.layers.values():
        asked = [each for each in (layer.norm, layer.applied) if each is not None]
        found += (part for each in asked for part in each.modules())
    return list({id(module): module for module in found}.values())
