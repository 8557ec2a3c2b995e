from __future__ import annotations

from pathlib import Path

import pytest

from magtiles_seg.delivery import registry
from magtiles_seg.delivery.revisions import Revision, git
from magtiles_seg.errors import ConfigError, DataError

pytest.importorskip("gto")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit that declares an artifact, and a bare remote; no identity."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("XDG_CONFIG_HOME", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(name, raising=False)
    remote, root = tmp_path / "remote.git", tmp_path / "work"
    root.mkdir()
    git("init", "--quiet", "--bare", str(remote), root=tmp_path)
    git("init", "--quiet", root=root)
    git("remote", "add", "origin", str(remote), root=root)
    (root / "dvc.yaml").write_text("artifacts:\n  magtiles: {path: model.onnx, type: model}\n")
    commit(root)
    return root


def commit(root: Path) -> None:
    git("add", "--all", root=root)
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    git(*who, "commit", "--quiet", "--allow-empty", "--message", "next", root=root)


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


def test_stage_of_ten_promotions_is_told_by_the_last(repository: Path) -> None:
    registry.promote(repository, "magtiles", "dev")
    git("tag", "magtiles#dev#9", root=repository)
    commit(repository)
    registry.register(repository, "magtiles")
    git("tag", "magtiles#dev#10", root=repository)
    assert registry.on_stage(repository, "magtiles", "dev") == "v0.0.2"


def test_version_that_was_taken_off_its_stage_is_on_it_no_more(repository: Path) -> None:
    registry.promote(repository, "magtiles", "dev")
    git("tag", "magtiles#dev!#2", root=repository)  # as `gto assign` takes it off
    assert registry.on_stage(repository, "magtiles", "dev") is None


def test_promote_of_an_older_version_goes_back_to_it(repository: Path) -> None:
    registry.promote(repository, "magtiles", "prod")
    old = git("rev-parse", "HEAD", root=repository)
    commit(repository)
    registry.promote(repository, "magtiles", "prod")
    back = registry.promote(repository, "magtiles", "prod", revision="v0.0.1")
    assert (back.version, back.commit) == ("v0.0.1", old)
    assert back.tags == ("magtiles#prod#3",)
    assert registry.on_stage(repository, "magtiles", "prod") == "v0.0.1"
    assert registry.on_stage(repository, "magtiles", "dev") is None


def test_register_passes_over_a_tag_that_is_no_version(repository: Path) -> None:
    for tag in ("magtiles@v3", "magtiles@vnext", "magtiles@v1.0.0-rc.1"):
        git("tag", tag, root=repository)
    version, _ = registry.register(repository, "magtiles", version="v1.0.0")
    assert version == "v1.0.0"


def test_promote_where_git_knows_nobody_names_the_robot(repository: Path) -> None:
    registry.promote(repository, "magtiles", "dev")
    tagger = ("for-each-ref", "--format=%(taggername)", "refs/tags/magtiles@v0.0.1")
    assert git(*tagger, root=repository) == "github-actions[bot]"


def test_promote_where_git_knows_somebody_names_them(repository: Path) -> None:
    git("config", "user.name", "Ada", root=repository)
    git("config", "user.email", "ada@example.org", root=repository)
    registry.promote(repository, "magtiles", "dev")
    tagger = ("for-each-ref", "--format=%(taggername)", "refs/tags/magtiles@v0.0.1")
    assert git(*tagger, root=repository) == "Ada"


def test_register_in_a_shallow_checkout_is_refused_with_the_way_out(
    repository: Path, tmp_path: Path
) -> None:
    registry.register(repository, "magtiles")
    commit(repository)
    git("push", "--quiet", "origin", "HEAD:refs/heads/main", root=repository)
    remote = f"file://{tmp_path / 'remote.git'}"
    shallow = ("clone", "--quiet", "--depth", "1", "--branch", "main", remote, "shallow")
    git(*shallow, root=tmp_path)
    with pytest.raises(ConfigError, match=r"shallow.*git fetch --unshallow --tags"):
        registry.register(tmp_path / "shallow", "magtiles")


def test_fetch_keeps_two_jobs_from_giving_one_version_twice(
    repository: Path, tmp_path: Path
) -> None:
    registry.register(repository, "magtiles")
    registry.push(repository, "magtiles", "HEAD")
    git("push", "--quiet", "origin", "HEAD:refs/heads/main", root=repository)
    remote = str(tmp_path / "remote.git")
    git("clone", "--quiet", "--no-tags", "--branch", "main", remote, "b", root=tmp_path)
    commit(tmp_path / "b")
    registry.fetch(tmp_path / "b")
    assert registry.register(tmp_path / "b", "magtiles")[0] == "v0.0.2"


def test_fetch_names_the_tag_that_is_another_one_here(repository: Path, tmp_path: Path) -> None:
    git("push", "--quiet", "origin", "HEAD:refs/heads/main", root=repository)
    git("clone", "--quiet", str(tmp_path / "remote.git"), str(tmp_path / "other"), root=tmp_path)
    for root in (repository, tmp_path / "other"):
        commit(root)
        git("tag", "magtiles@v0.0.1", root=root)
    git("push", "--quiet", "origin", "magtiles@v0.0.1", root=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"magtiles@v0\.0\.1 .*would clobber existing tag"):
        registry.fetch(repository)


def test_version_that_was_withdrawn_is_put_on_no_stage_and_not_given_again(
    repository: Path,
) -> None:
    from gto import api

    registry.promote(repository, "magtiles", "dev")
    commit(repository)
    assert registry.promote(repository, "magtiles", "dev").version == "v0.0.2"
    api.deregister(  # as `gto deprecate` does
        str(repository),
        "magtiles",
        version="v0.0.2",
        author="test",
        author_email="test@example.org",
    )
    assert registry.on_stage(repository, "magtiles", "dev") is None
    assert registry.version_of(repository, "magtiles", "HEAD") is None
    for stage in ("dev", "prod"):
        with pytest.raises(ConfigError, match=r"v0\.0\.2 was withdrawn, by the tag magtiles@v0\.0"):
            registry.promote(repository, "magtiles", stage)
    with pytest.raises(ConfigError, match="give another by --version"):
        registry.promote(repository, "magtiles", "dev", version="v0.0.2")
    assert registry.promote(repository, "magtiles", "dev", revision="v0.0.1").tags == (
        "magtiles#dev#3",
    )
    commit(repository)
    assert registry.promote(repository, "magtiles", "dev").version == "v0.0.3"
    assert registry.on_stage(repository, "magtiles", "dev") == "v0.0.3"


def test_push_sends_version_and_stage_to_origin(repository: Path) -> None:
    registry.register(repository, "magtiles", version="v2.0.0")
    registry.promote(repository, "magtiles", "dev")
    registry.push(repository, "magtiles", "v2.0.0")
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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"artifacts:\n", "no artifact 'magtiles'; known: none"),
        (b"artifacts: [magtiles]\n", "`artifacts` is no mapping"),
        (b"\xff\xfe", "dvc.yaml of HEAD .* is no text in UTF-8"),
    ],
)
def test_register_with_a_damaged_dvc_yaml_makes_no_tag(
    repository: Path, content: bytes, said: str
) -> None:
    (repository / "dvc.yaml").write_bytes(content)
    commit(repository)
    with pytest.raises((ConfigError, DataError), match=said):
        registry.register(repository, "magtiles")
    assert not git("tag", root=repository)


def test_register_of_a_second_version_for_one_commit_is_refused(repository: Path) -> None:
    registry.register(repository, "magtiles", version="v1.0.0")
    with pytest.raises(ConfigError, match=r"is magtiles v1\.0\.0 already"):
        registry.register(repository, "magtiles", version="v1.0.1")


def test_tag_of_any_bytes_does_not_stop_a_promotion(repository: Path) -> None:
    registry.register(repository, "magtiles")
    head = git("rev-parse", "HEAD", root=repository)
    (repository / ".git/packed-refs").write_bytes(f"{head} refs/tags/".encode() + b"\xfc\n")
    assert registry.promote(repository, "magtiles", "dev").version == "v0.0.1"


def test_revision_reads_a_file_with_a_mark_and_refuses_one_without_end(repository: Path) -> None:
    (repository / "marked.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert Revision(repository).mapping("marked.json") == {"a": 1}
    for name, text in (("deep.json", '{"a":' * 100_000), ("deep.yaml", "[" * 5_000)):
        (repository / name).write_text(text)
        with pytest.raises(DataError, match=rf"{name} of working directory .* cannot be read"):
            Revision(repository).mapping(name)


def test_revision_reads_old_and_present_text(repository: Path) -> None:
    (repository / "dvc.yaml").write_text("now: 1\n")
    assert Revision(repository).mapping("dvc.yaml") == {"now": 1}
    assert "artifacts" in Revision(repository, "HEAD").mapping("dvc.yaml")
    assert Revision(repository, "HEAD").read("no/such") is None


def test_revision_that_is_not_there_is_refused(repository: Path) -> None:
    with pytest.raises(ConfigError, match="'origin/dev' is no revision"):
        Revision(repository, "origin/dev")


def test_revision_of_a_folder_without_a_repository_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ConfigError, match="not a git repository"):
        Revision(tmp_path, "main")


def test_revision_of_somebody_else_s_repository_says_how_to_trust_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for this
    with pytest.raises(ConfigError, match=r"(?s)dubious ownership.*safe\.directory"):
        Revision(repository, "HEAD")


def test_revision_without_git_says_that_it_is_missing(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="git is not installed"):
        Revision(repository, "HEAD")


def test_file_of_a_revision_that_cannot_be_had_is_no_missing_file(repository: Path) -> None:
    blob = git("rev-parse", "HEAD:dvc.yaml", root=repository)
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()  # as in a partial clone
    with pytest.raises(DataError, match=r"dvc\.yaml of HEAD .* cannot be read: fatal"):
        Revision(repository, "HEAD").mapping("dvc.yaml")
