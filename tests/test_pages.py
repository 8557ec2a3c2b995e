from __future__ import annotations

import re
import shlex
import shutil
from operator import attrgetter
from pathlib import Path

import pytest
from PIL import Image

from magtiles_seg import cli
from magtiles_seg.commands.options import ACCEPTED, REJECTED
from magtiles_seg.dataset.synthetic import synthetic_tile, write_dataset
from magtiles_seg.model.bundled import BUNDLED_MODEL

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
NAME = attrgetter("name")
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=NAME)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: Path, program: str) -> list[list[str]]:
    """Return the words of every console line that calls a program, comments dropped."""
    lines = "".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    calls = [part for line in lines for part in line.removeprefix("$ ").split(" && ")]
    words = [shlex.split(call, comments=True) for call in calls]
    return [line[1:] for line in words if line[:1] == [program]]


@pytest.fixture
def _beside_a_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tile = Image.fromarray(synthetic_tile(3, defect="blowhole", exposure=3).image)
    tile.save("tile.png")
    Path("good-days").mkdir()
    for number in range(100):  # the fewest that statistics are made of
        tile.save(f"good-days/{number}.png")
    shutil.copy(BUNDLED_MODEL, "model.onnx")
    write_dataset(Path("drawn"), tiles=2, seed=3)  # as the README draws it


@pytest.mark.usefixtures("_beside_a_tile")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=NAME)
def test_python_blocks_of_a_page_in_order_run(page: Path) -> None:
    namespace: dict[str, object] = {}
    for source in blocks(page, "python"):
        exec(compile(source, page.name, "exec"), namespace)


@pytest.mark.usefixtures("_beside_a_tile")
def test_segment_and_info_commands_run_without_error() -> None:
    verbs = commands(README, "magtiles-seg")
    runnable = [words for words in verbs if words[0] in ("segment", "info") or "synth" in words]
    assert len(runnable) >= 5
    for words in runnable:
        assert cli.main(words) in (ACCEPTED, REJECTED)


@EVERY_PAGE
def test_every_command_is_one_that_the_parser_knows(page: Path) -> None:
    for words in commands(page, "magtiles-seg"):
        assert cli.build_parser().parse_args(words).run


def test_every_make_target_is_in_the_makefile() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = [words[0] for words in commands(README, "make")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@EVERY_PAGE
def test_links_to_files_of_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_completion_of_the_readme_knows_the_verbs() -> None:
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(cli.build_parser(), "bash")
    assert all(verb in script for verb in ("segment", "stream", "bench"))


def test_makefile_stays_within_40_lines() -> None:
    assert len((REPOSITORY / "Makefile").read_text(encoding="utf-8").splitlines()) <= 40


def test_every_file_that_the_design_page_names_is_there() -> None:
    page = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+\.py)`", page))
    assert len(named) > 20
    assert [name for name in named if not (REPOSITORY / "magtiles_seg" / name).is_file()] == []
