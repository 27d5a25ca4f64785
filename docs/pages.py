"""Pages of the site that are made from the sources, so that nothing is told twice.

README.md is the home page; each example is a page with its source; the reference lists what
``drowsy`` and ``drowsy_kernels`` export. A public name without a docstring fails the build.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGES = ("drowsy", "drowsy_kernels")
# Pages that lie outside of docs/, by the name that they have on the site.
OUTSIDE = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "NOTES.md": "bench/NOTES.md",
}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made."""
    made = {name: _moved((ROOT / path).read_text("utf-8")) for name, path in OUTSIDE.items()}
    for path in sorted((ROOT / "docs" / "examples").glob("*.py")):
        made[f"examples/{path.stem}.md"] = _example(path)
    for package in PACKAGES:
        made[f"reference/{package}.md"] = _reference(package)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Spare empty columns, and let the list of examples lead to their pages."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    if page.file.src_uri != "examples/README.md":
        return markdown
    return re.sub(r"\]\((\w+)\.py\)", r"](\1.md)", markdown)


def _moved(text: str) -> str:
    """Text of the repository's root, whose links lead to where the site has their targets."""
    for name, path in OUTSIDE.items():
        text = text.replace(f"]({path})", f"]({name})")
    return text.replace("](docs/", "](")


def _example(path: Path) -> str:
    """A script's docstring as text, and its source; the docstring's first line is the title."""
    source = path.read_text("utf-8")
    title, _, text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")
    code = source.split('"""', 2)[2].strip()
    return "\n".join(
        [
            "---",
            "hide: [toc]",
            "---",
            f"# {title.rstrip('.')}",
            text,
            f'\n```python title="docs/examples/{path.name}"',
            code,
            "```",
        ]
    )


def _reference(name: str) -> str:
    """What a package exports: a table of all names, and each with its docstring."""
    package = griffe.load(name, search_paths=[str(ROOT), str(ROOT / "kernels"), *sys.path])
    assert isinstance(package, griffe.Module)
    # A name that is also a submodule's means what is imported into the package.
    paths = {
        short: f"{name}.{short}" if package.members[short].is_alias else package.imports[short]
        for short in map(str, package.exports or ())
    }
    found = {short: package.modules_collection[path] for short, path in paths.items()}
    missing = [path for each in found.values() for path in _undocumented(each)]
    if not found or missing:
        raise PluginError(f"{name}: no docstring: {', '.join(missing) or 'nothing is exported'}")
    lines = [
        f"# {name}",
        "",
        _first_sentence(package),
        "",
        "| name | what it is |",
        "| --- | --- |",
    ]
    for short, each in found.items():
        lines.append(f"| [`{short}`][{paths[short]}] | {_first_sentence(each)} |")
    for short, path in paths.items():
        lines += ["", f"::: {path}", f"    options: {{heading: {short}, toc_label: {short}}}"]
    return "\n".join(lines)


def _undocumented(exported: griffe.Object | griffe.Alias) -> Iterator[str]:
    """This name and its public methods, by path, that have no docstring, or inherit none."""
    if not exported.has_docstring:
        yield exported.path
    if exported.is_class:
        for short, member in exported.members.items():
            if short.startswith("_") or not member.is_function or member.has_docstring:
                continue
            bases = (base.members.get(short) for base in exported.mro())
            if not any(inherited and inherited.has_docstring for inherited in bases):
                yield f"{exported.path}.{short}"


def _first_sentence(exported: griffe.Object | griffe.Alias) -> str:
    assert exported.docstring is not None
    paragraph = " ".join(exported.docstring.value.split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", paragraph)[0].replace("|", "\\|")
