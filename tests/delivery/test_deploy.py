from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from plant import free_port

from magtiles_seg import Segmenter
from magtiles_seg.cli import main
from magtiles_seg.delivery.deploy import Undone, deploy
from magtiles_seg.delivery.local import LocalTarget
from magtiles_seg.delivery.plan import PREVIOUS, Command, CommandTarget, Plan, Step
from magtiles_seg.delivery.smoke import (
    Expectation,
    SmokeReport,
    await_ready,
    golden_tile,
    served_model,
    smoke,
)
from magtiles_seg.delivery.targets import PLANS
from magtiles_seg.errors import ConfigError, DeliveryError
from magtiles_seg.infer.backends.base import file_sha256

HEROKU = {"DEPLOY_APP": "tiles-dev", "HEROKU_API_KEY": "very-secret"}
FLY = {"DEPLOY_APP": "tiles-dev", "FLY_API_TOKEN": "very-secret"}
SSH = {"DEPLOY_HOST": "me@line", "DEPLOY_URL": "http://line:8000"}


MACHINE = '{"Registry": "r", "Repository": "a", "Tag": "t", "Digest": "sha256:%d"}'

SIGNALLED = """
import signal, sys
from magtiles_seg.cli import main
from magtiles_seg.delivery.deploy import Undone
from magtiles_seg.delivery.local import LocalTarget

def release(_target):
    signal.raise_signal(signal.SIGTERM)

def rollback(_target):
    signal.raise_signal(signal.SIGINT)
    return Undone.EMPTY

LocalTarget.release, LocalTarget.rollback = release, rollback
sys.exit(main())
"""
"""In a process of its own: behind the tests of real engines a signal crashes that of pytest."""


@contextmanager
def endpoint(
    answer: object,
    *,
    status: int = 200,
    ready: int = 200,
    sha256: str | None = "ab",
    versions: Iterable[str] = (),
) -> Iterator[str]:
    """A server that answers every picture alike, and names versions one after the other.

    A version that is a number is answered with that status; with 0 nothing is answered.
    """
    named = iter(versions)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(ready, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert b'name="image"' in body
            assert b"\x89PNG" in body
            self.version = next(named, "")
            if self.version != "0":
                code = int(self.version) if self.version.isdigit() else status
                self.reply(code, json.dumps(answer).encode())

        def reply(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("X-Model-Name", "tiny")
            if sha256 is not None:
                self.send_header("X-Model-SHA256", sha256)
            if self.command == "POST" and self.version:
                self.send_header("X-Model-Version", self.version)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        yield url


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Stage:
    """A target whose release succeeds, and which keeps what was asked of it."""

    url = "http://stage"

    def __init__(self, undone: Undone = Undone.RESTORED) -> None:
        self.asked: list[str] = []
        self._undone = undone

    def describe(self) -> str:
        return ""

    def release(self) -> None:
        self.asked.append("release")

    def rollback(self) -> Undone:
        self.asked.append("rollback")
        return self._undone


def look(_url: str, _api_key: str | None) -> str | None:
    return "ab"


def report() -> SmokeReport:
    return SmokeReport(url="", model="m", sha256="ab", version="", iou=0.9, latency_ms=1)


def test_smoke_of_the_right_answer_passes_and_says_what_is_served() -> None:
    with endpoint({"pred": golden_tile().mask.tolist()}) as url:
        found = smoke(url, Expectation())
    assert (found.model, found.sha256, found.iou) == ("tiny", "ab", 1.0)


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ({"pred": [[0, 1]]}, 200, r"shape \(1, 2\); expected"),
        ({"mask": []}, 200, "did not answer"),
        ({"pred": (golden_tile().mask * 0).tolist()}, 200, "does not see the golden tile's defect"),
        ({"pred": (golden_tile().mask * 0 + 1).tolist()}, 200, "does not see"),
        ({"pred": (golden_tile().mask * 7).tolist()}, 200, "expected zeros and ones"),
        ({"title": "broken"}, 500, "answered 500, expected 200"),
    ],
)
def test_smoke_of_a_wrong_answer_fails(answer: object, status: int, said: str) -> None:
    with endpoint(answer, status=status) as url, pytest.raises(DeliveryError, match=said):
        smoke(url, Expectation())


def test_smoke_of_another_model_fails(model: Path) -> None:
    answer = {"pred": golden_tile().mask.tolist()}
    with endpoint(answer) as url, pytest.raises(DeliveryError, match="serves another model"):
        smoke(url, Expectation(model=model, ready_s=0.1))


def test_smoke_waits_while_the_former_release_still_answers() -> None:
    answer = {"pred": golden_tile().mask.tolist()}
    versions = iter(["v1", "v1", "v2"])
    with endpoint(answer, versions=versions) as url:
        assert smoke(url, Expectation(version="v2", ready_s=5)).version == "v2"
    assert next(versions, None) is None


@pytest.mark.parametrize("between", ["0", "429", "502", "503", "504"])
def test_smoke_waits_while_one_release_takes_the_others_place(between: str) -> None:
    answer = {"pred": golden_tile().mask.tolist()}
    versions = iter(["v1", between, "v2"])
    with endpoint(answer, versions=versions) as url:
        assert smoke(url, Expectation(version="v2", ready_s=5)).version == "v2"
    said = "Remote end closed" if between == "0" else f"/analyze answered {between}, expected 200"
    with (
        endpoint(answer, versions=[between] * 1000) as url,
        pytest.raises(DeliveryError, match=said),
    ):
        smoke(url, Expectation(ready_s=0.1))


def test_smoke_of_this_machine_asks_no_proxy() -> None:
    call = [sys.executable, "-m", "magtiles_seg", "smoke", "--wait", "0"]
    environ = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    with endpoint({"pred": golden_tile().mask.tolist()}) as url:
        done = subprocess.run([*call, url], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        done = subprocess.run(
            [*call, "http://x.invalid"], env=environ, capture_output=True, text=True
        )
    assert "Connection refused" in done.stderr  # by the proxy: another machine's name goes there


@pytest.mark.parametrize("path", ["/readyz", "/analyze"])
def test_smoke_of_an_answer_without_end_fails(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magtiles_seg.delivery.smoke._REQUEST_TIMEOUT_S", 0.5)

    class Drip(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while self.path == path:
                    self.wfile.write(b"x")
                    time.sleep(0.05)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with served(Drip) as url, pytest.raises(DeliveryError, match=r"does not end within 0\.5 s"):
        smoke(url, Expectation(ready_s=0.1))


@pytest.mark.parametrize("wanted", ["model", "version"])
def test_smoke_of_an_endpoint_that_does_not_say_what_it_serves_fails(
    wanted: str, model: Path
) -> None:
    expected = Expectation(model=model, ready_s=0.1)
    if wanted == "version":
        expected = Expectation(version="v1", ready_s=0.1)
    answer = {"pred": golden_tile().mask.tolist()}
    with (
        endpoint(answer, sha256=None) as url,
        pytest.raises(DeliveryError, match=r"serves another model: .* is None, expected"),
    ):
        smoke(url, expected)


def test_smoke_of_an_endpoint_that_is_never_ready_fails() -> None:
    with endpoint({}, ready=503) as url, pytest.raises(DeliveryError, match="not ready after"):
        smoke(url, Expectation(ready_s=0.1))


def test_smoke_where_nothing_listens_fails() -> None:
    with pytest.raises(DeliveryError, match="cannot be reached"):
        smoke("http://127.0.0.1:9", Expectation(ready_s=0.1))


def test_smoke_of_the_right_file_that_answers_otherwise_than_here_fails(model: Path) -> None:
    with Segmenter(model) as segmenter:
        mask = segmenter(golden_tile().image).mask
    expected = Expectation(model=model, min_iou=0)
    with endpoint({"pred": mask.tolist()}, sha256=file_sha256(model)) as url:
        smoke(url, expected)
    with (
        endpoint({"pred": (1 - mask).tolist()}, sha256=file_sha256(model)) as url,
        pytest.raises(DeliveryError, match="answers otherwise than the same file here: 100"),
    ):
        smoke(url, expected)


@pytest.mark.parametrize(("pixels", "passes"), [(90, True), (120, False)])
def test_smoke_forgives_one_pixel_in_a_thousand(model: Path, pixels: int, passes: bool) -> None:
    with Segmenter(model) as segmenter:
        mask = segmenter(golden_tile().image).mask.copy()
    assert mask.size == 98_155
    mask.ravel()[:pixels] ^= 1
    expected = Expectation(model=model, min_iou=0)
    with (
        endpoint({"pred": mask.tolist()}, sha256=file_sha256(model)) as url,
        nullcontext() if passes else pytest.raises(DeliveryError, match=r"0\.12% of the golden"),
    ):
        smoke(url, expected)


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "http://", "http://[::1", "file:///etc", "http://ex ample", "http://é"],
)
def test_smoke_of_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an address such as https://"):
        smoke(url, Expectation())


def test_deploy_to_what_is_no_address_is_refused_before_anything_is_released() -> None:
    stage = Stage()
    stage.url = "tiles.example.org"
    with pytest.raises(ConfigError, match="expected an address such as https://"):
        deploy(stage, Expectation())
    assert stage.asked == []


@pytest.mark.parametrize("values", [{"min_iou": float("nan")}, {"min_iou": 50}, {"ready_s": -1}])
def test_expectation_that_every_or_no_endpoint_meets_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected 0"):
        Expectation(**values)  # type: ignore[arg-type]


def test_expectation_takes_a_key_as_a_file_holds_it() -> None:
    assert Expectation(api_key="mt_key\n").api_key == "mt_key"
    assert Expectation(api_key=" \n").api_key is None
    with pytest.raises(ConfigError, match="key of the endpoint"):
        Expectation(api_key="mt\nkey")


def test_smoke_never_takes_the_key_where_a_redirection_leads() -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302 if self.path == "/analyze" else 200)
            self.send_header("Location", "/stolen")
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with served(Elsewhere) as url:
        with pytest.raises(DeliveryError, match=f"/analyze answered 302, which leads to {url}/sto"):
            smoke(url, Expectation(api_key="mt_key"))
        assert asked == ["/readyz", "/analyze"]


@pytest.mark.parametrize("port", ["abc", "99999", "-1"])
def test_deploy_to_a_port_that_is_none_says_so(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEPLOY_PORT", port)
    assert main(["deploy", "--target", "local", "--stage", "dev", "--dry-run"]) == 2
    assert "DEPLOY_PORT: expected a port from 0 to 65535" in capsys.readouterr().err


def test_dry_run_of_a_model_that_is_not_there_fails_as_the_release_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.onnx"
    call = ["deploy", "--target", "local", "--stage", "dev", "--model", str(missing), "--dry-run"]
    assert main(call) == 2
    assert f"{missing} cannot be released: no model file there" in capsys.readouterr().err


def test_deploy_that_passes_is_not_rolled_back() -> None:
    stage = Stage()
    deploy(stage, Expectation(), test=lambda _url, _expected: report(), look=look)
    assert stage.asked == ["release"]


@pytest.mark.parametrize(
    ("undone", "said"),
    [
        (Undone.RESTORED, "wrong; rolled back"),
        (Undone.EMPTY, "wrong; nothing was served before, so nothing is served now"),
        (Undone.LEFT, "wrong; nothing was served before, so what failed is still there"),
        (Undone.UNTOUCHED, "wrong; nothing was changed"),
    ],
)
def test_deploy_that_fails_is_rolled_back(undone: Undone, said: str) -> None:
    tested: list[Expectation] = []

    def test(_url: str, expected: Expectation) -> SmokeReport:
        tested.append(expected)
        if len(tested) == 1:
            raise DeliveryError("wrong")
        return report()

    stage = Stage(undone)
    with pytest.raises(DeliveryError, match=said):
        deploy(stage, Expectation(), test=test, look=look)
    assert stage.asked == ["release", "rollback"]
    assert [one.sha256 for one in tested[1:]] == ["ab"] * (undone is Undone.RESTORED)


def test_deploy_that_is_interrupted_is_rolled_back() -> None:
    def test(_url: str, _expected: Expectation) -> SmokeReport:
        raise KeyboardInterrupt

    stage = Stage(Undone.EMPTY)
    with pytest.raises(KeyboardInterrupt):
        deploy(stage, Expectation(), test=test, look=look)
    assert stage.asked == ["release", "rollback"]


def test_deploy_whose_way_back_fails_says_so() -> None:
    def test(_url: str, _expected: Expectation) -> SmokeReport:
        raise DeliveryError("wrong")

    with pytest.raises(DeliveryError, match="the way back failed too"):
        deploy(Stage(), Expectation(), test=test, look=look)


@pytest.mark.parametrize(("target", "environ"), [("heroku", HEROKU), ("fly", FLY), ("ssh", SSH)])
def test_plan_shows_both_ways_and_no_secret(target: str, environ: dict[str, str]) -> None:
    text = str(PLANS[target]("ghcr.io/me/tiles:v1", "dev", environ))
    assert "release " in text
    assert "undo " in text
    assert "ghcr.io/me/tiles:v1" in text
    assert "very-secret" not in text


@pytest.mark.parametrize("target", ["heroku", "fly", "ssh"])
def test_plan_without_its_variables_names_all_that_are_missing(target: str) -> None:
    with pytest.raises(ConfigError, match=r"lacks DEPLOY_\w+, [A-Z_]+"):
        PLANS[target]("image", "dev", {})


def test_served_model_names_what_answers_and_none_where_nothing_does() -> None:
    with endpoint({"pred": []}, sha256="cd") as url:
        assert served_model(url, None) == "cd"
    with endpoint({}, status=500) as url:
        assert served_model(url, None) is None
    assert served_model("http://127.0.0.1:9", None) is None


@pytest.mark.parametrize(
    ("target", "printed", "former"),
    [
        (
            "heroku",
            '[{"version": 9, "status": "succeeded"}, {"version": 8, "current": true}]',
            "v8",
        ),
        (
            "heroku",
            '[{"version": 9, "status": "failed"}, {"version": 8, "status": "succeeded"}]',
            "v8",
        ),
        ("heroku", "[]", ""),
        ("fly", "null", ""),
        ("fly", '[{"Registry": "r", "Repository": "a/b", "Tag": "t", "Digest": ""}]', "r/a/b:t"),
        (
            "fly",
            f"[{MACHINE % 1}, {MACHINE % 2}, {MACHINE % 2}]",  # what most machines run
            "r/a@sha256:2",
        ),
    ],
)
def test_plan_reads_what_runs_from_what_the_host_prints(
    target: str, printed: str, former: str
) -> None:
    environ = HEROKU if target == "heroku" else FLY
    assert PLANS[target]("image", "prod", environ).read(printed) == former


@pytest.mark.parametrize("printed", ["Error: sign in", '{"a": 1}', "[1]"])
@pytest.mark.parametrize(("target", "environ"), [("heroku", HEROKU), ("fly", FLY)])
def test_plan_that_cannot_read_what_runs_says_what_was_printed(
    target: str, environ: dict[str, str], printed: str
) -> None:
    with pytest.raises(DeliveryError, match="printed no"):
        PLANS[target]("image", "prod", environ).read(printed)


def test_local_target_never_ends_a_process_that_only_has_the_noted_number(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()"]  # the leader of a group, as the noted server was
    stranger = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    note = tmp_path / "prod/running.json"
    note.parent.mkdir()
    running = {"pid": stranger.pid, "started_s": 0.0, "model": "m.onnx", "version": ""}  # as of 0.1
    note.write_text(json.dumps(running))
    LocalTarget(tmp_path / "m.onnx", "prod", state=tmp_path).stop()
    assert stranger.poll() is None
    stranger.communicate(b"\n")
    assert stranger.returncode == 0
    assert not note.exists()


@pytest.mark.parametrize(
    "damage", [{"version": 1, "state": 2}, {"pid": "x"}, {"pid": -1}, {"model": None}]
)
def test_local_target_with_a_damaged_note_ends_nothing_and_says_what_to_do(
    tmp_path: Path, damage: dict[str, object]
) -> None:
    note = {"pid": 1, "model": "m", "version": ""} | damage
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod/running.json").write_text(json.dumps(note))
    with pytest.raises(DeliveryError, match=r"no note of a running server.*stop it"):
        LocalTarget(tmp_path / "m.onnx", "prod", state=tmp_path).stop()


def test_local_target_on_a_port_of_another_process_is_refused(tmp_path: Path, model: Path) -> None:
    with endpoint({}) as url:
        target = LocalTarget(model, "prod", state=tmp_path, port=int(url.rpartition(":")[2]))
        with pytest.raises(DeliveryError, match=r"port \d+ is taken by a process"):
            target.release()
        assert target.rollback() is Undone.EMPTY


def test_local_target_that_moves_to_another_port_goes_back_to_the_former_one(
    tmp_path: Path, model: Path
) -> None:
    stage = ["--target", "local", "--stage", "prod", "--state", str(tmp_path)]
    call = [sys.executable, "-m", "magtiles_seg", "deploy", *stage]

    def release(port: str, least: str) -> str:
        words = ["--model", str(model), "--port", port, "--min-iou", least]
        return subprocess.run([*call, *words], capture_output=True, text=True).stderr

    old, new = str(free_port()), str(free_port())
    try:
        assert release(old, "0") == ""
        with endpoint({}) as url:
            taken = url.rpartition(":")[2]
            said = release(taken, "0")
        assert f"port {taken} is taken" in said
        assert str(Undone.UNTOUCHED) in said
        await_ready(f"http://127.0.0.1:{old}", 0)
        assert f"rolled back: http://127.0.0.1:{old}: serves" in release(new, "1")
        with pytest.raises(DeliveryError):
            await_ready(f"http://127.0.0.1:{new}", 0)
    finally:
        subprocess.run([*call, "--stop"], check=True)


def test_local_target_whose_model_is_not_there_touches_nothing(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path / "no.onnx", "prod", state=tmp_path)
    with pytest.raises(DeliveryError, match=r"no\.onnx cannot be copied"):
        target.release()
    assert target.rollback() is Undone.UNTOUCHED


def test_local_target_that_cannot_note_its_server_leaves_none(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("magtiles_seg.delivery.local.write_json", full)
    target = LocalTarget(model, "prod", state=tmp_path, port=free_port())
    before = psutil.Process().children()
    with pytest.raises(OSError, match="no space left"):
        target.release()
    assert target.rollback() is Undone.EMPTY
    assert not {*psutil.Process().children()} - {*before}


def test_local_target_goes_back_to_the_settings_and_the_port_of_the_former_server(
    tmp_path: Path, model: Path
) -> None:
    stage = [sys.executable, "-m", "magtiles_seg", "deploy", "--target", "local", "--stage", "prod"]
    stage += ["--state", str(tmp_path), "--model", str(model)]

    def deploy_below(path: str, *words: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "MAGTILES_ROOT_PATH": path}
        return subprocess.run([*stage, *words], env=environ, stderr=subprocess.PIPE, text=True)

    port = free_port()
    try:
        done = deploy_below("/first", "--port", str(port), "--min-iou", "0")
        assert done.returncode == 0, done.stderr
        done = deploy_below("/second", "--port", str(free_port()), "--version", "v2", "--min-iou=1")
        assert f"expected >= 1; rolled back: http://127.0.0.1:{port}: " in done.stderr
        note = json.loads((tmp_path / "prod/running.json").read_text())
        environ = psutil.Process(note["pid"]).environ()
        assert environ["MAGTILES_ROOT_PATH"] == "/first"
        assert "MAGTILES_MODEL_VERSION" not in environ
    finally:
        subprocess.run([*stage, "--stop"], check=True)


def test_deploy_that_is_terminated_goes_back_and_no_other_one_may_come_between(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = ["deploy", "--target", "local", "--stage", "prod", "--state", str(tmp_path)]
    note = tmp_path / "prod/running.json"
    words = [sys.executable, "-m", "magtiles_seg", *stage, "--model", str(model)]
    words += ["--port", str(free_port())]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while not note.exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert main([*stage, "--stop"]) == 2
        assert "prod is under way: wait for its end" in capsys.readouterr().err
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing was served before, so nothing is served now" in said
    assert not note.exists()


def test_deploy_goes_back_to_the_end_at_the_second_signal_that_a_cancelled_job_gets(
    tmp_path: Path,
) -> None:
    stage = ["--stage", "prod", "--state", str(tmp_path), "--port", str(free_port())]
    words = [sys.executable, "-c", SIGNALLED, "deploy", "--target", "local", *stage]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 130
    assert "so nothing is served now" in done.stderr


def test_command_target_without_a_former_image_runs_no_command_back() -> None:
    plan = Plan(
        url="http://x",
        remember=Command(("echo", "")),
        steps=(Step(Command(("true",)), undo=(Command(("false", PREVIOUS)),)),),  # it would raise
    )
    target = CommandTarget(plan, {"PATH": "/usr/bin:/bin"})
    target.release()
    assert target.rollback() is Undone.LEFT


def test_command_that_fails_is_named_with_what_it_said() -> None:
    with pytest.raises(DeliveryError, match="sh -c 'echo no >&2; exit 3' failed: no"):
        Command(("sh", "-c", "echo no >&2; exit 3")).run({"PATH": "/usr/bin:/bin"})


def test_command_gives_its_secret_over_stdin_alone() -> None:
    command = Command(("cat",), stdin="${TOKEN}")
    assert str(command) == 'cat <<< "${TOKEN}"'
    assert command.run({"TOKEN": "very-secret", "PATH": "/usr/bin:/bin"}) == "very-secret"
