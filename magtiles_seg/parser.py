"""The command line's words: verbs, options and the examples that `--help` teaches by."""

from __future__ import annotations

import argparse
from inspect import cleandoc
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

import magtiles_seg

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

SEGMENTER_OPTIONS = (
    "device",
    "threshold",
    "min_area_px",
    "reject_score",
    "review_score",
    "mm_per_px",
    "threads",
)
"""Options of `segment` that are arguments of `Segmenter` by the same name."""

_EXAMPLES = {
    "": """
      magtiles-seg segment tile.png                 what is wrong with this tile?
      magtiles-seg segment shots/ --out masks/      a folder; masks and overlays written
      magtiles-seg data load                        fetch the public data set into data/
      magtiles-seg data split && magtiles-seg train
      magtiles-seg VERB --help                      more examples
    """,
    "segment": """
      magtiles-seg segment tile.png
      magtiles-seg segment shots/ 'more/*.jpg' --out masks/
      magtiles-seg segment tile.png --json | jq .verdict
      magtiles-seg segment tile.png --threshold 0.3 --mm-per-px 0.05

      Exit code: 0 all accepted, 1 some rejected or to be reviewed, 2 an error.
    """,
    "stream": """
      magtiles-seg stream web/ --mm-per-px 0.05 --out runs/web
      magtiles-seg stream web.avi --line-rate 20000 --when-full drop
      magtiles-seg stream basler: --line-mm 0.05
      magtiles-seg stream synthetic:tiles=3000,width=2048

      Exit code: 0 no defect and every line inspected, 1 otherwise, 2 an error.
    """,
    "info": """
      magtiles-seg info
      magtiles-seg info --model runs/model.onnx --json
    """,
    "data load": """
      magtiles-seg data load
      magtiles-seg data load --set data_load.source=Downloads/master.zip
      magtiles-seg data load --set data_load.source=synthetic:tiles=10,seed=1
    """,
    "data split": """
      magtiles-seg data split
      magtiles-seg data split --set data_split.fold=2 --out data/fold2.json
    """,
    "data check": """
      magtiles-seg data check data/split.json

      Exit code: 0 no physical tile stands in two parts, 1 one does, 2 an error.
    """,
    "data synth": """
      magtiles-seg data synth out/tiles --tiles 20 --seed 3
    """,
    "train": """
      magtiles-seg train
      magtiles-seg train --out runs/nano --set train.architecture=nano --set train.epochs=5

      Stopped at any moment and started again, it goes on from the last whole epoch.
    """,
    "evaluate": """
      magtiles-seg evaluate                         the bundled model on the split's test part
      magtiles-seg evaluate my-tiles/ --model runs/model.onnx --json metrics.json
    """,
    "export": """
      magtiles-seg export --model runs/train/model.safetensors --split data/split.json \\
          --out runs/model.onnx
    """,
}


def build() -> argparse.ArgumentParser:
    """Return the parser; a parsed verb stands in `.verb`, as in `data_load`."""
    top = argparse.ArgumentParser(
        prog="magtiles-seg",
        description="Find surface defects of magnetic tiles.",
        epilog=_epilog(""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"%(prog)s {magtiles_seg.__version__}"
    top.add_argument("--version", action="version", version=version)
    verbs = top.add_subparsers(metavar="VERB", required=True)
    _add_segment(_verb(verbs, "segment", "segment pictures, folders or globs"))
    _add_stream(_verb(verbs, "stream", "inspect an endless web of lines"))
    _add_data(verbs)
    _add_train(_verb(verbs, "train", "train a network on the split's training part"))
    _add_evaluate(_verb(verbs, "evaluate", "score a model on labelled pictures"))
    _add_export(_verb(verbs, "export", "write a checkpoint as one ONNX file, if it passes parity"))
    info = _verb(verbs, "info", "show versions, runtimes and the model's card")
    info.add_argument("--model", type=Path, metavar="FILE", help="default: the bundled model")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def _add_segment(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("paths", nargs="+", metavar="PATH", help="picture, folder or quoted glob")
    verb.add_argument("--out", type=Path, metavar="DIR", help="write mask, overlay and JSON here")
    verb.add_argument("--json", action="store_true", help="print one JSON object a picture, a line")
    _add_model(verb)
    verb.add_argument("--device", help="cpu (default), cuda or cuda:N")
    for name, kind, text in (
        ("threshold", float, "a pixel of at least this probability is defect"),
        ("min-area-px", int, "smaller connected regions are dropped"),
        ("reject-score", float, "a picture of at least this score is rejected"),
        ("review-score", float, "from this score on a picture wants review"),
        ("mm-per-px", float, "scale of the pictures, for sizes in mm"),
        ("threads", int, "CPU threads (default: all cores)"),
    ):
        metavar = "T" if kind is float else "N"
        verb.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)


def _add_stream(verb: argparse.ArgumentParser) -> None:
    words = (
        "folder, video, basler:[SERIAL], genicam:FILE.cti or synthetic:[tiles=N,width=PX,seed=N]"
    )
    verb.add_argument("source", metavar="SOURCE", help=words)
    verb.add_argument("--out", type=Path, metavar="DIR", help="write defects.jsonl and .csv here")
    verb.add_argument("--pictures", action="store_true", help="write annotated pictures there too")
    verb.add_argument("--json", action="store_true", help="print one JSON object a defect, a line")
    _add_model(verb)
    verb.add_argument("--device", help="cpu (default), cuda or cuda:N")
    for name, kind, default, text in (
        ("threshold", float, None, "a pixel of at least this probability is defect"),
        ("min-area-px", int, None, "smaller defects are dropped"),
        ("threads", int, None, "CPU threads (default: all cores)"),
        ("mm-per-px", float, None, "size of a pixel across the web"),
        ("line-mm", float, None, "line pitch (default: as --mm-per-px)"),
        ("strip-rows", int, 1024, "lines an inference (default: 1024)"),
        ("batch", int, 1, "most strips an inference (default: 1)"),
        ("queue", int, 64, "blocks that may wait (default: 64)"),
        ("line-rate", float, 0.0, "replay at this many lines a second (default: at once)"),
    ):
        metavar = "X" if kind is float else "N"
        verb.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=text)
    verb.add_argument(
        "--when-full",
        choices=("block", "drop"),
        default="block",
        help="full queue: let the source wait, or drop lines and report them (default: block)",
    )


def _add_data(verbs: Verbs) -> None:
    data = verbs.add_parser("data", help="fetch, split, check or synthesize a data set")
    parts = data.add_subparsers(metavar="VERB", required=True)
    _add_params(_verb(parts, "data load", "fetch, verify and unpack the data set"))
    split = _verb(parts, "data split", "write a split manifest")
    _add_params(split)
    split.add_argument("--out", **_manifest("where to write it"))
    check = _verb(parts, "data check", "report the leaks of a split manifest")
    _add_params(check)
    check.add_argument("manifest", type=Path, metavar="MANIFEST", help="a file by `data split`")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    synth = _verb(parts, "data synth", "write a data set of synthetic tiles")
    synth.add_argument("directory", type=Path, metavar="DIR", help="where to write it")
    synth.add_argument("--tiles", type=int, default=50, metavar="N", help="default: 50")
    synth.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def _add_train(verb: argparse.ArgumentParser) -> None:
    _add_params(verb)
    verb.add_argument("--split", **_manifest("the split manifest"))
    verb.add_argument(
        "--out",
        type=Path,
        default=Path("runs/train"),
        metavar="DIR",
        help="checkpoint and state (default: runs/train)",
    )
    verb.add_argument("--logs", type=Path, metavar="DIR", help="curves (default: OUT/dvclive)")
    verb.add_argument(
        "--restart",
        action="store_true",
        help="forget what OUT holds, unless it is this very run, stopped half-way",
    )


def _add_evaluate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "dataset",
        nargs="?",
        type=Path,
        metavar="DATASET_DIR",
        help="score every picture of it; without it, a part of the split (evaluate.part)",
    )
    _add_model(verb)
    _add_params(verb)
    verb.add_argument("--split", **_manifest("the split manifest"))
    verb.add_argument("--protocol", metavar="NAME", help="native, T, P1, P1b or P2")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    verb.add_argument(
        "--write-card", action="store_true", help="put the figures into the ONNX model's card too"
    )
    verb.add_argument(
        "--out", type=Path, metavar="DIR", help="write metrics.json, report.md and plots/*.csv here"
    )


def _add_export(verb: argparse.ArgumentParser) -> None:
    _add_params(verb)
    verb.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="a .safetensors checkpoint"
    )
    verb.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .onnx to write")
    verb.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="choose the thresholds on this manifest's validation part",
    )
    verb.add_argument("--name", help="what people call the model (default: the checkpoint's name)")


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--model", type=Path, metavar="FILE", help="default: the bundled model")


def _add_params(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--params", type=Path, metavar="FILE", help="default: params.yaml if there")
    verb.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a parameter for this run; may be repeated",
    )


def _manifest(text: str) -> dict[str, Any]:
    path = Path("data/split.json")
    return {"type": Path, "default": path, "metavar": "FILE", "help": f"{text} (default: {path})"}


def _verb(verbs: Verbs, name: str, purpose: str) -> argparse.ArgumentParser:
    """Add a verb by its full name, as in `data load`; its examples end its help."""
    verb = verbs.add_parser(
        name.split()[-1],
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=_epilog(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(verb=name.replace(" ", "_"))
    return verb


def _epilog(name: str) -> str:
    return f"examples:\n{indent(cleandoc(_EXAMPLES[name]), '  ')}"
