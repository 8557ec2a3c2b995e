from __future__ import annotations

from pathlib import Path

import pytest

from magtiles_seg.errors import ConfigError
from magtiles_seg.export.engine import Recipe, load_recipe

FOLDER = Path(__file__).parents[2] / "export"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipe_is_valid_and_bears_its_files_name(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.compute_capability is not None


def test_recipe_gives_least_tuned_and_greatest_shape(tmp_path: Path) -> None:
    path = tmp_path / "line.yaml"
    path.write_text(
        "line_width_px: 1024\nrows_per_frame: 128\nbatch_opt: 2\nbatch_max: 4\n"
        "height_max_px: 256\nwidth_max_px: 1024\n"
    )
    assert load_recipe(path).shapes == ((1, 32, 32), (2, 128, 1024), (4, 256, 1024))


def test_recipe_survives_its_own_values() -> None:
    recipe = Recipe(name="a", batch_max=4, compute_capability="SM89")
    assert Recipe(**recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workspace_mb: 5", r"unknown key 'recipe\.workspace_mb'; did you mean .*workspace_mib"),
        ("precision: fp61", r"expected one of fp16, fp32, int8, got 'fp61'; did you mean 'fp16'"),
        ("batch_max: 0", "batch_max: expected at least 1, got 0"),
        ("batch_opt: 2", r"batch_max: expected least <= tuned <= greatest, got 1 <= 2 <= 1"),
        ("rows_per_frame: 600", r"rows_per_frame, height_max_px: .* 32 <= 600 <= 512"),
        ("compute_capability: '8.9'", r"expected such as 'SM89', got '8\.9'"),
        ("batch_max: 3000", "the greatest input is 3000x512x2048 px"),
        ("- 1", "expected a mapping of keys, got list"),
        ("a: [", r"line\.yaml is not valid YAML"),
    ],
)
def test_recipe_with_mistake_names_it(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "line.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_recipe_that_is_not_there_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")
