"""A release that fails at any one step leaves what was served before: every target, every step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hosts as stand_in
import pytest
from hosts import Hosts, RefusedError
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.delivery.deploy import Undone, deploy
from magtiles_seg.delivery.plan import CommandTarget
from magtiles_seg.delivery.smoke import Expectation, SmokeReport
from magtiles_seg.delivery.targets import PLANS
from magtiles_seg.errors import DeliveryError

IMAGE = "ghcr.io/me/tiles@sha256:new"
OLD = "ghcr.io/me/tiles@sha256:old"
NEW = {"ssh": IMAGE, "fly": IMAGE, "heroku": "pushed to registry.heroku.com/tiles/web"}
ENVIRON = {
    "DEPLOY_APP": "tiles",
    "DEPLOY_HOST": "me@line",
    "DEPLOY_URL": "http://line:8000",
    "HEROKU_API_KEY": "secret",
    "FLY_API_TOKEN": "secret",
}
KEYS = {"MAGTILES_API_KEYS": "line-1:ab12"}


def container(image: str, state: str = "running") -> dict[str, Any]:
    return {"image": image, "state": state, "environ": {"MAGTILES_API_KEYS": "line-1:ab12"}}


def release(image: str) -> dict[str, Any]:
    return {"image": image, "settings": {}}


BEFORE = {
    "ssh": [
        Hosts(),
        Hosts(containers={"magtiles-prod": container(OLD)}),
        Hosts(containers={"magtiles-prod": container(OLD, "exited")}),
        Hosts(
            containers={
                "magtiles-prod": container(OLD),
                "magtiles-prod-former": container("older", "exited"),
            }
        ),
    ],
    "heroku": [Hosts(), Hosts(releases=[release("older"), release(OLD)])],
    "fly": [Hosts(), Hosts(machines=[OLD, OLD]), Hosts(machines=[OLD, "broken@sha256:x", OLD])],
}
STEPS = {"ssh": 6, "heroku": 6, "fly": 3}
"""Most calls of a release: the one that remembers, and one a step."""


def release_on(hosts: Hosts, target: str, environ: dict[str, str], *, smoke_fails: bool) -> str:
    """Deploy to prod and return what is said: empty where it passed."""

    def test(_url: str, expected: Expectation) -> SmokeReport:
        served = hosts.served(target)
        wanted = expected.sha256 or NEW[target]
        if served != wanted or (expected.sha256 is None and smoke_fails):
            raise DeliveryError(f"{served} is served, expected {wanted}")
        return SmokeReport(url="", model="m", sha256="", version="", iou=1, latency_ms=1)

    made = PLANS[target](IMAGE, "prod", environ)
    try:
        deploy(
            CommandTarget(made, environ),
            Expectation(),
            test=test,
            look=lambda _url, _key: hosts.served(target),
        )
    except DeliveryError as error:
        return str(error)
    return ""


def in_process(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands of plans act on `hosts` without a process each."""

    def run(
        words: Sequence[str], *, env: dict[str, str], **options: str | None
    ) -> subprocess.CompletedProcess[str]:
        if words[0] == "sh":  # what heroku's settings are set by
            text = words[2].removeprefix("exec ").replace("$0", words[3]).replace('"', "")
            words = text.replace("$MAGTILES_API_KEYS", env["MAGTILES_API_KEYS"]).split()
        try:
            said = hosts.run(list(words), options.get("input") or "", env)
        except RefusedError as error:
            return subprocess.CompletedProcess(words, 1, "", str(error))
        return subprocess.CompletedProcess(words, 0, said, "")

    monkeypatch.setattr(subprocess, "run", run)


def check(target: str, before: Hosts, after: Hosts, said: str, *, failed: bool) -> None:
    """Check what is served, and that the message says so."""
    if not failed:
        assert said == ""
        assert after.served(target) == NEW[target]
        return
    assert said
    assert "the way back failed" not in said
    if target == "ssh":
        assert after.containers.get("magtiles-prod") == before.containers.get("magtiles-prod")
        return
    served = before.served(target)
    if served is None:  # a first release that failed: nothing to go back to, and it is said
        assert after.served(target) is None or "what failed is still there" in said
    else:
        assert after.served(target) == served
        if target == "heroku":
            assert after.releases[-1]["settings"] == before.releases[-1]["settings"]


@given(data=st.data())
def test_deploy_that_fails_once_anywhere_leaves_what_was_served(data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(sorted(PLANS)))
    before = deepcopy(data.draw(st.sampled_from(BEFORE[target])))
    before.fault = data.draw(st.none() | st.integers(0, STEPS[target]))
    before.late = data.draw(st.booleans())
    smoke_fails = before.fault is None and data.draw(st.booleans())
    environ = ENVIRON | data.draw(st.sampled_from([{}, KEYS]))
    after = deepcopy(before)
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_process(after, monkeypatch)
        said = release_on(after, target, environ, smoke_fails=smoke_fails)
    reached = before.fault is not None and before.fault < len(after.calls)
    harmless = reached and "former" in after.calls[before.fault or 0][-1]  # may fail, as planned
    harmless = harmless and after.calls[before.fault or 0][-3:-1] == ["rm", "--force"]
    check(target, before, after, said, failed=bool(said) if harmless else reached or smoke_fails)


@pytest.mark.parametrize("late", [False, True], ids=["refused", "cut-off"])
@pytest.mark.parametrize(
    ("target", "fault"),
    [(target, fault) for target, steps in STEPS.items() for fault in range(steps)],
)
def test_deploy_by_real_programs_that_fails_at_a_step_leaves_what_was_served(
    tmp_path: Path, target: str, fault: int, late: bool
) -> None:
    programs, state = tmp_path / "bin", tmp_path / "hosts.json"
    programs.mkdir()
    for name in ("docker", "heroku", "flyctl"):
        text = Path(stand_in.__file__).read_text()
        (programs / name).write_text(f"#!{sys.executable} -S\n{text}")
        (programs / name).chmod(0o755)
    before = deepcopy(BEFORE[target][1])
    before.fault, before.late = fault, late
    state.write_text(json.dumps(asdict(before)))
    environ = ENVIRON | KEYS | {"PATH": f"{programs}:/usr/bin:/bin", "HOSTS": str(state)}

    class Live(Hosts):
        def served(self, target: str, name: str = "magtiles-prod") -> str | None:
            return Hosts(**json.loads(state.read_text())).served(target, name)

    said = release_on(Live(), target, environ, smoke_fails=False)
    after = Hosts(**json.loads(state.read_text()))
    harmless = target == "ssh" and fault == 2 and not said
    check(target, before, after, said, failed=not harmless)
    assert shutil.which("docker", path=str(programs))


@pytest.mark.parametrize("target", sorted(PLANS))
def test_deploy_hands_the_keys_of_the_service_through(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = deepcopy(BEFORE[target][1])
    in_process(after, monkeypatch)
    assert release_on(after, target, ENVIRON | KEYS, smoke_fails=False) == ""
    if target == "ssh":
        handed = after.containers["magtiles-prod"]["environ"]
    else:
        handed = after.releases[-1]["settings"] if target == "heroku" else after.secrets
    assert handed["MAGTILES_API_KEYS"] == "line-1:ab12"
    assert "line-1:ab12" not in str(PLANS[target](IMAGE, "prod", ENVIRON | KEYS))


def test_deploy_whose_way_back_serves_another_model_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after = deepcopy(BEFORE["fly"][1])
    in_process(after, monkeypatch)
    monkeypatch.setattr(CommandTarget, "rollback", lambda _self: Undone.RESTORED)
    assert "the way back failed too" in release_on(after, "fly", ENVIRON, smoke_fails=True)
