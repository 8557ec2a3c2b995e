from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from magtiles_seg.delivery.deploy import deploy
from magtiles_seg.delivery.smoke import Expectation, SmokeReport, golden_tile, smoke
from magtiles_seg.delivery.targets import PLANS, Command, CommandTarget, Plan
from magtiles_seg.errors import ConfigError, DeliveryError

HEROKU = {"DEPLOY_APP": "tiles-dev", "HEROKU_API_KEY": "very-secret"}
FLY = {"DEPLOY_APP": "tiles-dev", "FLY_API_TOKEN": "very-secret"}
SSH = {"DEPLOY_HOST": "me@line", "DEPLOY_URL": "http://line:8000"}


@contextmanager
def endpoint(
    answer: object, *, status: int = 200, ready: int = 200, sha256: str | None = "ab"
) -> Iterator[str]:
    """A server that answers every picture alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(ready, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert b'name="image"' in body
            assert b"\x89PNG" in body
            self.reply(status, json.dumps(answer).encode())

        def reply(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("X-Model-Name", "tiny")
            if sha256 is not None:
                self.send_header("X-Model-SHA256", sha256)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Stage:
    """A target whose release succeeds, and which keeps what was asked of it."""

    url = "http://stage"

    def __init__(self, *, former: bool = True) -> None:
        self.asked: list[str] = []
        self._former = former

    def describe(self) -> str:
        return ""

    def release(self) -> None:
        self.asked.append("release")

    def rollback(self) -> bool:
        self.asked.append("rollback")
        return self._former


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
        smoke(url, Expectation(model=model))


@pytest.mark.parametrize("wanted", ["model", "version"])
def test_smoke_of_an_endpoint_that_does_not_say_what_it_serves_fails(
    wanted: str, model: Path
) -> None:
    expected = Expectation(model=model) if wanted == "model" else Expectation(version="v1")
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


def test_deploy_that_passes_is_not_rolled_back() -> None:
    stage = Stage()
    deploy(stage, Expectation(), test=lambda _url, _expected: report())
    assert stage.asked == ["release"]


@pytest.mark.parametrize(
    ("former", "said"), [(True, "wrong; rolled back"), (False, "wrong; nothing was released")]
)
def test_deploy_that_fails_is_rolled_back(former: bool, said: str) -> None:
    tested: list[str] = []

    def test(url: str, _expected: Expectation) -> SmokeReport:
        tested.append(url)
        if len(tested) == 1:
            raise DeliveryError("wrong")
        return report()

    stage = Stage(former=former)
    with pytest.raises(DeliveryError, match=said):
        deploy(stage, Expectation(), test=test)
    assert stage.asked == ["release", "rollback"]


def test_deploy_whose_way_back_fails_says_so() -> None:
    def test(_url: str, _expected: Expectation) -> SmokeReport:
        raise DeliveryError("wrong")

    with pytest.raises(DeliveryError, match="the way back failed too"):
        deploy(Stage(), Expectation(), test=test)


@pytest.mark.parametrize(("target", "environ"), [("heroku", HEROKU), ("fly", FLY), ("ssh", SSH)])
def test_plan_shows_both_ways_and_no_secret(target: str, environ: dict[str, str]) -> None:
    text = str(PLANS[target]("ghcr.io/me/tiles:v1", "dev", environ))
    assert "release " in text
    assert "roll back " in text
    assert "ghcr.io/me/tiles:v1" in text
    assert "very-secret" not in text


@pytest.mark.parametrize("target", ["heroku", "fly", "ssh"])
def test_plan_without_its_variables_names_all_that_are_missing(target: str) -> None:
    with pytest.raises(ConfigError, match=r"lacks DEPLOY_\w+, [A-Z_]+"):
        PLANS[target]("image", "dev", {})


def test_command_target_goes_back_to_the_image_that_ran_before() -> None:
    shown = '[{"ImageRef": null}, {"ImageRef": "old:1"}]'
    plan = Plan(
        url="http://x",
        remember=Command(("echo", shown)),
        release=(Command(("false",), may_fail=True),),
        rollback=(Command(("sh", "-c", 'test "$0" = old:1', "{previous}")),),
    )
    target = CommandTarget(plan, {"PATH": "/usr/bin:/bin"})
    target.release()
    assert target.rollback()


def test_command_target_without_a_former_image_runs_no_command_back() -> None:
    plan = Plan(
        url="http://x",
        remember=Command(("echo", "[]")),
        release=(Command(("true",)),),
        rollback=(Command(("false", "{previous}")),),  # it would raise
    )
    target = CommandTarget(plan, {"PATH": "/usr/bin:/bin"})
    target.release()
    assert target.rollback() is False


def test_command_that_fails_is_named_with_what_it_said() -> None:
    with pytest.raises(DeliveryError, match="sh -c 'echo no >&2; exit 3' failed: no"):
        Command(("sh", "-c", "echo no >&2; exit 3")).run({"PATH": "/usr/bin:/bin"})


def test_command_gives_its_secret_over_stdin_alone() -> None:
    command = Command(("cat",), secret="TOKEN")
    assert str(command) == 'cat <<< "$TOKEN"'
    assert command.run({"TOKEN": "very-secret", "PATH": "/usr/bin:/bin"}) == "very-secret"
