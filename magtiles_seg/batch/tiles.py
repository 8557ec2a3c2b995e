"""One verdict a physical tile, from the rows of its pictures: `tiles.parquet`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magtiles_seg.batch.parquet import read_part
from magtiles_seg.batch.source import Listing
from magtiles_seg.dataset.grouping import Group, group_pictures
from magtiles_seg.decision import Decision
from magtiles_seg.files import staged
from magtiles_seg.names import as_text, without_secrets
from magtiles_seg.tile import tile_score

FILE_NAME = "tiles.parquet"

SCHEMA = pa.schema(
    [
        ("tile", pa.string()),
        ("pictures", pa.int32()),
        ("verdict", pa.string()),
        ("score", pa.float64()),
        ("paths", pa.list_(pa.string())),
        ("error", pa.string()),
    ]
)
"""Columns of the table: `score` is that of the pictures at `paths` together (`tile.tile_score`).

A tile of which a picture has an error gets an error, and neither score nor verdict.
"""


def check_groups(listing: Listing, group_by: str) -> None:
    """Make sure that every picture of a listing is in a tile, before any work is done.

    Raises:
        ConfigError, DataError, FileNotFoundError: As of `group_pictures`.
    """
    names = (name for part in range(listing.parts) for name in listing.names(part))
    group_pictures([as_text(without_secrets(name)) for name in names], group_by)


def write_tiles(out: Path, group_by: str, decision: Decision) -> Counter[str]:
    """Write the table of a finished run; return how many tiles got each verdict, or "error".

    All names and scores of the run are held in memory.

    Args:
        out: Folder of the result.
        group_by: As of `group_pictures`.
        decision: The run's own.

    Raises:
        ConfigError, DataError, FileNotFoundError: As of `group_pictures`.
        OSError: The table cannot be written.
    """
    scores: dict[str, float | None] = {}
    for path in sorted((out / "parts").glob("part-*.parquet")):
        found = read_part(path, ["path", "score"]).to_pydict()
        scores.update(zip(found["path"], found["score"], strict=True))
    rows = [_row(group, scores, decision) for group in group_pictures(list(scores), group_by)]
    with staged(out / FILE_NAME, durable=True) as fresh:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), fresh, compression="zstd")
    return Counter(row["verdict"] or "error" for row in rows)


def _row(group: Group, scores: Mapping[str, float | None], decision: Decision) -> dict[str, Any]:
    row: dict[str, Any] = {
        "tile": group.name,
        "pictures": len(group.pictures),
        "verdict": None,
        "score": None,
        "paths": group.pictures,
        "error": None,
    }
    known = [score for name in group.pictures if (score := scores[name]) is not None]
    if len(known) < len(group.pictures):
        failed = len(group.pictures) - len(known)
        return {**row, "error": f"{failed} of its {len(group.pictures)} pictures have an error"}
    score = tile_score(known)
    return {**row, "score": score, "verdict": decision.tile_verdict(score)}
