"""A joined evaluation as files and Markdown: folds, thresholds, calibration, repeats, the leak."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from magtiles_seg.evaluate.charts import line_chart
from magtiles_seg.evaluate.compare import Comparison
from magtiles_seg.evaluate.crossval import OutOfFold
from magtiles_seg.evaluate.curves import curves, save, write_csv
from magtiles_seg.evaluate.tables import table

_PLOTS = {
    "precision_recall": ("Pixels, precision and recall", "recall", "precision"),
    "roc": ("Pictures, found and falsely rejected", "false_reject_rate", "recall"),
    "thresholds": ("Pooled Dice by pixel threshold", "threshold", "dice"),
}


def save_folds(joined: OutOfFold, directory: Path) -> None:
    """Write what `curves.save` does, `choice.json`, the reliability tables, and curves as SVG.

    Args:
        joined: The evaluation.
        directory: Where to write; made when missing.
    """
    save(joined.result, directory)
    plots = directory / "plots"
    rows = curves(joined.result)
    for name, (title, x, y) in _PLOTS.items():
        line = [(row[x], row[y]) for row in rows[name]]
        _write_chart(plots / f"{name}.svg", title, {"": line}, x, y)
    lines = {}
    for name, (cells, _) in joined.reliability.items():
        write_csv(plots / f"reliability_{name}.csv", cells)
        lines[name] = [(row["confidence"], row["observed"]) for row in cells]
    for unit in ("pixels", "pictures"):
        mine = {"says true": [(0.0, 0.0), (1.0, 1.0)]}
        mine |= {name.split("_")[1]: lines[name] for name in lines if name.startswith(unit)}
        if len(mine) > 1:
            title = f"Reliability of {unit}"
            _write_chart(plots / f"reliability_{unit}.svg", title, mine, "confidence", "observed")
    if joined.choice:
        (directory / "choice.json").write_text(joined.choice.to_json(), encoding="utf-8")
    text = f"{joined.result.to_markdown()}\n{choice_to_markdown(joined)}"
    (directory / "report.md").write_text(text, encoding="utf-8", errors="backslashreplace")


def choice_to_markdown(joined: OutOfFold) -> str:
    """Return the calibration errors, and the choice for a model of all tiles, as Markdown."""
    parts = []
    if joined.reliability:
        errors = [[name, f"{error:.4f}"] for name, (_, error) in joined.reliability.items()]
        parts += [
            "Expected calibration error; what stands after calibration was fitted on the other "
            "folds alone:",
            table(["probabilities of", "error"], errors),
        ]
    if joined.choice:
        parts.append(
            f"For a model of all tiles: {joined.choice.decision}, after the pixels' logit is taken "
            f"times {joined.choice.pixel.scale:.3f} plus {joined.choice.pixel.bias:.3f}."
        )
    return "\n\n".join(parts) + "\n"


def repeats_to_markdown(
    protocol: str,
    runs: Mapping[str, Mapping[str, float]],
    summary: Mapping[str, tuple[float, float]],
) -> str:
    """Return each run's figures with mean and standard deviation as Markdown.

    Args:
        protocol: Its name.
        runs: Figures by run.
        summary: As of `crossval.repeat`.
    """
    cells = [
        [
            name,
            f"{mean:.4f} ± {deviation:.4f}",
            *(f"{figures[name]:.4f}" for figures in runs.values()),
        ]
        for name, (mean, deviation) in summary.items()
    ]
    head = f"## Protocol {protocol}: {len(runs)} runs, mean ± standard deviation"
    return f"{head}\n\n{table(['figure', 'mean ± sd', *runs], cells)}\n"


def leak_to_markdown(leak: Comparison) -> str:
    """Return "random split minus grouped split" with its interval, figure by figure.

    Args:
        leak: `compare(grouped, random)`.
    """
    cells = [
        [
            change.name,
            f"{change.base:.3f}",
            f"{change.here:.3f}",
            f"{change.difference:+.3f} ({change.difference_95[0]:+.3f} to "
            f"{change.difference_95[1]:+.3f})",
        ]
        for change in leak.figures
    ]
    head = (
        f"Random split minus grouped split on the {leak.pictures} pictures of {leak.tiles} tiles "
        "that both tested; 95 % bootstrap interval over tiles."
    )
    return f"{head}\n\n{table(['figure', 'grouped', 'random', 'random - grouped'], cells)}\n"


def _write_chart(
    path: Path, title: str, lines: Mapping[str, list[tuple[float, float]]], x: str, y: str
) -> None:
    chart = line_chart(title, lines, x_label=x.replace("_", " "), y_label=y)
    if chart:
        path.write_text(chart, encoding="utf-8")
