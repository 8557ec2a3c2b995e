"""What an export needs of a model's data: its card with thresholds, and tiles it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magtiles_seg.dataset.from_params import read_split, samples_of, split_parts
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.labels import FREE

if TYPE_CHECKING:
    from magtiles_seg.config import Params
    from magtiles_seg.evaluate.decide import Choice
    from magtiles_seg.export.parity import TileSet
    from magtiles_seg.model.card import ModelCard


def checkpoint_card(
    params: Params,
    checkpoint: Path,
    manifest: Path | None,
    choice: Choice | None,
    name: str | None,
    *,
    note: Callable[[str], object] | None = None,
) -> ModelCard:
    """Return a checkpoint's card, with thresholds as chosen, or of the split's validation part."""
    from magtiles_seg.environment import git_revision
    from magtiles_seg.evaluate.decide import check_choice, choose_decision
    from magtiles_seg.infer.segmenter import Segmenter

    with Segmenter(checkpoint) as segmenter:
        card = replace(segmenter.spec.card, git_revision=git_revision())
        if name:
            card = replace(card, name=name)
        if manifest is not None:
            origin = read_split(manifest).origin
            card = replace(card, training={**card.training, "split": origin})
        if choice is not None:
            check_choice(choice, card)
            measured = () if choice.measured is None else (choice.measured,)
            return replace(card, decision=choice.decision, metrics=measured)
        if manifest is None:
            return card
        held_out = split_parts(manifest, params, note=note)["validation"]
        card = replace(card, training={**card.training, **_sound_alone(held_out, params)})
        decision = choose_decision(
            segmenter,
            held_out,
            recall=params.evaluate.recall,
            false_reject=params.evaluate.false_reject,
            protocol=params.train.protocol,
            labels=card.labels,
        )
    return replace(card, decision=decision)


def _sound_alone(held_out: Sequence[Sample], params: Params) -> dict[str, Any]:
    """Return what a card says of thresholds that were chosen without any defect."""
    if any(sample.label != FREE for sample in held_out):
        return {}
    allowed = {"sound_pictures": len(held_out), "false_reject": params.evaluate.false_reject}
    return {"thresholds_from": allowed}


def gate_tiles(
    params: Params,
    model: Path,
    precision: str,
    *,
    manifest: Path | None = None,
    data: Path | None = None,
    note: Callable[[str], object] | None = None,
) -> tuple[TileSet, TileSet | None]:
    """Return the tiles that the parity gate compares on, and those that int8 takes its ranges from.

    None that is compared on was trained on, as far as the model's card tells: what a model has
    learnt by heart it answers far from its thresholds, where no rounding shows.

    Args:
        params: How many of each class.
        model: A checkpoint or an `.onnx` file.
        precision: Only `"int8"` has ranges to take.
        manifest: As of `export_artefact`.
        data: Likewise.
        note: As of `split_parts`.

    Raises:
        FileNotFoundError, ModelError: An input is missing or damaged.
        DataError: So is the data set, or it is what the model was trained on.
        ConfigError: int8 has neither a split nor tiles.
    """
    from magtiles_seg.dataset.splits import taken_over
    from magtiles_seg.export import parity
    from magtiles_seg.inputs import photographs

    many, few = params.export.parity_per_class, params.export.int8_pictures_per_class
    wanted = precision == "int8"
    if manifest is not None:
        card = _card_of(model)
        training, held_out = known_parts(manifest, params, card, note=note)
        seen = "not trained on"
        if taken_over(card.training):
            seen += ", though what it learnt from may have been"
    elif data is not None and (paths := photographs(data)):
        ranges, proof = parity.plain_tiles(paths, few if wanted else 0, many)
        return proof, ranges if wanted else None
    elif data is not None:
        samples = samples_of(params, data)
        _refuse_training_set(samples, data, _card_of(model))
        training, held_out = parity.halves(samples)
        seen = ""
    elif wanted:
        raise ConfigError(
            "int8 takes its ranges from real tiles, and is proved on others that the model was not "
            "trained on: name the --split that it was trained by, or your own tiles by --data"
        )
    else:
        return parity.synthetic_tiles(min(many, parity.DRAWN_PER_CLASS)), None
    int8_tiles = parity.real_tiles(training, few) if wanted else None
    return replace(parity.real_tiles(held_out, many), seen=seen), int8_tiles


def _card_of(model: Path) -> ModelCard:
    from magtiles_seg.infer.backends import open_backend

    with closing(open_backend(model, device="cpu")) as backend:
        return backend.spec.card


def known_parts(
    manifest: Path,
    params: Params,
    card: ModelCard,
    *,
    note: Callable[[str], object] | None = None,
) -> tuple[list[Sample], list[Sample]]:
    """Return a split's training part and the others, if it is the split of a model's training.

    A card that does not tell what the model was trained on confirms any split.

    Raises:
        FileNotFoundError: There is no such manifest.
        DataError: The model was trained on other pictures, or nothing was held out.
    """
    from magtiles_seg.dataset.splits import part_sha256

    parts = split_parts(manifest, params, note=note)
    training, held_out = parts["train"], [*parts["validation"], *parts["test"]]
    said = card.training.get("training_sha256")
    if said not in (None, part_sha256(sample.id for sample in training)):
        raise DataError(
            f"{manifest}: the model {card.name} was trained on other pictures than this split's "
            "training part, so its other parts may hold some of them; name the split that it was "
            "trained by, or unseen tiles by --data"
        )
    if not held_out:
        raise DataError(
            f"{manifest} holds nothing out: there is no tile to compare on that the model was not "
            "trained on; name unseen tiles by --data"
        )
    return training, held_out


def is_training_set(samples: Sequence[Sample], card: ModelCard) -> bool:
    """Return whether a data set is one that a model was made from, as far as its card tells.

    Its start's, its teacher's and its members' are such, too.
    """
    from magtiles_seg.dataset.splits import data_sha256, part_sha256, taken_over

    runs = [card.training, *card.training.get("members", ())]
    known = {run.get(part, {}).get("data_sha256") for run in runs for part in ("split", "finished")}
    parts = {card.training.get("training_sha256"), *taken_over(card.training)}
    # The second reads every file.
    return part_sha256(sample.id for sample in samples) in parts or data_sha256(samples) in known


def _refuse_training_set(samples: Sequence[Sample], root: Path, card: ModelCard) -> None:
    """Check that a data set is not one that a model was made from.

    Raises:
        DataError: It is.
    """
    if is_training_set(samples, card):
        raise DataError(
            f"{root} is what the model {card.name} was trained on: a comparison there says nothing "
            "of new tiles; name the --split that it was trained by, or a folder of unseen tiles"
        )
