"""`magtiles-seg evaluate`: a model against labelled pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from magtiles_seg.commands import options
from magtiles_seg.errors import ConfigError
from magtiles_seg.files import write
from magtiles_seg.progress import bar

_EXAMPLES = """
  magtiles-seg evaluate                         the bundled model on the split's test part
  magtiles-seg evaluate my-tiles/ --model runs/model.onnx --json metrics.json
  magtiles-seg evaluate --out report --triptychs 20      curves, tables, the worst, as a page
  magtiles-seg evaluate --folds runs/T/fold* --out oof    five folds joined
  magtiles-seg evaluate --repeats runs/P1/seed* --protocol P1
  magtiles-seg evaluate --scored oof/pictures.csv        one verdict a tile, of what was scored
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "evaluate", "score a model on labelled pictures", run, examples=_EXAMPLES
    )
    verb.add_argument(
        "dataset",
        nargs="?",
        type=Path,
        metavar="DATASET_DIR",
        help="score every picture of it; without it, a part of the split (evaluate.part)",
    )
    options.add_model(verb)
    options.add_screen(verb)
    options.add_params(verb)
    options.add_manifest(verb, "--split", "the split manifest")
    runs = verb.add_mutually_exclusive_group()
    runs.add_argument(
        "--folds",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="join the test parts of these runs (each holds split.json and its model)",
    )
    runs.add_argument(
        "--repeats", nargs="+", type=Path, metavar="RUN_DIR", help="mean and spread of these runs"
    )
    runs.add_argument(
        "--scored",
        type=Path,
        metavar="FILE",
        help="the pictures.csv of an evaluation: protocol T-tile from its scores, with no model",
    )
    options.add_group_by(verb, "in place of the data set's own tiles")
    verb.add_argument("--protocol", metavar="NAME", help="native, T, T-tile, P1, P1b or P2")
    verb.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    verb.add_argument(
        "--write-card", action="store_true", help="put the figures into the ONNX model's card too"
    )
    verb.add_argument(
        "--out",
        type=options.folder,
        metavar="DIR",
        help="write figures, tables, curves and the page report.html here",
    )
    verb.add_argument(
        "--triptychs",
        type=int,
        default=0,
        metavar="N",
        help="with --out: the N worst pictures (input, truth, prediction), as PNG and on the page",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the figures, and write what was asked for."""
    from magtiles_seg import pipeline

    params = options.read_params(arguments)
    if arguments.out:
        options.check_output(arguments.out)
    if arguments.json:
        options.check_output_file(arguments.json, option="--json")
    _check_asked(arguments)
    if arguments.scored:
        return _scored(arguments)
    if arguments.folds or arguments.repeats:
        from magtiles_seg.commands import runs

        return (runs.join if arguments.folds else runs.spread)(arguments, params)
    opened = options.open_segmenter(arguments, flips=params.evaluate.flips)
    with opened as segmenter, bar("evaluate", "picture") as progress:
        result = pipeline.evaluate(
            params,
            segmenter,
            manifest=arguments.split,
            dataset=arguments.dataset,
            protocol=arguments.protocol,
            group_by=arguments.group_by,
            out=arguments.out,
            worst=arguments.triptychs,
            progress=progress,
        )
    if arguments.json:
        write(arguments.json, result.to_json())
    if arguments.write_card:
        rewrite = options.import_extra("magtiles_seg.export.graph", "export").rewrite_card
        card = segmenter.spec.card.with_figures(
            result.protocol.name, len(result.records), result.figures
        )
        rewrite(segmenter.spec.path, card)
    print(result.to_markdown())
    return options.ACCEPTED


def _check_asked(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together: none is left out without a word."""
    from magtiles_seg.model.bundled import BUNDLED_MODELS, model_path

    if arguments.triptychs < 0 or (arguments.triptychs and not arguments.out):
        raise ConfigError(
            f"--triptychs {arguments.triptychs} needs a number of at least 0 and a folder to write "
            "to: add --out DIR"
        )
    if arguments.triptychs and (arguments.repeats or arguments.scored):
        raise ConfigError("--triptychs is for pictures that are scored once, now; leave it out")
    if arguments.write_card and arguments.screen is not None:
        raise ConfigError(
            "--write-card is for figures of the model alone, these are of the model behind a "
            "screen: leave one of them out"
        )
    if not (arguments.folds or arguments.repeats or arguments.scored):
        if arguments.write_card and model_path(arguments.model) in BUNDLED_MODELS.values():
            raise ConfigError("--write-card changes a model's file: name yours with --model FILE")
        return
    if arguments.group_by is not None:
        raise ConfigError(
            "--group-by is for pictures that are scored now; runs and scored pictures know their "
            "tiles: leave it out"
        )
    given = {
        "DATASET_DIR": arguments.dataset,
        "--model": arguments.model,
        "--screen": arguments.screen,
        "--write-card": arguments.write_card or None,
    }
    if unused := [word for word, value in given.items() if value is not None]:
        raise ConfigError(
            f"{' and '.join(unused)} {'is' if len(unused) == 1 else 'are'} for one model that is "
            "scored now; runs bring their own models, scored pictures need none: leave it out"
        )


def _scored(arguments: argparse.Namespace) -> int:
    """Print and write what one verdict a tile makes of pictures that were scored before."""
    from magtiles_seg.evaluate.compare import read_pictures_of
    from magtiles_seg.evaluate.report import summarize

    protocol = arguments.protocol or "T-tile"
    if protocol != "T-tile" or arguments.out:
        raise ConfigError(
            f"--scored gives the figures of T-tile, printed and as --json; got protocol {protocol}"
            f"{' and --out' if arguments.out else ''}: score the pictures anew for others"
        )
    records = read_pictures_of(arguments.scored)
    result = summarize(records, protocol=protocol)
    if arguments.json:
        write(arguments.json, result.to_json())
    print(result.to_markdown())
    return options.ACCEPTED
