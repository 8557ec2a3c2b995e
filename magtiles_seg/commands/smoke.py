"""`magtiles-seg smoke`: does a live endpoint answer as it must?"""

from __future__ import annotations

import argparse
import os

from magtiles_seg.commands import options

_EXAMPLES = """
  magtiles-seg smoke https://tiles-dev.example.org
  magtiles-seg smoke http://127.0.0.1:8001 --model runs/model.onnx --version v1.2.0

  Exit code: 0 it answers as it must, 2 it does not. ENDPOINT_API_KEY is sent where it is set.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "smoke", "test a live endpoint with a golden tile", run, examples=_EXAMPLES
    )
    verb.add_argument("url", metavar="URL", help="of the service, without /analyze")
    verb.add_argument("--version", metavar="vX.Y.Z", help="that the endpoint must name")
    verb.add_argument(
        "--min-iou", type=float, default=0.5, metavar="X", help="on the golden tile (default: 0.5)"
    )
    verb.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="S",
        help="until it is ready, with the expected model (default: 60)",
    )
    options.add_model(verb)


def run(arguments: argparse.Namespace) -> int:
    """Test, and print what was found."""
    from magtiles_seg.delivery.smoke import Expectation, smoke

    expected = Expectation(
        model=arguments.model,
        version=arguments.version,
        min_iou=arguments.min_iou,
        ready_s=arguments.wait,
        api_key=os.environ.get("ENDPOINT_API_KEY"),
    )
    print(smoke(arguments.url, expected))
    return options.ACCEPTED
