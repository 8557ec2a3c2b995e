"""`magtiles-seg stream`: an endless web of lines."""

from __future__ import annotations

import argparse
from pathlib import Path

from magtiles_seg.commands import options
from magtiles_seg.progress import print_above

_EXAMPLES = """
  magtiles-seg stream web/ --mm-per-px 0.05 --out runs/web
  magtiles-seg stream web.avi --line-rate 20000 --when-full drop
  magtiles-seg stream basler: --line-mm 0.05 --camera-file line.pfs
  magtiles-seg stream basler:40012345 --width 4096 --height 256 --trigger Line1 --exposure-us 20
  magtiles-seg stream basler:40012345 basler:40012346 --overlap-px 40
  magtiles-seg stream synthetic:tiles=3000,width=2048
  magtiles-seg stream basler: --out runs/line1 --to mqtt://broker/plant/line1 --metrics-port 9100

  Pictures of a folder are a web in natural order: 1.png, 2.png, 10.png. Hidden files and results
  of an earlier run are left out, with a line on stderr.

  Exit code: 0 no defect and every line inspected, 1 otherwise, 2 an error, 70 a bug.
"""


_SILENCE = (
    "camera: silence for so long is an error; inf: never (default: never if it is triggered, as a "
    "web may stand still, else 5)"
)


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "stream", "inspect an endless web of lines", run, examples=_EXAMPLES
    )
    words = (
        "folder, video, basler:[SERIAL], genicam:FILE.cti[#N] or "
        "synthetic:[tiles=N,width=PX,seed=N]; several are cameras side by side, from left to right"
    )
    verb.add_argument("source", metavar="SOURCE", nargs="+", help=words)
    verb.add_argument(
        "--out",
        type=options.folder,
        metavar="DIR",
        help="write defects.jsonl and .csv here; what is there is kept",
    )
    verb.add_argument(
        "--records",
        metavar="KINDS",
        help="of jsonl, csv, parquet (default: jsonl,csv)",
    )
    verb.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="URL",
        help="deliver to mqtt://HOST/TOPIC, opcua://HOST or modbus://HOST; may be repeated",
    )
    verb.add_argument(
        "--metrics-port",
        type=_listen,
        metavar="[HOST:]PORT",
        help="answer Prometheus here (host: 127.0.0.1)",
    )
    verb.add_argument("--pictures", action="store_true", help="write annotated pictures there too")
    verb.add_argument("--json", action="store_true", help="print one line of JSON per defect")
    options.add_model(verb)
    options.add_device(verb)
    options.add_screen(verb)
    for name, kind, default, text in (
        ("threshold", float, None, "a pixel of at least this probability is defect"),
        ("min-area-px", int, None, "smaller defects are dropped"),
        ("reject-score", float, None, "--review-dir: crops of at least this score are no question"),
        ("review-score", float, None, "--review-dir: from this score on a crop is unsure"),
        ("threads", int, None, "CPU threads (default: all cores)"),
        ("mm-per-px", float, None, "size of a pixel across the web"),
        ("line-mm", float, None, "line pitch (default: as --mm-per-px)"),
        ("strip-rows", int, 1024, "lines per inference (default: 1024)"),
        ("batch", int, 1, "most strips per inference (default: 1)"),
        ("queue", int, 64, "blocks that may wait (default: 64)"),
        (
            "line-rate",
            float,
            0.0,
            "lines per second: of the camera, or of a replay (default: at once)",
        ),
        ("width", int, None, "camera: pixels per line"),
        ("height", int, None, "camera: lines per frame"),
        ("exposure-us", float, None, "camera: exposure of a line, in microseconds"),
        ("timeout-s", float, None, _SILENCE),
        ("rotate-mb", float, None, "begin new records at this size, 0: never (default: 100)"),
        ("rotate-h", float, None, "and after so many hours, 0: never (default: 24)"),
    ):
        metavar = "X" if kind is float else "N"
        verb.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)
    verb.add_argument(
        "--when-full",
        choices=("block", "drop"),
        default="block",
        help="full queue: let the source wait, or drop lines and report them (default: block)",
    )
    options.add_review(verb)
    verb.set_defaults(review=None)
    _add_camera(verb)


def _add_camera(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--camera-file",
        type=Path,
        metavar="FILE",
        action="append",
        help="camera: settings, Pylon's .pfs or lines Name=Value; again for each camera",
    )
    verb.add_argument("--pixel-format", metavar="NAME", help="camera: such as Mono8, Mono12p")
    verb.add_argument(
        "--trigger",
        metavar="SOURCE",
        help="camera: what triggers a line, such as Line1; off: it runs free",
    )
    verb.add_argument(
        "--feature",
        metavar="NAME=VALUE",
        type=_feature,
        action="append",
        help="camera: any GenICam feature, after all others; again for more",
    )
    verb.add_argument(
        "--overlap-px",
        metavar="N[,N]",
        type=_overlaps,
        help="cameras side by side: what neighbours both see, for all seams or one per seam",
    )


def _feature(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{word!r} is no NAME=VALUE")
    return name, value


def _overlaps(word: str) -> list[int]:
    try:
        return [int(part) for part in word.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no list of pixels, such as 40,38") from None


def _listen(word: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or `PORT`.

    Raises:
        argparse.ArgumentTypeError: There is no port in it, or one above 65535.
    """
    host, _, port = word.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{word!r} has no port up to 65535; expected such as 9100")
    return host.strip("[]") or "127.0.0.1", int(port)


def run(arguments: argparse.Namespace) -> int:
    """Inspect the source and say whether the web is clean and whole."""
    from magtiles_seg.linescan.open import stream

    if arguments.out:
        options.check_output(arguments.out)
    arguments.review = options.read_review(arguments)
    with options.open_segmenter(arguments) as segmenter:
        clean = stream(segmenter, arguments, tell=print_above)
    if arguments.review is not None and not arguments.json:
        options.tell_review(arguments.review)
    return options.ACCEPTED if clean else options.REJECTED
