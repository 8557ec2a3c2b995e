"""The C++ example is built by g++ and judges as the library does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from magtiles_seg import Segmenter
from magtiles_seg.dataset.synthetic import DEFECTS, synthetic_tile
from magtiles_seg.model.bundled import BUNDLED_MODEL

pytest.importorskip("onnx")

from magtiles_seg.export.decision_graph import with_decision

SOURCE = Path(__file__).parents[1] / "examples" / "cpp" / "judge.cpp"
HEADER = "onnxruntime_cxx_api.h"
HEADERS = [
    Path(os.environ.get("ONNXRUNTIME_INCLUDE_DIR", "/nowhere")),
    Path("/usr/include/onnxruntime"),
    Path("/usr/local/include/onnxruntime"),
]
LIBRARIES = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the example, built against the wheel's library."""
    include = next((folder for folder in HEADERS if (folder / HEADER).is_file()), None)
    if shutil.which("g++") is None or include is None or not LIBRARIES:
        pytest.skip(
            f"needs g++, {HEADER} (Debian 13: libonnxruntime-dev, or ONNXRUNTIME_INCLUDE_DIR) and "
            "a wheel of onnxruntime with its library"
        )
    path = tmp_path_factory.mktemp("cpp") / "judge"
    library = path.with_name("libonnxruntime.so.1")  # its own name, which the wheel leaves out
    library.symlink_to(LIBRARIES[-1])
    link = [str(library), f"-Wl,-rpath,{library.parent}"]
    words = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(include)]
    subprocess.run([*words, "-o", str(path), str(SOURCE), *link], check=True)
    return path


@pytest.fixture(scope="module")
def deciding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the bundled model with the decision in its graph."""
    path = tmp_path_factory.mktemp("cpp") / "model.onnx"
    path.write_bytes(with_decision(BUNDLED_MODEL.read_bytes()))
    return path


def write_pgm(path: Path, image: NDArray[np.uint8]) -> None:
    head = f"P5\n# a comment\n{image.shape[1]} {image.shape[0]}\n255\n"
    path.write_bytes(head.encode() + image.tobytes())


def read_mask(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(path.read_bytes()[-int(np.prod(shape)) :], np.uint8).reshape(shape) // 255


def judge(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, words)], capture_output=True, text=True, check=False
    )


def check_as_library(program: Path, model: Path, folder: Path, count: int) -> None:
    labels = (None, *DEFECTS)
    images = {
        folder / f"{seed}.pgm": synthetic_tile(
            seed, defect=labels[seed % len(labels)], exposure=seed % 6 + 1
        ).image
        for seed in range(count)
    }
    for path, image in images.items():
        write_pgm(path, image)
    done = judge(program, model, *images)
    assert done.stderr == ""
    found = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    with Segmenter(model, threads=1, min_area_px=1) as segmenter:
        for (path, image), (named, verdict, score) in zip(images.items(), found, strict=True):
            expected = segmenter(image)
            assert named == str(path)
            assert verdict == expected.verdict
            assert float(score) == pytest.approx(expected.score, abs=1e-5)
            assert (read_mask(Path(f"{path}.mask.pgm"), image.shape) == expected.mask).all()
    verdicts = {verdict for _, verdict, _ in found}
    assert verdicts == {"accept", "reject"}
    assert done.returncode == 1


def test_program_gives_masks_scores_and_verdicts_of_the_library(
    program: Path, deciding: Path, tmp_path: Path
) -> None:
    check_as_library(program, deciding, tmp_path, 12)


@pytest.mark.endurance
def test_program_agrees_with_the_library_on_a_hundred_pictures(
    program: Path, deciding: Path, tmp_path: Path
) -> None:
    check_as_library(program, deciding, tmp_path, 100)


def test_program_refuses_a_model_that_does_not_decide(program: Path, tmp_path: Path) -> None:
    write_pgm(tmp_path / "a.pgm", np.zeros((40, 40), np.uint8))
    done = judge(program, BUNDLED_MODEL, tmp_path / "a.pgm")
    assert done.returncode == 2
    assert "export it with --with-decision" in done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"P6\n40 40\n255\n", "no binary PGM"),
        (b"P5\n40 forty\n255\n", "header is damaged"),
        (b"P5\n40 40\n65535\n", "8 bits a pixel"),
        (b"P5\n40 31\n255\n" + bytes(1240), "sides of 32"),
        (b"P5\n40 40\n255\n" + bytes(1599), "ends too early"),
    ],
)
def test_program_says_what_is_wrong_with_a_picture(
    content: bytes, reason: str, program: Path, deciding: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.pgm").write_bytes(content)
    done = judge(program, deciding, tmp_path / "a.pgm")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{tmp_path / 'a.pgm'}: ")
    assert reason in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_program_whose_verdicts_cannot_be_written_ends_with_an_error(
    program: Path, deciding: Path, tmp_path: Path
) -> None:
    write_pgm(tmp_path / "a.pgm", np.zeros((40, 40), np.uint8))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [str(program), str(deciding), str(tmp_path / "a.pgm")],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "the verdicts cannot be written" in done.stderr
