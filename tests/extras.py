"""Every extra in a fresh environment: does it install, and does its verb do its first job?

Not part of pytest: it takes hours and gigabytes. `python tests/extras.py WHEEL --out table.json`
goes on where it stopped, and prints the table of docs/runtime.md. Without a GPU, a camera or a PLC
a verb may refuse: then by an error of ours (exit code 2), never by a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PORT = "8765"
SYNTHETIC = "--set data_load.source=synthetic:tiles=10,seed=1 --set data_load.checksums=null"
SMALL = f"{SYNTHETIC} --set train.architecture=nano --set train.pretrained=false"
TRAIN = f"train {SMALL} --set train.epochs=1 --set train.pictures_per_epoch=8"

JOBS: dict[str, tuple[str, ...]] = {
    "": ("magtiles-seg segment tile.png",),
    "openvino": ("magtiles-seg segment tile.png --backend openvino",),
    "tensorrt": ("magtiles-seg info --model line.engine",),
    "rtx": ("magtiles-seg info --model line.engine",),
    "rtx,export": (
        "magtiles-seg export --to rtx --precision fp16 --compute-capability SM86 --out made",
    ),
    "train": (
        f"magtiles-seg data load {SYNTHETIC}",
        f"magtiles-seg data split {SYNTHETIC}",
        f"magtiles-seg {TRAIN}",
    ),
    "export": ("magtiles-seg export --to onnx --precision fp16 --out made",),
    "pipeline": ("dvc --version", "gto --version", "magtiles-seg promote"),
    "serve": (f"serve: magtiles-seg serve --port {PORT}",),
    "plant": (
        "magtiles-seg stream synthetic:tiles=2,width=512 --out web --records parquet "
        "--metrics-port 8764",
    ),
    "demo": (f"serve: magtiles-seg demo --port {PORT}",),
    "batch": ("magtiles-seg batch shots --out rows",),
    "ray": ("magtiles-seg batch shots --out rows --engine ray --workers 1",),
    "camera": ("magtiles-seg stream genicam:missing.cti", "python -c import\tpypylon.pylon"),
    "docs": (f"sphinx-build -q -b html {ROOT / 'docs'} site",),
    "dev": (f"python -m pytest -q -p no:cacheprovider {ROOT / 'tests/test_labels.py'}",),
}
"""What an extra is for, as its first job; `serve:` starts a server, and asks it for a page."""

TORCH = {"train", "export", "rtx,export"}
"""Where torch comes first, in its CPU build, as the README says."""


@dataclass(frozen=True)
class Row:
    """One environment."""

    python: str
    extra: str
    constraints: bool
    installed: str
    job: str
    seconds: int
    megabytes: int


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable])
    parser.add_argument("--extras", nargs="+", default=list(JOBS))
    parser.add_argument("--constraints", choices=("with", "without", "both"), default="both")
    words = parser.parse_args()
    rows = [Row(**row) for row in json.loads(words.out.read_text())] if words.out.exists() else []
    kinds = {"with": [True], "without": [False], "both": [True, False]}[words.constraints]
    for python in words.pythons:
        version = output(python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        for extra in words.extras:
            for constrained in kinds:
                if any(
                    (r.python, r.extra, r.constraints) == (version, extra, constrained)
                    for r in rows
                ):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(
                        tried(Path(folder), python, version, words.wheel, extra, constrained)
                    )
                words.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
                print(rows[-1], flush=True)
    print(table(rows))


def tried(
    folder: Path, python: str, version: str, wheel: Path, extra: str, constrained: bool
) -> Row:
    """Install an extra and do its first job."""
    started = time.monotonic()
    subprocess.run([python, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    here = str(folder / "venv/bin/python")
    pip = [sys.executable, "-m", "pip", "--python", here, "install", "-q", "--no-compile"]
    bound = ["-c", str(ROOT / "constraints.txt")] if constrained else []
    target = f"{wheel.resolve()}[{extra}]" if extra else str(wheel.resolve())
    steps = [[*pip, "--no-deps", "torch==2.13.0"]] if extra in TORCH else []
    installed, job = "yes", "-"
    for step in [*steps, [*pip, *bound, target]]:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            installed = f"no: {reason(done.stderr)}"
            break
    else:
        prepare(folder, extra)
        for words in JOBS[extra]:
            job = answer(folder, words)
            if job != "done":
                break
    size = sum(path.lstat().st_size for path in (folder / "venv").rglob("*"))
    seconds = round(time.monotonic() - started)
    return Row(version, extra, constrained, installed, job, seconds, size // 10**6)


def prepare(folder: Path, extra: str) -> None:
    """Lay the pictures, and an engine whose manifest names the runtime, that the jobs are about."""
    script = """
import sys
from pathlib import Path
from PIL import Image
from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.infer.manifest import Manifest, local_environment
from magtiles_seg.infer.segmenter import Segmenter
Path("shots").mkdir()
for path in ("tile.png", "shots/tile.png"):
    Image.fromarray(synthetic_tile(1, defect="blowhole").image).save(path)
Path("line.engine").write_bytes(b"engine")
with Segmenter() as segmenter:
    card = segmenter.spec.card
Manifest(sha256="", onnx_sha256="", precision="fp16", card=card,
         environment=local_environment(sys.argv[1])).write("line.engine")
"""
    runtime = "tensorrt-rtx" if "rtx" in extra else "tensorrt"
    subprocess.run([folder / "venv/bin/python", "-c", script, runtime], cwd=folder, check=True)


def answer(folder: Path, words: str) -> str:
    """Return `done`, the error of ours, or what went wrong."""
    parts = [part.replace("\t", " ") for part in words.removeprefix("serve: ").split(" ")]
    environment = {**os.environ, "PATH": f"{folder}/venv/bin:{os.environ['PATH']}"}
    environment["MAGTILES_CONFIG"] = str(folder / "none.json")
    if words.startswith("serve: "):
        return served(folder, parts, environment)
    done = subprocess.run(
        parts, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    last = reason(done.stderr)
    if "Traceback" in done.stderr or done.returncode not in (0, 1, 2):
        return f"FAILED ({done.returncode}): {last}"
    if done.returncode == 2 and "magtiles-seg: " in done.stderr:
        return f"own error: {last}"
    segments = "segment" in parts and done.returncode == 1  # the tile is rejected
    return "done" if done.returncode == 0 or segments else f"FAILED ({done.returncode}): {last}"


def served(folder: Path, parts: list[str], environment: dict[str, str]) -> str:
    """Start a server, get a page, stop it."""
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(parts, cwd=folder, env=environment, stderr=log, stdout=log)
    page = "/" if "demo" in parts else "/readyz"
    try:
        for _ in range(600):
            time.sleep(1)
            if server.poll() is not None:
                return f"FAILED ({server.returncode}): {reason((folder / 'log').read_text())}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{page}", timeout=5) as reply:
                    return "done" if reply.status == 200 else f"FAILED: {reply.status}"
            except OSError:
                continue
        return "FAILED: no answer in ten minutes"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def reason(text: str) -> str:
    """Return the line of an error that says what it is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("magtiles-seg: ")]
    named = [line for line in lines if "Error" in line or line.startswith("ERROR")]
    return (ours or named or lines or [""])[-1][:300]


def output(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown, those with and without constraints as one where they agree."""
    head = ("extra", "Python", "constraints", "installs", "first job", "MB")
    merged: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        merged.setdefault((row.extra, row.python, row.installed, row.job), []).append(row)
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---:|"]
    for (extra, python, installed, job), alike in merged.items():
        name = f"`{extra}`" if extra else "none"
        bound = " and ".join("with" if row.constraints else "without" for row in alike)
        most = max(row.megabytes for row in alike)
        lines.append(f"| {name} | {python} | {bound} | {installed} | {job} | {most} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
