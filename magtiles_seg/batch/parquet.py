"""The result's table: one row per picture, one Parquet file per part."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.errors import BackendUnavailableError, DataError
from magtiles_seg.files import sha256_of, staged

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except Exception as error:
    raise BackendUnavailableError(
        f"results are Parquet, which needs pyarrow ({error}): pip install 'magtiles-seg[batch]'"
    ) from error

if TYPE_CHECKING:
    from magtiles_seg.result import Segmentation

_MM = ("area_mm2", "length_mm", "width_mm")
_DEFECT = pa.struct(
    [
        ("label", pa.string()),
        ("score", pa.float64()),
        *((name, pa.int32()) for name in ("area_px", "x0_px", "y0_px", "x1_px", "y1_px")),
        *(
            (name, pa.float64())
            for name in ("centroid_x_px", "centroid_y_px", "length_px", "width_px", *_MM)
        ),
    ]
)
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("sha256", pa.string()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("verdict", pa.string()),
        ("score", pa.float64()),
        ("defect_area_px", pa.int64()),
        ("defects", pa.list_(_DEFECT)),
        ("mask_sha256", pa.string()),
        ("mask_path", pa.string()),
        ("model_sha256", pa.string()),
        ("error", pa.string()),
        ("read_ms", pa.float32()),
        ("decode_ms", pa.float32()),
        ("segment_ms", pa.float32()),
    ]
)
"""Columns of the result. Of a picture with an `error`, what could not be found out is null.

`sha256` is of the file's content, `mask_sha256` of the mask's bytes, (H, W) uint8 of 0 and 1.
`mask_path` is relative to the output folder.
"""


def describe(result: Segmentation) -> dict[str, Any]:
    """Return the columns that a result fills."""
    height, width = result.mask.shape
    return {
        "height_px": height,
        "width_px": width,
        "verdict": result.verdict,
        "score": result.score,
        "defect_area_px": int(result.mask.sum()),
        "defects": [defect.row() for defect in result.defects],
        "mask_sha256": sha256_of(result.mask.tobytes()),
    }


def write_part(
    path: Path, rows: Sequence[Mapping[str, Any]], identity: Mapping[str, object]
) -> None:
    """Write a part's rows through to the disk, whole or not at all.

    Args:
        path: Where the part belongs; a file that stands there is replaced.
        rows: By column; a column that a row lacks is null.
        identity: Of the run; kept in the file's metadata.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    about = {"run": identity, "host": socket.gethostname(), "pid": os.getpid()}
    schema = SCHEMA.with_metadata({"magtiles_seg": json.dumps(about)})
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with staged(path, durable=True) as fresh:
        pq.write_table(table, fresh, compression="zstd")


def read_part(path: Path, columns: list[str]) -> pa.Table:
    """Return columns of a part.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; if it is damaged, delete that "
            "file and start the run again, which writes it anew"
        ) from error
