"""Builds the page that segments in the browser, without a server: `python examples/web/build.py`.

The page, the model, its settings and onnxruntime-web come to lie in one folder, which any web
server can hand out. `npm ci --prefix examples/web` fetches the runtime before.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from magtiles_seg.dataset.synthetic import synthetic_tile
from magtiles_seg.errors import BackendUnavailableError, MagtilesError
from magtiles_seg.files import encode_png, sha256_of
from magtiles_seg.infer.backends.base import read_model
from magtiles_seg.infer.backends.ort import OrtBackend
from magtiles_seg.labels import color_rgb
from magtiles_seg.model.bundled import BUNDLED_MODEL
from magtiles_seg.regions import DEFECT_COLUMNS

WEB = Path(__file__).parent
PAGE = (
    "index.html", "style.css", "icon.svg", "page.webmanifest", "app.js", "decide.js", "draw.js",
    "model.js", "pixels.js",
)  # fmt: skip
_RUNTIME = WEB / "node_modules" / "onnxruntime-web"
_CPU = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_GPU = (
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip


def build(out: Path, model: Path = BUNDLED_MODEL) -> None:
    """Write the page into a folder.

    Args:
        out: Made where it does not exist; files of an older page are replaced.
        model: An ONNX file that `magtiles-seg export` wrote.

    Raises:
        BackendUnavailableError: onnxruntime-web has not been fetched.
        FileNotFoundError: There is no such model.
        ModelError: The model is damaged, or none of this package.
    """
    if not _RUNTIME.is_dir():
        raise BackendUnavailableError("onnxruntime-web is not here: npm ci --prefix examples/web")
    version = json.loads((_RUNTIME / "package.json").read_text(encoding="utf-8"))["version"]
    runtime = f"ort-{version}"
    content, about = read_model(model), _about(model, runtime)  # before anything is written
    (out / runtime).mkdir(parents=True, exist_ok=True)
    for name in (*_CPU, *_GPU):
        shutil.copyfile(_RUNTIME / "dist" / name, out / runtime / name)
    for name in (*PAGE, "sw.js"):
        shutil.copyfile(WEB / name, out / name)
    (out / "model.onnx").write_bytes(content)
    (out / "model.json").write_text(about, encoding="utf-8")
    example = synthetic_tile(3, defect="blowhole", exposure=3).image
    (out / "example.png").write_bytes(encode_png(example))
    _write_files(out, [*PAGE, "model.onnx", "model.json", "example.png",
                       *(f"{runtime}/{name}" for name in _CPU)])  # fmt: skip


def _about(model: Path, runtime: str) -> str:
    """Return what the page needs to know of the model, as JSON."""
    backend = OrtBackend(model)
    spec = backend.spec
    backend.close()
    colours = ["#{:02x}{:02x}{:02x}".format(*color_rgb(i)) for i in range(len(spec.card.labels))]
    about = {
        "name": spec.card.name,
        "sha256": spec.sha256,
        "file": "model.onnx",
        "runtime": runtime,
        "labels": spec.card.labels,
        "colours": colours,
        "columns": DEFECT_COLUMNS,
        "decision": spec.card.decision.to_dict(),
    }
    return json.dumps(about, indent=2)


def _write_files(out: Path, kept: list[str]) -> None:
    """Write files.js: what the service worker keeps, the version, and the page's policy."""
    digests = [sha256_of((out / name).read_bytes()) for name in [*kept, "sw.js"]]
    version = sha256_of("".join(digests).encode())[:16]
    policy = (WEB / "index.html").read_text(encoding="utf-8").split('Policy" content="')[1]
    values = {"FILES": ["./", *kept], "VERSION": version, "POLICY": policy.split('"')[0]}
    lines = (f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    (out / "files.js").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the page that segments in the browser.")
    parser.add_argument("out", type=Path, nargs="?", default=Path("site/web"))
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    words = parser.parse_args()
    try:
        build(words.out, words.model)
    except (MagtilesError, OSError) as error:
        parser.error(str(error))
    print(f"{words.out}: to look at it, python -m http.server --directory {words.out}")
