"""Versions and stages of the model, as Git tags in GTO's form.

`magtiles@v1.2.0` names a version, `magtiles#dev#3` puts it on a stage. The artifact itself is
declared in dvc.yaml, so a tag leads to the file: `dvc artifacts get . magtiles --rev …`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magtiles_seg.config import nearest
from magtiles_seg.delivery.revisions import Revision, check_whole, git
from magtiles_seg.errors import BackendUnavailableError, ConfigError

STAGES = ("dev", "prod")

_AUTHOR = "github-actions[bot]"
_EMAIL = "41898282+github-actions[bot]@users.noreply.github.com"
"""Who makes the tags where Git knows nobody, as on a CI's machine: GitHub's own robot."""

_VERSION = re.compile(r"v\d+\.\d+\.\d+")


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A version on a stage.

    Attributes:
        name: Of the artifact.
        version: Such as `v1.2.0`.
        stage: `dev` or `prod`.
        commit: That the version names.
        tags: Git tags that were made; empty where the commit was on the stage already.
    """

    name: str
    version: str
    stage: str
    commit: str
    tags: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line."""
        done = f"made {', '.join(self.tags)}" if self.tags else "nothing to do"
        return f"{self.name} {self.version} ({self.commit[:7]}) is on {self.stage}: {done}"


def register(
    root: Path, name: str, *, revision: str = "HEAD", version: str | None = None
) -> tuple[str, tuple[str, ...]]:
    """Give the model of a commit a version, unless it has one.

    Args:
        root: The repository's folder.
        name: Of the artifact in dvc.yaml.
        revision: The commit, or a version such as `v1.2.0`.
        version: Such as `v2.0.0`; None: the commit's own, or the next patch version.

    Returns:
        The version, and the Git tags that were made.

    Raises:
        ConfigError: The artifact or revision is unknown, the version does not fit or was withdrawn,
            or the checkout is shallow.
        BackendUnavailableError: gto is not installed.
    """
    check_whole(root)
    revision = _resolved(root, name, revision)
    declared = Revision(root, revision).mapping("dvc.yaml").get("artifacts") or {}
    if not isinstance(declared, dict):
        raise ConfigError("dvc.yaml: `artifacts` is no mapping; expected `artifacts: {name: …}`")
    if name not in declared:
        raise ConfigError(
            f"dvc.yaml declares no artifact {name!r}{nearest(name, list(declared))}; "
            f"known: {', '.join(declared) or 'none'}"
        )
    commit = _commit(root, revision)
    own, before = version_of(root, name, commit), _tags(root)
    if own is None and version is None and (gone := _versions(root, name, "--points-at", commit)):
        raise ConfigError(
            f"{name} {gone[0]} was withdrawn, by the tag {name}@{gone[0]}!; take another commit, "
            "or give this one another version by --version"
        )
    if own and version not in (None, own):
        raise ConfigError(f"{commit[:7]} is {name} {own} already, and cannot become {version}")
    if own:
        return own, ()
    _call("register", root, name, commit, version=version or _after_withdrawn(root, name))
    registered = version_of(root, name, commit)
    if registered is None:
        raise ConfigError(f"gto did not register {name} at {commit}; see `gto show {name}`")
    return registered, tuple(sorted(_tags(root) - before))


def promote(
    root: Path, name: str, stage: str, *, revision: str = "HEAD", version: str | None = None
) -> Promotion:
    """Put the model of a commit on a stage; the commit gets a version where it has none.

    Args:
        root: The repository's folder.
        name: Of the artifact in dvc.yaml.
        stage: `dev` or `prod`.
        revision: The commit, or a version such as `v1.2.0`: an older one goes back.
        version: Such as `v2.0.0`; None: the commit's own, or the next patch version.

    Raises:
        ConfigError: The artifact or stage is unknown, or the version does not fit or was withdrawn.
        BackendUnavailableError: gto is not installed.
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
    chosen, tags = register(root, name, revision=revision, version=version)
    before = _tags(root)
    if on_stage(root, name, stage) != chosen:
        # forced, or GTO refuses a version that was on the stage before: the way back
        _call("assign", root, name, stage, version=chosen, force=True)
        tags += tuple(sorted(_tags(root) - before))
    commit = _commit(root, _resolved(root, name, revision))
    return Promotion(name=name, version=chosen, stage=stage, commit=commit, tags=tags)


def version_of(root: Path, name: str, revision: str) -> str | None:
    """Return the version that a commit is registered as, or None; a withdrawn one is none."""
    gone = _withdrawn(root, name)
    given = _versions(root, name, "--points-at", _commit(root, revision))
    return next((version for version in given if version not in gone), None)


def _versions(root: Path, name: str, *where: str) -> list[str]:
    """Return the versions that were given, withdrawn ones too; `where` narrows it, as of git."""
    tags = git("tag", "--list", *where, f"{name}@v*", root=root).split()
    return list(filter(_VERSION.fullmatch, (tag.removeprefix(f"{name}@") for tag in tags)))


def _withdrawn(root: Path, name: str) -> set[str]:
    """Return the versions that `gto deprecate` took back: their tag has a second one with a `!`."""
    tags = git("tag", "--list", f"{name}@v*!*", root=root).split()
    return {tag.removeprefix(f"{name}@").partition("!")[0] for tag in tags}


def _after_withdrawn(root: Path, name: str) -> str | None:
    """Return the version after the highest one if that was withdrawn: GTO would give it again."""
    last = max(_versions(root, name), key=_numbers, default="")
    if last not in _withdrawn(root, name):
        return None
    major, minor, patch = _numbers(last)
    return f"v{major}.{minor}.{patch + 1}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version[1:].split(".")))


def on_stage(root: Path, name: str, stage: str) -> str | None:
    """Return the version that is on a stage, or None: what its tag of the highest number says."""
    pattern = re.compile(rf"{re.escape(name)}#{re.escape(stage)}(!?)#(\d+)")
    found = [match for tag in _tags(root) if (match := pattern.fullmatch(tag))]
    last = max(found, key=lambda match: int(match[2]), default=None)
    return None if last is None or last[1] else version_of(root, name, last[0])


def fetch(root: Path) -> None:
    """Get the tags of `origin`, so that a version is not given twice.

    Raises:
        ConfigError: A tag here is another one than at `origin`, or it cannot be reached.
    """
    git("fetch", "--tags", "origin", root=root)  # --quiet would not say which tag is another


def push(root: Path, name: str, revision: str) -> None:
    """Send the tags of a commit's version and its stages to `origin`; those that are there stay.

    Raises:
        ConfigError: `origin` refused.
    """
    commit = _commit(root, _resolved(root, name, revision))
    tags = git("tag", "--points-at", commit, f"{name}[@#]*", root=root)
    git("push", "--quiet", "origin", *tags.split(), root=root)


def _resolved(root: Path, name: str, revision: str) -> str:
    """Return the tag of a version, or the revision as it is."""
    tag = f"{name}@{revision}"
    return tag if _VERSION.fullmatch(revision) and tag in _tags(root) else revision


def _commit(root: Path, revision: str) -> str:
    return git("rev-parse", f"{revision}^{{commit}}", root=root)


def _tags(root: Path) -> set[str]:
    return set(git("tag", "--list", root=root).split())


def _call(function: str, root: Path, *words: str, **options: Any) -> Any:  # noqa: ANN401 - untyped
    """Call a function of GTO, its errors turned into ours."""
    try:
        from gto import api
        from gto.exceptions import GTOException, TagExists
    except ImportError as error:
        raise BackendUnavailableError(
            "the registry needs gto: pip install 'magtiles-seg[pipeline]'"
        ) from error
    try:
        return getattr(api, function)(str(root), *words, **options, **_author(root))
    except TagExists as error:  # as after the last version was withdrawn: GTO gives it again
        raise ConfigError(f"gto {function}: {error}; give another by --version") from error
    except GTOException as error:
        raise ConfigError(f"gto {function}: {error}") from error


def _author(root: Path) -> dict[str, str]:
    """Return who makes a tag where neither Git nor the environment names somebody."""
    names = {"author": ("name", _AUTHOR), "author_email": ("email", _EMAIL)}
    return {
        option: os.environ.get(f"GIT_COMMITTER_{word.upper()}")
        or git("config", "--default", "", "--get", f"user.{word}", root=root)
        or stranger
        for option, (word, stranger) in names.items()
    }
