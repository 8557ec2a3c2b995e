from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from magtiles_seg import cli
from magtiles_seg.commands.options import ACCEPTED, REJECTED
from magtiles_seg.dataset.synthetic import synthetic_tile

REPOSITORY = Path(__file__).parents[1]
TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the words of every console line that calls a program, comments dropped."""
    lines = "".join(blocks("console")).splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == [program]]


@pytest.fixture
def _beside_a_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(synthetic_tile(3, defect="blowhole", exposure=3).image).save("tile.png")


@pytest.mark.usefixtures("_beside_a_tile")
def test_python_blocks_in_order_run_and_write_their_files(tmp_path: Path) -> None:
    namespace: dict[str, object] = {}
    sources = blocks("python")
    assert len(sources) >= 2
    for source in sources:
        exec(compile(source, "README.md", "exec"), namespace)
    assert (tmp_path / "out" / "tile_mask.png").exists()


@pytest.mark.usefixtures("_beside_a_tile")
def test_segment_and_info_commands_run_without_error() -> None:
    runnable = [words for words in commands("magtiles-seg") if words[0] in ("segment", "info")]
    assert len(runnable) >= 3
    for words in runnable:
        assert cli.main(words) in (ACCEPTED, REJECTED)


def test_every_command_is_one_that_the_parser_knows() -> None:
    for words in commands("magtiles-seg"):
        assert cli.build_parser().parse_args(words).run


def test_every_make_target_is_in_the_makefile() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = [words[0] for words in commands("make")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_of_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_makefile_stays_within_40_lines() -> None:
    assert len((REPOSITORY / "Makefile").read_text(encoding="utf-8").splitlines()) <= 40
