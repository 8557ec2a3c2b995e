from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forge_api import ForgeApi, served

from magtiles_seg.delivery import forge
from magtiles_seg.delivery.forge import Forge, ForgeError, connect
from magtiles_seg.delivery.post import post
from magtiles_seg.errors import DeliveryError

FILE = Path(forge.__file__)


@pytest.fixture
def api() -> Iterator[ForgeApi]:
    with served(ForgeApi()) as made:
        yield made


@pytest.fixture(params=["github", "gitlab"])
def client(request: pytest.FixtureRequest, api: ForgeApi) -> Forge:
    return connect(api.environ if request.param == "github" else api.gitlab_environ)


def run(api: ForgeApi, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the file on a bare Python, as the first step of a job does."""
    command = [sys.executable, "-I", "-S", str(FILE), *words]
    environ = {"PATH": "/usr/bin:/bin", "NO_PROXY": "127.0.0.1", **api.environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def test_propose_twice_opens_one_proposal(client: Forge, api: ForgeApi) -> None:
    first = client.propose("exp-1", "dev", "Experiment", "text")
    assert client.propose("exp-1", "dev", "Experiment", "text") == first
    assert [one["branch"] for one in api.proposals] == ["exp-1"]


def test_comment_replaces_the_one_from_before_and_no_other(client: Forge, api: ForgeApi) -> None:
    client.propose("exp-1", "dev", "Experiment", "text")
    api.comments[1] = [{"id": 99, "body": "a person's", "html_url": ""}]
    client.comment("exp-1", "first")
    client.comment("exp-1", "second")
    assert [one["body"].partition("\n")[0] for one in api.comments[1]] == ["a person's", "second"]


def test_issue_of_an_open_title_becomes_a_comment(client: Forge, api: ForgeApi) -> None:
    client.issue("drift", "monday")
    client.issue("drift", "tuesday")
    client.issue("other", "tuesday")
    assert [one["title"] for one in api.issues] == ["drift", "other"]
    assert [one["body"] for one in api.comments[1]] == ["tuesday"]


def test_merge_that_wants_a_review_is_refused_with_what_the_forge_said(
    client: Forge, api: ForgeApi
) -> None:
    client.propose("exp-1", "dev", "Experiment", "text")
    api.may_merge = False
    with pytest.raises(ForgeError, match=r"405 .*approving review") as caught:
        client.merge("exp-1", "dev", "abc")
    assert caught.value.status == 405
    api.may_merge = True
    assert client.merge("exp-1", "dev", "abc") == "abc"


def test_merge_and_comment_without_a_proposal_say_so(client: Forge) -> None:
    with pytest.raises(ForgeError, match=r"no open (pull|merge) request; propose it first"):
        client.merge("exp-1", "dev", "abc")
    with pytest.raises(ForgeError, match=r"no open (pull|merge) request; propose it first"):
        client.comment("exp-1", "text")


def test_start_asks_github_for_the_workflow(api: ForgeApi) -> None:
    assert run(api, "start", "2-deploy-dev.yml", "dev").returncode == 0
    assert api.started == ["2-deploy-dev.yml dev"]


def test_propose_where_actions_may_not_names_the_setting(api: ForgeApi) -> None:
    api.may_propose = False
    done = run(api, "propose", "exp-1", "dev", "Experiment")
    assert done.returncode == 1
    assert "403" in done.stderr
    assert "tick 'Allow GitHub Actions to create and approve pull requests'" in done.stderr


@pytest.mark.parametrize(
    ("environ", "said"),
    [({}, "no token"), ({"GH_TOKEN": "t"}, "no forge: expected GITHUB_REPOSITORY")],
)
def test_connect_without_a_forge_names_the_variables(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ForgeError, match=said):
        connect(environ)


def test_forge_that_is_not_reached_is_named() -> None:
    environ = {"GITHUB_API_URL": "http://127.0.0.1:9", "GITHUB_REPOSITORY": "a/b", "GH_TOKEN": "t"}
    with pytest.raises(ForgeError, match=r"http://127\.0\.0\.1:9/repos/a/b cannot be reached"):
        connect(environ).propose("exp-1", "dev", "title", "")


def test_post_without_cml_comments_through_the_interface(api: ForgeApi, tmp_path: Path) -> None:
    connect(api.environ).propose("exp-1", "dev", "Experiment", "")
    (tmp_path / "report.md").write_text("![tile 7](p.png)\n")
    environ = {**api.environ, "BRANCH": "exp-1", "PATH": str(tmp_path)}
    assert post(tmp_path / "report.md", environ).startswith(api.url)
    assert "*tile 7*" in api.comments[1][0]["body"]


def test_post_that_the_forge_refuses_is_an_error(api: ForgeApi, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("text\n")
    environ = {**api.environ, "GH_TOKEN": "another", "BRANCH": "exp-1", "PATH": str(tmp_path)}
    with pytest.raises(DeliveryError, match=r"cannot be posted: .*401 .*Bad credentials"):
        post(tmp_path / "report.md", environ)
