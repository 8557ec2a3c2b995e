from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from magtiles_seg.delivery.post import post, without_pictures
from magtiles_seg.delivery.report import Report
from magtiles_seg.delivery.revisions import Revision, git
from magtiles_seg.errors import DataError, DeliveryError
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
    assert "✅ **Improved.** `iou` is better by +0.475 (95 % interval" in text
    assert "4 tiles show a true difference of " in text
    assert "| iou | 0.350 | 0.825 | +0.475 (" in text
    assert "| miou6 | 0.430 | 0.490 |" in text
    assert "| crack | 0.350 | 0.825 |" in text
    assert "| `train.epochs` | `3` | `9` |" in text
    assert "train.seed" not in text
    assert "No pictures here." in text
    assert "![Found defects, false rejects](curve_1.svg)" in text


def test_report_of_the_same_model_does_not_improve(repository: Path) -> None:
    write(repository, [2, 5, 3, 4], epochs=3)
    assert not report_on(repository).decision.improved


def test_report_without_figures_at_the_base_leaves_the_decision_to_a_person(
    repository: Path,
) -> None:
    git("rm", "--quiet", "--cached", "results/pictures.csv", root=repository)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(*who, "commit", "--quiet", "--message", "none", root=repository)
    decision = report_on(repository).decision
    assert not decision.improved
    assert "has no scored pictures to compare with" in decision.reason


def test_report_across_protocols_is_not_compared(repository: Path) -> None:
    (repository / "results/metrics.json").write_text('{"protocol": "P1"}')
    assert "protocol P1 here, T at dev" in report_on(repository).decision.reason


def test_report_before_evaluate_names_the_fix(repository: Path) -> None:
    (repository / "results/pictures.csv").unlink()
    with pytest.raises(DataError, match="run `dvc repro` first"):
        report_on(repository)


def test_report_shows_tables_of_parity_and_speed_where_they_are(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "results/parity.json").write_text('{"fp16": {"dice": 0.9998}}')
    text = report_on(repository).write(tmp_path / "out").read_text()
    assert "### Parity" in text
    assert "| `fp16.dice` | 0.9998 |" in text
    assert "### Speed" not in text


def test_report_shows_twenty_pictures_at_most_as_files(repository: Path, tmp_path: Path) -> None:
    grey = np.full((4, 8, 3), 99, np.uint8)
    text = report_on(repository).write(tmp_path / "out", show=lambda _: grey).read_text()
    files = sorted((tmp_path / "out").glob("picture_*.png"))
    assert len(files) == 8  # there are no more
    assert all(path.name in text for path in files)
    shown = cv2.imread(str(files[0]))
    assert shown is not None
    assert shown.shape == (4, 8, 3)


@pytest.mark.parametrize("newly", [(), ("a0", "a1"), tuple(f"a{n}" for n in range(30))])
def test_choose_gives_twenty_different_pictures(newly: tuple[str, ...]) -> None:
    from magtiles_seg.evaluate.compare import read_pictures

    rows = [f"a{n},crack,{n},{n % 10},0,{10 - n % 10},90,0.5,reject" for n in range(40)]
    groups = select_pictures(read_pictures(HEADER + "\n".join(rows)), newly)
    chosen = [one for group in groups.values() for one in group]
    assert len(chosen) == len(set(chosen)) == 20
    assert groups["newly wrong"] == list(newly[:6])
    assert len(groups["worst"]) == 8


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


def test_line_chart_is_wellformed_and_names_its_lines() -> None:
    lines = {"base": [(0.0, 0.1), (1.0, 0.5)], "<here>": [(0.0, 0.2), (1.0, 0.9)]}
    text = charts.line_chart("Recall & more", lines, x_label="x", y_label="y")
    assert text is not None
    root = ElementTree.fromstring(text)
    words = [node.text for node in root.iter() if node.text]
    assert {"Recall & more", "base", "<here>", "0.2"} <= set(words)


def test_line_chart_without_points_is_none() -> None:
    assert charts.line_chart("t", {"base": []}, x_label="x", y_label="y") is None


def test_read_points_leaves_out_what_is_no_number() -> None:
    assert charts.read_points("step\tloss\n0\t1.5\n1\tnan\n2\t\n", "step", "loss") == [(0.0, 1.5)]


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
    assert words[-1] == str(tmp_path / ("report.md" if address else "comment.md"))
    assert ("--publish=false" in words) == (not address)


def test_post_that_cml_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("text\n")
    with pytest.raises(DeliveryError, match=r"cml comment update .* failed"):
        post(tmp_path / "report.md", stand_in(tmp_path, "cml", code=1))


def test_without_pictures_keeps_names_and_says_where_they_are() -> None:
    text = without_pictures("a\n\n![tile 7](p.png)\n", {})
    assert "*tile 7*" in text
    assert "p.png" not in text
    assert "artifact `report`" in text
