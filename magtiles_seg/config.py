"""What a run is made with: `params.yaml` as frozen dataclasses, and the check of every value."""

from __future__ import annotations

import difflib
import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from magtiles_seg.errors import ConfigError
from magtiles_seg.files import read_text
from magtiles_seg.labels import IGNORE, LABELS, mistake_of_labels

if TYPE_CHECKING:
    import yaml


def one_of(default: str, *choices: str) -> Any:  # noqa: ANN401  (stands for the field's own type)
    """Return a dataclass field that admits the given words."""
    return field(default=default, metadata={"choices": choices})


def one_of_or_none(*choices: str) -> Any:  # noqa: ANN401
    """Return a dataclass field that admits the given words, or None, its default."""
    return field(default=None, metadata={"choices": (*choices, None)})


def within(default: float | None, low: float, high: float | None = None) -> Any:  # noqa: ANN401
    """Return a dataclass field whose values lie in [low, high]; no `high` means no upper bound."""
    return field(default=default, metadata={"low": low, "high": high})


def check_fields(
    owner: type, prefix: str, values: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Check values against the fields of a dataclass.

    Args:
        owner: Dataclass of fields bool, int, float, str, `tuple[str, ...]`, or these `| None`.
        prefix: Put before each key in a message, as in `train.epochs`.
        values: What was given, by key.

    Returns:
        What is wrong, one line a mistake, and the values brought to their types.
    """
    specs = {item.name: item for item in fields(owner)}
    known = [f"{prefix}.{key}" for key in specs]
    found: list[str] = []
    checked: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{prefix}.{key}"
        if key not in specs:
            found.append(f"unknown key {full!r}{nearest(full, known)}")
            continue
        mistake, checked[key] = _check_value(value, str(specs[key].type))
        if mistake is None:
            mistake = _check_bounds(checked[key], specs[key].metadata)
        if mistake is not None:
            found.append(f"{full}: {mistake}")
    return found, checked


def _check_value(value: object, wanted: str) -> tuple[str | None, Any]:
    """Return a mistake or None, and the value (an int becomes a float, a list a tuple)."""
    if wanted.endswith(" | None"):
        known = wanted.removesuffix(" | None")
        return (None, None) if value is None else _check_value(value, known)
    if wanted == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        mistake = None if math.isfinite(number) else f"expected a finite number, got {value!s:.40}"
        return mistake, number
    if wanted == "tuple[str, ...]":
        items = value if isinstance(value, list | tuple) else ()
        if items and all(isinstance(item, str) for item in items):
            return None, tuple(items)
        return f"expected a list of names, such as [one, two], got {value!r}", value
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "str": isinstance(value, str) and value != "",
    }
    if fits.get(wanted, False):
        return None, value
    return f"expected {wanted}, got {type(value).__name__} {value!r}", value


def _check_bounds(value: Any, metadata: Mapping[str, Any]) -> str | None:  # noqa: ANN401
    check = metadata.get("check")
    if check is not None:
        return str(mistake) if (mistake := check(value)) else None
    choices = metadata.get("choices")
    if choices and value not in choices:
        near = nearest(str(value), filter(None, choices))
        return f"expected one of {', '.join(map(str, choices))}, got {value!r}{near}"
    low, high = metadata.get("low"), metadata.get("high")
    if (
        low is not None
        and value is not None
        and not (low <= value and (high is None or value <= high))
    ):
        wanted = f"at least {low}" if high is None else f"{low} to {high}"
        return f"expected {wanted}, got {value!s:.40}"
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean '…'?` with the known word nearest to a name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def raise_if_any(found: Sequence[str], where: str) -> None:
    """Raise one ConfigError that holds every mistake found, if there are any."""
    if len(found) == 1:
        raise ConfigError(f"{where}: {found[0]}")
    if found:
        raise ConfigError("\n  - ".join([f"{where}: {len(found)} mistakes", *found]))


PUBLIC_ARCHIVE_URL = (
    "https://github.com/abin24/Magnetic-tile-defect-datasets./archive/refs/heads/master.zip"
)
"""Where the public data set is fetched from (the dot belongs to the repository's name)."""


def _mistake_of_map(entries: Sequence[str] | None) -> str | None:
    """Return what keeps texts from being a map of classes, or None."""
    for entry in entries or ():
        name, equals, label = entry.rpartition("=")
        if not (equals and name.strip() and label.strip()):
            return f"expected entries name=label, got {entry!r}"
    names = [entry.rpartition("=")[0] for entry in entries or ()]
    twice = [name for name in names if names.count(name) > 1]
    return f"{twice[0]!r} is mapped twice; expected once" if twice else None


_LAYOUTS = (
    *("auto", "magnetic-tile", "folder", "labelme", "coco", "yolo", "voc", "cvat"),
    *("label-studio", "masks", "mvtec", "huggingface"),
)
_PROTOCOLS = ("T", "native", "P1", "P1b", "P2")


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A section of the parameter file; making one checks types, choices and ranges."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        found, checked = check_fields(type(self), self.name, values)
        raise_if_any(found, "parameters")
        for key, value in checked.items():
            object.__setattr__(self, key, value)


@dataclass(frozen=True, kw_only=True)
class DataLoadParams(_Section):
    """Where the pictures come from, and where they are kept.

    Attributes:
        source: URL, local zip, folder, or `synthetic:tiles=50,seed=0`.
        sha256: Checksum of the archive, or None when it is not checked.
        checksums: File that lists the files to use with the SHA-256 of each, as `sha256sum` writes
            it; what an archive holds beside them is left out. None takes all, unchecked.
        layout: How the files are laid out.
        labels: Class names by index, background first; another data set names its own.
        class_map: What classes of the source become, `name=label` each, where they are not called
            as the labels are; `background` and `ignore` are possible, and `*` names all others.
        unlabelled: What pictures without a label are: `sound`, or to `skip`; None refuses them.
        directory: Where the data set is unpacked, or converted to.
    """

    name: ClassVar[str] = "data_load"
    source: str = PUBLIC_ARCHIVE_URL
    sha256: str | None = None
    checksums: str | None = None
    layout: str = one_of("auto", *_LAYOUTS)
    labels: tuple[str, ...] = field(default=LABELS, metadata={"check": mistake_of_labels})
    class_map: tuple[str, ...] | None = field(default=None, metadata={"check": _mistake_of_map})
    unlabelled: str | None = one_of_or_none("sound", "skip")
    directory: str = "data"

    def __post_init__(self) -> None:
        """Check each value, and that classes become labels that there are."""
        super().__post_init__()
        known = (*self.labels, IGNORE)
        wrong = [entry for entry in self.class_map or () if entry.rpartition("=")[2] not in known]
        if wrong:
            raise ConfigError(
                f"parameters: data_load.class_map: {wrong[0]!r} leads to none of the labels "
                f"{', '.join(known)}{nearest(wrong[0].rpartition('=')[2], known)}"
            )


@dataclass(frozen=True, kw_only=True)
class DataSplitParams(_Section):
    """How pictures are divided into train, validation and test.

    Attributes:
        rule: `grouped` keeps the pictures of a physical tile together; all others leak.
        seed: Of every random choice of the split.
        fold: Which of the `folds` is the test part; None: none, for a model that ships.
        folds: Number of folds of the rule `grouped`.
        validation_fraction: Share of the rest that early stopping and thresholds use.
        group_pattern: Regular expression whose group `(…)` names, in a picture's file name, the
            part that it shows; None: as the data set says, by groups.csv or its layout.
    """

    name: ClassVar[str] = "data_split"
    rule: str = one_of("grouped", "grouped", "random", "P1", "P1b", "P2")
    seed: int = within(0, 0, 2**32 - 1)
    fold: int | None = within(0, 0)
    folds: int = within(5, 2)
    validation_fraction: float = within(0.15, 0.01, 0.9)
    group_pattern: str | None = None

    def __post_init__(self) -> None:
        """Check each value, and that there is such a fold."""
        super().__post_init__()
        if self.fold is not None and self.fold >= self.folds:
            raise ConfigError(
                f"parameters: data_split.fold: expected at most {self.folds - 1} of "
                f"{self.folds} folds, got {self.fold}"
            )

    @property
    def draw(self) -> dict[str, Any]:
        """What `make_split` takes: everything but how the pictures are grouped."""
        values = asdict(self)
        del values["group_pattern"]
        return values


@dataclass(frozen=True, kw_only=True)
class TrainParams(_Section):
    """One training run.

    Attributes:
        protocol: Whose picture geometry and mask rule are trained for.
        architecture: Network by name; `patches` is fitted in minutes, to sound pictures alone if
            need be, and takes no notice of epochs, batches and rates.
        pretrained: Whether the encoder starts from ImageNet weights.
        start: Model whose weights are taken over instead: a checkpoint, an ONNX file, or `bundled`.
        epochs: Passes of `pictures_per_epoch` pictures each.
        pictures_per_epoch: Pictures drawn for one epoch.
        batch_size: Pictures in one step.
        crop_px: Side of the square crops that are trained on.
        coarse_fraction: Share of the epochs, the first, that show all at half its size: faster.
        learning_rate: Peak of the schedule.
        weight_decay: Of AdamW.
        free_fraction: Share of sound tiles in an epoch.
        copy_paste_fraction: Share of those that get a defect of another tile, or a drawn one.
        dice_weight: Weight of the soft Dice loss beside the pixel loss.
        class_weight: Weight of the loss over the classes of defect.
        teacher: Checkpoint whose probabilities are learnt beside the masks (distillation).
        teacher_weight: Their share of the target; the mask has the rest.
        patch_share: Share of the defect logit that a classifier of patches by frozen ImageNet
            features gets, once the network is trained: a second opinion, which keeps the encoder
            up to stride 8 as it was; 0 for none. None: a quarter in a pretrained `lite0` or larger,
            and in what starts from a model that has one; else none.
        ema_decay: Of the averaged weights that are kept.
        keep: The epoch whose weights are kept: the `best` on the validation part, or the `last`,
            which no few validation tiles lead astray.
        patience: Epochs without a better validation before the run ends; 0 never ends it early.
        seed: Of every random choice of the run.
        threads: CPU threads; 0 takes all cores.
        device: `auto` takes CUDA where torch sees a GPU, else the CPU; `cuda` insists on one.
        precision: `auto` takes bf16 where the device computes it in hardware, else fp16 on CUDA and
            fp32 on a CPU.
        devices: GPUs, or processes on a CPU, that share each batch; the weights come out alike.
        accumulate: Pieces that a process cuts its share of a batch into, one after another.
    """

    name: ClassVar[str] = "train"
    protocol: str = one_of(_PROTOCOLS[0], *_PROTOCOLS)
    architecture: str = one_of("lite0", "nano", "small", "lite0", "lite1", "lite2", "patches")
    pretrained: bool = True
    start: str | None = None
    epochs: int = within(20, 1)
    pictures_per_epoch: int = within(640, 1)
    batch_size: int = within(8, 1)
    crop_px: int = within(224, 32, 4096)
    coarse_fraction: float = within(0.0, 0, 0.95)
    learning_rate: float = within(2e-3, 1e-8, 10)
    weight_decay: float = within(1e-2, 0, 10)
    free_fraction: float = within(0.5, 0, 1)
    copy_paste_fraction: float = within(0.35, 0, 1)
    dice_weight: float = within(1.0, 0)
    class_weight: float = within(0.3, 0)
    teacher: str | None = None
    teacher_weight: float = within(0.5, 0, 1)
    patch_share: float | None = within(None, 0, 1)
    ema_decay: float = within(0.99, 0, 1)
    keep: str = one_of("best", "best", "last")
    patience: int = within(0, 0)
    seed: int = within(0, 0, 2**32 - 1)
    threads: int = within(0, 0, 4096)
    device: str = one_of("auto", "auto", "cpu", "cuda")
    precision: str = one_of("auto", "auto", "bf16", "fp16", "fp32")
    devices: int = within(1, 1)
    accumulate: int = within(1, 1)

    @property
    def effective_patch_share(self) -> float:
        """`patch_share`, its None resolved."""
        if self.patch_share is not None:
            return self.patch_share
        return 0.25 if self.pretrained and self.architecture.startswith("lite") else 0.0


@dataclass(frozen=True, kw_only=True)
class ExportParams(_Section):
    """What is exported, and how far it may stray from fp32 (the parity gate).

    The first four are of the one model file, computed in fp32; the others of reduced arithmetic.

    Attributes:
        precision: How the weights are stored in the one model file.
        min_dice: Least Dice between the two masks, pooled over the pictures compared.
        max_abs_diff: Greatest difference of a pixel's probability.
        max_flipped_fraction: Greatest share of pictures whose verdict changes.
        fp16_*, bf16_*, int8_*: Likewise, for what computes in fp16, bf16 and int8, and least Dice
            over the pictures of any one class of defect. No limit stands on one pixel's
            probability, which decides nothing: masks and verdicts do.
        int8_min_speedup: Least speed of an int8 file for a CPU, as a multiple of fp32's in the same
            runtime on the machine that exports; 0: any.
        int8_pictures_per_class: Most pictures of each class that int8 takes its ranges from.
        parity_per_class: Most pictures of each class that artefacts are compared on.
    """

    name: ClassVar[str] = "export"
    precision: str = one_of("fp16", "fp16", "fp32")
    min_dice: float = within(0.999, 0, 1)
    max_abs_diff: float = within(0.02, 0, 1)
    max_flipped_fraction: float = within(0.0, 0, 1)
    fp16_min_dice: float = within(0.999, 0, 1)
    fp16_min_class_dice: float = within(0.99, 0, 1)
    fp16_max_flipped_fraction: float = within(0.005, 0, 1)
    bf16_min_dice: float = within(0.995, 0, 1)
    bf16_min_class_dice: float = within(0.97, 0, 1)
    bf16_max_flipped_fraction: float = within(0.005, 0, 1)
    int8_min_dice: float = within(0.995, 0, 1)
    int8_min_class_dice: float = within(0.97, 0, 1)
    int8_max_flipped_fraction: float = within(0.005, 0, 1)
    int8_min_speedup: float = within(1.0, 0, 100)
    int8_pictures_per_class: int = within(16, 1)
    parity_per_class: int = within(200, 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateParams(_Section):
    """How a model is scored.

    Attributes:
        protocol: What becomes of picture and mask, and which figures; `T` is the honest one.
        part: Which part of the split is scored.
        recall: Share of defective pictures that must be found when the reject score is chosen.
        false_reject: Share of sound pictures that may be rejected, where there are only such to
            choose it by.
        flips: Whether the model sees each picture in four mirrored views, and their mean counts.
    """

    name: ClassVar[str] = "evaluate"
    protocol: str = one_of(_PROTOCOLS[0], *_PROTOCOLS)
    part: str = one_of("test", "test", "validation", "all")
    recall: float = within(0.95, 0.01, 1)
    false_reject: float = within(0.05, 0.001, 0.999)
    flips: bool = False


def _mistake_of_figures(names: tuple[str, ...]) -> str | None:
    wrong = [name for name in names if not re.fullmatch(r"[+-][a-z]\w*", name)]
    if not wrong:
        return None
    return (
        f"expected names of figures, each after + (more is better) or - (less is better), got "
        f"{', '.join(wrong)}"
    )


@dataclass(frozen=True, kw_only=True)
class GateParams(_Section):
    """When an experiment is merged without a person.

    Attributes:
        improve: Figures of which one must be better beyond chance; `+auroc` where more is better,
            `-false_reject_at_95_recall` where less is.
        guard: Further figures; none of these and of `improve` may be worse beyond chance.
        tolerance: Greatest difference between a figure that was committed and the same one computed
            again: machines round differently.
    """

    name: ClassVar[str] = "gate"
    improve: tuple[str, ...] = field(
        default=("+auroc", "-false_reject_at_95_recall"), metadata={"check": _mistake_of_figures}
    )
    guard: tuple[str, ...] = field(default=("+iou",), metadata={"check": _mistake_of_figures})
    tolerance: float = within(0.002, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Params:
    """All sections of a parameter file."""

    data_load: DataLoadParams = field(default_factory=DataLoadParams)
    data_split: DataSplitParams = field(default_factory=DataSplitParams)
    train: TrainParams = field(default_factory=TrainParams)
    export: ExportParams = field(default_factory=ExportParams)
    evaluate: EvaluateParams = field(default_factory=EvaluateParams)
    gate: GateParams = field(default_factory=GateParams)


RENAMED = {
    "export.calibration_per_class": "export.int8_pictures_per_class",
    "train.graft_fraction": "train.copy_paste_fraction",
    "train.kind_weight": "train.class_weight",
}
"""Former to present name of a parameter; the former ones are read for one release."""

REMOVED = {
    "export.fp16_max_abs_diff": "export.fp16_min_class_dice limits the masks of each class",
    "export.int8_max_abs_diff": "export.int8_min_class_dice limits the masks of each class",
}
"""Parameters that are no more, and what there is instead; for one release they change nothing."""


def present_names(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of a section with each former key under its present name, in their order."""
    return {
        RENAMED.get(f"{section}.{key}", f"{section}.{key}").partition(".")[2]: value
        for key, value in values.items()
    }


_SECTIONS: dict[str, type[Any]] = get_type_hints(Params)


def load_params(
    path: str | os.PathLike[str] | None = "params.yaml", overrides: Sequence[str] = ()
) -> Params:
    """Read a parameter file; what it leaves out keeps its default.

    Args:
        path: YAML file with one mapping a section; None takes every default.
        overrides: Values for this run, each as `"train.epochs=5"`; what follows `=` is YAML.

    Raises:
        ConfigError: Unknown sections or keys, wrong types, values out of range: all at once; or the
            file is no YAML.
        FileNotFoundError: `path` does not exist.
    """
    where = "parameters" if path is None else str(path)
    document = None if path is None else _parse(read_text(Path(path)), where)
    found: list[str] = []
    sections = _as_sections(document, found)
    for override in overrides:
        _apply_override(sections, override, found)
    if _is_own_folder(overrides):
        sections["data_load"]["checksums"] = None
    made: dict[str, dict[str, Any]] = {}
    for name, section in _SECTIONS.items():
        mistakes, values = check_fields(section, name, sections.get(name, {}))
        found += mistakes
        made[name] = values
    raise_if_any(found, where)
    return Params(**{name: section(**made[name]) for name, section in _SECTIONS.items()})


def _is_own_folder(overrides: Sequence[str]) -> bool:
    """Return whether a run takes a folder in place of the file's source, and names no checksums.

    The file's list is of an archive; to hold another's folder against it would refuse every one.
    """
    given = {name.strip(): value for name, _, value in (text.partition("=") for text in overrides)}
    source = given.get("data_load.source", "").strip().lower()
    archive = source.startswith(("http://", "https://")) or source.endswith(".zip")
    return bool(source) and not archive and "data_load.checksums" not in given


_INT, _FLOAT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "merge"))


@cache
def _loader() -> type[yaml.SafeLoader]:
    """Return a loader of numbers as YAML 1.2 has them, and of no key twice in a mapping.

    DVC reads YAML 1.2: where `1e-3` is a number, `010` is ten, and `1:30` and `1_000` are texts.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own form)
            first: [(tag, form) for tag, form in resolvers if tag not in (_INT, _FLOAT)]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [
                self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE
            ]
            twice = {str(key) for key in keys if keys.count(key) > 1}
            if twice:
                raise yaml.YAMLError(f"key {', '.join(sorted(twice))} stands there twice")
            return super().construct_mapping(node, deep)

    whole = re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
    number = re.compile(
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    )
    Loader.add_implicit_resolver(_INT, whole, list("-+0123456789"))
    Loader.add_implicit_resolver(_FLOAT, number, list("-+.0123456789"))
    Loader.add_constructor(_INT, lambda _, node: _whole_number(node.value))
    return Loader


def _whole_number(text: str) -> int:
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _parse(text: str, where: str) -> Any:  # noqa: ANN401  (any YAML value)
    import yaml

    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error


def _as_sections(document: object, found: list[str]) -> dict[str, dict[str, Any]]:
    """Return the sections by name as fresh dicts; what is none goes into `found`."""
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        found.append(f"expected sections {', '.join(_SECTIONS)}, got {type(document).__name__}")
        return {}
    sections: dict[str, dict[str, Any]] = {}
    for name, values in document.items():
        if name not in _SECTIONS:
            found.append(f"unknown section {name!r}{nearest(str(name), _SECTIONS)}")
        elif not isinstance(values, Mapping | None):
            found.append(f"section {name!r} must be a mapping, got {type(values).__name__}")
        else:
            sections[name] = _renamed(name, values or {}, found)
    return sections


def _renamed(section: str, values: Mapping[str, Any], found: list[str]) -> dict[str, Any]:
    """Return values by their present names, with a warning for each that was given by a former."""
    for key in values:
        full = f"{section}.{key}"
        if full in REMOVED:
            warnings.warn(
                f"{full} is no more and changes nothing: {REMOVED[full]}",
                FutureWarning,
                stacklevel=2,
            )
        now = RENAMED.get(full)
        if now is None:
            continue
        if now.partition(".")[2] in values:
            found.append(f"{full} is the former name of {now}, which is given too: keep {now}")
        warnings.warn(
            f"{full} is now {now}: the former name is read in this release alone",
            FutureWarning,
            stacklevel=2,
        )
    kept = {key: value for key, value in values.items() if f"{section}.{key}" not in REMOVED}
    return present_names(section, kept)


def _apply_override(sections: dict[str, dict[str, Any]], override: str, found: list[str]) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        found.append(f"override {override!r} is not of the form section.key=value")
    elif section not in _SECTIONS:
        found.append(f"unknown section {section!r}{nearest(section, _SECTIONS)}")
    else:
        value = _parse(text, f"override {override!r}")
        # No parameter takes a mapping: YAML sees one in `data_load.source=synthetic:`. Nor does
        # anyone comment a word of the command line: it sees a comment in `line 4 #2`.
        cut = isinstance(value, str) and text.strip().startswith(f"{value} ")
        given = {key: text.strip() if cut or isinstance(value, Mapping) else value}
        sections.setdefault(section, {}).update(_renamed(section, given, found))
