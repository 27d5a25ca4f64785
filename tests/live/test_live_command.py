"""What ``drowsy live`` refuses, in a line and before it loads anything."""

from __future__ import annotations

import socket
import sys

import pytest
from tiny_knob import Tuned, contents_of

from drowsy.cli.main import main
from drowsy.live import Show
from drowsy.tuning.knob import Knob

KNOB = ["live", "tiny.drowsy", "--model", "nets:build"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*KNOB, "--data", "photos", "--refresh", "bands"], "refresh: got bands, allowed: with"),
        ([*KNOB, "--data", "photos", "--port", "0"], "port: got 0, allowed: 1 to 65535"),
        ([*KNOB, "--camera", "-1"], "camera: got -1, allowed: 0 or more"),
        ([*KNOB, "--data", "photos", "--host", "192.0.2.1"], "host, port: got 192.0.2.1, 8321 ("),
        ([*KNOB, "--data", "nowhere"], "data: no folder nowhere; allowed: a folder of images"),
        ([*KNOB, "--data", "nets.py"], "data: nets.py is a file, allowed: a folder of images"),
        ([*KNOB, "--video", "nowhere.mp4"], "clip: nowhere.mp4 cannot be read as a video"),
        ([*KNOB, "--camera", "97"], "clip: /dev/video97 cannot be read as a video"),
        (["live", "nets.py", "--data", "photos"], "nets.py"),
        ([*KNOB, "--data", "photos", "--names", "nets.py"], "names: nets.py holds"),
    ],
)
def test_bad_input_is_told_in_a_line(
    arguments: list[str],
    message: str,
    tuned: Tuned,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("nicegui", reason="needs NiceGUI")
    pytest.importorskip("av", reason="needs PyAV")
    monkeypatch.chdir(tuned.folder)
    assert main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("drowsy live: ")
    assert message in last


def test_something_to_show_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--data", "a", "--video", "b"]):
        with pytest.raises(SystemExit):
            main([*KNOB, *more])
        assert "--camera" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(tuned: Tuned, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nicegui", reason="needs NiceGUI")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["live", "x", "--data", "x", "--port", port]) == 2
    assert f"host, port: got 127.0.0.1, {port} (" in capsys.readouterr().err


def test_what_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert main(["live", "x", "--data", "x"]) == 2
    assert 'pip install -e ".[live]"' in capsys.readouterr().err


@pytest.mark.parametrize("batch", [1, 4])
def test_points_tell_what_a_single_picture_takes_here(
    batch: int, tuned: Tuned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nicegui", reason="needs NiceGUI")
    Knob(tuned.model, contents_of(tuned.model, batch)).save(tuned.file)
    monkeypatch.chdir(tuned.folder)
    monkeypatch.setattr("drowsy.cli.live._SECONDS", 0.1)
    shown: list[Show] = []
    monkeypatch.setattr("drowsy.cli.live.serve", lambda show, *_: shown.append(show))
    assert main([*KNOB, "--data", "photos", "--port", "8399"]) == 0
    shown[0].sensing.close()
    knob = shown[0].network.knob
    assert knob.batch == 1
    told = "measuring 3 points, a picture at a time" in capsys.readouterr().err
    as_recorded = [point.latency_ms for point in knob.contents.points] == [10, 6, 4]
    assert (told, as_recorded) == (batch != 1, batch == 1)
