"""The site builds strictly: no broken reference, no public name without a docstring."""

from __future__ import annotations

import html
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import drowsy_kernels
import pytest

import drowsy

ROOT = Path(__file__).resolve().parents[1]

pytest.importorskip("mkdocstrings", reason='needs the site\'s tools: pip install -e ".[docs]"')


def test_site_has_every_page_and_every_public_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), NO_MKDOCS_2_WARNING="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for package in (drowsy, drowsy_kernels):
        page = (tmp_path / "reference" / f"{package.__name__}.html").read_text()
        told = re.findall(r'<h2 id="([\w.]+)" class="doc doc-heading">', page)
        assert [name.rpartition(".")[2] for name in told] == package.__all__
    assert "A power-accuracy knob" in (tmp_path / "index.html").read_text()
    for script in (ROOT / "docs" / "examples").glob("*.py"):
        page = (tmp_path / "examples" / f"{script.stem}.html").read_text()
        text = html.unescape(re.sub(r"<[^>]*>", "", page))
        _, _, code = script.read_text().split('"""', 2)
        assert code.strip() in text
    page = (tmp_path / "examples" / "index.html").read_text()
    assert 'href="deploy.html"' in page


@pytest.mark.parametrize(
    "body",
    [
        "def told():\n    pass\n",
        "told = 1\n",
        "class told:\n    '''Told.'''\n    def method(self):\n        pass\n",
    ],
    ids=["function", "constant", "method"],
)
def test_a_public_name_without_a_docstring_fails(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mkdocs.exceptions import PluginError

    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "inner.py").write_text(body)
    (tmp_path / "made" / "__init__.py").write_text(
        "'''Made by a test.'''\nfrom made.inner import told\n__all__ = ['told']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reference = runpy.run_path(str(ROOT / "docs" / "pages.py"))["_reference"]
    with pytest.raises(PluginError, match=r"no docstring: made\.told(\.method)?$"):
        reference("made")
