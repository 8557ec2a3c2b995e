"""What `evaluate` and `data audit` make of several runs; no verb of its own."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from magtiles_seg.commands import options
from magtiles_seg.files import write, write_json
from magtiles_seg.progress import bar

if TYPE_CHECKING:
    from pathlib import Path

    from magtiles_seg.config import Params
    from magtiles_seg.evaluate.folds import OutOfFold


def out_of_fold(
    directories: list[Path],
    params: Params,
    protocol: str,
    **given: Any,  # noqa: ANN401 - arguments of evaluate_folds
) -> OutOfFold:
    """Evaluate runs as folds, with a progress bar."""
    from magtiles_seg import pipeline

    with bar("evaluate", "picture") as progress:
        return pipeline.evaluate_folds(
            params, directories, protocol=protocol, progress=progress, **given
        )


def join(arguments: argparse.Namespace, params: Params) -> int:
    """Print the out-of-fold figures of `--folds`, and write what was asked for."""
    from magtiles_seg.evaluate.folds import choice_to_markdown, save_folds
    from magtiles_seg.evaluate.plots.gallery import Gallery

    gallery = Gallery(arguments.triptychs if arguments.out else 0)

    protocol = arguments.protocol or params.evaluate.protocol
    joined = out_of_fold(arguments.folds, params, protocol, watch=gallery.watch)
    if arguments.json:
        write(arguments.json, joined.result.to_json())
    if arguments.out:
        save_folds(joined, arguments.out, worst=gallery)
    print(joined.result.to_markdown())
    print(choice_to_markdown(joined))
    return options.ACCEPTED


def spread(arguments: argparse.Namespace, params: Params) -> int:
    """Print mean and standard deviation of the figures of `--repeats`."""
    from magtiles_seg.evaluate.folds import repeat, repeats_to_markdown, run_names

    wanted = arguments.protocol or params.evaluate.protocol
    results = {
        name: out_of_fold([directory], params, wanted, resamples=0).result
        for name, directory in zip(run_names(arguments.repeats), arguments.repeats, strict=True)
    }
    protocol = " and ".join(sorted({result.protocol.name for result in results.values()}))
    figures = {
        name: {key: value for key, value in result.figures.items() if value == value}
        for name, result in results.items()
    }
    summary = repeat(figures.values())
    content = {
        "protocol": protocol,
        "runs": figures,
        "mean": {name: mean for name, (mean, _) in summary.items()},
        "standard_deviation": {name: deviation for name, (_, deviation) in summary.items()},
    }
    for path in (arguments.json, arguments.out and arguments.out / "metrics.json"):
        if path:
            write_json(path, content)
    print(repeats_to_markdown(protocol, figures, summary))
    return options.ACCEPTED
