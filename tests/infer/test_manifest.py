from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.errors import ModelError
from magtiles_seg.infer.manifest import (
    ENVIRONMENT_KEYS,
    Manifest,
    local_environment,
    manifest_path,
    mismatches,
)
from magtiles_seg.model.card import ModelCard

CARD = ModelCard(name="x", architecture="nano", labels=("background", "crack"), stride=16)
HERE: dict[str, str | list[str]] = {
    "runtime": "tensorrt",
    "runtime_version": "10.16.1",
    "cuda": "13.0",
    "driver": "580.65",
    "gpu": "NVIDIA L4",
    "compute_capability": "SM89",
    "os": "linux",
    "arch": "x86_64",
}
MANIFEST = Manifest(
    sha256="a" * 64,
    onnx_sha256="b" * 64,
    precision="fp16",
    environment=HERE,
    card=CARD,
    parity={"tiles": "6 synthetic tiles", "artefact": {"dice": 1.0}},
    profile={"min": [1, 32, 32], "opt": [1, 256, 2048], "max": [1, 512, 2048]},
    recipe={"name": "l4"},
)


def changed(**values: object) -> str:
    return json.dumps({**json.loads(MANIFEST.to_json()), **values})


def test_manifest_written_beside_the_artefact_reads_back_equal(tmp_path: Path) -> None:
    artefact = tmp_path / "m.engine"
    assert MANIFEST.write(artefact) == tmp_path / "m.engine.json" == manifest_path(artefact)
    assert Manifest.read(artefact) == MANIFEST
    assert list(tmp_path.iterdir()) == [tmp_path / "m.engine.json"]


def test_mismatches_of_the_machine_it_was_built_on_are_none() -> None:
    assert mismatches(MANIFEST, HERE) == ()


@given(changed=st.sets(st.sampled_from(ENVIRONMENT_KEYS), min_size=1))
def test_mismatches_name_each_differing_key_with_both_values(changed: set[str]) -> None:
    found = mismatches(MANIFEST, {**HERE, **dict.fromkeys(changed, "other")})
    assert set(found) == {f"{key}: expected {HERE[key]}, got other" for key in changed}


def test_mismatches_take_a_part_of_a_version_for_another_one() -> None:
    assert mismatches(MANIFEST, {**HERE, "driver": "580"}) == ("driver: expected 580.65, got 580",)


def test_mismatches_say_when_the_machine_lacks_what_was_used() -> None:
    without = {key: value for key, value in HERE.items() if key != "gpu"}
    assert mismatches(MANIFEST, without) == ("gpu: expected NVIDIA L4, got nothing",)


def test_mismatches_leave_out_what_was_not_known_when_built() -> None:
    assert mismatches(replace(MANIFEST, environment={"runtime": "tensorrt"}), HERE) == ()


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ("SM120", ()),
        ("SM90", ("compute_capability: expected SM86 or SM120, got SM90",)),
    ],
)
def test_mismatches_of_several_targets_fit_any_of_them(
    here: str, expected: tuple[str, ...]
) -> None:
    several = replace(MANIFEST, environment={"compute_capability": ["SM86", "SM120"]})
    assert mismatches(several, {"compute_capability": here}) == expected


def test_mismatches_compare_files_when_asked() -> None:
    found = mismatches(MANIFEST, {**HERE, "sha256": "c" * 64, "onnx_sha256": "b" * 64})
    assert found == (f"sha256: expected {'a' * 64}, got {'c' * 64}",)


def test_read_without_manifest_is_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.engine has no readable manifest .*m\.engine\.json"):
        Manifest.read(tmp_path / "m.engine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "has no readable manifest"),
        ("[]", "is not a manifest"),
        ('{"schema_version": 7}', "has schema version 7, expected 1"),
        ('{"schema_version": 1}', "is damaged: 'card'"),
        (changed(recipe=[]), "recipe must be a mapping"),
        (changed(extra=1), "is damaged: .*extra"),
        (changed(precision="bf8"), "precision must be"),
        (changed(profile={"min": [1, 32, 32], "opt": 3, "max": [1, 64, 64]}), "profile must be"),
        (changed(profile={**MANIFEST.profile, "more": [1, 64, 64]}), "profile must be"),
    ],
)
def test_read_of_another_text_is_model_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.engine.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        Manifest.read(tmp_path / "m.engine")


def test_local_environment_names_runtime_and_system() -> None:
    found = local_environment("numpy")
    assert set(found) == {"runtime", "runtime_version", "os", "arch"}
    assert local_environment("no-such-package")["runtime_version"] == "unknown"
