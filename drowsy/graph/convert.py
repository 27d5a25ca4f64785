"""Turn a pretrained CNN into a drowsy one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from drowsy.backends.ops import choose_backend
from drowsy.graph.settling import Settling
from drowsy.network.layer import DrowsyConv2d
from drowsy.network.net import DrowsyNet, check_network
from drowsy.sleep import DEFAULT_K, FILLS, Grain, SleepSpec, Source, check_fill


def convert(
    model: nn.Module,
    example: Any = None,
    *,
    source: str | Source = "bernoulli",
    grain: str | Grain = "neuron",
    k: int = DEFAULT_K,
    fill: str = "auto",
    seed: int = 0,
    fold_bn: bool = True,
    skip: Sequence[str] = (),
    backend: str = "auto",
    verify: bool = True,
) -> DrowsyNet:
    """Give a pretrained CNN a knob.

    What runs is a copy of the model's own module tree, in which every ``nn.Conv2d`` is a
    ``DrowsyConv2d`` that also computes the batch norm and activation that follow it. Weights are
    shared with ``model``, which stays as it was; ``state_dict`` keys are the same. (Put another
    parameter in the place of one at ``net.layers[name]``: one put into the model's convolution is
    not the network's.) The network starts at rate 0, where it computes what ``model`` computes:
    that is compared with an example, or at the first call. Convolutions, norms and activations with
    forward hooks stay as they are.

    Where ``torch.fx`` can trace the model, what is known of its graph serves ``deploy``, stages and
    searches that compute what settings share once; elsewhere the network does without
    (``net.known.reason`` says why).

    Args:
        model: a network in eval mode; wrapped by ``torch.compile`` or ``nn.DataParallel``, what is
            inside is converted.
        example: what the model is called with: a tensor, a tuple of arguments, or a dictionary of
            keyword arguments. With one, the network is compared with the model at once.
        source: how sleep maps are drawn, e.g. ``bernoulli`` or ``lfsr:width=8,taps=8.6.5.4``.
        grain: which neurons share a bit, e.g. ``neuron`` or ``position:64``.
        k: rates are multiples of ``1/k``.
        fill: ``auto`` (``interpolate`` where the source spreads single positions over the map, else
            each layer by the paper's rule, ``zero`` or ``rescale``: ``graph.default_fills``),
            or one of ``drowsy.sleep.FILLS`` for all layers.
        seed: of the sleep maps.
        fold_bn: keep a folded copy of the weights (``net.refresh()`` after changing parameters by
            hand), or fold at every inference from the live batch norm.
        skip: layers to leave awake and untouched: exact names, or ``re:`` and a pattern.
        backend: ``auto``, ``torch`` or ``triton``.
        verify: compare the network with the model.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: training mode, a model that is scripted or drowsy already, no convolution, an
            unknown name in ``skip``, a fill that the grain does not allow; or the network does not
            compute what the model does on the example.
    """
    model = inside(model)
    check_model(model)
    spec = SleepSpec(source, grain, k)  # type: ignore[arg-type]
    _check_fill(fill, spec.grain)
    choose_backend(backend, torch.device("cpu"))
    # Tensors made in inference mode could not be used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        settling = Settling(spec, fill, fold_bn, backend, skip, verify)
        call = None if example is None else as_call(example)
        net = settling.network(model, seed, call)
        if call is not None:
            args, kwargs = call
            net.settle(*args, **kwargs)
    return net


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example."""
    if isinstance(example, tuple) and not hasattr(example, "_fields"):
        return example, {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example,), {}


def revert(net: DrowsyNet) -> nn.Module:
    """The model that ``net`` was converted from, with the weights they share.

    Raises:
        TypeError: ``net`` is no DrowsyNet.
    """
    check_network(net)
    return net.original


def check_model(model: nn.Module) -> None:
    """Raise TypeError or ValueError unless this is a network in eval mode, not converted yet."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, allowed: an nn.Module")
    if isinstance(model, DrowsyNet):
        raise ValueError("model: is already drowsy; revert it first")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "model: is scripted or traced (torch.jit), which fixes its code; convert the "
            "model that it was made of"
        )
    for name, module in model.named_modules():
        if isinstance(module, DrowsyNet | DrowsyConv2d):
            raise ValueError(f"model: {name} is already drowsy; revert or replace it first")
        if module.training:
            raise ValueError(
                f"model: is in training mode ({name or 'all of it'}); drowsy is for inference, "
                "call model.eval()"
            )


def inside(model: nn.Module) -> nn.Module:
    """What a model wraps that torch has compiled or spread over devices."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return model


def _check_fill(fill: str, grain: Grain) -> None:
    if fill not in ("auto", *FILLS):
        raise ValueError(f"fill: got {fill!r}, allowed: auto, {', '.join(FILLS)}")
    if fill != "auto":
        check_fill(fill, grain)
