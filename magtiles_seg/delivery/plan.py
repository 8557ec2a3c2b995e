"""A release as a list of commands, each with the commands that undo it.

So `--dry-run` can show all of them, and a failure undoes the steps that were begun, the last
first. Secrets stay in the environment: a command names them, and no plan holds one.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from magtiles_seg.delivery.deploy import Undone
from magtiles_seg.errors import DeliveryError

PREVIOUS = "{previous}"
"""In a command that undoes: what ran before the release."""

_COMMAND_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Command:
    """One program call.

    Attributes:
        words: The program and its arguments.
        stdin: Text for the program, with `${NAME}` for variables of the environment; or None.
        may_fail: Whether a failure, as of removing what is not there, is of no matter.
    """

    words: tuple[str, ...]
    stdin: str | None = None
    may_fail: bool = False

    def __str__(self) -> str:
        """Return the command as for a shell."""
        return shlex.join(self.words) + (f' <<< "{self.stdin}"' if self.stdin else "")

    def run(self, environ: Mapping[str, str]) -> str:
        """Run it and return what it prints.

        Raises:
            DeliveryError: It failed, or is not installed.
        """
        given = self.stdin and re.sub(r"\$\{(\w+)\}", lambda found: environ[found[1]], self.stdin)
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
        except OSError as error:
            raise DeliveryError(f"{self.words[0]} is not installed: {self}") from error
        except subprocess.TimeoutExpired as error:
            raise DeliveryError(f"still running after {_COMMAND_TIMEOUT_S} s: {self}") from error
        if done.returncode and not self.may_fail:
            raise DeliveryError(f"{self} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()


@dataclass(frozen=True)
class Step:
    """One command of a release, and its way back.

    Attributes:
        do: What the release runs.
        undo: What undoes it, also where `do` failed halfway.
        needs: Pattern that what ran before must match, or the step is left out; empty: any.
    """

    do: Command
    undo: tuple[Command, ...] = ()
    needs: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A release by commands.

    Attributes:
        url: Where the endpoint will be.
        remember: Prints what runs before the release; changes nothing.
        read: Returns what is there of what `remember` printed; empty: nothing.
        steps: The release.
        serves: Pattern of what is there where it answers requests.
    """

    url: str
    remember: Command
    steps: tuple[Step, ...]
    read: Callable[[str], str] = str
    serves: str = "."

    def __str__(self) -> str:
        """Return what would happen, a line a command."""
        lines = [f"remember   {self.remember}"]
        lines += [f"release    {step.do}" for step in self.steps]
        back = [f"undo       {command}" for step in reversed(self.steps) for command in step.undo]
        lines += [f"smoke test {self.url}", "of what was begun, if it fails:"]
        return "\n".join([*lines, *back])


@dataclass
class CommandTarget:
    """Carries a plan out.

    Attributes:
        plan: What to run.
        environ: Environment variables of the commands.
    """

    plan: Plan
    environ: Mapping[str, str]
    _former: str = field(default="", init=False)
    _begun: list[Step] = field(default_factory=list, init=False)

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
        self._begun.clear()
        self._former = self.plan.read(self.plan.remember.run(self.environ))
        for step in self.plan.steps:
            if re.search(step.needs, self._former):
                self._begun.append(step)
                step.do.run(self.environ)

    def rollback(self) -> Undone:
        """Undo the steps that were begun, the last one first.

        Raises:
            DeliveryError: A command failed.
        """
        commands = [command for step in reversed(self._begun) for command in step.undo]
        if not commands:
            return Undone.UNTOUCHED
        possible = [one for one in commands if self._former or PREVIOUS not in one.words]
        for command in possible:
            words = tuple(self._former if word == PREVIOUS else word for word in command.words)
            Command(words, command.stdin, command.may_fail).run(self.environ)
        if re.search(self.plan.serves, self._former):
            return Undone.RESTORED
        return Undone.EMPTY if possible == commands else Undone.LEFT
