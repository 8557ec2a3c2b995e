from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from magtiles_seg.dataset import find_samples, make_split
from magtiles_seg.dataset.reviewed import read_parts, reviewed_samples, verify_parts
from magtiles_seg.dataset.samples import Sample, load_target
from magtiles_seg.dataset.splits import Split
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.labels import LABELS
from magtiles_seg.review.folder import ReviewFolder
from magtiles_seg.review.handoff import TOOLS, Imported, export_review, import_labels

RNG = np.random.default_rng(0)


def picture(size_hw: tuple[int, int] = (64, 80)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    small = RNG.integers(40, 220, (8, 8)).astype(np.uint8)
    return np.asarray(cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    """A data set of twenty pictures in ten groups."""
    rows = ["image,group"]
    for index in range(20):
        for kind in ("images", "masks"):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
        mask = np.zeros((64, 80), np.uint8)
        mask[10:20, 10:30] = 1 + index % 5
        cv2.imwrite(str(tmp_path / f"set/images/p{index:02d}.png"), picture())
        cv2.imwrite(str(tmp_path / f"set/masks/p{index:02d}.png"), mask)
        rows.append(f"p{index:02d}.png,part{index // 2}")
    (tmp_path / "set/groups.csv").write_text("\n".join(rows))
    return find_samples(tmp_path / "set")


@pytest.fixture
def split(samples: tuple[Sample, ...]) -> Split:
    return make_split(samples, validation_fraction=0.4)


@pytest.fixture
def review(tmp_path: Path) -> ReviewFolder:
    return ReviewFolder(tmp_path / "review")


def keep(review: ReviewFolder, image: Any = None, **facts: Any) -> str:  # noqa: ANN401
    image = picture() if image is None else image
    draft = np.zeros_like(image)
    draft[20:31, 30:42] = 2
    facts = {"source": None, "group": None, "labels": list(LABELS), "run": "r", **facts}
    name = review.add(image, draft, reason="review", interest=0.5, facts=facts)
    assert name is not None
    return name


@pytest.fixture
def take(tmp_path: Path, samples: tuple[Sample, ...], split: Split) -> Callable[..., Imported]:
    def import_(export: Path, **options: Any) -> Imported:  # noqa: ANN401
        given = {"labels": LABELS, "samples": samples, "split": split, **options}
        return import_labels(export, tmp_path / "data", **given)

    return import_


@pytest.mark.parametrize("tool", TOOLS)
def test_draft_goes_to_each_tool_and_comes_back_as_the_same_mask(
    tool: str, tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    name = keep(review)
    export_review(review, tmp_path / "out", to=tool, tolerance_px=0)
    if tool == "label-studio":  # a person accepts the draft
        path = tmp_path / "out/tasks.json"
        tasks = json.loads(path.read_text())
        assert take(tmp_path / "out").unlabelled == (name,)
        tasks[0]["annotations"] = tasks[0].pop("predictions")
        path.write_text(json.dumps(tasks))
    done = take(tmp_path / "out")
    assert (done.new, done.refused) == ((name,), {})
    assert done.untouched == (() if tool == "label-studio" else (name,))
    assert done.folder is not None
    (sample,) = reviewed_samples(tmp_path / "data", LABELS, ())
    target = load_target(sample)
    assert np.array_equal(target, review.read(name)[1])
    assert (sample.label, sample.train_only) == ("break", True)
    kept = (review.path / f"{name}.png").read_bytes()
    assert sample.image_path.read_bytes() == kept
    verify_parts(tmp_path / "data")


def test_draft_that_nobody_saved_is_told_from_one_that_was_found_right(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    seen, unseen = keep(review), keep(review)
    export_review(review, tmp_path / "out", to="labelme")
    path = tmp_path / f"out/{seen}.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))  # as the tool saves it
    done = take(tmp_path / "out")
    assert set(done.new) == {seen, unseen}
    assert done.untouched == (unseen,)


def test_lineage_and_date_go_with_the_part(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    name = keep(review, score=0.3, model={"sha256": "ab"})
    export_review(review, tmp_path / "out", to="labelme")
    take(tmp_path / "out")
    (part,) = read_parts(tmp_path / "data")
    assert part.pictures[name]["lineage"]["model"] == {"sha256": "ab"}
    assert part.folder.name.startswith(part.created[:10])


def test_import_twice_changes_nothing_and_a_correction_is_a_new_version(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    names = [keep(review), keep(review)]
    out = export_review(review, tmp_path / "out", to="labelme").opened_by
    first = take(out)
    assert sorted(first.new) == sorted(names)
    again = take(out)
    assert (again.folder, again.new, sorted(again.unchanged)) == (None, (), sorted(names))
    path = out / f"{names[0]}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shapes": []}))
    corrected = take(out)
    assert (corrected.new, corrected.corrected) == ((names[0],), (names[0],))
    labels = {s.id: s.label for s in reviewed_samples(tmp_path / "data", LABELS, ())}
    assert labels == {names[0]: "free", names[1]: "break"}
    assert len(read_parts(tmp_path / "data")) == 2


def test_label_that_is_changed_and_changed_back_on_one_day_is_a_third_version(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    name = keep(review)
    out = export_review(review, tmp_path / "out", to="labelme").opened_by
    first = take(out).folder
    path = out / f"{name}.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "shapes": []}))
    take(out)
    path.write_text(before)
    back = take(out)
    assert back.corrected == (name,)
    assert back.folder != first
    assert [s.label for s in reviewed_samples(tmp_path / "data", LABELS, ())] == ["break"]


def test_labels_of_unknown_pictures_and_classes_are_refused_by_name(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    name = keep(review)
    out = export_review(review, tmp_path / "out", to="labelme").opened_by
    text = (out / f"{name}.json").read_text()
    (out / "stranger.json").write_text(text.replace(f"{name}.png", "stranger.png"))
    cv2.imwrite(str(out / "stranger.png"), picture())
    (out / f"{name}.json").write_text(text.replace('"break"', '"brake"'))
    with pytest.raises(DataError, match="nothing is imported, 2 problems") as caught:
        take(out)
    assert "a label of an unknown picture, 'stranger'" in str(caught.value)
    assert "class 'brake' is none of blowhole, break" in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("tool", ["labelme", "coco"])
def test_picture_whose_only_label_has_no_area_is_refused_and_one_without_is_sound(
    tool: str, tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    name = keep(review)
    out = tmp_path / "out"
    opened = export_review(review, out, to=tool).opened_by
    path = out / f"{name}.json" if tool == "labelme" else opened
    content = json.loads(path.read_text())
    if tool == "labelme":
        content["shapes"][0]["points"] = [[1, 1], [9, 9]]
    else:
        content["annotations"][0]["segmentation"] = {"size": [64, 80], "counts": [64 * 80]}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="and without it the picture would count as sound"):
        take(out)
    assert not (tmp_path / "data").exists()
    path.write_text(json.dumps({**content, "shapes": [], "annotations": []}))
    assert take(out).new == (name,)


def test_picture_that_a_flag_calls_defective_and_nothing_is_drawn_on_is_refused(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    name = keep(review)
    export_review(review, tmp_path / "out", to="labelme")
    path = tmp_path / "out" / f"{name}.json"
    content = {**json.loads(path.read_text()), "shapes": []}
    path.write_text(json.dumps({**content, "flags": {"crack": True}}))
    with pytest.raises(DataError, match="is 'crack' as a whole"):
        take(tmp_path / "out")
    path.write_text(json.dumps({**content, "flags": {"crack": False, "seen": True}}))
    assert take(tmp_path / "out").new == (name,)


def test_picture_that_is_not_the_exported_one_is_refused(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    name = keep(review)
    out = export_review(review, tmp_path / "out", to="labelme").opened_by
    cv2.imwrite(str(out / f"{name}.png"), picture())
    with pytest.raises(DataError, match="another picture than the one that was exported"):
        take(out)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_copy_of_a_held_out_picture_is_refused_with_all_of_its_group(
    part: str,
    tmp_path: Path,
    review: ReviewFolder,
    take: Callable[..., Imported],
    samples: tuple[Sample, ...],
    split: Split,
) -> None:
    held_out = next(s for s in samples if s.id in getattr(split, part))
    image = cv2.imread(str(held_out.image_path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    turned = np.ascontiguousarray(image[::-1, ::-1]).astype(np.uint8)
    names = [keep(review, turned, group="web-1"), keep(review, group="web-1"), keep(review)]
    export_review(review, tmp_path / "out", to="labelme")
    done = take(tmp_path / "out")
    assert done.refused.keys() == set(names[:2])
    assert f"the same part as {held_out.id} of the {part} part" in done.refused[names[1]]
    assert done.new == (names[2],)


def test_copy_of_a_training_picture_joins_its_group(
    tmp_path: Path,
    review: ReviewFolder,
    take: Callable[..., Imported],
    samples: tuple[Sample, ...],
    split: Split,
) -> None:
    trained = next(s for s in samples if s.id in split.train)
    image = cv2.imread(str(trained.image_path), cv2.IMREAD_UNCHANGED)
    names = [keep(review, image, group="web-1"), keep(review, group="web-1"), keep(review)]
    export_review(review, tmp_path / "out", to="labelme")
    take(tmp_path / "out")
    group = {s.id: s.group for s in reviewed_samples(tmp_path / "data", LABELS, samples)}
    assert [group[name] == trained.group for name in names] == [True, True, False]
    assert group[names[2]] not in {sample.group for sample in samples}


def test_sources_grouped_by_a_pattern_stay_together(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    for source in ("a_light1.png", "a_light2.png", "b_light1.png"):
        keep(review, source=source)
    export_review(review, tmp_path / "out", to="labelme")
    take(tmp_path / "out", group_by=r"(\w+)_light\d")
    (part,) = read_parts(tmp_path / "data")
    assert sorted(one["group"] for one in part.pictures.values()) == ["a", "a", "b"]


def test_reviewed_pictures_join_the_training_part_and_change_no_other(
    tmp_path: Path,
    review: ReviewFolder,
    take: Callable[..., Imported],
    samples: tuple[Sample, ...],
    split: Split,
) -> None:
    names = {keep(review), keep(review)}
    export_review(review, tmp_path / "out", to="labelme")
    take(tmp_path / "out")
    more = (*samples, *reviewed_samples(tmp_path / "data", LABELS, samples))
    for fold in range(5):
        before, after = make_split(samples, fold=fold), make_split(more, fold=fold)
        assert (after.test, after.validation) == (before.test, before.validation)
        assert set(after.train) == set(before.train) | names
    held = next(s for s in more if s.id in split.test)
    joined = [
        Sample(s.id, s.label, s.image_path, s.mask_path, held.group, train_only=True)
        if s.train_only
        else s
        for s in more
    ]
    assert names.isdisjoint({*make_split(joined).train, *make_split(joined).test})


def test_export_takes_the_most_interesting_once_and_leaves_damaged_ones_out(
    tmp_path: Path, review: ReviewFolder
) -> None:
    image = picture()
    first, twin, damaged = keep(review, image), keep(review, image), keep(review)
    (review.path / f"{damaged}.draft.png").write_bytes(b"")
    done = export_review(review, tmp_path / "out", to="coco")
    assert len(done.names) == 1
    assert {*done.names, *done.copies} == {first, twin}  # what `--clear` removes
    assert damaged in done.left_out[0]
    with pytest.raises(DataError, match="not empty"):
        export_review(review, tmp_path / "out", to="coco")
    with pytest.raises(DataError, match="holds no picture"):
        export_review(review, tmp_path / "new", to="coco", reasons=["drift"])
    with pytest.raises(FileNotFoundError, match=r"no review folder .*gone"):
        export_review(ReviewFolder(tmp_path / "gone"), tmp_path / "new", to="coco")
    with pytest.raises(ConfigError, match="unknown tool 'paint'"):
        export_review(review, tmp_path / "new", to="paint")
    with pytest.raises(ConfigError, match="unknown reason 'dirft'; expected some of review"):
        export_review(review, tmp_path / "new", to="coco", reasons=["dirft"])
    with pytest.raises(ConfigError, match="most is -3"):
        export_review(review, tmp_path / "new", to="coco", most=-3)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_export_into_the_working_directory_and_moved_then_comes_back(
    tool: str,
    tmp_path: Path,
    review: ReviewFolder,
    take: Callable[..., Imported],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = keep(review)
    here = tmp_path / "to label #1 %20 ü"
    here.mkdir()
    monkeypatch.chdir(here)
    done = export_review(review, Path(), to=tool)
    assert done.opened_by.exists()
    assert not [path for path in here.iterdir() if path.name.startswith(".")]
    moved = here.rename(tmp_path / "elsewhere")
    came = take(moved)
    assert name in (came.unlabelled if tool == "label-studio" else came.new)


def test_changed_part_is_found_and_other_labels_are_refused(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    name = keep(review)
    export_review(review, tmp_path / "out", to="labelme")
    part = take(tmp_path / "out").folder
    assert part is not None
    assert len(reviewed_samples(tmp_path / "data", (*LABELS, "scratch"), ())) == 1
    with pytest.raises(DataError, match="expected them to be the first"):
        reviewed_samples(tmp_path / "data", ("background", "scratch"), ())
    (part / f"masks/{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match="was changed since it was imported"):
        verify_parts(tmp_path / "data")


def test_export_reads_no_draft_beyond_those_it_writes(
    tmp_path: Path, review: ReviewFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = picture()
    names = {keep(review, shown), keep(review, shown), keep(review), keep(review)}
    read: list[str] = []
    draft = ReviewFolder.draft

    def counted(self: ReviewFolder, name: str, record: Mapping[str, Any]) -> Any:  # noqa: ANN401
        read.append(name)
        return draft(self, name, record)

    monkeypatch.setattr(ReviewFolder, "draft", counted)
    done = export_review(review, tmp_path / "out", to="coco", most=1)
    assert read == list(done.names)
    assert set(done.names) < names


def test_import_of_another_tools_export_says_so(
    tmp_path: Path, review: ReviewFolder, take: Callable[..., Imported]
) -> None:
    keep(review)
    export_review(review, tmp_path / "out", to="coco")
    with pytest.raises(DataError, match="is no export of cvat: it looks like coco"):
        take(tmp_path / "out", tool="cvat")


def test_index_of_the_wrong_kind_is_missing_or_told_as_it_is(
    tmp_path: Path, take: Callable[..., Imported]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/review.json is missing"):
        take(tmp_path / "file")
    with pytest.raises(IsADirectoryError):
        take(tmp_path, index=tmp_path)
