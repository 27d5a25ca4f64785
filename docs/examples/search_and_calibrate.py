"""Search the best settings, then mend what they cost.

A search measures settings and keeps the best of them: the frontier. Calibration then corrects the
network at those settings with a few images. Neither needs labels; where you have them, pass them to
the search, and ask for `objective="top1"`.
"""

import tempfile
from pathlib import Path

import torch

import drowsy
from drowsy import models

model = models.load("caffenet_cifar")
torch.manual_seed(0)
# Stand-ins for images, as in turn_the_knob.py; a frontier is only as good as its images are many.
images = torch.nn.functional.interpolate(torch.randn(160, 3, 4, 4), size=32, mode="bicubic")
searched, calibrated, held_out = images[:24], images[24:112], images[112:]

net = drowsy.convert(model, source="fovea", grain="position", k=4)  # the border sleeps first

with tempfile.TemporaryDirectory() as folder:
    # The store holds every measured point at once: a search that was stopped resumes from it.
    with drowsy.Store(Path(folder) / "points.sqlite") as store:
        frontier = drowsy.search(net, searched, objective="agreement", budget=24, store=store)
    frontier.save(Path(folder) / "frontier.json")
    frontier = drowsy.Frontier.load(Path(folder) / "frontier.json")
print(frontier.table())

# The best that saves this much of the network (linear layers stay awake); also .at(max_loss=0.05).
point = frontier.at(saving=0.49)
print(f"\nchosen: {point.saving:.1%} of the multiplications saved")


@torch.inference_mode()
def error(setting: object) -> float:
    """Relative error of the logits, on images that were neither searched nor calibrated on."""
    net.reseed(0)  # the same sleep maps every time, for a fair comparison
    net.set(setting)
    expected = model(held_out)
    return ((net(held_out) - expected).norm() / expected.norm()).item()


uniform, before = error(0.5), error(point)
drowsy.calibrate(net, calibrated, [point], reconstruct=True)
after = error(point)  # net.set now puts the point's correction in force
print(f"error of the logits: {before:.3f}, calibrated {after:.3f}")
print(f"rate 1/2 for all layers, not calibrated: {uniform:.3f}")
assert after < before
