"""The networks: their published sizes and shapes, their weights, and what the loader refuses."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drowsy import models

safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs safetensors")

# name: parameters as published, and the smallest input that its layers can take
NETWORKS = {
    "caffenet": (60_965_224, 227),
    "caffenet_cifar": (803_498, 32),
    "cifar_resnet20": (269_722, 32),
    "cifar_resnet56": (853_018, 32),
    "resnet18": (11_689_512, 64),
    "resnet50": (25_557_032, 64),
    "squeezenet1_1": (1_235_496, 64),
    "vgg16": (138_357_544, 32),
}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return models.create(name)


@pytest.fixture
def small(tmp_path: Path) -> tuple[dict[str, Tensor], Path]:
    """Random weights of the CIFAR ResNet-20, and a path to save them at."""
    return models.create("cifar_resnet20").state_dict(), tmp_path / "weights.safetensors"


def read_image(path: Path) -> np.ndarray:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    return np.asarray(image.open(path).convert("RGB"))


def normalised(pixels: np.ndarray, preprocess: models.Preprocess) -> Tensor:
    """Images ``[N, H, W, 3]`` of 0 to 255 as a network takes them."""
    x = torch.from_numpy(pixels / 255).float() - torch.tensor(preprocess.mean)
    return (x / torch.tensor(preprocess.std)).permute(0, 3, 1, 2).contiguous()


# --- definitions ---------------------------------------------------------------------------------


def test_every_network_is_covered():
    assert models.MODELS.keys() == NETWORKS.keys()
    assert all(name == info.name for name, info in models.MODELS.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_count_is_the_published_one(name: str):
    assert sum(p.numel() for p in on_meta(name).parameters()) == NETWORKS[name][0]


@pytest.mark.parametrize("name", NETWORKS)
def test_classifies_its_own_crop(name: str):
    info = models.MODELS[name]
    x = torch.empty(2, 3, info.preprocess.crop, info.preprocess.crop, device="meta")
    assert on_meta(name)(x).shape == (2, info.num_classes)


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_fx_traces_to_the_same_function(name: str):
    torch.manual_seed(0)
    model = models.create(name, num_classes=7)
    x = torch.randn(2, 3, NETWORKS[name][1], NETWORKS[name][1])
    logits = model(x.clone())
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert logits.std() > 0
    assert torch.equal(torch.fx.symbolic_trace(model)(x.clone()), logits)


def test_caffenet_has_the_papers_layers():
    """Table I of the paper: neurons of each convolutional layer."""
    neurons = {}
    model = on_meta("caffenet")
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _, __, y, name=name: neurons.update({name: y[0].numel()})
            )
    model(torch.empty(1, 3, 227, 227, device="meta"))
    assert neurons == {
        "conv1": 290_400,
        "conv2": 186_624,
        "conv3": 64_896,
        "conv4": 64_896,
        "conv5": 43_264,
    }


@pytest.mark.parametrize("name", ["caffenet", "caffenet_cifar"])
def test_caffenet_pools_before_it_normalises(name: str):
    calls = [n.target for n in torch.fx.symbolic_trace(on_meta(name)).graph.nodes]
    for i in (1, 2):
        assert calls.index(f"conv{i}") < calls.index(f"pool{i}") < calls.index(f"norm{i}")
    grouped = [n for n, m in on_meta(name).named_modules() if getattr(m, "groups", 1) == 2]
    assert grouped == ["conv2", "conv4", "conv5"]


def test_padded_shortcut_is_option_a():
    shortcut = on_meta("cifar_resnet20").layer2[0].shortcut
    x = torch.randn(2, 16, 7, 6)
    y = shortcut(x)
    assert y.shape == (2, 32, 4, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


# --- registry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [models.create, models.load])
def test_unknown_name_lists_the_allowed(make):
    with pytest.raises(ValueError, match="got 'alexnet', allowed: caffenet, caffenet_cifar"):
        make("alexnet")


@pytest.mark.parametrize(
    ("count", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_number_of_classes_is_checked(count, error):
    with pytest.raises(error, match="num_classes: got"):
        models.create("resnet18", num_classes=count)


# --- loader --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_width_loads_as_float32(small, dtype: torch.dtype):
    state, path = small
    saved = {k: v.to(dtype) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    safetensors_torch.save_file(saved, path)
    model = models.load("cifar_resnet20", path)
    assert not any(m.training for m in model.modules())
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu"
        if name in saved:
            assert value.dtype == torch.float32
            assert torch.equal(value, saved[name].float())


def test_loaded_weights_outlive_their_file(small):
    state, path = small
    safetensors_torch.save_file(state, path)
    model = models.load("cifar_resnet20", str(path))
    os.truncate(path, 0)
    assert torch.equal(model.state_dict()["linear.weight"], state["linear.weight"])
    assert all(p.requires_grad for p in model.parameters())


def test_loading_draws_no_random_numbers(small):
    state, path = small
    safetensors_torch.save_file(state, path)
    before = torch.get_rng_state()
    models.load("cifar_resnet20", path)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_misfit_is_listed(small):
    state, path = small
    del state["bn1.bias"]
    state["head.weight"] = torch.zeros(1)
    state["linear.bias"] = torch.zeros(11)
    state["bn1.weight"] = torch.ones(16, dtype=torch.int8)
    safetensors_torch.save_file(state, path)
    with pytest.raises(ValueError, match="does not fit the network") as caught:
        models.load("cifar_resnet20", path)
    message = str(caught.value)
    assert str(path) in message
    assert "missing: bn1.bias\n" in message
    assert "unexpected: head.weight\n" in message
    assert "wrong shape: linear.bias (got [11], want [10])\n" in message
    assert message.endswith("not floating point: bn1.weight (torch.int8)")


def test_what_is_not_finite_is_no_weight(small):
    state, path = small
    state = {name: tensor.double() for name, tensor in state.items() if "num_b" not in name}
    state["bn1.weight"][3] = float("nan")
    state["linear.bias"][0] = 1e300  # beyond float32
    safetensors_torch.save_file(state, path)
    with pytest.raises(ValueError, match=r"NaN or infinity in: bn1\.weight, linear\.bias$"):
        models.load("cifar_resnet20", path)


def test_names_of_a_file_do_not_write_to_the_terminal(small):
    state, path = small
    state["a\x1b[2J\nb"] = torch.zeros(1)
    safetensors_torch.save_file(state, path)
    with pytest.raises(ValueError, match=r"  unexpected: 'a\\x1b\[2J\\nb'$"):
        models.load("cifar_resnet20", path)


def test_a_long_list_of_misfits_is_cut(small):
    state, path = small
    safetensors_torch.save_file(state, path)
    with pytest.raises(ValueError, match=r"and \d+ more"):
        models.load("resnet18", path)


def test_missing_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="weights: no file"):
        models.load("resnet18", tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder, allowed: a file"):
        models.load("resnet18", tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 100, 4000, 1_000_000])
def test_truncated_file(small, keep: int):
    state, path = small
    safetensors_torch.save_file(state, path)
    os.truncate(path, keep)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        models.load("cifar_resnet20", path)


def test_other_format(small):
    state, path = small
    torch.save(state, path)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        models.load("cifar_resnet20", path)


def test_network_that_ships_without_weights():
    with pytest.raises(ValueError, match="weights: vgg16 ships without weights"):
        models.load("vgg16")


def test_without_safetensors_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[models\]"'):
        models.load("caffenet_cifar")


# --- real weights --------------------------------------------------------------------------------


def test_shipped_record_describes_the_shipped_weights():
    weights = models.MODELS["caffenet_cifar"].weights
    record = json.loads(weights.with_suffix(".json").read_text())
    preprocess = models.MODELS["caffenet_cifar"].preprocess
    assert record["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["preprocess"] == {
        "scale": 255,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
    }
    assert record["test_images"] == 10_000
    assert record["test_top1"] >= 0.85
    assert weights.stat().st_size < 5_000_000


@torch.inference_mode()
def test_shipped_network_is_accurate(data_root: Path):
    """Within three standard errors of the recorded accuracy, on a tenth of the test images."""
    info = models.MODELS["caffenet_cifar"]
    rows = read_image(data_root / "data/cifar10_test/test_batch.png")[:1000].reshape(-1, 32, 32, 3)
    labels = json.loads((data_root / "data/cifar10_test/labels.json").read_text())[:1000]
    logits = models.load("caffenet_cifar")(normalised(rows, info.preprocess))
    recorded = json.loads(info.weights.with_suffix(".json").read_text())["test_top1"]
    top1 = (logits.argmax(1) == torch.tensor(labels)).float().mean().item()
    assert abs(top1 - recorded) < 3 * (recorded * (1 - recorded) / 1000) ** 0.5


def squeezenet_in_plain_torch(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """SqueezeNet 1.1 as the paper's table has it, straight from the tensors of the file."""

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options))

    x = conv(x, "features.0", stride=2)
    for i in range(2, 13):
        if i in (2, 5, 8):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            continue
        x = conv(x, f"features.{i}.squeeze")
        wide = conv(x, f"features.{i}.expand3x3", padding=1)
        x = torch.cat([conv(x, f"features.{i}.expand1x1"), wide], 1)
    return conv(x, "classifier.1").mean((2, 3))


@torch.inference_mode()
def test_squeezenet_logits_on_real_images(data_root: Path):
    weights = data_root / "weights/squeezenet1_1.safetensors"
    folder = data_root / "data/imagenet_val_1300"
    if not (weights.is_file() and folder.is_dir()):
        pytest.skip("no SqueezeNet weights or ImageNet images in DROWSY_DATA")
    with open(folder / "labels.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])[:8]
    pixels = np.stack([read_image(folder / "images" / row["file"]) for row in rows])
    assert pixels.shape == (8, 227, 227, 3)
    x = normalised(pixels, models.MODELS["squeezenet1_1"].preprocess)
    logits = models.load("squeezenet1_1", weights)(x)
    state = {k: v.double() for k, v in safetensors_torch.load_file(weights).items()}
    torch.testing.assert_close(
        logits.double(), squeezenet_in_plain_torch(x.double(), state), atol=1e-4, rtol=1e-4
    )
    labels = torch.tensor([int(row["label"]) for row in rows])
    assert (logits.argmax(1) == labels).sum() >= 5
