"""`magtiles-seg bench`: how fast this machine segments, and which backend is the fastest."""

from __future__ import annotations

import argparse
import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg import errors
from magtiles_seg.commands import options
from magtiles_seg.names import counted
from magtiles_seg.progress import bar, complain, note, remark

if TYPE_CHECKING:
    from magtiles_seg.bench.entries import Candidate, Case
    from magtiles_seg.bench.run import BenchReport
    from magtiles_seg.config import ExportParams, Params
    from magtiles_seg.export.parity import TileSet, Tolerance

_EXAMPLES = """
  magtiles-seg bench
  magtiles-seg bench --size 288x220 256x2048 --threads 1 2 --reference --out bench/
  magtiles-seg bench --select --data my-tiles/     int8 and bf16 take part if they pass on these
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "bench", "compare the backends of this machine", run, examples=_EXAMPLES
    )
    options.add_model(verb)
    options.add_params(verb)
    for name, kind, metavar, text in (
        ("size", str, "HxW", "pictures' height and width (default: 288x220)"),
        ("batch", int, "N", "pictures in a call (default: 1)"),
        ("threads", int, "N", "of one inference on a CPU (default: all cores)"),
        ("backend", str, "NAME", "only these (default: all that are installed)"),
        ("also", Path, "FILE", "other files of the same model: its int8 version, an engine"),
    ):
        verb.add_argument(f"--{name}", nargs="+", type=kind, default=[], metavar=metavar, help=text)
    verb.add_argument("--rounds", type=int, default=20, metavar="N", help="turns (default: 20)")
    verb.add_argument(
        "--reference", action="store_true", help="beside a U-Net of 41 M parameters, in torch"
    )
    verb.add_argument("--memory", action="store_true", help="measure peak memory, too")
    verb.add_argument("--json", action="store_true", help="print one JSON object")
    verb.add_argument(
        "--out",
        type=options.folder,
        metavar="DIR",
        help="write bench.md, .json and .png here",
    )
    verb.add_argument(
        "--select",
        action="store_true",
        help="from now on segment with the fastest that passes parity; threads are chosen, too",
    )
    options.add_tiles(
        verb,
        data="with --select: tiles that the model was not trained on, to make an int8 file by and "
        "to compare on",
        split="the same, of the model's own split",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, show, write and choose."""
    from magtiles_seg.bench import run as bench
    from magtiles_seg.bench import table as benchtable
    from magtiles_seg.files import write
    from magtiles_seg.marking import mark_png

    if arguments.out:
        options.check_output(arguments.out)
    if arguments.select:
        _check_selection()
    params = options.read_params(arguments)
    proof, made = _contestants(arguments, params)
    with bar("bench", "round") as progress:
        report = bench.measure(
            arguments.model,
            cases=_cases(arguments),
            also=[*arguments.also, *made],
            backends=arguments.backend,
            threads=arguments.threads or (thread_counts() if arguments.select else []),
            rounds=arguments.rounds,
            reference=arguments.reference,
            memory=arguments.memory,
            progress=progress,
            left_out=complain,
        )
    table, text = benchtable.as_markdown(report), json.dumps(report.to_dict(), indent=2)
    print(text if arguments.json else table)
    if arguments.out:
        write(arguments.out / "bench.md", f"{table}\n")
        write(arguments.out / "bench.json", f"{text}\n")
        chart = BytesIO()
        benchtable.draw_chart(report).save(chart, "PNG")
        write(arguments.out / "bench.png", mark_png(chart.getvalue()))
    if arguments.select:
        _select(arguments, report, params.export, proof)
    return options.ACCEPTED


def _check_selection() -> None:
    """Check that the choice can be written, before minutes are spent on it."""
    from magtiles_seg.infer.selection import selection_path

    options.check_output(
        selection_path().parent, instead="name another file in the variable MAGTILES_CONFIG"
    )


def _cases(arguments: argparse.Namespace) -> list[Case]:
    from magtiles_seg.bench.entries import Case

    sizes = [size.lower().split("x") for size in arguments.size or ["288x220"]]
    if not all(len(size) == 2 and all(side.isdecimal() for side in size) for size in sizes):
        raise errors.ConfigError(
            f"--size is {' '.join(arguments.size)}; expected height x width, such as 288x220"
        )
    return [
        Case(height_px=int(height), width_px=int(width), batch=batch)
        for height, width in sizes
        for batch in arguments.batch or [1]
    ]


def thread_counts() -> list[int]:
    """Return the numbers of threads among which the fastest is looked for: all cores, and fewer.

    A network of a few megabytes does not fill many cores.
    """
    from magtiles_seg.infer.backends.base import available_cores

    cores = available_cores()
    return sorted({cores, cores // 2, cores // 4} - {0})


def _contestants(
    arguments: argparse.Namespace, params: Params
) -> tuple[TileSet | None, tuple[Path, ...]]:
    """Return the tiles to choose on, and the int8 file made for this machine if it is any good."""
    tiles = {"data": arguments.data, "manifest": arguments.split}
    if not any(tiles.values()):
        return None, ()
    if not arguments.select:
        raise errors.ConfigError("--data and --split are what --select compares on: add --select")
    artefacts = options.import_extra("magtiles_seg.export.artefacts", "export")
    from magtiles_seg import pipeline
    from magtiles_seg.export.parity import Tolerance
    from magtiles_seg.export.unseen import gate_tiles
    from magtiles_seg.infer.backends.base import file_sha256
    from magtiles_seg.infer.selection import runtime_of, selection_path
    from magtiles_seg.model.bundled import model_path

    model = model_path(arguments.model)
    proof, _ = gate_tiles(params, model, "fp32", **tiles, note=remark)
    order = artefacts.Order(
        target="openvino" if runtime_of("openvino") else "onnx",
        precision="int8",
        tolerance=Tolerance.of(params.export, "int8"),
        min_speedup=params.export.int8_min_speedup,
    )
    folder = selection_path().parent / "models" / file_sha256(model)[:16]
    remark("makes an int8 file for this machine, which takes minutes; then it measures")
    with bar("int8", "step") as show:
        try:
            made = pipeline.export_artefact(
                params,
                model,
                folder,
                order,
                progress=lambda _stage, done, total: show(done, total),
                **tiles,
            )
        except errors.ParityError as error:
            note(f"int8: {error}")
            return proof, ()
    return proof, (made.path,)


def _select(
    arguments: argparse.Namespace, report: BenchReport, params: ExportParams, proof: TileSet | None
) -> None:
    from magtiles_seg.bench.select import select_fastest
    from magtiles_seg.infer.selection import save_selection
    from magtiles_seg.model.bundled import model_path

    model = model_path(arguments.model)
    names = {
        row.candidate: f"{row.name}, {counted(row.candidate.threads or 1, 'thread')}"
        for row in report.rows
        if row.candidate
    }
    selection = select_fastest(
        report,
        model,
        tolerance=lambda candidate: _tolerance(candidate, params),
        proof=proof,
        refused=lambda candidate, error: note(f"{names[candidate]}: {error}"),
    )
    path = save_selection(report.model_sha256, selection)
    chosen = (
        f"{Path(selection.file or model).stem}, {selection.backend} {selection.device} "
        f"{selection.precision or ''}".rstrip()
    )
    threads = counted(selection.threads, "thread")
    print(f"\nselected {chosen}, {threads}, {selection.measured}\nwritten to {path}")


def _tolerance(candidate: Candidate, params: ExportParams) -> Tolerance:
    """Return how far a candidate may stray: as its arithmetic is, by the manifest beside it."""
    from magtiles_seg.export.parity import Tolerance
    from magtiles_seg.infer.manifest import Manifest, manifest_path

    if candidate.precision == "bf16":
        return Tolerance.of(params, "bf16")
    if not manifest_path(candidate.path).exists():
        return Tolerance.of(params, "fp32")
    return Tolerance.of(params, Manifest.read(candidate.path).precision)
