"""Modules by their former names: an import finds them where they are now, and says so.

Names stay importable for one release after a move. The finder stands last on `sys.meta_path`, so
that it costs nothing until an import has failed everywhere else.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # to import these costs more than all the rest of the package
    Loader = MetaPathFinder = object

_PACKAGE = __name__.partition(".")[0]

MOVED = {
    "batch.forecast": "batch.local_engine",
    "batch.listing": "batch.source",
    "batch.retrying": "batch.stores",
    "batch.rows": "batch.parquet",
    "checks": "config",
    "dataset.flaws": "dataset.synthetic.defects",
    "dataset.folds": "dataset.splits",
    "dataset.grafts": "dataset.augment",
    "dataset.textures": "dataset.synthetic.textures",
    "dataset.web": "dataset.synthetic.web",
    "deciding": "decision",
    "decoding.libtiff": "decoding.tiff",
    "demo.results": "demo.tile",
    "evaluate.agreement": "evaluate.labels.agreement",
    "evaluate.audit": "evaluate.labels.audit",
    "evaluate.charts": "evaluate.plots.charts",
    "evaluate.choices": "evaluate.decide",
    "evaluate.crossval": "evaluate.folds",
    "evaluate.curves": "evaluate.plots.curves",
    "evaluate.gallery": "evaluate.plots.gallery",
    "evaluate.joined": "evaluate.folds",
    "evaluate.pictures": "evaluate.plots.gallery",
    "evaluate.predictors": "evaluate.scoring",
    "evaluate.ranking": "evaluate.metrics",
    "evaluate.records": "evaluate.scoring",
    "evaluate.runs": "evaluate.folds",
    "evaluate.tables": "evaluate.summary",
    "evaluate.thresholds": "evaluate.decide",
    "export.bench": "bench.run",
    "export.benchtable": "bench.table",
    "export.choosing": "bench.select",
    "export.contestants": "bench.entries",
    "export.equalise": "export.quantize",
    "export.files": "export.sealed",
    "export.peak": "bench.run",
    "export.recipe": "export.engine",
    "export.reference": "bench.reference",
    "export.tilesets": "export.parity",
    "infer.backends.cuda": "infer.backends.vendor",
    "infer.backends.flips": "infer.backends.base",
    "infer.backends.trt_runner": "infer.backends.trt",
    "infer.cameras": "linescan.cameras",
    "infer.components": "linescan.components",
    "infer.latency": "linescan.report",
    "infer.linescan": "linescan.segmenter",
    "infer.pictures": "infer.segmenter",
    "infer.sinks": "linescan.sinks",
    "infer.sources": "linescan.sources",
    "infer.stream": "linescan.stream",
    "infer.strips": "linescan.strips",
    "infer.webdefects": "linescan.defects",
    "infer.webpictures": "linescan.pages",
    "infer.webreport": "linescan.report",
    "model.calibration": "model.checkpoint",
    "model.nano": "model.network",
    "serve.demo": "demo",
    "serve.demo_many": "demo.many",
    "serve.demo_pages": "demo.words",
    "serve.demo_pictures": "demo.pictures",
    "serve.demo_tile": "demo.tile",
    "serve.demo_web": "demo.web",
    "serve.drift": "drift",
    "serve.heads": "serve.limits",
    "serve.pages": "serve.openapi",
    "serve.uploads": "serve.analyze",
    "stages": "pipeline",
    "streaming": "linescan.open",
    "train.batches": "train.data",
    "train.pictures": "train.data",
    "train.restart": "train.state",
    "train.sampling": "train.data",
    "train.schedule": "train.loop",
    "train.weights": "train.loop",
}
"""Former name to present name, both below the package; moved in 0.2, to be gone in 0.3."""


class _Alias(Loader):
    """Puts a module under its former name, too."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the empty module to the import."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace the empty module that the import made by the one that moved."""
        name = module.__name__
        now = f"{_PACKAGE}.{MOVED[name.removeprefix(f'{_PACKAGE}.')]}"
        warnings.warn(f"{name} has moved to {now}", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(now)


class _Finder(MetaPathFinder):
    """Knows the former names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that has moved."""
        del path, target
        if name.removeprefix(f"{_PACKAGE}.") not in MOVED:
            return None
        return ModuleSpec(name, _Alias())


def find_moved_modules() -> None:
    """Make the former names importable; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
