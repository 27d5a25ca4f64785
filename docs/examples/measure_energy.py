"""Measure what the knob saves: latency and joules.

NVML counts a GPU's energy, RAPL a CPU's. Where neither can be read, drowsy says what is missing and
measures latency alone: nothing is estimated. `drowsy energy` does this for a whole frontier.
"""

import torch

import drowsy
from drowsy import energy, models

SECONDS = 0.2  # of every window; take 5 or more for figures that you publish

for device in energy.available():
    print(f"{device.device}: {'metered' if device.metered else 'not metered'}: {device.what}")

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
images = torch.nn.functional.interpolate(torch.randn(16, 3, 4, 4), size=32, mode="bicubic")
images = images.to(device, memory_format=torch.channels_last)
net = drowsy.convert(models.load("caffenet_cifar"), source="lattice", grain="position")
net.to(device, memory_format=torch.channels_last)

try:
    meter = energy.Meter(device)
    print(f"\nidle: {meter.measure_idle(SECONDS):.1f} W")
except energy.NoMeter as missing:
    meter = None
    print(f"\nno joules, latency only: {missing}")


@torch.inference_mode()
def run() -> None:
    """One batch."""
    net(images)


if meter is not None:
    net.set(0.5)
    window = meter.measure(run, seconds=SECONDS)  # any function can be measured
    print(f"half asleep: {window.joules_per_call:.3g} J a batch, {window.calls} batches")

# Operating points: settings with what was measured at them.
schedules = []
for rate in (0, 0.25, 0.5, 0.75):
    net.set(rate)
    schedules.append(net.schedule)
profiles: list[energy.Profile] = []
energy.profile(net, images, schedules, meter=meter, seconds=SECONDS, each=profiles.append)
print(f"\nbatches of {len(images)} images\n{energy.profile_table(profiles, len(images))}")
