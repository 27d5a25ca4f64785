"""Compile kernels through Triton's own launcher, with no GPU; run by ``test_bench``.

Offline compilation builds its own signature. What a launch would refuse (a keyword of the
launcher's, an option that is not one) shows only here.
"""

from __future__ import annotations

import torch
from drowsy_kernels import launch
from drowsy_kernels.tuning import ConvShape
from triton.runtime import driver

import drowsy
from bench import networks
from bench.compiling import Job, compile_job, compile_specialisation, recorded
from tests.kernels.launch_variants import Driver

driver.set_active(Driver())  # type: ignore[arg-type]

SHAPE = ConvShape(64, 64, (14, 14), (3, 3), padding=(1, 1, 1, 1))
for kind, way in (
    (None, "box"),
    ("neuron", "pointer"),
    ("position", "rows"),
    ("tile", "cells"),
    ("channel", "channels"),
):
    compile_job(Job(SHAPE, 4, "bf16", kind, way))

# What a deployed network launches, recorded on CPU tensors that no kernel will touch.
launch.interpreted = lambda: True  # type: ignore[assignment]
cpu = torch.device("cpu")
model = networks.make_network("cifar_resnet20", "bf16", cpu)
batch = networks.photographs("cifar_resnet20", 2, torch.bfloat16, cpu)
with torch.inference_mode():
    net = networks.convert(model, "aligned", batch)
    net.set(0.5)
    found = recorded(lambda: drowsy.deploy(net, batch, graph=False)(batch))
names = {made.kernel for made in found}
assert "_bernoulli_kernel" in names, names
for name in sorted(names):
    compile_specialisation(next(made for made in found if made.kernel == name))
