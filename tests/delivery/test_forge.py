from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from forge_api import ForgeApi, served

from magtiles_seg.delivery import forge
from magtiles_seg.delivery.forge import Forge, ForgeError, connect
from magtiles_seg.delivery.post import post
from magtiles_seg.delivery.revisions import git
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
    quoted = f"a person's\n> {forge.MARK}\nwhich I quote"
    api.comments[1] = [{"id": 99, "body": quoted, "html_url": ""}]
    client.comment("exp-1", "first")
    client.comment("exp-1", "second")
    assert [one["body"].partition("\n")[0] for one in api.comments[1]] == ["a person's", "second"]


def test_issue_of_an_open_title_becomes_a_comment(client: Forge, api: ForgeApi) -> None:
    client.issue("drift", "monday")
    client.issue("drift", "tuesday")
    client.issue("other", "tuesday")
    assert [one["title"] for one in api.issues] == ["drift", "other"]
    assert [one["body"] for one in api.comments[1]] == ["tuesday"]


def test_issue_is_looked_for_on_every_page(client: Forge, api: ForgeApi) -> None:
    for number in range(100):
        client.issue(f"other {number}", "monday")
    client.issue("drift", "monday")
    client.issue("drift", "tuesday")
    assert len(api.issues) == 101
    assert [one["body"] for one in api.comments[101]] == ["tuesday"]


def test_issue_is_no_comment_on_a_pull_request_of_its_title(api: ForgeApi) -> None:
    api.issues.append({"title": "drift", "number": 1, "pull_request": {}})  # as GitHub lists it
    connect(api.environ).issue("drift", "monday")
    assert len(api.issues) == 2
    assert not api.comments


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


@pytest.fixture
def checkout(api: ForgeApi, tmp_path: Path) -> Path:
    """A clone of the forge's repository with a report: two pictures, one of them a curve."""
    api.remote, root = tmp_path / "forge.git", tmp_path / "clone"
    git("init", "--quiet", "--bare", str(api.remote), root=tmp_path)
    git("clone", "--quiet", str(api.remote), str(root), root=tmp_path)
    report = root / "runs/report"
    report.mkdir(parents=True)
    (report / "curve_0.png").write_bytes(b"a curve\r\n")
    (report / "picture_00.jpg").write_bytes(b"a tile")
    text = "### Curves\n\n![Loss](curve_0.png)\n\n`tile 7`\n\n![tile 7](picture_00.jpg)\n"
    (report / "report.md").write_text(text)
    return root


def published(body: str) -> list[bytes]:
    """Return the content of each picture of a comment, as a browser gets it."""
    found = re.findall(r'(?:src="|]\()(http[^")]+/raw/[^")]+)', body)
    return [urllib.request.urlopen(address, timeout=5).read() for address in found]


def post_from(root: Path, environ: dict[str, str], **settings: str) -> str:
    environ = {**environ, "BRANCH": "exp-1", "PATH": "", **settings}
    return post(root / "runs/report/report.md", environ, root)


@pytest.mark.parametrize(
    ("private", "wanted", "shown"),
    [
        (True, "auto", [b"a curve\r\n", b"a tile"]),
        (False, "auto", [b"a curve\r\n"]),
        (False, "all", [b"a curve\r\n", b"a tile"]),
        (True, "curves", [b"a curve\r\n"]),
        (True, "none", []),
    ],
)
def test_post_shows_the_pictures_that_the_setting_lets_out(
    client: Forge, api: ForgeApi, checkout: Path, private: bool, wanted: str, shown: list[bytes]
) -> None:
    api.private = private
    client.propose("exp-1", "dev", "Experiment", "")
    environ = api.environ if isinstance(client, forge.GitHub) else api.gitlab_environ
    said = post_from(checkout, environ, REPORT_PICTURES=wanted)
    body = api.comments[1][0]["body"]
    assert "without pictures" not in said
    assert published(body) == shown
    assert ("artifact `report`" in body) == (len(shown) < 2)


def test_post_twice_leaves_one_comment_and_the_second_pictures_alone(
    api: ForgeApi, checkout: Path
) -> None:
    api.private = True
    connect(api.environ).propose("exp-1", "dev", "Experiment", "")
    assert post_from(checkout, api.environ).startswith(api.url)
    (checkout / "runs/report/picture_00.jpg").write_bytes(b"a newer picture")
    post_from(checkout, api.environ)
    (comment,) = api.comments[1]
    assert published(comment["body"]) == [b"a curve\r\n", b"a newer picture"]
    assert api.remote
    assert git("for-each-ref", "--format=%(refname)", root=api.remote) == (
        "refs/report-pictures/exp-1"
    )
    history = git("rev-list", "--all", root=api.remote)
    assert len(history.split()) == 1
    assert git("status", "--porcelain", "--untracked-files=no", root=checkout) == ""


def test_post_where_origin_takes_no_push_comments_without_pictures_and_says_why(
    api: ForgeApi, checkout: Path
) -> None:
    api.private = True
    connect(api.environ).propose("exp-1", "dev", "Experiment", "")
    assert api.remote
    hook = api.remote / "hooks/update"
    hook.write_text("#!/bin/sh\necho 'no rights' >&2\nexit 1\n")
    hook.chmod(0o755)
    said = post_from(checkout, api.environ)
    assert "without pictures: git push failed: " in said
    assert "no rights" in said
    assert "2 pictures: the artifact `report`" in api.comments[1][0]["body"]


def test_post_that_the_forge_refuses_is_an_error(api: ForgeApi, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("text\n")
    environ = {**api.environ, "GH_TOKEN": "another", "BRANCH": "exp-1", "PATH": str(tmp_path)}
    with pytest.raises(DeliveryError, match=r"cannot be posted: .*401 .*Bad credentials"):
        post(tmp_path / "report.md", environ)
