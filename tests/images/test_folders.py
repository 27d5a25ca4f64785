"""``load_images``: every layout it reads, the pixels it makes, and what it says of bad input."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drowsy.images.checks import check_images
from drowsy.images.folders import ImageSet, load_images, normalise
from drowsy.images.listing import class_names
from drowsy.images.preprocess import Preprocess
from drowsy.models import MODELS

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

PLAIN = Preprocess(None, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""Images of 4 x 4 pixels as they are, on the scale 0 to 1."""


def save(path: Path, value: int = 0, size: tuple[int, int] = (4, 4)) -> Path:
    """An image of one colour, by which it is known again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path


def reds(data: ImageSet) -> list[int]:
    return [round(255 * float(image[0, 0, 0])) for image in data.images]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with a labels CSV, its rows not in the order of the names."""
    for value in (1, 2, 3):
        save(tmp_path / "images" / f"{value}.png", value)
    (tmp_path / "labels.csv").write_text("file,label\n3.png,30\n1.png,10\n2.png,20\n")
    return tmp_path


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Three images in CIFAR-10's layout: a row of 32 x 32 pixels an image."""
    pixels = torch.arange(3 * 32 * 32 * 3).remainder(251).to(torch.uint8).view(3, 32 * 32, 3)
    Image.fromarray(pixels.numpy()).save(tmp_path / "test_batch.png")
    (tmp_path / "labels.json").write_text("[7, 0, 9]")
    return tmp_path


CIFAR = Preprocess(None, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


# --- layouts -------------------------------------------------------------------------------------


def test_a_subfolder_per_class_is_numbered_by_sorted_name(tmp_path: Path):
    for name, value in (("dog/b.png", 3), ("cat/z.png", 2), ("cat/a.jpeg.png", 1)):
        save(tmp_path / name, value)
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    data = load_images(tmp_path, PLAIN)
    assert data.names == ("cat/a.jpeg.png", "cat/z.png", "dog/b.png")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1]
    assert reds(data) == [1, 2, 3]


@pytest.mark.parametrize("start", [".", "images"], ids=["above", "beside"])
def test_a_labels_csv_is_found_beside_and_above_the_images(table: Path, start: str):
    data = load_images(table / start, PLAIN)
    assert [Path(name).name for name in data.names] == ["1.png", "2.png", "3.png"]
    assert data.labels is not None
    assert data.labels.tolist() == [10, 20, 30]
    assert data.labels.dtype == torch.int64
    assert reds(data) == [1, 2, 3]


def test_a_labels_csv_may_lie_elsewhere_and_have_more_columns(table: Path):
    other = table / "other.csv"
    # As spreadsheets save it: with a byte order mark.
    other.write_text("name,file,label\nx,2.png,5\n", encoding="utf-8-sig")
    data = load_images(table, PLAIN, labels=other)
    assert data.names == ("images/2.png",)
    assert data.labels is not None
    assert data.labels.tolist() == [5]


def test_a_plain_folder_has_no_labels(tmp_path: Path):
    for value in (2, 1):
        save(tmp_path / f"{value}.bmp", value)
    data = load_images(tmp_path, PLAIN)
    assert data.labels is None
    assert data.names == ("1.bmp", "2.bmp")
    assert reds(data) == [1, 2]


def test_cifar_rows_are_images_in_row_major_order(cifar: Path):
    data = load_images(cifar, CIFAR, classes=10)
    pixels = np.asarray(Image.open(cifar / "test_batch.png"))
    assert data.labels is not None
    assert data.labels.tolist() == [7, 0, 9]
    assert data.images.shape == (3, 3, 32, 32)
    assert round(255 * float(data.images[1, 2, 5, 9])) == pixels[1, 5 * 32 + 9, 2]


# --- which images --------------------------------------------------------------------------------


def test_indices_are_places_by_sorted_name(table: Path):
    data = load_images(table, PLAIN, indices=[2, 0])
    assert reds(data) == [3, 1]
    assert data.labels is not None
    assert data.labels.tolist() == [30, 10]
    assert reds(load_images(table, PLAIN, indices=range(1, 3))) == [2, 3]


@pytest.mark.parametrize("indices", [range(0, 4), [3], [-1], [], range(2, 2)], ids=str)
def test_images_that_do_not_exist_cannot_be_asked_for(
    table: Path, cifar: Path, indices: range | list[int]
):
    with pytest.raises(ValueError, match=r"indices: got .*, allowed: 0 to 2"):
        load_images(cifar, CIFAR, indices=indices)
    (cifar / "test_batch.png").unlink()
    with pytest.raises(ValueError, match=r"indices: got .*, allowed: 0 to 2"):
        load_images(table, PLAIN, indices=indices)


NO_PLACES: list[Any] = [
    [True, False, True],
    np.array([True, False, True]),
    torch.tensor([True, False, True]),
    slice(0, 2),
    1,
    torch.tensor(1),
    1.5,
    [1.0],
    "12",
    [[0], [1]],
    {0, 1},
]


@pytest.mark.parametrize("given", NO_PLACES, ids=repr)
def test_places_are_integers_in_a_sequence(table: Path, given: Any):
    allowed = "allowed: a range, or integers in a sequence"
    with pytest.raises(TypeError, match=rf"^indices: got .*, {allowed}"):
        load_images(table, PLAIN, indices=given)
    if not isinstance(given, slice):
        with pytest.raises(TypeError, match=rf"^places: got .*, {allowed}"):
            load_images(table, PLAIN)[given]


@pytest.mark.parametrize("given", [np.array([2, 0]), torch.tensor([2, 0]), (np.int64(2), 0)])
def test_places_may_be_of_arrays(table: Path, given: Any):
    data = load_images(table, PLAIN, indices=given)
    assert reds(data) == reds(load_images(table, PLAIN)[given]) == [3, 1]


@pytest.mark.parametrize("given", [abs, "resnet18", None, PLAIN.mean], ids=repr)
def test_a_preprocess_is_one(table: Path, given: Any):
    with pytest.raises(TypeError, match=r"^preprocess: got .*, allowed: a drowsy.models.Preproc"):
        load_images(table, given)


@pytest.mark.parametrize("given", [0.5, "012", None, (0.5, 0.5)], ids=repr)
def test_means_are_three_numbers(given: Any):
    with pytest.raises(ValueError, match=r"^mean: got .*, allowed: three finite numbers"):
        Preprocess(None, 4, given, (1.0, 1.0, 1.0))


def test_a_set_can_be_split(table: Path):
    data = load_images(table, PLAIN)
    for part in (data[1:], data[[1, 2]], data[range(1, 3)]):
        assert len(part) == 2
        assert reds(part) == [2, 3]
        assert part.names == ("images/2.png", "images/3.png")
        assert part.labels is not None
        assert part.labels.tolist() == [20, 30]


def test_a_set_without_labels_can_be_split(tmp_path: Path):
    for value in (1, 2):
        save(tmp_path / f"{value}.png", value)
    part = load_images(tmp_path, PLAIN)[1:]
    assert part.labels is None
    assert reds(part) == [2]


# --- pixels --------------------------------------------------------------------------------------


def test_pixels_are_normalised_float32_and_channels_last(tmp_path: Path):
    Image.new("RGB", (4, 4), (255, 51, 0)).save(tmp_path / "a.png")
    data = load_images(tmp_path, Preprocess(None, 4, (0.5, 0.1, 0.0), (0.5, 0.2, 1.0)))
    assert data.images.dtype == torch.float32
    assert data.images.is_contiguous(memory_format=torch.channels_last)
    assert data.images[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_normalise_leaves_the_pixels_it_was_given_alone():
    pixels = torch.full((1, 2, 2, 3), 100, dtype=torch.uint8)
    normalise(pixels, PLAIN)
    assert (pixels == 100).all()


def test_the_crop_is_from_the_centre_of_the_scaled_image(tmp_path: Path):
    # Black but for a red square in the middle: 16 of 64 columns, 16 of 32 rows.
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[8:24, 24:40, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = load_images(tmp_path, Preprocess(None, 16, PLAIN.mean, PLAIN.std)).images
    assert (whole[0, 0] == 1).all()
    # Shortest side 16: the square is 8 x 8, the crop of 16 has it in the middle.
    half = load_images(tmp_path, Preprocess(16, 16, PLAIN.mean, PLAIN.std)).images
    assert half.shape == (1, 3, 16, 16)
    assert (half[0, 0, 6:10, 6:10] == 1).all()
    assert (half[0, 0, :2] == 0).all()
    assert float(half[0, 0].mean()) == pytest.approx(0.25, abs=0.01)


def test_scaling_down_is_antialiased(tmp_path: Path):
    # Columns 0 and 255 in turn: any two-tap filter would keep stripes.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    small = load_images(tmp_path, Preprocess(8, 8, PLAIN.mean, PLAIN.std)).images
    assert float((small[..., 1:-1] - 0.5).abs().max()) < 0.02


def test_a_smaller_image_is_not_enlarged_to_be_cropped(tmp_path: Path):
    save(tmp_path / "a.png", 9, (6, 5))
    assert reds(load_images(tmp_path, Preprocess(8, 4, PLAIN.mean, PLAIN.std))) == [9]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_images_of_any_mode_become_rgb(tmp_path: Path, mode: str):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (4, 4), "white").convert(mode).save(tmp_path / f"a.{suffix}")
    images = load_images(tmp_path, PLAIN).images
    assert images.shape == (1, 3, 4, 4)
    assert float(images.min()) > 0.98


# --- bad input -----------------------------------------------------------------------------------


def no_folder(folder: Path) -> None:
    folder.rmdir()


def empty(folder: Path) -> None:
    (folder / "readme.txt").write_text("nothing here")


def header_only(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\n")


def no_image(folder: Path) -> None:
    (folder / "a.jpg").write_text("this is text")


def truncated(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a.jpg")
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:-1500])


def too_small(folder: Path) -> None:
    save(folder / "a.png", size=(9, 3))


def labels_csv(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save(folder / "a.png")
        (folder / "labels.csv").write_bytes(text.encode("latin-1"))

    write.__name__ = repr(text)
    return write


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (no_folder, FileNotFoundError, r"data: no folder \S*set; allowed: a folder with a subf"),
        (empty, ValueError, r"data: no image in \S*set; allowed: a folder with a subfolder per"),
        (header_only, ValueError, r"data: no image in \S*set; allowed: "),
        (no_image, ValueError, r"data: \S*a\.jpg cannot be read as an image \(cannot identify"),
        (truncated, ValueError, r"data: \S*a\.jpg cannot be read as an image \(.*truncated"),
        (too_small, ValueError, r"data: \S*a\.png is 9 x 3, allowed: at least 4 pixels a side"),
        (
            labels_csv("name,class\na.png,0\n"),
            ValueError,
            r"labels: \S*labels\.csv has columns \['name', 'class'\], allowed: file and label",
        ),
        (labels_csv(""), ValueError, r"labels\.csv has columns \[\], allowed: file and label"),
        (
            labels_csv("file,label\nb.png,0\n"),
            FileNotFoundError,
            r"labels: \S*labels\.csv names b\.png, which is not in \S*set",
        ),
        (
            labels_csv("file,label\na.png,cat\n"),
            ValueError,
            r"labels: \S*labels\.csv gives 'cat' for a\.png, allowed: an integer",
        ),
        (labels_csv("file,label\na.png\n"), ValueError, r"gives None for a\.png, allowed: an int"),
        (labels_csv("file,label\na.png,1.0\n"), ValueError, r"gives '1\.0' for a\.png, allowed"),
        (
            labels_csv("file,label\na.png,10\n"),
            ValueError,
            r"labels: got 10 for \S*a\.png, allowed: 0 to 9",
        ),
        (labels_csv("file,label\na.png,-1\n"), ValueError, r"labels: got -1 for \S*a\.png, allow"),
        (
            labels_csv("file,label\na.png,1\na.png,2\n"),
            ValueError,
            r"labels: \S*labels\.csv names a\.png twice, allowed: once",
        ),
        (
            labels_csv("file,label\n\xff\xfe,1\n"),
            ValueError,
            r"labels: \S*labels\.csv cannot be read as CSV",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_folder_is_told_by_file_and_what_is_allowed(
    tmp_path: Path, spoil: Callable[[Path], None], error: type[Exception], message: str
):
    folder = tmp_path / "set"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(error, match=message):
        load_images(folder, PLAIN, classes=10)


def test_a_labels_csv_that_is_not_there_is_named(table: Path):
    with pytest.raises(FileNotFoundError, match=r"labels: no file \S*none\.csv"):
        load_images(table, PLAIN, labels=table / "none.csv")


def test_more_classes_than_the_network_has_are_refused(tmp_path: Path):
    for name in ("a", "b", "c"):
        save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match=r"labels: got 2 for \S*c/0\.png, allowed: 0 to 1"):
        load_images(tmp_path, PLAIN, classes=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], r"labels\.json has 2 for 3 images"),
        ([1, 2, 10], r"labels: got 10 for \S*labels\.json, allowed: 0 to 9"),
        ([1, 2, "3"], r"labels\.json holds '3', allowed: integers"),
        ([1, 2, True], r"labels\.json holds True, allowed: integers"),
        ({"labels": [1, 2, 3]}, r"labels\.json holds no list, allowed: a list of integers"),
    ],
    ids=str,
)
def test_bad_cifar_labels_are_told(cifar: Path, values: Any, message: str):
    (cifar / "labels.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load_images(cifar, CIFAR, classes=10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000 + "]" * 5000, "cannot be read .*nested too deeply"),
        ("[1, 2, " + "9" * 5000 + "]", "cannot be read .*an integer of 5000 digits"),
        ("[1, 2, 1.0]", r"holds 1\.0, allowed: integers"),
        ("[1, 2, NaN]", "holds nan, allowed: integers"),
        ("[1, 2, [[[[[[]]]]]]]", r"holds \[\[\[\[\[\.\.\.\]\]\]\]\], allowed: integers"),
        ('{"a": 1, "a": 2}', "cannot be read .*a: given more than once"),
    ],
    ids=lambda value: value[:20],
)
def test_label_files_of_strangers_are_told(cifar: Path, text: str, message: str):
    (cifar / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=rf"labels: \S*labels\.json {message}"):
        load_images(cifar, CIFAR)


def test_labels_are_numbers_that_a_tensor_holds(cifar: Path):
    (cifar / "labels.json").write_text(f"[1, 2, {2**63}]")
    with pytest.raises(ValueError, match=rf"labels: got {2**63} .*allowed: 0 to 2\*\*63 - 1"):
        load_images(cifar, CIFAR)


def test_a_bad_cifar_file_is_told(cifar: Path):
    with pytest.raises(ValueError, match=r"test_batch\.png is 1024 wide for images of 4 pixels"):
        load_images(cifar, PLAIN)
    (cifar / "labels.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"labels: \S*labels\.json cannot be read"):
        load_images(cifar, CIFAR)
    (cifar / "labels.json").unlink()
    os.mkfifo(cifar / "labels.json")
    with pytest.raises(
        ValueError, match=r"labels: \S*labels\.json cannot be read .*is no regular file"
    ):
        load_images(cifar, CIFAR)
    (cifar / "labels.json").unlink()
    with pytest.raises(ValueError, match=r"labels: \S*labels\.json cannot be read"):
        load_images(cifar, CIFAR)
    (cifar / "test_batch.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"data: \S*test_batch\.png cannot be read as an image"):
        load_images(cifar, CIFAR)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 0}, "crop: got 0, allowed: an integer, 1 or more"),
        ({"crop": 4.0}, r"crop: got 4\.0, allowed: an integer"),
        ({"resize": 0}, "resize: got 0, allowed: an integer, 1 or more, or None"),
        ({"resize": True}, "resize: got True, allowed: an integer"),
        ({"mean": (0.0, 0.0)}, r"mean: got \(0\.0, 0\.0\), allowed: three finite numbers"),
        ({"mean": (0.0, math.nan, 0.0)}, "mean: got .*nan.*, allowed: three finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, r"std: got \(1\.0, 0\.0, 1\.0\), allowed: .* above 0"),
        ({"std": (1.0, -1.0, 1.0)}, "std: got .*allowed: three finite numbers above 0"),
    ],
    ids=str,
)
def test_what_no_image_can_be_prepared_by_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        replace(PLAIN, **changes)


def test_a_crop_beyond_what_images_are_scaled_down_to_is_refused(tmp_path: Path):
    save(tmp_path / "a.png", size=(40, 40))
    with pytest.raises(ValueError, match=r"resize: got 3, allowed: 4 \(crop\) or more"):
        load_images(tmp_path, replace(PLAIN, resize=3))


@pytest.mark.parametrize("classes", [0, -1, 2.0, True], ids=str)
def test_classes_are_a_number_of_them(tmp_path: Path, classes: Any):
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"classes: got .*, allowed: an integer, 1 or more"):
        load_images(tmp_path, PLAIN, classes=classes)


def test_images_that_normalisation_spoilt_do_not_reach_a_network(tmp_path: Path):
    save(tmp_path / "a.png", 0)
    # In float32 these are 0.
    spoilt = load_images(tmp_path, Preprocess(None, 4, (0.0,) * 3, (1e-60,) * 3)).images
    with pytest.raises(ValueError, match="images: number 0 holds NaN or infinity"):
        check_images(spoilt)


# --- the real images -----------------------------------------------------------------------------


def test_the_real_imagenet_images_are_read(data_root: Path):
    folder = data_root / "data" / "imagenet_val_1300"
    data = load_images(
        folder, MODELS["squeezenet1_1"].preprocess, classes=1000, indices=[0, 7, 1299]
    )
    side = MODELS["squeezenet1_1"].preprocess.crop
    assert data.images.shape == (3, 3, side, side)
    assert data.names[0] == "images/ILSVRC2012_val_00000347.JPEG"
    assert data.labels is not None
    assert int(data.labels[0]) == 472
    with pytest.raises(ValueError, match=r"indices: got 1300 .*allowed: 0 to 1299"):
        load_images(folder, PLAIN, indices=[1300])


def test_the_real_cifar_images_are_read(data_root: Path):
    folder = data_root / "data" / "cifar10_test"
    data = load_images(folder, CIFAR, classes=10)
    assert len(data) == 10_000
    assert data.labels is not None
    # The test set has 1,000 images of each class; the means are the published ones.
    assert data.labels.bincount().tolist() == [1000] * 10
    assert data.images.mean((0, 2, 3)).tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=2e-4)


def test_folders_name_the_classes_where_there_are_as_many(tmp_path: Path) -> None:
    for name in ("zebra", "cat", ".hidden"):
        (tmp_path / "set" / name).mkdir(parents=True)
    assert class_names(tmp_path / "set", 2) == ["cat", "zebra"]
    assert class_names(tmp_path / "set", 3) is None
    # A table says by itself which class is which.
    (tmp_path / "set" / "labels.csv").write_text("file,label\n")
    assert class_names(tmp_path / "set", 2) is None
