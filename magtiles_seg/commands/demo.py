"""`magtiles-seg demo`: the demo in the browser."""

from __future__ import annotations

import argparse
import os

from magtiles_seg.commands import options

_EXAMPLES = """
  magtiles-seg demo
  magtiles-seg demo --host 0.0.0.0 --port 8080 --model runs/model.onnx
  magtiles-seg demo --root-path /line3         behind a proxy that serves /line3/
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(verbs, "demo", "show the demo in the browser", run, examples=_EXAMPLES)
    verb.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    verb.add_argument("--port", type=options.port, default=7860, metavar="N", help="default: 7860")
    verb.add_argument(
        "--root-path",
        type=_root_path,
        default=os.environ.get("MAGTILES_ROOT_PATH", ""),
        metavar="PATH",
        help="MAGTILES_ROOT_PATH: what a proxy puts in front of every path, such as /line3",
    )
    options.add_model(verb)
    options.add_device(verb)
    verb.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def run(arguments: argparse.Namespace) -> int:
    """Serve the demo until it is interrupted."""
    demo = options.import_extra("magtiles_seg.demo", "demo")
    with options.open_segmenter(arguments) as segmenter:
        host, port = arguments.host, arguments.port
        print(f"demo: http://{host}:{port}{arguments.root_path}/ (stop with Ctrl+C)", flush=True)
        demo.run(segmenter, host=host, port=port, root_path=arguments.root_path)
    return options.ACCEPTED


def _root_path(text: str) -> str:
    from magtiles_seg.serve.settings import root_path

    try:
        return root_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
