"""Images as strangers' files hold them: what pixels they are read as, and which are refused."""

from __future__ import annotations

import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from drowsy.images.folders import load_images
from drowsy.images.preprocess import Preprocess

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

PLAIN = Preprocess(None, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pixels(folder: Path) -> np.ndarray:
    """Of the folder's first image, ``[4, 4, 3]``, values 0 to 255."""
    image = load_images(folder, PLAIN).images[0]
    return (255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy()


GREYS = (np.arange(16).reshape(4, 4) * 4096 + 255).astype(np.uint16)


def as_png(path: Path) -> None:
    Image.fromarray(GREYS).save(path.with_suffix(".png"))


def as_tiff(path: Path) -> None:
    Image.fromarray(GREYS).save(path.with_suffix(".tif"))


def as_inverse_tiff(path: Path) -> None:
    """Of which 0 is white: tag 262 of an uncompressed file."""
    as_tiff(path)
    made = path.with_suffix(".tif")
    entry = struct.pack("<HHI", 262, 3, 1)
    data = made.read_bytes()
    assert data.count(entry + struct.pack("<H", 1)) == 1
    made.write_bytes(data.replace(entry + struct.pack("<H", 1), entry + struct.pack("<H", 0)))


def as_pgm(path: Path) -> None:
    data = b"P5\n4 4\n65535\n" + GREYS.astype(">u2").tobytes()
    path.with_suffix(".pgm").write_bytes(data)


@pytest.mark.parametrize("write", [as_png, as_tiff, as_inverse_tiff, as_pgm])
def test_greys_of_16_bits_are_scaled_to_8(tmp_path: Path, write: Callable[[Path], None]):
    write(tmp_path / "a")
    expected = (GREYS >> 8).astype(np.uint8)
    if write is as_inverse_tiff:
        expected = 255 - expected
    assert (pixels(tmp_path) == expected[..., None]).all()


def test_colours_of_16_bits_are_scaled_to_8(tmp_path: Path):
    values = GREYS.repeat(3).astype(">u2")
    (tmp_path / "a.ppm").write_bytes(b"P6\n4 4\n65535\n" + values.tobytes())
    expected = GREYS.astype(np.int64)[..., None] / 257
    assert np.abs(pixels(tmp_path) - expected).max() <= 1


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_greys_without_a_range_are_refused(tmp_path: Path, kind: type):
    Image.fromarray(GREYS.astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif cannot be read as an image \(got pixels of mode"):
        load_images(tmp_path, PLAIN)


def test_transparency_is_dropped_in_silence(tmp_path: Path):
    image = Image.new("P", (4, 4), 3)
    image.putpalette([value for i in range(256) for value in (i, 2 * i % 256, 50)])
    image.save(tmp_path / "a.png", transparency=bytes(256))
    Image.new("RGBA", (4, 4), (3, 6, 50, 0)).save(tmp_path / "b.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_images(tmp_path, PLAIN)
    for image in data.images:
        assert (255 * image[:, 0, 0]).round().tolist() == [3, 6, 50]


def test_images_are_as_stored_and_those_to_be_turned_are_told(tmp_path: Path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "b.png", exif=exif)
    image.save(tmp_path / "a.png")
    message = (
        r"data: 1 of 2 images ask to be turned \(EXIF\) .* as they are stored, the first: \S*b"
    )
    with pytest.warns(UserWarning, match=message) as told:
        data = load_images(tmp_path, PLAIN)
    assert [warning.filename for warning in told] == [__file__]
    assert torch.equal(data.images[0], data.images[1])


def test_of_several_pages_the_first_is_read(tmp_path: Path):
    first, second = (Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 20))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    assert (pixels(tmp_path)[..., 0] == 10).all()


# --- bad files -----------------------------------------------------------------------------------


def no_image(path: Path) -> None:
    path.write_text("this is text")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere.png")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path) -> None:
    """A few bytes that say they are 30,000 pixels a side."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def too_small(path: Path) -> None:
    Image.new("RGB", (3, 9)).save(path)


BAD = {
    no_image: "b.png cannot be read as an image (cannot identify",
    pipe: "b.png is no regular file, allowed: one",
    device: "b.png is no regular file, allowed: one",
    nowhere: "b.png is no regular file, allowed: one",
    bomb: "b.png cannot be read as an image (Image size (900000000 pixels) exceeds limit",
    too_small: "b.png is 3 x 9, allowed: at least 4 pixels a side",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda value: value.__name__)
def test_a_bad_file_is_named_or_left_out_and_told(tmp_path: Path, spoil: Callable[[Path], None]):
    for name, value in (("cat/a", 1), ("cat/c", 3), ("dog/d", 4)):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (value, 0, 0)).save(path)
    spoil(tmp_path / "cat" / "b.png")
    what = f"{tmp_path}/cat/{BAD[spoil]}"
    with pytest.raises(ValueError, match=re.escape(f"data: {what}")):
        load_images(tmp_path, PLAIN)

    left_out = f"data: 1 of 3 images cannot be read and are left out, the first: {what}"
    with pytest.warns(UserWarning, match=re.escape(left_out)) as told:
        data = load_images(tmp_path, PLAIN, skip_bad=True, indices=range(3))
    (warning,) = told
    assert warning.filename == __file__
    assert data.names == ("cat/a.png", "cat/c.png")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0]
    assert [round(255 * float(image[0, 0, 0])) for image in data.images] == [1, 3]


def test_no_image_that_can_be_read_is_no_set(tmp_path: Path):
    for name in "ab":
        no_image(tmp_path / f"{name}.png")
    with pytest.raises(
        ValueError, match=r"data: none of 2 images can be read, the first: \S*a\.png"
    ):
        load_images(tmp_path, PLAIN, skip_bad=True)
