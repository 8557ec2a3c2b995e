"""`magtiles-seg demo`: the demo in the browser."""

from __future__ import annotations

import argparse

from magtiles_seg.commands import options

_EXAMPLES = """
  magtiles-seg demo
  magtiles-seg demo --host 0.0.0.0 --port 8080 --model runs/model.onnx
"""

_PATIENCE_S = 3  # an open page holds a connection for as long as it is open


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(verbs, "demo", "show the demo in the browser", run, examples=_EXAMPLES)
    verb.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    verb.add_argument("--port", type=int, default=7860, metavar="N", help="default: 7860")
    options.add_model(verb)
    options.add_device(verb)
    verb.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def run(arguments: argparse.Namespace) -> int:
    """Serve the demo until it is interrupted."""
    demo = options.import_extra("magtiles_seg.serve.demo", "demo")
    uvicorn = options.import_extra("uvicorn", "demo")
    with options.open_segmenter(arguments) as segmenter:
        app = demo.create_app(segmenter)
        print(f"demo: http://{arguments.host}:{arguments.port}/ (stop with Ctrl+C)", flush=True)
        uvicorn.run(
            app,
            host=arguments.host,
            port=arguments.port,
            log_level="warning",
            timeout_graceful_shutdown=_PATIENCE_S,
        )
    return options.ACCEPTED
