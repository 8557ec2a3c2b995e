"""`magtiles-seg info`: versions, runtimes and the model's card."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from magtiles_seg.commands import options

_EXAMPLES = """
  magtiles-seg info
  magtiles-seg info --model runs/model.onnx --json
  magtiles-seg info --screen screen.onnx
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "info", "show versions, runtimes and the model's card", run, examples=_EXAMPLES
    )
    options.add_model(verb)
    options.add_screen(verb)
    verb.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    from magtiles_seg.environment import describe

    facts = describe(arguments.model, arguments.screen)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        for name in facts.keys() & {"card", "screen_card"}:
            facts[name]["training"] = _origin(facts[name]["training"])
        lines = [*_lines(facts)]
        width = max(len(name) for name, _ in lines) + 2
        print("\n".join(f"{name:<{width}}{value}".rstrip() for name, value in lines))
    return options.ACCEPTED


def _origin(training: Mapping[str, Any]) -> str:
    """Return what a model was made of, in words; the rest is some forty parameters."""
    learnt = training.get("learnt_from", {})
    counts = [f"{number} {name.replace('_', ' ')}" for name, number in learnt.items()]
    return "; ".join([*([", ".join(counts)] if counts else []), "see --json"])


def _lines(facts: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield name and value of each fact, those of a group indented below its name."""
    for name, value in facts.items():
        shown = "  " * depth + name.replace("_", " ")
        groups = value if isinstance(value, list) else [value]
        if value and all(isinstance(group, dict) for group in groups):
            for group in groups:
                yield shown, ""
                yield from _lines(group, depth + 1)
        else:
            yield shown, _text(value)


def _text(value: object) -> str:
    """Return a value in words: numbers with four digits, `-` where there is none."""
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value in (None, "", {}) else str(value)
