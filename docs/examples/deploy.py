"""Deploy a network at full speed.

On a GPU `drowsy.deploy` captures the whole network as one CUDA graph of Triton kernels that skip
what sleeps, and the graph follows the knob. Without a GPU the same kernels run here in Triton's
interpreter: right, but slow, so there is one small image and nothing is timed.
"""

import os

import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: before drowsy

import drowsy

device, dtype = ("cuda", torch.float16) if CUDA else ("cpu", torch.float32)
batch, size = (256, 32) if CUDA else (1, 8)
torch.manual_seed(0)
images = torch.randn(batch, 3, size, size).to(device, dtype, memory_format=torch.channels_last)

layers = [torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU()]
for _ in range(3):
    layers += [torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ReLU()]
model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
net = drowsy.convert(model, source="lattice", grain="position")
net.to(device=device, dtype=dtype, memory_format=torch.channels_last)
drowsy.align(net, images)  # layers of one resolution sleep at the same positions
# Where sleepers are copies of awake neighbours, such layers hand on their awake rows alone.
net.set(0.5, fill="nearest")

fast = drowsy.deploy(net, images)
for step in fast.steps:
    print(f"{step.layer}: computes {step.computes}, reads {step.reads}, writes {step.output}")


def milliseconds() -> float:
    """Time of a batch, between events of the GPU's."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(50):
        fast(images)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 50


print("\nrate, relative difference from the network as it was converted, time of a batch")
for rate in (0.5, 0.25, 0.75) if CUDA else (0.5, 0.25):
    net.set(rate)  # turns the knob of `fast` too: nothing is captured or compiled again
    net.reseed(0)
    found = fast(images).clone()
    net.reseed(0)
    with torch.inference_mode():
        expected = net(images)
    error = (found - expected).norm() / expected.norm()
    assert error < 1e-2
    print(f"{rate:5.1%} {error:.1e} {f'{milliseconds():.3f} ms' if CUDA else 'needs a GPU'}")
