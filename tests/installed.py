"""Use the installed packages as somebody's first script would; run by ``test_packaging``.

Runs in an environment where a wheel was installed, in an empty folder, and prints where what it
used lies.
"""

from __future__ import annotations

import json
from importlib.metadata import version

import drowsy_kernels
import torch
from torch.testing import assert_close

import drowsy
from drowsy import models
from drowsy.files.provenance import provenance

torch.manual_seed(0)
model = models.load("caffenet_cifar")  # the weights that ship with the package
images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
net = drowsy.convert(model, source="lattice", grain="position", backend="torch")
net.to(memory_format=torch.channels_last)
with torch.inference_mode():
    assert_close(net(images), model(images))
    net.set(0.5)  # skips where the crossover table that ships with the package says so
    assert not torch.allclose(net(images), model(images))

    conv = torch.nn.Conv2d(8, 16, 3, padding=1)
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    y = drowsy_kernels.conv2d(
        x, drowsy_kernels.pack_weight(conv.weight), conv.bias, padding=(1, 1, 1, 1)
    )
    assert_close(y, conv(x))

record = provenance()
print(
    json.dumps(
        {
            "drowsy": drowsy.__file__,
            "drowsy_kernels": drowsy_kernels.__file__,
            "version": drowsy.__version__,
            "distribution": version("drowsynet"),
            "commit": record["commit"],
            "recorded": record["versions"]["drowsy"],
        }
    )
)
