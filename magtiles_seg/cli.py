"""`magtiles-seg VERB`: thin wrappers over the library, and the only module that prints.

Answers go to stdout, progress and errors to stderr. Exit code 0: every picture accepted; 1: some
rejected, to be reviewed, or (`data check`) a leak; 2: an error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg import errors, inputs, parser
from magtiles_seg.progress import bar, print_above, wrap

if TYPE_CHECKING:
    from magtiles_seg.config import Params
    from magtiles_seg.model.card import ModelCard
    from magtiles_seg.result import Segmentation

ACCEPTED, REJECTED, ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    arguments = parser.build().parse_args(argv)
    verb: Callable[[argparse.Namespace], int] = globals()[f"_{arguments.verb}"]
    try:
        code = verb(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except (errors.MagtilesError, OSError) as error:
        _complain(error)
        return ERROR
    return code


def _segment(arguments: argparse.Namespace) -> int:
    pictures = inputs.find_pictures(arguments.paths)
    targets = inputs.output_names(pictures) if arguments.out else {}
    code = ACCEPTED
    with _segmenter(arguments) as segmenter, bar("segment", "picture") as progress:
        for done, path in enumerate(pictures, start=1):
            try:
                result = segmenter(path)
            except (errors.ImageError, OSError) as error:
                _complain(error)
                if arguments.json:
                    print_above(json.dumps({"source": str(path), "error": str(error)}))
                code = ERROR
                continue
            if arguments.out:
                folder, stem = targets[path]
                result.save(arguments.out / folder, stem)
            print_above(result.to_json() if arguments.json else _describe(result))
            if result.verdict != "accept":
                code = max(code, REJECTED)
            progress(done, len(pictures))
    return code


def _describe(result: Segmentation) -> str:
    count = len(result.defects)
    lines = [f"{result.source}: {result.verdict}, score {result.score:.3f}, {count} defects"]
    for defect in result.defects:
        size = f"{defect.area_px} px, {defect.length_px:.0f} x {defect.width_px:.0f} px"
        if defect.length_mm is not None and defect.width_mm is not None:
            size += f" ({defect.length_mm:.2f} x {defect.width_mm:.2f} mm)"
        x, y = defect.centroid_xy_px
        lines.append(f"  {defect.label} {defect.score:.2f} at ({x:.0f}, {y:.0f}): {size}")
    return "\n".join(lines).replace(", 1 defects", ", 1 defect")


def _stream(arguments: argparse.Namespace) -> int:
    from magtiles_seg.streaming import stream

    with _segmenter(arguments) as segmenter:
        clean = stream(segmenter, arguments, tell=print_above)
    return ACCEPTED if clean else REJECTED


def _info(arguments: argparse.Namespace) -> int:
    from magtiles_seg.environment import describe

    facts = describe(arguments.model)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return ACCEPTED
    for name, value in facts.items():
        print(f"{name:<18}{value if isinstance(value, str) else json.dumps(value)}")
    return ACCEPTED


def _data_load(arguments: argparse.Namespace) -> int:
    from magtiles_seg.dataset.archive import fetch, note_folder, verify

    load = _params(arguments).data_load
    unit = "tile" if load.source.startswith("synthetic:") else "B"
    with bar("fetch", unit) as progress:
        root = fetch(load.source, Path(load.directory), sha256=load.sha256, progress=progress)
    with bar("verify", "picture") as progress:
        samples = verify(root, layout=load.layout, labels=load.labels, progress=progress)
    if Path(load.source).is_dir():
        note_folder(Path(load.directory), samples)
    groups = len({sample.group for sample in samples})
    print(f"{root}: {len(samples)} pictures of {groups} tiles, all whole")
    return ACCEPTED


def _data_split(arguments: argparse.Namespace) -> int:
    from magtiles_seg import stages
    from magtiles_seg.dataset.splits import PARTS, make_split

    params = _params(arguments)
    split = make_split(stages.samples_of(params), **asdict(params.data_split))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(split.to_json(), encoding="utf-8")
    parts = ", ".join(f"{len(getattr(split, part))} {part}" for part in PARTS)
    print(f"{arguments.out}: rule {split.rule}, seed {split.seed}, fold {split.fold}: {parts}")
    return ACCEPTED


def _data_check(arguments: argparse.Namespace) -> int:
    from magtiles_seg import stages
    from magtiles_seg.dataset.leakage import leaks

    params = _params(arguments)
    report = leaks(stages.read_manifest(arguments.manifest), stages.samples_of(params))
    print(json.dumps(report.to_dict()) if arguments.json else report.summary())
    return ACCEPTED if report.clean else REJECTED


def _data_synth(arguments: argparse.Namespace) -> int:
    from magtiles_seg.dataset.synthetic import write_dataset

    with bar("data synth", "tile") as progress:
        root = write_dataset(
            arguments.directory, tiles=arguments.tiles, seed=arguments.seed, progress=progress
        )
    print(f"{root}: {arguments.tiles} synthetic tiles, six pictures each")
    return ACCEPTED


def _train(arguments: argparse.Namespace) -> int:
    from magtiles_seg import stages

    params = _params(arguments)
    train = _needs("magtiles_seg.train.loop", "train").train
    live = _needs("dvclive", "train").Live
    parts = stages.split_parts(arguments.split, params)
    run = (parts["train"], parts["validation"], params.train, arguments.out)
    labels, resume = params.data_load.labels, True
    if arguments.restart:
        restart = _needs("magtiles_seg.train.restart", "train")
        resume = not restart.forget_other_run(*run, labels=labels)
    folder = str(arguments.logs or arguments.out / "dvclive")
    with live(folder, resume=resume, report=None, save_dvc_exp=False, dvcyaml=None) as logger:
        logger.log_params(asdict(params.train))
        checkpoint = train(*run, labels=labels, progress=wrap, logger=logger)
    print(checkpoint)
    return ACCEPTED


def _evaluate(arguments: argparse.Namespace) -> int:
    from magtiles_seg import stages
    from magtiles_seg.evaluate import curves
    from magtiles_seg.evaluate.report import evaluate

    params = _params(arguments)
    if arguments.dataset is not None:
        samples = list(stages.samples_of(params, arguments.dataset))
        protocol = arguments.protocol or "native"
    else:
        part = params.evaluate.part
        parts = stages.split_parts(arguments.split, params)
        samples = [sample for name in parts for sample in parts[name] if part in (name, "all")]
        protocol = arguments.protocol or params.evaluate.protocol
    with _segmenter(arguments) as segmenter, bar("evaluate", "picture") as progress:
        labels = segmenter.spec.card.labels
        result = evaluate(segmenter, samples, protocol=protocol, labels=labels, progress=progress)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(result.to_json(), encoding="utf-8")
    if arguments.out:
        curves.save(result, arguments.out)
    if arguments.write_card:
        rewrite = _needs("magtiles_seg.export.graph", "export").rewrite_card
        rewrite(segmenter.spec.path, stages.with_figures(segmenter.spec.card, result))
    print(result.to_markdown())
    return ACCEPTED


def _export(arguments: argparse.Namespace) -> int:
    params = _params(arguments)
    graph = _needs("magtiles_seg.export.graph", "export")
    tolerance = _needs("magtiles_seg.export.parity", "export").Tolerance(
        min_dice=params.export.min_dice,
        max_abs_diff=params.export.max_abs_diff,
        max_flipped_fraction=params.export.max_flipped_fraction,
    )
    card = _card(arguments, params)
    precision = params.export.precision
    report = graph.export_onnx(
        arguments.model, arguments.out, card=card, precision=precision, tolerance=tolerance
    )
    print(f"{arguments.out}: {report}\n{card.decision}")
    return ACCEPTED


def _card(arguments: argparse.Namespace, params: Params) -> ModelCard:
    """Return the checkpoint's card, with thresholds chosen on the split's validation part."""
    from magtiles_seg import stages
    from magtiles_seg.environment import git_revision
    from magtiles_seg.evaluate.thresholds import choose_decision

    with _segmenter(arguments) as segmenter:
        card: ModelCard = replace(segmenter.spec.card, git_revision=git_revision())
        if arguments.name:
            card = replace(card, name=arguments.name)
        if arguments.split is None:
            return card
        origin = stages.read_manifest(arguments.split).origin
        decision = choose_decision(
            segmenter,
            stages.split_parts(arguments.split, params)["validation"],
            recall=params.evaluate.recall,
            protocol=params.train.protocol,
            labels=card.labels,
        )
    return replace(card, decision=decision, training={**card.training, "split": origin})


def _params(arguments: argparse.Namespace) -> Params:
    """Read the named parameter file, or `params.yaml` where there is one, or the defaults."""
    from magtiles_seg.config import load_params

    path = arguments.params
    if path is None:
        path = Path("params.yaml") if Path("params.yaml").exists() else None
    return load_params(path, arguments.set)


def _segmenter(arguments: argparse.Namespace) -> Any:  # noqa: ANN401  (loaded only when used)
    from magtiles_seg.infer.segmenter import Segmenter

    given = {name: getattr(arguments, name, None) for name in parser.SEGMENTER_OPTIONS}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return Segmenter(arguments.model, **options)


def _needs(module: str, extra: str) -> Any:  # noqa: ANN401  (a module)
    """Import a module of an optional part, or name the command that installs what it needs."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise errors.BackendUnavailableError(
            f"this verb needs {error.name}, which is not installed: "
            f"pip install 'magtiles-seg[{extra}]'"
        ) from error


def _complain(error: BaseException) -> None:
    text = str(error)
    if isinstance(error, FileNotFoundError) and error.filename:
        text = f"there is no file {error.filename}"
    print(f"magtiles-seg: {text}", file=sys.stderr)
