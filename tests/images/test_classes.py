"""Folders of classes as strangers leave them: numbered as torchvision's ImageFolder, or refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from drowsy.images.folders import ImageSet, load_images
from drowsy.images.listing import SUFFIXES
from drowsy.images.preprocess import Preprocess

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

PLAIN = Preprocess(None, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, 0, 0)).save(path)
    return path


def labelled(data: ImageSet) -> dict[str, int]:
    assert data.labels is not None
    return dict(zip(data.names, data.labels.tolist(), strict=True))


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of one image."""
    for name in ("cat/a.png", "dog/b.png"):
        save(tmp_path / "set" / name)
    return tmp_path / "set"


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".cache"])
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "full"])
def test_what_systems_leave_behind_is_no_class(classes: Path, name: str, empty: bool):
    (classes / name).mkdir()
    if not empty:
        save(classes / name / "._a.png")
        save(classes / name / "a.png")
        save(classes / "cat" / name / "a.png")
    (classes / "cat" / "._a.png").write_bytes(b"a Mac's second half of a.png")
    assert labelled(load_images(classes, PLAIN)) == {"cat/a.png": 0, "dog/b.png": 1}


def test_images_of_a_class_may_lie_further_down(classes: Path):
    save(classes / "cat" / "more" / "of" / "c.png")
    expected = {"cat/a.png": 0, "cat/more/of/c.png": 0, "dog/b.png": 1}
    assert labelled(load_images(classes, PLAIN)) == expected


def test_links_are_followed_and_may_go_in_circles(classes: Path, tmp_path: Path):
    save(tmp_path / "elsewhere" / "d.png")
    (classes / "dog" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(classes / "dog")
    (classes / "cat" / "all").symlink_to(classes)
    expected = {"cat/a.png": 0, "dog/b.png": 1, "dog/linked/d.png": 1}
    assert labelled(load_images(classes, PLAIN)) == expected


def test_the_formats_are_torchvisions(tmp_path: Path):
    expected = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
    assert set(SUFFIXES) == expected
    for suffix in sorted(expected):
        mode = "L" if suffix == ".pgm" else "RGB"
        Image.new(mode, (4, 4), "white").save(tmp_path / f"a{suffix}")
        (tmp_path / f"a{suffix}").rename(tmp_path / f"a{suffix.upper()}")
    data = load_images(tmp_path, PLAIN)
    assert {Path(name).suffix.lower() for name in data.names} == expected
    assert float(data.images.min()) > 0.98


def test_formats_that_are_not_read_are_told(classes: Path):
    for name in ("cat/x.gif", "dog/y.HEIC", "notes.txt", "cat/annotations.xml"):
        (classes / name).write_text("")
    message = r"data: 2 images are passed over \(x\.gif, y\.HEIC\), allowed: \.jpg, "
    with pytest.warns(UserWarning, match=message) as told:
        assert len(load_images(classes, PLAIN)) == 2
    assert [warning.filename for warning in told] == [__file__]


# --- what would number classes by chance ---------------------------------------------------------


def beside(folder: Path) -> None:
    save(folder / "lost.png")


def empty_class(folder: Path) -> None:
    (folder / "bird").mkdir()


def last_empty(folder: Path) -> None:
    (folder / "eel").mkdir()


def one_class(folder: Path) -> None:
    (folder / "dog" / "b.png").unlink()
    (folder / "dog").rmdir()


def split(folder: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            save(folder / part / name / "a.png")
    for name in ("cat", "dog"):
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()


@pytest.mark.parametrize(
    ("spoil", "classes_given", "message"),
    [
        (
            beside,
            None,
            r"set holds images \(lost\.png\) beside folders of images \(cat, dog\), all",
        ),
        (empty_class, None, r"set holds folders without images \(bird\), allowed: none, unless"),
        (empty_class, 2, r"labels: got 2 for \S*dog/b\.png, allowed: 0 to 1"),
        (
            last_empty,
            2,
            r"set holds 3 folders \(cat, dog, eel\), .* classes 0 to 2 of 2; allowed: 2",
        ),
        (one_class, None, r"set holds one folder of images \(cat\), which would be the only class"),
        (one_class, 2, r"set holds 1 folders \(cat\), which would be classes 0 to 0 of 2"),
        (
            split,
            None,
            r"images are all in folders within \(train, val\), allowed: a folder with im",
        ),
        (split, 2, r"images are all in folders within \(train, val\), .* a folder further down\?"),
        (
            lambda _: None,
            1000,
            r"set holds 2 folders \(cat, dog\), which would be classes 0 to 1 of 1000; "
            r"allowed: 1000 folders, of which some may be empty, or a table labels\.csv",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:20],
)
def test_folders_that_leave_classes_open_are_refused(
    classes: Path, spoil: Callable[[Path], None], classes_given: int | None, message: str
):
    spoil(classes)
    with pytest.raises(ValueError, match=message):
        load_images(classes, PLAIN, classes=classes_given)


def test_a_folder_for_each_class_may_be_empty(classes: Path):
    (classes / "bird").mkdir()
    (classes / "eel").mkdir()
    data = load_images(classes, PLAIN, classes=4)
    assert labelled(data) == {"cat/a.png": 1, "dog/b.png": 2}


def test_one_class_may_be_all(classes: Path):
    one_class(classes)
    assert labelled(load_images(classes, PLAIN, classes=1)) == {"cat/a.png": 0}


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (",5", ValueError, r"labels\.csv, line 2: names no file"),
        ("a.png,1,2", ValueError, r"labels\.csv, line 2: has more cells than the 2 columns"),
        ("/etc/a.png,1", ValueError, r"names /etc/a\.png, allowed: files in "),
        ("../set/a.png,1", ValueError, r"names \.\./set/a\.png, allowed: files in "),
        ("a.png,1\n./a.png,1", ValueError, r"names a\.png twice, by other names, allowed: once"),
        ("a.png,1_0", ValueError, r"gives '1_0' for a\.png, allowed: an integer"),
        ("a.png,\uff11", ValueError, "gives '\uff11' for a\\.png, allowed: an integer"),
        ("a.png,0x1", ValueError, r"gives '0x1' for a\.png, allowed: an integer"),
        ("a.png," + "9" * 19, ValueError, r"gives '9+' for a\.png, allowed: an integer of up to"),
        ("a.png," + "9" * 5000, ValueError, r"gives '9+\.\.\.9+' for a\.png, allowed: an integ"),
        ("n" * 5000 + ",1", FileNotFoundError, r"names 'n+\.\.\.n+', which is not in "),
        ("folder,1", ValueError, r"data: \S*folder is no regular file, allowed: one"),
        ("gone.png,1", FileNotFoundError, r"names gone\.png, which is not in "),
        (
            "\x1b[2Jb\u202e.png,1",
            FileNotFoundError,
            r"names '\\x1b\[2Jb\\u202e\.png', which is not in ",
        ),
        ('"a\nb.png",1', FileNotFoundError, r"names 'a\\nb\.png', which is not in "),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_row_that_says_no_class_of_a_file_is_told(
    tmp_path: Path, rows: str, error: type[Exception], message: str
):
    save(tmp_path / "a.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "labels.csv").write_text(f"file,label\n{rows}\n", encoding="utf-8")
    with pytest.raises(error, match=message) as told:
        load_images(tmp_path, PLAIN)
    assert str(told.value).isprintable()


@pytest.mark.parametrize("above", [True, False])
def test_a_table_that_is_a_pipe_is_not_waited_for(tmp_path: Path, above: bool):
    save(tmp_path / "set" / "a.png")
    os.mkfifo(tmp_path / "labels.csv" if above else tmp_path / "set" / "labels.csv")
    with pytest.raises(
        ValueError, match=r"labels: \S*labels\.csv is no regular file, allowed: one"
    ):
        load_images(tmp_path / "set", PLAIN)


def test_columns_have_one_name_each(tmp_path: Path):
    save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label,label\na.png,1,2\n")
    with pytest.raises(ValueError, match=r"has columns \['file', 'label', 'label'\], allowed: fil"):
        load_images(tmp_path, PLAIN)


def test_spaces_around_a_label_are_not_its_own(tmp_path: Path):
    save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png, 7 \n")
    assert labelled(load_images(tmp_path, PLAIN)) == {"a.png": 7}


def test_names_of_files_do_not_write_to_the_terminal(tmp_path: Path):
    (tmp_path / "a\x1b[31m\nb.png").write_text("no image")
    with pytest.raises(ValueError, match=re.escape(r"a\x1b[31m\nb.png' cannot be read")) as told:
        load_images(tmp_path, PLAIN)
    assert str(told.value).isprintable()


def test_names_that_are_no_text_are_told(tmp_path: Path):
    path = bytes(tmp_path) + b"/a\xff.png"
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(ValueError, match=r"a\\udcff\.png' cannot be read") as told:
        load_images(tmp_path, PLAIN)
    str(told.value).encode("utf-8")
