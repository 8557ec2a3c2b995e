"""Where a model can be deployed by commands: Heroku, Fly, and any Docker host over SSH.

A plan lists the commands of a release and those of the way back, so that `--dry-run` can show
both. Secrets stay in the environment: a command names them, and no plan holds one.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from magtiles_seg.errors import ConfigError, DeliveryError

_COMMAND_TIMEOUT_S = 1800
_PORT = "8000"
"""Where the container listens on a Docker host; Heroku and Fly give `$PORT`."""


@dataclass(frozen=True)
class Command:
    """One program call.

    Attributes:
        words: The program and its arguments.
        secret: Environment variable whose value the program reads from stdin, or None.
        may_fail: Whether a failure, as of stopping what does not run, is of no matter.
    """

    words: tuple[str, ...]
    secret: str | None = None
    may_fail: bool = False

    def __str__(self) -> str:
        """Return the command as for a shell."""
        return shlex.join(self.words) + (f' <<< "${self.secret}"' if self.secret else "")

    def run(self, environ: Mapping[str, str]) -> str:
        """Run it and return what it prints.

        Raises:
            DeliveryError: It failed, or is not installed.
        """
        given = environ[self.secret] if self.secret else None
        try:
            done = subprocess.run(
                self.words,
                input=given,
                stdin=None if given else subprocess.DEVNULL,
                env=dict(environ),
                capture_output=True,
                text=True,
                timeout=_COMMAND_TIMEOUT_S,
            )
        except FileNotFoundError as error:
            raise DeliveryError(f"{self.words[0]} is not installed: {self}") from error
        except subprocess.TimeoutExpired as error:
            raise DeliveryError(f"still running after {_COMMAND_TIMEOUT_S} s: {self}") from error
        if done.returncode and not self.may_fail:
            raise DeliveryError(f"{self} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A release by commands.

    Attributes:
        url: Where the endpoint will be.
        release: Brings the new image up.
        rollback: Brings the former one back; `{previous}` stands for what `remember` printed.
        remember: Prints what runs before the release, or None where the host remembers itself.
    """

    url: str
    release: tuple[Command, ...]
    rollback: tuple[Command, ...]
    remember: Command | None = None

    def __str__(self) -> str:
        """Return what would happen, a line a command."""
        first = [f"remember   {self.remember}"] if self.remember else []
        lines = [f"release    {command}" for command in self.release]
        back = [f"roll back  {command}" for command in self.rollback]
        return "\n".join([*first, *lines, f"smoke test {self.url}", "if that fails:", *back])


@dataclass
class CommandTarget:
    """Carries a plan out.

    Attributes:
        plan: What to run.
        environ: Environment variables of the commands.
    """

    plan: Plan
    environ: Mapping[str, str]
    _previous: str = field(default="", init=False)

    @property
    def url(self) -> str:
        """Where the endpoint is."""
        return self.plan.url

    def describe(self) -> str:
        """Return what would happen."""
        return str(self.plan)

    def release(self) -> None:
        """Bring the new image up.

        Raises:
            DeliveryError: A command failed.
        """
        if self.plan.remember:
            self._previous = _image(self.plan.remember.run(self.environ))
        for command in self.plan.release:
            command.run(self.environ)

    def rollback(self) -> bool:
        """Bring the former image back; False where there is none.

        Raises:
            DeliveryError: A command failed.
        """
        if self.plan.remember and not self._previous:
            return False
        for command in self.plan.rollback:
            words = tuple(word.replace("{previous}", self._previous) for word in command.words)
            Command(words, command.secret, command.may_fail).run(self.environ)
        return True


def plan_heroku(image: str, stage: str, environ: Mapping[str, str]) -> Plan:
    """Plan a release on Heroku: the image goes to its registry, in the manifest form it takes.

    Args:
        image: Built with `--provenance=false`: Heroku takes Docker manifests v2.2, no OCI index.
        stage: Stands in the messages.
        environ: `DEPLOY_APP`; `HEROKU_API_KEY` is checked, and read by the commands.

    Raises:
        ConfigError: A variable is missing.
    """
    app = _needed("heroku", stage, environ, "DEPLOY_APP", "HEROKU_API_KEY")["DEPLOY_APP"]
    theirs = f"registry.heroku.com/{app}/web"
    login = ("docker", "login", "--username=_", "--password-stdin", "registry.heroku.com")
    return Plan(
        url=environ.get("DEPLOY_URL") or f"https://{app}.herokuapp.com",
        release=(
            Command(login, secret="HEROKU_API_KEY"),
            Command(("docker", "tag", image, theirs)),
            Command(("docker", "push", theirs)),
            Command(("heroku", "container:release", "web", "--app", app)),
        ),
        rollback=(Command(("heroku", "rollback", "--app", app)),),
    )


def plan_fly(image: str, stage: str, environ: Mapping[str, str]) -> Plan:
    """Plan a release on Fly; the way back deploys the image that ran before.

    Args:
        image: In a registry that Fly can read.
        stage: Stands in the messages.
        environ: `DEPLOY_APP`; `FLY_API_TOKEN` is checked, and read by flyctl.

    Raises:
        ConfigError: A variable is missing.
    """
    app = _needed("fly", stage, environ, "DEPLOY_APP", "FLY_API_TOKEN")["DEPLOY_APP"]
    deploy = ("flyctl", "deploy", "--app", app, "--strategy", "rolling", "--image")
    return Plan(
        url=environ.get("DEPLOY_URL") or f"https://{app}.fly.dev",
        remember=Command(("flyctl", "releases", "--app", app, "--image", "--json")),
        release=(Command((*deploy, image)),),
        rollback=(Command((*deploy, "{previous}")),),
    )


def plan_ssh(image: str, stage: str, environ: Mapping[str, str]) -> Plan:
    """Plan a release on a Docker host over SSH; the former container is kept, stopped.

    Args:
        image: In a registry that the host can read.
        stage: Part of the container's name, so that both stages fit on one host.
        environ: `DEPLOY_HOST` as `user@host`, `DEPLOY_URL`; `DEPLOY_PORT` (8000).

    Raises:
        ConfigError: A variable is missing.
    """
    given = _needed("ssh", stage, environ, "DEPLOY_HOST", "DEPLOY_URL")
    docker = ("docker", "--host", f"ssh://{given['DEPLOY_HOST']}")
    name, former = f"magtiles-{stage}", f"magtiles-{stage}-former"
    ports = f"{environ.get('DEPLOY_PORT') or _PORT}:{_PORT}"
    start = (*docker, "run", "--detach", "--name", name, "--restart", "unless-stopped")
    limits = ("--read-only", "--tmpfs", "/tmp", "--publish", ports, "--env", f"PORT={_PORT}")
    return Plan(
        url=given["DEPLOY_URL"],
        release=(
            Command((*docker, "pull", image)),
            Command((*docker, "rm", "--force", former), may_fail=True),
            Command((*docker, "stop", name), may_fail=True),
            Command((*docker, "rename", name, former), may_fail=True),
            Command((*start, *limits, image)),
        ),
        rollback=(
            Command((*docker, "rm", "--force", name), may_fail=True),
            Command((*docker, "rename", former, name)),
            Command((*docker, "start", name)),
        ),
    )


PLANS = {"heroku": plan_heroku, "fly": plan_fly, "ssh": plan_ssh}


def _needed(target: str, stage: str, environ: Mapping[str, str], *names: str) -> dict[str, str]:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise ConfigError(
            f"target {target}, stage {stage}: the environment lacks {', '.join(missing)}; set "
            "them as variables and secrets of the CI's environment, or export them here"
        )
    return {name: environ[name] for name in names}


def _image(printed: str) -> str:
    """Return the newest image of what `flyctl releases --image --json` prints; empty: none."""
    try:
        releases = json.loads(printed or "[]")
        images = [release.get("ImageRef") or "" for release in releases]
    except (ValueError, AttributeError) as error:
        raise DeliveryError(f"flyctl gave no list of releases: {printed[:200]}") from error
    return next((image for image in images if image), "")
