"""How the site is built by `make docs`: the repository's own pages, their links mended."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
from sphinx.application import Sphinx

import magtiles_seg
from magtiles_seg.cli import build_parser
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.files import encode_png

project = "magtiles-seg"
author = "the magtiles-seg authors"
version = release = magtiles_seg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
default_role = "code"
html_theme = "furo"
html_title = f"{project} {version}"
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
html_favicon = "../examples/web/icon.svg"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
_absent = {
    name
    for name in ("lightning_fabric", "onnx", "onnxscript", "safetensors", "torch")
    if importlib.util.find_spec(name) is None
}
if "onnx" in _absent:
    _absent.add("onnxruntime.quantization")  # imports it
autodoc_mock_imports = sorted(_absent)  # the extra `docs` alone builds the whole site
autodoc_typehints_format = "short"
copybutton_prompt_text = "$ "

_PAGES = {  # files beside docs/ that are pages of the site
    "README.md": "readme.md",
    "MODEL_CARD.md": "model-card.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "export/README.md": "recipes.md",
}


def mend(_: Sphinx, name: str, source: list[str]) -> None:
    """Point links that leave docs/ to the site's own pages; what has none stays as text."""
    up = "../" * name.count("/")
    text = source[0]
    for file, page in _PAGES.items():
        text = text.replace(f"]({up}../{file}", f"]({up}{page}")
    source[0] = re.sub(rf"\[([^\]]+)\]\({up}\.\./[^)]*/[^).]*\)", r"`\1`", text)
    if name == "reference/command-line":
        source[0] += help_pages()
    if name == "gallery":
        source[0] += gallery()


def gallery() -> str:
    """Draw a synthetic tile of each class, and return them as Markdown: input beside result."""
    folder = Path(__file__).parent / "_build" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for label in (*magtiles_seg.LABELS[1:], "no defect"):
        defect = None if label == "no defect" else label
        tile = synthetic_tile(3, defect=defect, exposure=3)
        result = magtiles_seg.segment(tile.image)
        given = np.repeat(tile.image[:, :, None], 3, axis=2)
        path = folder / f"{label.replace(' ', '-')}.png"
        path.write_bytes(encode_png(np.hstack([given, result.overlay()])))
        found = ", ".join(f"{each.label} of {each.area_px} px" for each in result.defects)
        about = f"{result.verdict}, score {result.score:.2f}; {found or 'no region'}"
        parts.append(
            f"\n## {label}\n\n![{label}: {about}](_build/gallery/{path.name})\n\n{about}\n"
        )
    return "".join(parts)


def help_pages() -> str:
    """Return the help of every verb as Markdown."""
    os.environ["COLUMNS"] = "96"
    parser = build_parser()
    parser.prog = "magtiles-seg"
    return "\n".join(_help(parser, parser.prog, depth=1))


def _help(parser: argparse.ArgumentParser, title: str, depth: int) -> list[str]:
    pages = [f"\n{'#' * (depth + 1)} {title}\n\n```text\n{parser.format_help()}```\n"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                pages += _help(below, f"{title} {verb}", min(depth + 1, 3))
    return pages


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", mend)
