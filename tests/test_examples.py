from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from magtiles_seg.dataset.synthetic import write_dataset

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_runs_and_shows_something(
    example: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "magtiles_seg.bench.run" in example.read_text(encoding="utf-8"):
        pytest.importorskip("torch")
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def example_called(name: str) -> str:
    return str(EXAMPLES[0].with_name(name))


def test_clients_tell_why_a_service_refuses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("httpx")

    asked: set[str] = set()

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.add(self.path.split("?")[0])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        monkeypatch.setenv("URL", f"http://127.0.0.1:{service.server_port}/")
        with pytest.raises(SystemExit, match=r"no answer of http://.*401 Unauthorized"):
            runpy.run_path(example_called("06_call_api.py"), run_name="__main__")
        runpy.run_path(example_called("07_line_pc.py"), run_name="__main__")
        service.shutdown()
    assert asked == {"/analyze"}  # a slash at the end of the address is one
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("review (") and "401 Unauthorized" in line for line in lines)


def test_other_thresholds_show_a_tile_in_the_review_band(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(example_called("03_decide.py"), run_name="__main__")
    assert "that a person looks at: review" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["abc", "0", "-1", "1.5"])
def test_bench_example_refuses_rounds_that_are_no_number_of_turns(
    word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["04_bench.py", word])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(example_called("04_bench.py"), run_name="__main__")
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("04_bench.py: error: ")
    assert word in last


@pytest.mark.parametrize("word", ["x", "0", "-3", "1.5"])
def test_web_example_refuses_tiles_that_are_no_number_of_tiles(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILES", word)
    with pytest.raises(SystemExit, match=f"TILES={word}: expected a whole number, at least 1"):
        runpy.run_path(example_called("05_stream_web.py"), run_name="__main__")


@pytest.mark.parametrize(("url", "reason"), [("foo", "missing an 'http"), ("http://[::1", "port")])
def test_client_says_of_an_address_that_is_none_what_is_wrong(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("httpx")
    monkeypatch.setenv("URL", url)
    with pytest.raises(SystemExit, match=f"no answer of .*{reason}"):
        runpy.run_path(example_called("06_call_api.py"), run_name="__main__")


def test_mqtt_example_refuses_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("paho.mqtt.client")
    monkeypatch.setenv("BROKER", "foo")
    with pytest.raises(SystemExit, match="foo is no address of a receiver"):
        runpy.run_path(example_called("09_mqtt.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("name", "variable"),
    [("05_stream_web.py", "TILES"), ("06_call_api.py", "URL"), ("07_line_pc.py", "URL"),
     ("09_mqtt.py", "BROKER")],
)  # fmt: skip
def test_example_takes_an_empty_variable_as_unset(
    name: str, variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in {"URL": ("httpx", "uvicorn"), "BROKER": ("amqtt", "paho.mqtt.client")}.get(
        variable, ()
    ):
        pytest.importorskip(module)
    monkeypatch.setenv(variable, "")
    runpy.run_path(example_called(name), run_name="__main__")
    assert "review (" not in capsys.readouterr().out


def test_mqtt_example_leaves_nothing_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("amqtt")
    pytest.importorskip("paho.mqtt.client")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runpy.run_path(example_called("09_mqtt.py"), run_name="__main__")
    assert not list(tmp_path.iterdir())


def test_mqtt_example_without_the_broker_it_begins_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("BROKER", raising=False)
    monkeypatch.setitem(sys.modules, "amqtt.scripts", None)
    with pytest.raises(ModuleNotFoundError, match="amqtt"):
        runpy.run_path(example_called("09_mqtt.py"), run_name="__main__")


def test_broker_of_the_mqtt_example_ends_where_the_example_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("amqtt")
    pytest.importorskip("paho.mqtt.client")
    real, begun = subprocess.Popen, list[Any]()

    def begin(*_: object, **__: object) -> Any:  # noqa: ANN401  (a process)
        begun.append(real([sys.executable, "-c", "import time; time.sleep(60)"]))
        return begun[0]

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no door")

    monkeypatch.setattr("magtiles_seg.linescan.plant.address.open_door", fail)
    monkeypatch.setattr("subprocess.Popen", begin)
    with pytest.raises(RuntimeError, match="no door"):
        runpy.run_path(example_called("09_mqtt.py"), run_name="__main__")
    assert begun[0].poll() is not None


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_is_numbered_explained_and_at_most_40_lines(example: Path) -> None:
    lines = example.read_text(encoding="utf-8").splitlines()
    assert example.name[:2].isdigit()
    assert lines[0].startswith('"""')
    assert len(lines) <= 40


def test_web_page_of_a_model_that_is_none_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = EXAMPLES[0].parent / "web" / "build.py"
    web = tmp_path / "web"  # with a runtime that need not be fetched
    runtime = web / "node_modules" / "onnxruntime-web"
    web.mkdir()
    (web / "build.py").write_bytes(build.read_bytes())
    for reason in ("npm ci", "no model file at nowhere.onnx"):
        monkeypatch.setattr(sys, "argv", ["build.py", "page", "--model", "nowhere.onnx"])
        with pytest.raises(SystemExit, match="2"):
            runpy.run_path(str(web / "build.py"), run_name="__main__")
        assert reason in capsys.readouterr().err
        assert not Path("page").exists()
        runtime.mkdir(parents=True, exist_ok=True)
        (runtime / "package.json").write_text('{"version": "1"}', encoding="utf-8")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
def test_notebook_runs_from_top_to_bottom_and_is_kept_without_outputs() -> None:
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES[0].with_name("explore.ipynb"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in code)
    nbclient.NotebookClient(notebook, timeout=120).execute()
    assert all(cell.outputs for cell in code)


def test_notebook_shows_exposures_whose_heights_differ_as_the_public_ones_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write_uneven(folder: Path, *, tiles: int, seed: int) -> None:
        write_dataset(folder, tiles=tiles, seed=seed)
        for path in folder.rglob("exp2_*"):  # picture and mask
            with Image.open(path) as picture:
                shorter = picture.crop((0, 0, picture.width, picture.height - 1))
            shorter.save(path)

    monkeypatch.setattr("magtiles_seg.dataset.synthetic.write_dataset", write_uneven)
    notebook = json.loads(EXAMPLES[0].with_name("explore.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    namespace: dict[str, Any] = {}
    for source in code:
        exec(source, namespace)  # a cell
    assert namespace["result"].verdict in {"accept", "review", "reject"}


def test_demo_finds_the_drawn_defect_and_rejects_the_tile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runpy.run_path(str(EXAMPLES[0]), run_name="__main__")
    assert "verdict: reject" in capsys.readouterr().out
    mask = np.asarray(Image.open(tmp_path / "out" / "tile_mask.png"))
    assert mask.any()
