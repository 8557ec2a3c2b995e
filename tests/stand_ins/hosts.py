"""Stand-ins of docker, heroku and flyctl that keep a state and can fail at any one call.

As a program of one of these names, the state is in the JSON file that HOSTS names. `fault` is the
number of the call that fails, counted from 0; `late` lets the call take effect before it fails, as
where the connection is cut after the order was given.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class RefusedError(Exception):
    """What the real program answers with exit code 1."""


@dataclass
class Hosts:
    """The state of a Docker host, an application of Heroku and one of Fly.

    Attributes:
        containers: Image, state and environment of the Docker host, by name.
        pulled: Images on the Docker host.
        registry: Image that Heroku's registry holds.
        releases: Of Heroku: image and settings of each; the last one is current.
        machines: Image that each machine of Fly runs.
        staged: Secrets of Fly that wait for a release.
        secrets: Secrets of Fly.
        calls: What was asked.
        fault: Number of the call that fails; None: none.
        late: Whether the failing call takes effect.
    """

    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    pulled: list[str] = field(default_factory=list)
    registry: str = ""
    releases: list[dict[str, Any]] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    staged: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)
    fault: int | None = None
    late: bool = False

    def run(self, words: Sequence[str], stdin: str, environ: dict[str, str]) -> str:
        """Do what a program is asked, and return what it prints.

        Raises:
            RefusedError: It cannot, or it is this call's turn to fail.
        """
        number = len(self.calls)
        self.calls.append(list(words))
        if number == self.fault and not self.late:
            raise RefusedError("503 Service Unavailable")
        program, *rest = words
        does: dict[str, Callable[..., str]] = {
            "docker": self._docker,
            "heroku": self._heroku,
            "flyctl": self._flyctl,
        }
        said = does[program](rest, stdin, environ)
        if number == self.fault:
            raise RefusedError("connection reset by peer")
        return said

    def served(self, target: str, name: str = "magtiles-prod") -> str | None:
        """Return the image that answers requests."""
        if target == "ssh":
            container = self.containers.get(name)
            return container["image"] if container and container["state"] == "running" else None
        if target == "heroku":
            return self.releases[-1]["image"] if self.releases else None
        return self.machines[0] if self.machines else None

    def _docker(self, words: list[str], stdin: str, environ: dict[str, str]) -> str:
        if words[0] == "--host":
            words = words[2:]
        match words:
            case ["login", "--username=_", "--password-stdin", _]:
                if not stdin:
                    raise RefusedError("no password")
            case ["tag", _, _]:
                pass
            case ["push", name]:
                self.registry = f"pushed to {name}"
            case ["pull", image]:
                self.pulled.append(image)
            case _:
                return self._containers(words, environ)
        return ""

    def _containers(self, words: list[str], environ: dict[str, str]) -> str:
        match words:
            case ["container", "ls", "--all", "--filter", wanted, "--format", "{{.State}}"]:
                name = wanted.removeprefix("name=^/").removesuffix("$")
                return self.containers[name]["state"] if name in self.containers else ""
            case ["rm", "--force", name]:
                self._container(name)
                del self.containers[name]
            case ["stop", name]:
                self._container(name)["state"] = "exited"
            case ["start", name]:
                self._container(name)["state"] = "running"
            case ["rename", old, new]:
                if new in self.containers:
                    raise RefusedError(f"Conflict. The container name /{new} is already in use")
                self.containers[new] = self._container(old)
                del self.containers[old]
            case ["run", "--detach", "--name", name, *options, image]:
                self._start(name, options, image, environ)
            case _:
                raise RefusedError(f"docker: unknown words {words}")
        return ""

    def _start(self, name: str, options: list[str], image: str, environ: dict[str, str]) -> None:
        if name in self.containers:
            raise RefusedError(f"Conflict. The container name /{name} is already in use")
        given = [options[i + 1] for i, word in enumerate(options) if word == "--env"]
        pairs = [pair if "=" in pair else f"{pair}={environ[pair]}" for pair in given]
        values = {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
        busy = any(one["state"] == "running" for one in self.containers.values())
        state = "created" if busy else "running"
        self.containers[name] = {"image": image, "state": state, "environ": values}
        if busy:
            raise RefusedError("Bind for 0.0.0.0:8000 failed: port is already allocated")

    def _container(self, name: str) -> dict[str, Any]:
        if name not in self.containers:
            raise RefusedError(f"Error: No such container: {name}")
        return self.containers[name]

    def _heroku(self, words: list[str], _stdin: str, _environ: dict[str, str]) -> str:
        last = self.releases[-1] if self.releases else {"image": None, "settings": {}}
        match words:
            case ["releases", "--app", _, "--json"]:
                shown = [
                    {"version": n, "status": "succeeded", "current": n == len(self.releases)}
                    for n in range(1, len(self.releases) + 1)
                ]
                return json.dumps(shown[::-1])
            case ["container:release", "web", "--app", _]:
                self.releases.append({**last, "image": self.registry})
            case ["config:set", pair, "--app", _]:
                name, _, value = pair.partition("=")
                self.releases.append({**last, "settings": {**last["settings"], name: value}})
            case ["rollback", version, "--app", _]:
                self.releases.append(self.releases[int(version.removeprefix("v")) - 1])
            case _:
                raise RefusedError(f"heroku: unknown words {words}")
        return ""

    def _flyctl(self, words: list[str], stdin: str, _environ: dict[str, str]) -> str:
        match words:
            case ["image", "show", "--app", _, "--json"]:
                shown = [
                    dict(zip(("Repository", "Digest"), image.split("@"), strict=True))
                    | {"Registry": "registry", "Tag": ""}
                    for image in self.machines
                ]
                return json.dumps(shown or None)
            case ["secrets", "import", "--stage", "--app", _]:
                name, _, value = stdin.strip().partition("=")
                self.staged[name] = value
            case ["deploy", "--app", _, "--strategy", "rolling", "--image", image]:
                self.secrets |= self.staged
                image = image.removeprefix("registry/")
                self.machines = [image] * max(2, len(self.machines))
            case _:
                raise RefusedError(f"flyctl: unknown words {words}")
        return ""


def main() -> int:
    """Do one call on the state in the file that HOSTS names."""
    path = Path(os.environ["HOSTS"])
    hosts = Hosts(**json.loads(path.read_text()))
    program = Path(sys.argv[0]).name
    stdin = sys.stdin.read() if not sys.stdin.isatty() else ""
    try:
        sys.stdout.write(hosts.run([program, *sys.argv[1:]], stdin, dict(os.environ)))
        return 0
    except RefusedError as error:
        sys.stderr.write(str(error))
        return 1
    finally:
        path.write_text(json.dumps(asdict(hosts)))


if __name__ == "__main__":
    sys.exit(main())
