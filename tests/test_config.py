from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.config import RENAMED, DataSplitParams, Params, TrainParams, load_params
from magtiles_seg.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_params_file_of_the_project_holds_the_defaults() -> None:
    written = load_params(REPOSITORY / "params.yaml", ["data_load.checksums=null"])
    assert written == Params()  # the list of files lies beside that file alone


def test_params_file_of_the_project_names_every_train_key() -> None:
    document = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    assert set(document["train"]) == {item.name for item in fields(TrainParams)}


@pytest.mark.parametrize(
    ("overrides", "checksums"),
    [
        ([], "list"),
        (["data_load.source=my/tiles"], None),
        (["data_load.source=my/tiles", "data_load.checksums=mine"], "mine"),
        (["data_load.source=Downloads/master.zip"], "list"),
        (["data_load.source=https://example.com/master.ZIP"], "list"),
    ],
)
def test_folder_of_one_s_own_is_not_held_against_the_file_s_checksums(
    tmp_path: Path, overrides: list[str], checksums: str | None
) -> None:
    path = write(tmp_path, "data_load: {source: a.zip, checksums: list}")
    assert load_params(path, overrides).data_load.checksums == checksums


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_params(write(tmp_path, "")) == Params()


def test_no_file_with_overrides_changes_only_these() -> None:
    params = load_params(None, ["train.epochs=5", "data_load.sha256=null", "train.seed = 7"])
    assert params.train == TrainParams(epochs=5, seed=7)
    assert params.data_split == DataSplitParams()


def test_override_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epochs: 3, seed: 2}")
    assert load_params(path, ["train.epochs=4"]).train == TrainParams(epochs=4, seed=2)


@pytest.mark.parametrize(("former", "now"), RENAMED.items())
def test_former_name_of_a_parameter_is_read_and_said(tmp_path: Path, former: str, now: str) -> None:
    (section, key), wanted = now.split("."), load_params(None, [f"{now}=1"])
    path = write(tmp_path, f"{section}: {{{former.partition('.')[2]}: 1}}")
    with pytest.warns(FutureWarning, match=f"{former} is now {now}"):
        assert load_params(path) == wanted
    with pytest.warns(FutureWarning, match=f"{former} is now {now}"):
        assert load_params(write(tmp_path, f"{section}: {{{key}: 2}}"), [f"{former}=1"]) == wanted


def test_parameter_by_both_of_its_names_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {kind_weight: 0.1, class_weight: 0.2}")
    with (
        pytest.warns(FutureWarning),
        pytest.raises(ConfigError, match=r"former name of train\.class_weight, which is given too"),
    ):
        load_params(path)


@pytest.mark.parametrize(
    ("text", "seed"), [("010", 10), ("+7", 7), ("0o10", 8), ("0x1F", 31), ("00", 0)]
)
def test_whole_number_is_read_as_dvc_reads_it(text: str, seed: int) -> None:
    assert load_params(None, [f"train.seed={text}"]).train.seed == seed


@pytest.mark.parametrize("text", ["1:30", "1_0", "0b1", "0x"])
def test_number_of_yaml_1_1_alone_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"train.seed: expected int, got str '{text}'"):
        load_params(None, [f"train.seed={text}"])


def test_merged_mapping_gives_what_its_own_keys_do_not(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  <<: {epochs: 3, seed: 4}\n  epochs: 5\n")
    params = load_params(path).train
    assert (params.epochs, params.seed) == (5, 4)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", ".001", "1E-3"])
def test_float_in_any_spelling_is_a_number(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"train: {{learning_rate: {text}}}")
    assert load_params(path).train.learning_rate == pytest.approx(0.001)


def test_whole_number_for_a_float_becomes_a_float(tmp_path: Path) -> None:
    rate = load_params(write(tmp_path, "train: {learning_rate: 1}")).train.learning_rate
    assert isinstance(rate, float)


def test_list_of_labels_becomes_a_tuple(tmp_path: Path) -> None:
    params = load_params(write(tmp_path, "data_load: {labels: [background, dent]}"))
    assert params.data_load.labels == ("background", "dent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", r"unknown key 'train\.epoch'; did you mean 'train\.epochs'\?"),
        ("trian: {epochs: 3}", "unknown section 'trian'; did you mean 'train'"),
        ("train: {epochs: three}", r"train\.epochs: expected int, got str 'three'"),
        ("train: {epochs: 2.5}", r"train\.epochs: expected int, got float 2\.5"),
        ("train: {epochs: true}", r"train\.epochs: expected int, got bool True"),
        ("train: {epochs: 0}", r"train\.epochs: expected at least 1, got 0"),
        (
            "train: {learning_rate: .nan}",
            r"train\.learning_rate: expected a finite number, got nan",
        ),
        ("train: {dice_weight: .inf}", r"train\.dice_weight: expected a finite number, got inf"),
        ("train: {ema_decay: 1.5}", r"train\.ema_decay: expected 0 to 1, got 1\.5"),
        ("train: {pretrained: 1}", r"train\.pretrained: expected bool, got int 1"),
        ("train: {architecture: lite}", "expected one of nano.*did you mean 'lite2'|'lite1'"),
        ("train: {dice_weight: " + 400 * "9" + "}", r"expected a finite number, got 9{40}$"),
        ("train: {seed: 4294967296}", r"train\.seed: expected 0 to 4294967295, got 4294967296"),
        ("train: {pretrained: !!bool maybe}", "is not valid YAML: 'maybe'"),
        ("data_load: {labels: dent}", r"expected a list of names, such as \[.*\], got 'dent'"),
        ("data_load: {labels: []}", r"expected a list of names, such as \[.*\], got \[\]"),
        ("data_load: {labels: [background]}", "expected 'background' and 1 to 254 classes"),
        ("data_load: {labels: [dent, background]}", "expected 'background' first"),
        ("data_load: {labels: [background, dent, Dent]}", "differ by more than case"),
        ("data_load: {labels: [background, '']}", "names without spaces around them"),
        ("data_load: {labels: [background, ' dent']}", "names without spaces around them"),
        (r'data_load: {labels: [background, "a\nb"]}', "names without line breaks"),
        (r'data_load: {labels: [background, "a\u200b"]}', "characters that cannot be seen"),
        ("data_load: {labels: [background, Free]}", "'free' is what pictures without a defect"),
        ("data_load: {labels: [1, 2]}", r"expected a list of names, such as \[.*\], got \[1, 2\]"),
        ("data_load: {source: ''}", r"data_load\.source: expected str, got str ''"),
        ("train: 3", "section 'train' must be a mapping, got int"),
        ("[train]", "expected sections data_load.*got list"),
        ("train: {epochs: 3, epochs: 4}", "not valid YAML: key epochs stands there twice"),
        ("train: {", "is not valid YAML"),
        ("train: {3: 4}", r"unknown key 'train\.3'"),
    ],
)
def test_wrong_file_is_an_error_that_says_what_and_where(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_params(path)
    assert "params.yaml" in str(caught.value)


def test_many_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epoch: 3, seed: -1}\nexport: {precision: fp8}\nfoo: {}")
    with pytest.raises(ConfigError, match="5 mistakes") as caught:
        load_params(path, ["data_split.fold"])
    for part in ("train.epoch'", "train.seed", "export.precision", "'foo'", "'data_split.fold'"):
        assert part in str(caught.value)


def test_missing_file_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_section_made_by_hand_is_checked_too() -> None:
    with pytest.raises(
        ConfigError, match=r"train\.precision: expected one of auto, bf16, fp16, fp32"
    ):
        TrainParams(precision="fp8")


def test_section_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError, match="seed"):
        DataSplitParams().seed = 3  # type: ignore[misc]


def test_override_with_a_colon_at_its_end_is_text() -> None:
    assert load_params(None, ["data_load.source=synthetic:"]).data_load.source == "synthetic:"


def test_override_with_a_hash_is_text_to_its_end() -> None:
    assert load_params(None, ["data_load.source=line 4 #2"]).data_load.source == "line 4 #2"
    assert load_params(None, ["data_load.source='line 4' #2"]).data_load.source == "line 4"


@given(
    st.builds(
        TrainParams,
        epochs=st.integers(1, 1000),
        learning_rate=st.floats(1e-8, 10),
        free_fraction=st.floats(0, 1),
        pretrained=st.booleans(),
        precision=st.sampled_from(["auto", "bf16", "fp32"]),
    )
)
def test_section_written_as_overrides_reads_back_the_same(train: TrainParams) -> None:
    values: dict[str, Any] = asdict(train)
    overrides = [f"train.{key}={yaml.safe_dump(value)}" for key, value in values.items()]
    assert load_params(None, overrides).train == train


def test_removed_parameter_is_a_warning_that_names_what_there_is_instead() -> None:
    with pytest.warns(FutureWarning, match="int8_max_abs_diff is no more.*int8_min_class_dice"):
        params = load_params(None, ["export.int8_max_abs_diff=0.7"])
    assert params.export.int8_min_class_dice == 0.97


def test_fold_that_there_is_not_is_told_before_anything_is_fetched() -> None:
    with pytest.raises(ConfigError, match=r"data_split.fold: expected at most 4 of 5 folds, got 7"):
        load_params(None, ["data_split.fold=7"])
    assert load_params(None, ["data_split.fold=null"]).data_split.fold is None
