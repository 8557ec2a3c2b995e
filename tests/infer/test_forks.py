"""Real forks, each in a process of its own: what hangs there ends by its alarm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
]

_START = """
import faulthandler, multiprocessing as mp, os, signal, sys, threading, time, warnings
import numpy as np
import magtiles_seg
from magtiles_seg import InferenceError, LineScanSegmenter, Segmenter
warnings.simplefilter("ignore")
MODEL = os.environ["MODEL"]
IMAGE = np.random.default_rng(0).integers(0, 255, (96, 96), np.uint8)

def forked(work, leave=sys.exit):
    if (pid := os.fork()) == 0:
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(30)
        work()
        leave(0)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status
"""


def run(script: str, model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _START + script],
        env={**os.environ, "MODEL": str(model), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_segment_in_parent_and_forked_children_answers_and_ends(model: Path) -> None:
    script = """
expected = magtiles_seg.segment(IMAGE).score
def work():
    assert magtiles_seg.segment(IMAGE).score == expected
for leave in (sys.exit, sys.exit, os._exit):
    forked(work, leave)
forked(lambda: forked(work))  # a child of a child
forked(lambda: None)  # one that uses nothing still frees nothing
"""
    run(script, model)


def test_segment_in_parent_and_pool_of_forked_workers_answers(model: Path) -> None:
    script = """
from concurrent.futures import ProcessPoolExecutor
def work(_):
    return magtiles_seg.segment(IMAGE).score
expected = work(0)
context = mp.get_context("fork")
with context.Pool(2) as pool:
    assert pool.map_async(work, range(4)).get(timeout=40) == [expected] * 4
with ProcessPoolExecutor(2, mp_context=context) as pool:
    assert list(pool.map(work, range(4), timeout=40)) == [expected] * 4
"""
    run(script, model)


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_segmenter_used_on_both_sides_of_a_fork_answers_the_same(
    backend: str, model: Path, checkpoint: Path
) -> None:
    script = """
os.chdir(os.path.dirname(MODEL))
segmenter = Segmenter(os.path.basename(MODEL), flips=True, threads=2)
expected = segmenter(IMAGE).probability
def work():
    os.chdir("/")  # the path was relative
    assert np.abs(segmenter(IMAGE).probability - expected).max() < 1e-5
    web = LineScanSegmenter(96, segmenter)
    web.push(IMAGE); web.close()
    segmenter.close(); segmenter.close()
    try: segmenter(IMAGE)
    except InferenceError as error: assert "closed" in str(error)
    else: raise AssertionError
forked(work)
def drop():
    global segmenter
    del segmenter
forked(drop)
assert np.abs(segmenter(IMAGE).probability - expected).max() < 1e-5
segmenter.close()
def closed():
    try: segmenter(IMAGE)
    except InferenceError as error: assert "closed" in str(error)
    else: raise AssertionError
forked(closed)
"""
    run(script, model if backend == "onnxruntime" else checkpoint)


@pytest.mark.parametrize("backend", ["onnxruntime", "eager"])
def test_fork_while_other_threads_infer_leaves_the_child_usable(
    backend: str, model: Path, checkpoint: Path
) -> None:
    script = """
segmenter = Segmenter(MODEL)
big = np.tile(IMAGE, (4, 4))
expected = segmenter(big).probability
stop = threading.Event()
def loop():
    while not stop.is_set():
        segmenter(big)
        if MODEL.endswith("onnx"): magtiles_seg.segment(IMAGE)
threads = [threading.Thread(target=loop) for _ in range(3)]
[thread.start() for thread in threads]
def work():
    assert np.abs(segmenter(big).probability - expected).max() < 1e-5
    magtiles_seg.segment(IMAGE)
try:
    for _ in range(5):
        time.sleep(0.03)
        forked(work)
finally:
    stop.set()
"""
    run(script, model if backend == "onnxruntime" else checkpoint)


def test_opencv_works_without_its_threads_in_a_forked_child_alone(model: Path) -> None:
    script = """
import cv2
Segmenter(MODEL)(IMAGE)
cv2.setNumThreads(4)
def work():
    assert cv2.getNumThreads() == 1
    cv2.connectedComponents(np.eye(512, dtype=np.uint8))
forked(work)
assert cv2.getNumThreads() == 4
"""
    run(script, model)


def test_openvino_used_before_a_fork_is_inference_error_in_the_child(model: Path) -> None:
    pytest.importorskip("openvino")
    script = """
segmenter = Segmenter(MODEL, backend="openvino")
segmenter(IMAGE)
def work():
    for call in (lambda: segmenter(IMAGE), lambda: Segmenter(MODEL, backend="openvino")):
        try: call()
        except magtiles_seg.BackendError as error: assert "before this process" in str(error)
        else: raise AssertionError
    Segmenter(MODEL)(IMAGE)
forked(work)
segmenter(IMAGE)
"""
    run(script, model)


def test_model_that_changed_before_the_fork_is_inference_error(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    script = """
segmenter = Segmenter(MODEL)
expected = segmenter(IMAGE).score
with open(MODEL, "ab") as file: file.write(b"x")
def work():
    try: segmenter(IMAGE)
    except InferenceError as error: assert "has changed since" in str(error), error
    else: raise AssertionError
forked(work)
assert segmenter(IMAGE).score == expected
"""
    run(script, copy)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_segmenter_sent_to_a_fresh_process_answers_there(
    method: str, model: Path, tmp_path: Path
) -> None:
    script = f"""
import multiprocessing as mp, sys
import numpy as np
from magtiles_seg import Segmenter
def work(segmenter, answers):
    answers.put(segmenter(np.full((64, 64), 99, np.uint8)).score)
if __name__ == "__main__":
    segmenter = Segmenter({str(model)!r}, threshold=0.4)
    context = mp.get_context({method!r})
    answers = context.Queue()
    process = context.Process(target=work, args=(segmenter, answers))
    process.start()
    assert answers.get(timeout=60) == segmenter(np.full((64, 64), 99, np.uint8)).score
    process.join(30)
    assert process.exitcode == 0
"""
    path = tmp_path / "script.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
