from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magtiles_seg.config import load_params
from magtiles_seg.dataset.leakage import leaks
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.dataset.splits import (
    RULES,
    Split,
    committed_folds,
    even_out,
    fold_assignment,
    make_split,
    note_changed,
)
from magtiles_seg.dataset.synthetic import write_dataset
from magtiles_seg.dataset.tiles import group_tiles
from magtiles_seg.errors import ConfigError, DataError
from magtiles_seg.pipeline import read_split, split_parts

CLASSES = ("blowhole", "break", "crack", "fray", "uneven", "free")
PUBLIC_COUNTS = {
    "blowhole": 115,
    "break": 85,
    "crack": 57,
    "fray": 32,
    "free": 952,
    "uneven": 103,
}
NOWHERE = Path("/dev/null")


def samples_of(nums: list[int], labels: list[str]) -> list[Sample]:
    return [
        Sample(f"exp1_num_{num}", label, NOWHERE, NOWHERE, group)
        for num, label, group in zip(nums, labels, group_tiles(nums), strict=True)
    ]


def tiles(count: int, pictures: int = 6) -> list[Sample]:
    """Tiles of one class each; every second one is free."""
    nums = [500_000 + 300 * tile + 10 * shot for tile in range(count) for shot in range(pictures)]
    labels = ["free" if tile % 2 else CLASSES[tile // 2 % 5] for tile in range(count)]
    return samples_of(nums, [label for label in labels for _ in range(pictures)])


def public() -> list[Sample]:
    """As many pictures of each class as the public archive has."""
    labels = [label for label, count in PUBLIC_COUNTS.items() for _ in range(count)]
    return samples_of([500_000 + 7 * index for index in range(len(labels))], labels)


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 360_000), min_size=40, max_size=150, unique=True),
    st.integers(0, 4),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.15, 0.4]),
    st.randoms(use_true_random=False),
)
def test_grouped_split_any_nums_is_leak_free(
    nums: list[int], fold: int, seed: int, fraction: float, rng: random.Random
) -> None:
    samples = samples_of(nums, [rng.choice(CLASSES) for _ in nums])
    if len({sample.group for sample in samples}) < 5:
        return
    split = make_split(samples, seed=seed, fold=fold, validation_fraction=fraction)
    report = leaks(split, samples)
    assert report.clean
    assert report.leaked_test == report.leaked_validation == report.unused_ids == ()
    assert split.train
    assert split.test


def test_grouped_split_folds_cover_every_picture_once() -> None:
    samples = tiles(40)
    tests = [id_ for fold in range(5) for id_ in make_split(samples, fold=fold).test]
    assert sorted(tests) == sorted(sample.id for sample in samples)


def test_change_of_the_data_since_a_split_was_drawn_is_told() -> None:
    samples = tiles(10)
    split = make_split(samples)
    reviewed = replace(samples[0], id="web_1", group=999, train_only=True)
    assert note_changed([split], [*samples, reviewed]) == note_changed([split], samples) == ()
    for changed in (samples[1:], [replace(samples[0], label="fray"), *samples[1:]]):
        (note,) = note_changed([split, split], changed)
        assert "not what the split was drawn from" in note


def test_grouped_split_without_a_fold_holds_nothing_out() -> None:
    samples = tiles(40)
    split = make_split(samples, fold=None, validation_fraction=0.1)
    assert split.test == ()
    assert len(split.train) + len(split.validation) == len(samples)
    assert leaks(split, samples).clean
    assert Split.from_json(split.to_json()) == split
    with pytest.raises(ConfigError, match="'P1' has a test part of its own"):
        make_split(samples, rule="P1", fold=None)


def test_fold_assignment_even_classes_come_out_even() -> None:
    samples = tiles(50)
    fold_of = fold_assignment(samples)
    for fold in range(5):
        counts = Counter(s.label for s in samples if fold_of[s.group] == fold)
        assert counts == {"free": 30, **dict.fromkeys(CLASSES[:5], 6)}


def test_fold_assignment_fixed_folds_stay() -> None:
    samples = tiles(20)
    committed = {group: 4 - fold for group, fold in fold_assignment(samples[:60]).items()}
    assert committed.items() <= fold_assignment(samples, fixed=committed).items()
    split = make_split(samples, fold=4, fold_of_group=committed)
    assert {f"exp1_num_{group}" for group, fold in committed.items() if fold == 4} <= set(
        split.test
    )


def test_fold_assignment_fewer_groups_than_folds_is_an_error() -> None:
    with pytest.raises(DataError, match="5 folds of 4 groups"):
        fold_assignment(tiles(4))


def test_split_that_holds_nothing_out_needs_no_folds() -> None:
    samples = tiles(3)
    split = make_split(samples, fold=None, validation_fraction=0)
    assert (len(split.train), split.test) == (len(samples), ())


def test_grouped_split_validation_part_holds_every_class() -> None:
    samples = tiles(100)
    label_of = {sample.id: sample.label for sample in samples}
    split = make_split(samples, validation_fraction=0.2)
    assert {label_of[id_] for id_ in split.validation} == set(CLASSES)
    assert len(split.validation) == pytest.approx(0.2 * 480, abs=24)


def test_grouped_split_seed_changes_the_validation_part_alone() -> None:
    first, second = (make_split(tiles(60), seed=seed) for seed in (0, 1))
    assert first.test == second.test
    assert first.validation != second.validation


@pytest.mark.parametrize("rule", RULES)
def test_make_split_any_order_of_samples_gives_the_same_manifest(rule: str) -> None:
    samples = tiles(30)
    expected = make_split(samples, rule=rule)
    random.Random(3).shuffle(samples)
    assert make_split(samples, rule=rule) == expected


@pytest.mark.parametrize("rule", RULES)
def test_make_split_manifest_survives_json(rule: str) -> None:
    split = make_split(tiles(30), rule=rule, seed=2)
    assert Split.from_json(split.to_json()) == split
    assert json.loads(split.to_json())["sha256"] == split.sha256


def test_p1_split_public_counts_give_the_published_sizes() -> None:
    split = make_split(public(), rule="P1")
    assert [len(part) for part in (split.train, split.validation, split.test)] == [805, 268, 271]


def test_p1_split_follows_the_published_script() -> None:
    samples = public()
    random.seed(42)
    train: list[str] = []
    for label in sorted(PUBLIC_COUNTS):
        names = sorted(sample.id for sample in samples if sample.label == label)
        random.shuffle(names)
        train += names[: int(0.6 * len(names))]
    assert make_split(samples, rule="P1").train == tuple(sorted(train))


def test_p1b_split_holds_defects_alone_and_78_test_pictures() -> None:
    samples = public()
    split = make_split(samples, rule="P1b")
    free = {sample.id for sample in samples if sample.label == "free"}
    assert len(split.test) == 78
    assert free.isdisjoint(split.train + split.validation + split.test)
    assert len(leaks(split, samples).unused_ids) == 952
    assert make_split(samples, rule="P1b", seed=1).test != split.test


def test_p2_split_trains_on_all_free_and_four_fifths_of_each_class() -> None:
    samples = public()
    split = make_split(samples, rule="P2", validation_fraction=0)
    label_of = {sample.id: sample.label for sample in samples}
    train = Counter(label_of[id_] for id_ in split.train)
    assert train == {label: int(0.8 * n) for label, n in PUBLIC_COUNTS.items()} | {"free": 952}
    assert "free" not in {label_of[id_] for id_ in split.test}
    assert split.validation == ()


def test_random_split_leaks_and_says_how_much() -> None:
    samples = tiles(40)
    report = leaks(make_split(samples, rule="random"), samples)
    assert not report.clean
    assert report.leaked_test_fraction > 0.9
    assert "LEAK" in report.summary()


def test_leaks_hand_made_manifest_counts_what_is_wrong() -> None:
    samples = tiles(3, pictures=2)
    a1, a2, b1, b2, c1, c2 = (sample.id for sample in samples)
    split = replace(
        make_split(samples, rule="random", folds=2),
        train=(a1, b1),
        validation=(a2, a2),
        test=(b2, c1, "ghost"),
        data_sha256="0",
    )
    report = leaks(split, samples)
    assert report.torn_groups == (samples[0].group, samples[2].group)
    assert report.leaked_validation == (a2, a2)
    assert report.leaked_test == (b2,)
    assert report.leaked_test_fraction == pytest.approx(1 / 3)
    assert report.duplicate_ids == (a2,)
    assert report.unknown_ids == ("ghost",)
    assert report.unused_ids == (c2,)
    assert not report.data_matches
    assert report.to_dict()["clean"] is False


@pytest.mark.parametrize(
    "fault", [{"torn_groups": (7,)}, {"duplicate_ids": ("a",)}, {"unknown_ids": ("ghost",)}]
)
def test_leak_report_each_fault_alone_is_not_clean(fault: dict[str, tuple[int | str, ...]]) -> None:
    report = leaks(make_split(tiles(10)), tiles(10))
    assert report.clean
    assert not replace(report, **fault).clean  # type: ignore[arg-type]  # a field of its own type


def test_leaks_changed_mask_no_longer_matches_the_manifest(tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    mask.write_bytes(b"one")
    samples = [replace(sample, mask_path=mask) for sample in tiles(6)]
    split = make_split(samples)
    assert leaks(split, samples).data_matches
    mask.write_bytes(b"two")
    assert not leaks(split, samples).data_matches


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rule": "stratified"}, "unknown split rule 'stratified'"),
        ({"fold": 5}, "fold 5 of 5 folds"),
        ({"fold": -1}, "fold is -1; expected a whole number, at least 0"),
        ({"folds": 1}, "folds is 1; expected a whole number, at least 2"),
        ({"folds": 2.5}, "folds is 2.5; expected a whole number"),
        ({"fold": "0"}, "fold is '0'; expected a whole number"),
        ({"seed": "0"}, "seed is '0'; expected a whole number"),
        ({"seed": True}, "seed is True; expected a whole number"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
    ],
)
def test_make_split_parameter_out_of_range_is_a_config_error(
    change: dict[str, object], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        make_split(tiles(10), **change)  # type: ignore[arg-type]


def test_split_from_json_altered_manifest_is_refused() -> None:
    content = json.loads(make_split(tiles(10)).to_json())
    content["train"].append(content["test"].pop())
    with pytest.raises(DataError, match="was altered"):
        Split.from_json(json.dumps(content))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "no split manifest"),
        ("[1]", "no split manifest"),
        ("{}", "no split manifest"),
        ('{"schema_version": 9}', "schema version 9; expected 1"),
    ],
)
def test_split_from_json_foreign_text_is_refused(text: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        Split.from_json(text)


def test_fold_assignment_equal_groups_spread_evenly() -> None:
    samples = [
        Sample(f"{label}{n}", label, Path("a.jpg"), Path("a.png"), group)
        for group, label in enumerate(("free", "break", "crack", "fray", "uneven", "blowhole"))
        for n in range(6)
    ]
    folds = fold_assignment(samples, 3, fixed={})
    assert sorted(Counter(folds.values()).values()) == [2, 2, 2]


def test_committed_folds_are_five_disjoint_lists_of_like_size() -> None:
    sizes = Counter(committed_folds(5).values())
    assert sorted(sizes) == [0, 1, 2, 3, 4]
    assert max(sizes.values()) <= 1.2 * min(sizes.values())
    assert committed_folds(4) == {}


def test_fold_assignment_keeps_the_committed_fold_of_a_tile() -> None:
    known = committed_folds(5)
    groups = [group for group, fold in known.items() if fold == 3][:6]
    samples = [Sample(str(group), "free", Path("a.jpg"), Path("a.png"), group) for group in groups]
    assert fold_assignment(samples) == dict.fromkeys(groups, 3)


def sealed(**changes: object) -> str:
    """Return a manifest with other values and the SHA-256 of those."""
    content = json.loads(make_split(tiles(10)).to_json())
    content.update(changes)
    inside = {k: v for k, v in content.items() if k not in ("schema_version", "sha256")}
    text = json.dumps(inside, sort_keys=True)
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def test_from_json_of_a_manifest_sealed_anew_is_read() -> None:
    assert Split.from_json(sealed(seed=5)).seed == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"train": "abc"},
        {"train": {"a": 1}},
        {"test": [1, 2]},
        {"validation": None},
        {"seed": "0"},
        {"seed": True},
        {"fold": 1.5},
        {"rule": ["grouped"]},
        {"validation_fraction": "half"},
        {"data_sha256": None},
        {"schema_version": 99},
        {"schema_version": "x" * 10_000},
    ],
)
def test_from_json_values_of_other_types_are_a_short_data_error(
    changes: dict[str, object],
) -> None:
    with pytest.raises(DataError, match="split manifest") as raised:
        Split.from_json(sealed(**changes))
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        "null",
        "7",
        '"text"',
        "",
        "9" * 10_000,
        '{"schema_version": 1}',
        "\ufeff{}",
        "NaN",
    ],
)
def test_from_json_hostile_text_is_a_data_error(text: str) -> None:
    with pytest.raises(DataError, match="no split manifest"):
        Split.from_json(text)


def test_read_manifest_of_bytes_that_are_no_text_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(sealed().encode("utf-16"))
    with pytest.raises(DataError, match=r"split\.json: "):
        read_split(path)
    path.write_text("[]")
    with pytest.raises(DataError, match=r"split\.json: no split manifest"):
        read_split(path)


def test_split_parts_of_pictures_that_are_not_there_names_one(tmp_path: Path) -> None:
    params = load_params(None, [f"data_load.source={tmp_path / 'data'}"])
    write_dataset(tmp_path / "data", tiles=1)
    path = tmp_path / "split.json"
    path.write_text(sealed(train=["exp1_num_7"], validation=[], test=[]))
    with pytest.raises(DataError, match="names 1 picture that the data set lacks, exp1_num_7"):
        split_parts(path, params)


def test_even_out_weighs_squared_shares_hand_worked() -> None:
    """Single pictures cost (2 n + 1) / w: 1, 3, 5 over .85, then 1 over .15 is less than 7/.85."""
    samples = tiles(8, pictures=1)[1::2]
    bins = even_out(samples, [0.85, 0.15], seed=0, fixed={})
    assert Counter(bins.values()) == {0: 3, 1: 1}
