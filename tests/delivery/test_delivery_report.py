from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from magtiles_seg.commands import report as report_verb
from magtiles_seg.config import load_params
from magtiles_seg.dataset.samples import Sample
from magtiles_seg.delivery.post import comment_of, post
from magtiles_seg.delivery.report import LostTile, Report, new_misses
from magtiles_seg.delivery.revisions import Revision, git
from magtiles_seg.errors import DataError, DeliveryError
from magtiles_seg.evaluate.compare import read_pictures
from magtiles_seg.evaluate.plots import charts
from magtiles_seg.evaluate.plots.gallery import select_pictures, triptych
from magtiles_seg.infer.segmenter import Segmenter

HEADER = "picture,class,tile,tp,fp,fn,tn,score,verdict\n"
STAND_INS = Path(__file__).parent / "stand_ins"


def write(root: Path, found: list[int], *, epochs: int) -> None:
    """Write what a pipeline run leaves: tile t has a crack of 10 px, `found[t]` of them found."""
    (root / "results/plots").mkdir(parents=True, exist_ok=True)
    rows = [
        f"c{tile},crack,{tile},{hit},0,{10 - hit},90,{hit / 10},{'reject' if hit > 4 else 'accept'}"
        for tile, hit in enumerate(found)
    ]
    rows += [f"f{tile},free,{tile},0,0,0,100,0.01,accept" for tile in range(len(found))]
    (root / "results/pictures.csv").write_text(HEADER + "\n".join(rows) + "\n")
    metrics = {"protocol": "T", "iou": 0.5, "miou6": 0.4 + epochs / 100}
    (root / "results/metrics.json").write_text(json.dumps(metrics))
    (root / "results/plots/roc.csv").write_text("false_reject_rate,recall\n0,0.5\n1,1\n")
    gate = "gate: {improve: [+iou], guard: [+dice]}\n"
    (root / "params.yaml").write_text(f"train:\n  epochs: {epochs}\n  seed: 0\n{gate}")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose last commit found half of each crack, and whose files find more."""
    git("init", "--quiet", "--initial-branch=dev", root=tmp_path)
    write(tmp_path, [2, 5, 3, 4], epochs=3)
    git("add", "--all", root=tmp_path)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(*who, "commit", "--quiet", "--message", "base", root=tmp_path)
    write(tmp_path, [8, 9, 7, 9], epochs=9)
    return tmp_path


def report_on(root: Path) -> Report:
    return Report(Revision(root, "dev"), Revision(root))


def test_report_of_a_better_model_says_improved_with_all_tables(
    repository: Path, tmp_path: Path
) -> None:
    report = report_on(repository)
    assert report.decision.improved
    text = report.write(tmp_path / "out", note="No pictures here.").read_text()
    line = text.splitlines()[2]
    assert line.startswith("✅ **Merge? Yes.** `iou` is better by +0.475 (95 % interval +0.")
    assert "; `dice` is better by +0." in line
    assert line.endswith("; a smaller one often stays unseen.")
    assert "| ▲ iou | 0.350 | 0.825 | +0.475 (" in text
    assert "| miou6 | 0.430 | 0.490 | +0.060 |" in text
    assert "| ▲ crack | 0.350 | 0.825 |" in text
    assert "| `train.epochs` | `3` | `9` |" in text
    assert "train.seed" not in text
    assert "No pictures here." in text
    assert "No defective picture that dev" in text
    assert "### New misses" not in text
    assert "![Found defects, false rejects](curve_1.png)" in text


def test_report_of_the_same_model_does_not_improve(repository: Path) -> None:
    write(repository, [2, 5, 3, 4], epochs=3)
    report = report_on(repository)
    assert not report.decision.improved
    text = report.write(repository / "out").read_text()
    assert "⛔ **Merge? No.** `iou` is not shown to differ: +0.000" in text
    assert "### Parameters" not in text


def test_report_without_figures_at_the_base_leaves_the_decision_to_a_person(
    repository: Path,
) -> None:
    git("rm", "--quiet", "--cached", "results/pictures.csv", root=repository)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(*who, "commit", "--quiet", "--message", "none", root=repository)
    report = report_on(repository)
    assert not report.decision.improved
    assert "has no scored pictures to compare with" in report.decision.reason
    text = report.write(repository / "out").read_text()
    assert "⏸ **Merge? A person decides.** Nothing to compare: dev" in text
    assert "| iou | 0.500 | 0.500 | – |" in text


def test_report_across_protocols_is_not_compared(repository: Path) -> None:
    (repository / "results/metrics.json").write_text('{"protocol": "P1"}')
    assert "protocol P1 here, T at dev" in report_on(repository).decision.reason


@pytest.mark.parametrize("classes", ["null", "[0.5]", '"crack"'])
def test_report_with_damaged_classes_leaves_them_out(repository: Path, classes: str) -> None:
    text = f'{{"protocol": "P1", "iou_by_class": {classes}}}'
    (repository / "results/metrics.json").write_text(text)
    assert "IoU by class" not in report_on(repository).write(repository / "out").read_text()


def test_report_on_a_damaged_table_of_the_base_names_it(repository: Path) -> None:
    (repository / "results/pictures.csv").write_text(f'{HEADER}"{"a" * 200_000}')
    report = Report(Revision(repository, "HEAD"), Revision(repository, "HEAD"))
    assert report.comparison is not None
    with pytest.raises(DataError, match=r"^results/pictures\.csv of working directory on"):
        report_on(repository)
    damaged = Report(Revision(repository), Revision(repository, "HEAD"))
    assert "compare: results/pictures.csv of working directory" in damaged.decision.reason


def test_report_keeps_a_parameter_in_its_column(repository: Path) -> None:
    (repository / "params.yaml").write_text('data_split: {group_pattern: "(a|b)\\n"}\n')
    text = report_on(repository).write(repository / "out").read_text()
    assert r"| `data_split.group_pattern` | – | `(a\|b) ` |" in text


def test_report_before_evaluate_names_the_fix(repository: Path) -> None:
    (repository / "results/pictures.csv").unlink()
    with pytest.raises(DataError, match="run `dvc repro` first"):
        report_on(repository)


def test_report_shows_tables_of_parity_and_speed_where_they_are(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "results/parity.json").write_text('{"fp16": {"dice": 0.9998}}')
    text = report_on(repository).write(tmp_path / "out").read_text()
    assert "<details><summary>Parity</summary>" in text
    assert "| `fp16.dice` | 0.9998 |" in text
    assert "Speed" not in text


def test_report_shows_twenty_pictures_at_most_as_files(repository: Path, tmp_path: Path) -> None:
    grey = np.full((4, 8, 3), 99, np.uint8)
    text = report_on(repository).write(tmp_path / "out", show=lambda _: grey).read_text()
    files = sorted((tmp_path / "out").glob("picture_*.jpg"))
    assert len(files) == 8  # there are no more
    assert all(path.name in text for path in files)
    shown = cv2.imread(str(files[0]))
    assert shown is not None
    assert shown.shape == (4, 8, 3)


def test_report_of_a_worse_model_names_what_got_lost_first(
    repository: Path, tmp_path: Path
) -> None:
    write(repository, [2, 3, 3, 4], epochs=3)  # only tile 1 was found, and is not any more
    report = report_on(repository)
    text = report.write(tmp_path / "out", show=lambda _: np.zeros((4, 8, 3), np.uint8)).read_text()
    assert "**Look at 1 new miss first.**" in text
    assert "| 1, crack | 1 picture: the tile is lost | 0.500 → 0.300 |" in text
    assert "<details open><summary>1 new misses</summary>" in text
    heads = [line for line in text.splitlines() if line.startswith("### ")]
    assert heads[0] == "### New misses"
    assert text.index("`c1`, crack: accept") < text.index(heads[1])
    assert text.count("`c1`") == 1


def test_report_written_twice_leaves_no_picture_of_the_first(
    repository: Path, tmp_path: Path
) -> None:
    grey = np.zeros((4, 8, 3), np.uint8)
    report_on(repository).write(tmp_path / "out", show=lambda _: grey)
    report_on(repository).write(tmp_path / "out")
    assert not list((tmp_path / "out").glob("picture_*"))


def test_new_misses_stand_by_tile_those_first_that_are_lost_whole() -> None:
    def records(*rows: str) -> str:
        return HEADER + "\n".join(rows)

    base = records(
        "a1,crack,1,5,0,5,90,0.9,reject",
        "a2,crack,1,5,0,5,90,0.8,reject",
        "a3,crack,1,5,0,5,90,0.7,reject",
        "b1,fray,2,5,0,5,90,0.6,review",
        "b2,fray,2,0,0,9,90,0.1,accept",  # missed before: nothing new
        "f1,free,3,0,9,0,90,0.9,reject",  # a false reject less is no miss
        "gone,fray,4,5,0,5,90,0.9,reject",
    )
    here = records(
        "a1,crack,1,0,0,9,90,0.3,accept",
        "a2,crack,1,0,0,9,90,0.1,accept",
        "a3,crack,1,5,0,5,90,0.7,reject",
        "b1,fray,2,0,0,9,90,0.2,accept",
        "b2,fray,2,0,0,9,90,0.1,accept",
        "f1,free,3,0,0,0,90,0.1,accept",
        "new,fray,5,0,0,9,90,0.0,accept",
    )
    fray = LostTile(tile=2, label="fray", pictures=("b1",), scores=((0.6, 0.2),), whole=True)
    scores = ((0.8, 0.1), (0.9, 0.3))
    crack = LostTile(tile=1, label="crack", pictures=("a2", "a1"), scores=scores, whole=False)
    assert new_misses(read_pictures(base), read_pictures(here)) == [fray, crack]


@pytest.mark.parametrize("newly", [(), ("a0", "a1"), tuple(f"a{n}" for n in range(30))])
def test_select_pictures_gives_twenty_different_pictures(newly: tuple[str, ...]) -> None:
    rows = [f"a{n},crack,{n},{n % 10},0,{10 - n % 10},90,0.5,reject" for n in range(40)]
    groups = select_pictures(
        read_pictures(HEADER + "\n".join(rows)), {"new": newly, "wrong": newly}
    )
    chosen = [one for group in groups.values() for one in group]
    assert len(chosen) == len(set(chosen)) == 20
    assert groups["new"] == list(newly[:8])
    assert groups["wrong"] == list(newly[8:13])
    assert len(groups["worst"]) == (20 - min(len(newly), 13) + 1) // 2


def test_triptych_of_a_wide_picture_stands_one_below_the_other(model: Path) -> None:
    with Segmenter(model) as segmenter:
        result = segmenter(np.full((40, 61), 120, np.uint8))
    assert triptych(result, np.zeros((40, 61), np.uint8)).shape == (128, 61, 3)


def test_triptych_colours_found_missed_and_false_pixels(model: Path) -> None:
    picture = np.full((40, 50), 120, np.uint8)
    with Segmenter(model, threshold=0.0, min_area_px=1) as segmenter:
        result = segmenter(picture)  # everything is defect
    target = np.zeros((40, 50), np.uint8)
    target[:, :10] = 1
    drawn = triptych(result, target)
    assert drawn.shape == (40, 158, 3)
    assert (drawn[:, :50] == 120).all()
    found, false = drawn[0, 108], drawn[0, 130]
    assert found[1] > found[0]  # green
    assert false[0] > false[1]  # magenta


def test_line_chart_is_a_picture_that_draws_each_line_in_its_colour() -> None:
    lines = {"base": [(0.0, 0.1), (1.0, 0.5)], "here": [(0.0, 0.2), (1.0, 0.9)]}
    chart = charts.line_chart("Recall & more", lines, x_label="x", y_label="y")
    assert chart is not None
    picture = Image.open(io.BytesIO(chart))
    assert (picture.format, picture.size) == ("PNG", (720, 480))
    grey, blue = (0x8A, 0x8F, 0x98), (0x0B, 0x6B, 0xCB)
    assert near(picture, (110, 374), grey)  # the axes go from (96, 408) to (696, 88)
    assert near(picture, (690, 250), grey)
    assert near(picture, (110, 340), blue)
    assert near(picture, (690, 122), blue)


def test_line_chart_of_a_single_point_shows_it_and_an_empty_line_nothing() -> None:
    chart = charts.line_chart("t", {"": [], "here": [(3.0, 3.0)]}, x_label="x", y_label="y")
    assert chart is not None
    assert near(Image.open(io.BytesIO(chart)), (396, 248), (0x0B, 0x6B, 0xCB))


def near(picture: Image.Image, at: tuple[int, int], color: tuple[int, int, int]) -> bool:
    pixel = np.array(picture.convert("RGB").getpixel(at))
    return bool(np.abs(pixel - np.array(color)).max() < 16)


def test_line_chart_without_points_is_none() -> None:
    assert charts.line_chart("t", {"base": []}, x_label="x", y_label="y") is None


def test_read_points_leaves_out_what_is_no_number() -> None:
    assert charts.read_points("step\tloss\n0\t1.5\n1\tnan\n2\t\n", "step", "loss") == [(0.0, 1.5)]
    assert charts.read_points(f'x,y\n0,"{"1" * 200_000}', "x", "y") == []


def stand_in(tmp_path: Path, name: str, code: int = 0) -> dict[str, str]:
    """Return an environment whose PATH has only a program that notes its words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / name
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\nexit {code}\n')
    program.chmod(0o755)
    return {"PATH": str(folder), "GITHUB_RUN_ID": "5", "GITHUB_REPOSITORY": "me/tiles"}


@pytest.mark.parametrize("address", ["", "https://pictures.example.org"])
def test_post_by_cml_uses_documented_options_alone(tmp_path: Path, address: str) -> None:
    environ = stand_in(tmp_path, "cml") | {"REPORT_PUBLISH_URL": address}
    (tmp_path / "report.md").write_text("![a](a.png)\n")
    post(tmp_path / "report.md", environ)
    words = (tmp_path / "words").read_text().split()
    known = json.loads((STAND_INS / "cml_options.json").read_text())["comment update"]["options"]
    assert words[:2] == ["comment", "update"]
    options = [word[2:].split("=")[0] for word in words if word.startswith("--")]
    assert set(options) <= set(known)
    assert words[-1] == str(tmp_path / "comment.md")
    assert ("--publish=false" in words) == (not address)


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("", ["curve_0.png", "curve_1.png", "picture_00.jpg"]),
        ("curves", ["curve_0.png", "curve_1.png"]),
        ("none", []),
    ],
)
def test_pictures_for_a_server_of_cml_are_those_that_are_wanted(
    tmp_path: Path, wanted: str, shown: list[str]
) -> None:
    settings = {"REPORT_PUBLISH_URL": "https://pictures.example.org", "REPORT_PICTURES": wanted}
    (tmp_path / "report.md").write_text(REPORT)
    post(tmp_path / "report.md", stand_in(tmp_path, "cml") | settings)
    assert re.findall(r"!\[[^]]*\]\((\S+)\)", (tmp_path / "comment.md").read_text()) == shown


def test_post_that_cml_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("text\n")
    with pytest.raises(DeliveryError, match=r"cml comment update .* failed"):
        post(tmp_path / "report.md", stand_in(tmp_path, "cml", code=1))


REPORT = """## Experiment

### Curves

![Loss](curve_0.png) ![ROC](curve_1.png)

### Test pictures

<details><summary>1 worst</summary>

Picture, truth, answer (green: found, orange: missed, magenta: false alarm).

`tile 7`, sound: accept

![tile 7](picture_00.jpg)

</details>
"""


def test_comment_shows_pictures_by_their_address_and_curves_at_half_their_size() -> None:
    names = ("curve_0.png", "curve_1.png", "picture_00.jpg")
    text = comment_of(REPORT, {name: f"https://h/{name}" for name in names}, {})
    assert '<img src="https://h/curve_0.png" alt="Loss" width="360"> <img' in text
    assert "![tile 7](https://h/picture_00.jpg)" in text
    assert "artifact" not in text


def test_comment_without_pictures_keeps_captions_and_says_where_they_are() -> None:
    run = {"GITHUB_RUN_ID": "5", "GITHUB_REPOSITORY": "me/tiles"}
    text = comment_of(REPORT, {}, run)
    assert "`tile 7`, sound: accept" in text
    assert "Curves" not in text
    assert "Picture, truth" not in text
    assert "_00.jpg" not in text
    where = "https://github.com/me/tiles/actions/runs/5#artifacts"
    assert text.endswith(f"3 pictures: the artifact `report` of [this run]({where}).\n")
    job = {"CI_JOB_URL": "https://gitlab.example.org/j/3"}
    assert "[this job](https://gitlab.example.org/j/3/artifacts/browse)" in comment_of(
        REPORT, {}, job
    )


def test_comment_longer_than_a_forge_takes_ends_before_a_section_and_says_so() -> None:
    long = f"## Head\n\n### Figures\n\nrows\n\n### Rest\n\n{'x' * 70_000}\n"
    text = comment_of(long, {}, {})
    assert (
        text
        == "## Head\n\n### Figures\n\nrows\n\nThe whole report: the artifact `report` of the run.\n"
    )


def test_comment_that_wants_unknown_pictures_names_the_choices(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text(REPORT)
    environ = stand_in(tmp_path, "cml") | {"REPORT_PICTURES": "some"}
    with pytest.raises(DeliveryError, match="'some'; expected one of auto, all, curves, none"):
        post(tmp_path / "report.md", environ)


def test_pictures_of_another_model_or_split_than_the_figures_are_not_shown(tmp_path: Path) -> None:
    arguments = argparse.Namespace(model="m.onnx", split="split.json")
    sample = Sample("a", "free", tmp_path / "a.png", None, group=0)

    def model(_picture: Path) -> Any:  # noqa: ANN401 - a stand-in of Segmentation
        return SimpleNamespace(score=0.5)

    stand_in: Any = model

    def lack(scores: dict[str, float], *settings: str) -> str:
        return report_verb._lack(
            arguments, load_params(None, settings), {"a": sample}, scores, stand_in
        )

    assert lack({"a": 0.51}) == ""
    assert lack({"a": 0.2, "b": 0.5}) == "b was scored, and split.json lacks it"
    assert "another model than m.onnx, which gives a the score 0.500, not 0.2" in lack({"a": 0.2})
    assert lack({"a": 0.2}, "evaluate.protocol=P1") == ""
