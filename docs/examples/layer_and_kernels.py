"""Use one layer, and the kernels below it, by hand.

`DrowsyConv2d` takes the place of `nn.Conv2d` in a network of your own. What it does on a GPU is a
few kernel launches: draw who sleeps, list who is awake, convolve for those alone, fill the others.
Without a GPU the kernels run in Triton's interpreter.
"""

import os

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: before drowsy

import drowsy_kernels as kernels

import drowsy

torch.manual_seed(0)
x = torch.randn(2, 16, 8, 8, device=device).contiguous(memory_format=torch.channels_last)

# The layer: half of its positions sleep, in all channels at once.
spec = drowsy.SleepSpec("stratified", "position", k=8)
layer = drowsy.DrowsyConv2d(16, 32, 3, padding=1, activation="relu", sleep=spec, backend="torch")
layer = layer.to(device).eval()
layer.set(rate=0.5, fill="interpolate")
layer.control.reseed(7)  # the clock: a seed, and the number of images so far
threshold, clock = layer.control.thresholds.clone(), layer.control.clock.clone()
with torch.inference_mode():
    expected = layer(x)
print(f"the layer: {layer}")

# The same from kernels. The threshold is 4 of 8 levels; a set bit of the map sleeps.
shape, cell = (2, 32, 8, 8), (1, 32)  # of the output; positions and channels that share a bit
bitmap = kernels.sleep_map(
    "stratified", shape, cell=cell, k=8, stream=spec.stream, threshold=threshold, clock=clock
)
awake = kernels.awake_rows(bitmap, shape, cell)
weight = kernels.pack_weight(layer.weight.detach())
bias, padding = layer.bias.detach(), (1, 1, 1, 1)
y = kernels.conv2d(
    x, weight, bias, padding=padding, activation="relu", bitmap=bitmap, cell=cell, awake=awake
)  # only awake positions were computed and written
kernels.fill_sleepers(y, bitmap, cell, "interpolate")

print("who sleeps in image 0 (.), who is awake (#)")
for row in bitmap[0, :, 0].view(8, 8).tolist():
    print("".join(".#"[not word & 1] for word in row))
torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
print(f"kernels and layer differ by {(y - expected).abs().max():.1e} at most")
