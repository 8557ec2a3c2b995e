"""The project's files as they stand in the working directory or at a Git revision."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from magtiles_seg.errors import (
    BackendUnavailableError,
    ConfigError,
    DataError,
    DeliveryError,
)


def git(*words: str, root: Path) -> str:
    """Run git in a folder and return what it prints.

    Raises:
        ConfigError: git refused, and the message says why; or it is not installed.
    """
    try:
        done = subprocess.run(
            ("git", *words),
            cwd=root,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",  # a file's or a tag's name may be any bytes
        )
    except FileNotFoundError as error:
        if error.filename != "git":
            raise
        raise ConfigError("git is not installed, or not on the PATH; install it") from error
    if done.returncode:
        raise ConfigError(f"git {words[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def prefix(root: Path) -> str:
    """Return where the project lies in its repository: `folder/`, or nothing."""
    return git("rev-parse", "--show-prefix", root=root)


def check_whole(root: Path) -> None:
    """Refuse a checkout without its history.

    Raises:
        ConfigError: It is shallow.
    """
    if git("rev-parse", "--is-shallow-repository", root=root) == "true":
        raise ConfigError(
            "this checkout is shallow, so earlier commits and versions are unknown here; run "
            "`git fetch --unshallow --tags`, or check out with `fetch-depth: 0`"
        )


@dataclass(frozen=True)
class Revision:
    """One state of the project's files.

    Attributes:
        root: The repository's folder.
        name: A Git revision; None is the working directory.
    """

    root: Path
    name: str | None = None

    def __post_init__(self) -> None:
        """Check that the revision exists."""
        if self.name is not None:
            git("rev-parse", "--git-dir", root=self.root)  # no repository, or another's: says so
            try:
                git("rev-parse", "--verify", "--quiet", f"{self.name}^{{commit}}", root=self.root)
            except ConfigError as error:
                raise ConfigError(
                    f"{self.name!r} is no revision of the repository {self.root}; name a branch, "
                    "tag or commit that is fetched here"
                ) from error

    def __str__(self) -> str:
        """Return the name and the short commit."""
        commit = git("rev-parse", "--short", self.name or "HEAD", root=self.root)
        return f"{self.name} ({commit})" if self.name else f"working directory on {commit}"

    def read(self, path: str) -> str | None:
        """Return a file's text; None where there is no such file.

        Raises:
            DataError: It is no text in UTF-8, or is in the revision and cannot be had.
        """
        content = self._bytes(path)
        try:
            return None if content is None else content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} of {self} is no text in UTF-8: {error.reason} at byte {error.start}"
            ) from error

    def _bytes(self, path: str) -> bytes | None:
        if self.name is None:
            file = self.root / path
            return file.read_bytes() if file.is_file() else None
        shown = subprocess.run(
            ("git", "show", f"{self.name}:./{path}"), cwd=self.root, capture_output=True
        )
        if shown.returncode == 0:
            return shown.stdout
        if git("ls-tree", self.name, "--", f"./{path}", root=self.root):  # a partial clone, say
            said = " ".join(shown.stderr.decode(errors="replace").split())
            raise DataError(f"{path} of {self} cannot be read: {said}")
        return None

    def mapping(self, path: str) -> dict[str, Any]:
        """Return the mapping in a JSON or YAML file; empty where there is no such file.

        Raises:
            DataError: The file holds something else.
        """
        text = self.read(path)
        try:
            content = None
            if text is not None:
                content = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise DataError(f"{path} of {self} cannot be read: {error}") from error
        if content is not None and not isinstance(content, dict):
            raise DataError(f"{path} of {self} is no mapping; got {type(content).__name__}")
        return content or {}


MODEL = "runs/model.onnx"
"""The model file that the pipeline leaves."""


def fetch_model(state: Revision, folder: Path) -> Path | None:
    """Bring the model file of a revision here, from DVC's cache or its remote.

    Args:
        state: A revision, whose dvc.lock names the file.
        folder: Where to write it.

    Returns:
        The file; None where the revision has no model.

    Raises:
        BackendUnavailableError: DVC is not installed.
        DeliveryError: The file is in neither, or the remote is not reached.
    """
    if f"path: {MODEL}" not in (state.read("dvc.lock") or ""):
        return None
    commit = git("rev-parse", state.name or "HEAD", root=state.root)
    out = folder / f"{commit}.onnx"
    if out.is_file():  # both states are one commit
        return out
    if find_spec("dvc") is None:
        raise BackendUnavailableError(
            "the models of two revisions come from DVC, which is not installed; "
            "pip install 'magtiles-seg[pipeline]'"
        )
    path = f"{prefix(state.root)}{MODEL}"  # `dvc get` counts from the repository's root
    words = (sys.executable, "-m", "dvc", "get", ".", path, "--rev", commit, "--out", str(out))
    done = subprocess.run(words, cwd=state.root, capture_output=True, text=True)
    if done.returncode:
        raise DeliveryError(
            f"the model of {state} is not to be had: {' '.join(done.stderr.split())[:500]}; "
            "expected it in the DVC remote: `dvc push` it from where it was trained"
        )
    return out
