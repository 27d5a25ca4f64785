"""Convert a network and turn its knob.

A converted network computes what the original does until some of its neurons sleep. Turning the
knob changes numbers in place: nothing is rebuilt, and the next batch follows.
"""

import torch

import drowsy
from drowsy import models

# A small network whose weights ship with the package. Any torch CNN in eval mode will do.
model = models.load("caffenet_cifar")

# Stand-ins for images: smooth blobs of colour, [N, 3, 32, 32]. Yours come from a data loader.
torch.manual_seed(0)
images = torch.nn.functional.interpolate(torch.randn(32, 3, 4, 4), size=32, mode="bicubic")

# "lattice" and "position": the same regular pattern of positions sleeps in all channels, and each
# sleeper is interpolated from its awake neighbours. The defaults are the paper's.
net = drowsy.convert(model, source="lattice", grain="position")
print("\n".join(f"{row.name}: {row.geometry}; asleep: {row.fill}" for row in net.report))


@torch.inference_mode()
def agreement() -> float:
    """How often the drowsy network picks the class that the original picks."""
    return (net(images).argmax(1) == model(images).argmax(1)).double().mean().item()


print("\nrate = multiplications of convolutions saved; agreement with the original")
for eighths in range(7):
    net.set(eighths / 8)
    print(f"{eighths / 8:6.1%} {agreement():7.1%}")

# Layers differ in what their sleep costs, so they can be set one by one.
print("\nhalf of one layer's neurons asleep, all others awake")
for name in net.layers:
    net.set(0)
    net.set({name: 0.5})
    print(f"{name} {agreement():7.1%}")

# Awake, it computes what the original does.
net.set(0)
with torch.inference_mode():
    torch.testing.assert_close(net(images), model(images))
