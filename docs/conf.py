"""How the site is built by `make docs`: the repository's own pages, their links mended."""

from __future__ import annotations

import argparse
import os
import re

from sphinx.application import Sphinx

import magtiles_seg
from magtiles_seg.cli import build_parser

project = "magtiles-seg"
author = "the magtiles-seg authors"
version = release = magtiles_seg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
default_role = "code"
html_theme = "furo"
html_title = f"{project} {version}"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
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
