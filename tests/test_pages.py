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


NOT_RUN = (
    (r"(pip|npm|apt-get|brew) ", "installs"),
    (r"(git|dvc) ", "changes a repository; tests/test_delivery_story.py and test_dvc_stages.py do"),
    (r"(docker|podman) ", "needs Docker; tests/test_containers.py reads the files"),
    (r"(make|pytest|shtab|MAGTILES_\w+=\S+|\.github/scripts/\S+) ", "is what runs these tests"),
    (r"curl ", "asks a service; tests/serve/test_server.py takes the line from the page"),
    (r"old/bin/python ", "needs older runtimes in an environment of their own"),
    (r"magtiles-seg loop ", "needs pictures that were kept; tests/test_loop_story.py"),
    (r"python ", "an example or a server that stays; tests/test_examples.py, test_web_page.py"),
    (r"magtiles-seg (serve|demo)( (?!--new-key)|$)", "stays; tests/serve and tests/demo start it"),
    (r"magtiles-seg (data|train|crossval|evaluate|gate|report)\b", "needs data, or hours of it"),
    (r"magtiles-seg (deploy|promote|smoke)\b", "needs a target; tests/delivery has stand-ins"),
    (r"magtiles-seg (export|parity|bench)\b", "minutes; tests/export and tests/bench do it"),
    (r"magtiles-seg stream (basler|genicam):", "needs a camera; tests/linescan has emulators"),
    (r"magtiles-seg stream (web/|web\.avi)", "needs your web; tests/linescan/test_sources.py"),
    (r"magtiles-seg stream synthetic:", "half a minute; tests/linescan/test_open.py"),
    (r"magtiles-seg batch (.s3:|inventory)", "needs a store or a cluster; tests/batch has them"),
    (r"magtiles-seg segment .*\.engine", "needs a GPU"),
    (r"magtiles-seg segment data/images", "needs that data set, and a model of it"),
    (r"magtiles-seg ensemble ", "needs trained runs; tests/train/test_ensemble.py"),
    (r"magtiles-seg screen ", "needs data, and minutes; tests/train/test_screen.py"),
)
"""Console lines that no test here runs, by their beginning, each with the reason."""


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
    Path("shots").mkdir()
    for light in (1, 2):
        tile.save(f"shots/p7_light{light}.png")
    Path("groups.csv").write_text(
        "image,group\np7_light1.png,p7\np7_light2.png,p7\n", encoding="utf-8"
    )
    shutil.copy(BUNDLED_MODEL, "model.onnx")
    write_dataset(Path("drawn"), tiles=2, seed=3)  # as the README draws it


@pytest.mark.usefixtures("_beside_a_tile")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=NAME)
def test_python_blocks_of_a_page_in_order_run(page: Path) -> None:
    namespace: dict[str, object] = {}
    for source in blocks(page, "python"):
        exec(compile(source, page.name, "exec"), namespace)


def console_lines(page: Path) -> list[str]:
    """Return the lines that a page's console blocks tell to type, without their comments."""
    text = "".join(blocks(page, "console")).replace("\\\n", " ")
    typed = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
    return [shlex.join(shlex.split(line, comments=True)) for line in typed]


def reason_of(line: str) -> str | None:
    """Return why a line is not run here, or None where it must run."""
    return next((reason for mark, reason in NOT_RUN if re.match(mark, line)), None)


@pytest.mark.usefixtures("_beside_a_tile")
@pytest.mark.parametrize("page", [page for page in PAGES if console_lines(page)], ids=NAME)
def test_console_lines_of_a_page_run_unless_a_reason_is_given(page: Path) -> None:
    for line in console_lines(page):
        if reason_of(line) is None:
            program, *words = shlex.split(line)
            assert program == "magtiles-seg", f"{line}: run it here, or give the reason"
            assert cli.main(words) in (ACCEPTED, REJECTED), line


def test_reasons_not_to_run_a_line_are_all_used_and_leave_lines_to_run() -> None:
    lines = [line for page in PAGES for line in console_lines(page)]
    assert sum(reason_of(line) is None for line in lines) >= 10
    assert [mark for mark, _ in NOT_RUN if not any(re.match(mark, line) for line in lines)] == []


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


def test_every_test_that_the_design_page_names_is_there() -> None:
    page = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(set(re.findall(r"^\| *(\d+) \|", page, flags=re.MULTILINE))) == 12
    assert len(named) > 20
    for path, test in named:
        assert f"\ndef {test}(" in (REPOSITORY / path).read_text(encoding="utf-8"), test
