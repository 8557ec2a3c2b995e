"""`magtiles-seg info`: versions, runtimes and the model's card."""

from __future__ import annotations

import argparse
import json

from magtiles_seg.commands import options

_EXAMPLES = """
  magtiles-seg info
  magtiles-seg info --model runs/model.onnx --json
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "info", "show versions, runtimes and the model's card", run, examples=_EXAMPLES
    )
    options.add_model(verb)
    verb.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    from magtiles_seg.environment import describe

    facts = describe(arguments.model)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return options.ACCEPTED
    for name, value in facts.items():
        print(f"{name:<18}{value if isinstance(value, str) else json.dumps(value)}")
    return options.ACCEPTED
