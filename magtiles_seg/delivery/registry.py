"""Versions and stages of the model, as Git tags in GTO's form.

`magtiles@v1.2.0` names a version, `magtiles#dev#3` puts it on a stage. The artifact itself is
declared in dvc.yaml, so a tag leads to the file: `dvc artifacts get . magtiles --rev …`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magtiles_seg.checks import nearest
from magtiles_seg.delivery.revisions import Revision, git
from magtiles_seg.errors import BackendUnavailableError, ConfigError

STAGES = ("dev", "prod")


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
        revision: The commit.
        version: Such as `v2.0.0`; None: the commit's own, or the next patch version.

    Returns:
        The version, and the Git tags that were made.

    Raises:
        ConfigError: The artifact is unknown, or the version does not fit.
        BackendUnavailableError: gto is not installed.
    """
    declared = Revision(root, revision).mapping("dvc.yaml").get("artifacts", {})
    if name not in declared:
        raise ConfigError(
            f"dvc.yaml declares no artifact {name!r}{nearest(name, list(declared))}; "
            f"known: {', '.join(declared) or 'none'}"
        )
    commit = _commit(root, revision)
    own = version_of(root, name, commit)
    if own and version not in (None, own):
        raise ConfigError(f"{commit[:7]} is {name} {own} already, and cannot become {version}")
    if own:
        return own, ()
    before = _tags(root)
    _call("register", root, name, commit, version=version)
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
        revision: The commit.
        version: Such as `v2.0.0`; None: the commit's own, or the next patch version.

    Raises:
        ConfigError: The artifact or stage is unknown, or the version does not fit.
        BackendUnavailableError: gto is not installed.
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage {stage!r}; expected one of {', '.join(STAGES)}")
    chosen, tags = register(root, name, revision=revision, version=version)
    before = _tags(root)
    if on_stage(root, name, stage) != chosen:
        _call("assign", root, name, stage, version=chosen)
        tags += tuple(sorted(_tags(root) - before))
    commit = _commit(root, revision)
    return Promotion(name=name, version=chosen, stage=stage, commit=commit, tags=tags)


def version_of(root: Path, name: str, revision: str) -> str | None:
    """Return the version that a commit is registered as, or None."""
    commit = _commit(root, revision)
    tags = git("tag", "--points-at", commit, f"{name}@v*", root=root).split()
    return tags[0].removeprefix(f"{name}@") if tags else None


def on_stage(root: Path, name: str, stage: str) -> str | None:
    """Return the version that is on a stage, or None."""
    found = _call("find_versions_in_stage", root, name, stage)
    return str(found[0].version) if found else None


def push(root: Path, promotion: Promotion) -> None:
    """Send the tags of a version and its stages to `origin`; those that are there stay."""
    tags = git("tag", "--points-at", promotion.commit, f"{promotion.name}[@#]*", root=root)
    git("push", "--quiet", "origin", *tags.split(), root=root)


def _commit(root: Path, revision: str) -> str:
    return git("rev-parse", f"{revision}^{{commit}}", root=root)


def _tags(root: Path) -> set[str]:
    return set(git("tag", "--list", root=root).split())


def _call(function: str, root: Path, *words: str, **options: Any) -> Any:  # noqa: ANN401 - untyped
    """Call a function of GTO, its errors turned into ours."""
    try:
        from gto import api
        from gto.exceptions import GTOException
    except ImportError as error:
        raise BackendUnavailableError(
            "the registry needs gto: pip install 'magtiles-seg[pipeline]'"
        ) from error
    try:
        return getattr(api, function)(str(root), *words, **options)
    except GTOException as error:
        raise ConfigError(f"gto {function.split('_')[0]}: {error}") from error
