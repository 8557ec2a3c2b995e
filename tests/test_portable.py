"""What runs here on Linux alone is held to what Windows and macOS have."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "magtiles_seg"
POSIX_ALONE = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty", "pty"}
ON_ALL_SYSTEMS = ("infer", "serve", "batch", "linescan", "commands", "dataset", "decoding")
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A stand-in of Windows: no POSIX modules, and neither the signals nor the functions of its `os`.
WITHOUT_POSIX = f"""
import os, signal, sys
for name in {sorted(POSIX_ALONE - {"posix"})!r}:
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "setitimer", "ITIMER_PROF"):
    delattr(signal, name)
for name in ("fork", "getuid", "geteuid", "killpg", "getpgid", "setsid", "sched_getaffinity"):
    delattr(os, name)
"""
IMPORT_ALL = """
import importlib, pkgutil, magtiles_seg
for found in pkgutil.walk_packages(magtiles_seg.__path__, "magtiles_seg."):
    parts = found.name.split(".")
    if (len(parts) == 2 or parts[1] in WANTED) and parts[-1] not in ELSEWHERE:
        try:
            importlib.import_module(found.name)
        except ImportError as error:
            if (error.name or "").split(".")[0] in OPTIONAL:
                continue
            raise
"""
ELSEWHERE = ("ray_engine", "demo")  # Ray and Gradio load what this system has
OPTIONAL = ("torch", "ray", "onnx", "tensorrt", "tensorrt_rtx", "uvloop", "pypylon")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_every_module_of_the_portable_parts_imports_without_posix() -> None:
    names = f"WANTED, OPTIONAL = {ON_ALL_SYSTEMS!r}, {OPTIONAL!r}\nELSEWHERE = {ELSEWHERE!r}\n"
    # The standard library and the packages below are loaded first: only ours is under test.
    before = "import asyncio, multiprocessing, subprocess, tempfile, importlib, pkgutil\n"
    before += "import cv2, numpy, onnxruntime, filelock, magtiles_seg.serve.app\n"
    forget = "import sys\nfor name in [*sys.modules]:\n"
    forget += "    if name.split('.')[0] == 'magtiles_seg': del sys.modules[name]\n"
    ran = run_python(before + forget + WITHOUT_POSIX + names + IMPORT_ALL)
    assert ran.returncode == 0, ran.stderr


def test_picture_is_segmented_and_saved_without_posix(tmp_path: Path) -> None:
    code = "import cv2, numpy, onnxruntime, filelock, multiprocessing, subprocess\n" + WITHOUT_POSIX
    code += "import magtiles_seg\nfrom magtiles_seg.dataset.synthetic import synthetic_tile\n"
    code += "tile = synthetic_tile(0, defect='fray', size_hw=(96, 80)).image\n"
    code += f"magtiles_seg.segment(tile).save({str(tmp_path)!r}, stem='tile')\n"
    ran = run_python(code)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        f"tile_{name}"
        for name in ("mask.png", "overlay.png", "panel.png", "probability.png", "result.json")
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_nothing_of_posix_at_its_top(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in tree.body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not names & POSIX_ALONE


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_text_file_is_opened_with_its_encoding_named(path: Path) -> None:
    """Windows would take the user's code page."""
    unnamed = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _opens_text(node)
    ]
    assert not unnamed, f"{path}: lines {unnamed}"


def _opens_text(call: ast.Call) -> bool:
    """Tell whether a call opens a text file by the coding of the system."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
        return False
    words = [one.value for one in call.args if isinstance(one, ast.Constant)]
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    modes = [*words, *(one.value.value for one in call.keywords
                       if one.arg == "mode" and isinstance(one.value, ast.Constant))]  # fmt: skip
    is_text = any(isinstance(mode, str) and mode in ("r", "w", "a", "x", "rt") for mode in modes)
    return name == "open" and is_text


def test_pythons_own_warning_of_an_unnamed_encoding_is_silent(tmp_path: Path) -> None:
    code = "import magtiles_seg, sys\nfrom magtiles_seg.cli import main\nsys.exit(main(['info']))"
    ran = subprocess.run(
        [
            sys.executable,
            "-X",
            "warn_default_encoding",
            "-W",
            "always::EncodingWarning",
            "-c",
            code,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 0
    assert "magtiles_seg" not in "".join(
        line for line in ran.stderr.splitlines() if "EncodingWarning" in line
    )
