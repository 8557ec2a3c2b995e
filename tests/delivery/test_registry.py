from __future__ import annotations

from pathlib import Path

import pytest

from magtiles_seg.delivery import registry
from magtiles_seg.delivery.revisions import Revision, git
from magtiles_seg.errors import ConfigError

pytest.importorskip("gto")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit that declares an artifact, and a bare remote."""
    remote, root = tmp_path / "remote.git", tmp_path / "work"
    root.mkdir()
    git("init", "--quiet", "--bare", str(remote), root=tmp_path)
    git("init", "--quiet", root=root)
    git("config", "user.name", "test", root=root)
    git("config", "user.email", "test@example.org", root=root)
    git("remote", "add", "origin", str(remote), root=root)
    (root / "dvc.yaml").write_text("artifacts:\n  magtiles: {path: model.onnx, type: model}\n")
    commit(root)
    return root


def commit(root: Path) -> None:
    git("add", "--all", root=root)
    git("commit", "--quiet", "--allow-empty", "--message", "next", root=root)


def test_promote_makes_version_and_stage_once(repository: Path) -> None:
    first = registry.promote(repository, "magtiles", "dev")
    assert (first.version, first.tags) == ("v0.0.1", ("magtiles@v0.0.1", "magtiles#dev#1"))
    assert registry.promote(repository, "magtiles", "dev").tags == ()
    assert registry.promote(repository, "magtiles", "prod").tags == ("magtiles#prod#2",)


def test_promote_of_the_next_commit_takes_the_stage_over(repository: Path) -> None:
    registry.promote(repository, "magtiles", "dev")
    commit(repository)
    assert registry.promote(repository, "magtiles", "dev").version == "v0.0.2"
    assert registry.on_stage(repository, "magtiles", "dev") == "v0.0.2"


def test_push_sends_version_and_stage_to_origin(repository: Path) -> None:
    registry.register(repository, "magtiles", version="v2.0.0")
    registry.push(repository, registry.promote(repository, "magtiles", "dev"))
    sent = git("ls-remote", "--tags", "origin", root=repository)
    assert "refs/tags/magtiles@v2.0.0" in sent
    assert "refs/tags/magtiles#dev#1" in sent


@pytest.mark.parametrize(
    ("name", "stage", "said"),
    [
        ("magtile", "dev", "no artifact 'magtile'; did you mean 'magtiles'"),
        ("magtiles", "live", "unknown stage 'live'; expected one of dev, prod"),
    ],
)
def test_promote_of_what_is_unknown_is_refused(
    repository: Path, name: str, stage: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        registry.promote(repository, name, stage)


def test_register_of_a_second_version_for_one_commit_is_refused(repository: Path) -> None:
    registry.register(repository, "magtiles", version="v1.0.0")
    with pytest.raises(ConfigError, match=r"is magtiles v1\.0\.0 already"):
        registry.register(repository, "magtiles", version="v1.0.1")


def test_revision_reads_old_and_present_text(repository: Path) -> None:
    (repository / "dvc.yaml").write_text("now: 1\n")
    assert Revision(repository).mapping("dvc.yaml") == {"now": 1}
    assert "artifacts" in Revision(repository, "HEAD").mapping("dvc.yaml")
    assert Revision(repository, "HEAD").read("no/such") is None


def test_revision_that_is_not_there_is_refused(repository: Path) -> None:
    with pytest.raises(ConfigError, match="'origin/dev' is no revision"):
        Revision(repository, "origin/dev")
