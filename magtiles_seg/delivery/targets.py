"""Where a model can be deployed by commands: Heroku, Fly, and any Docker host over SSH."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from magtiles_seg.delivery.plan import PREVIOUS, Command, Plan, Step
from magtiles_seg.delivery.preflight import NEEDED
from magtiles_seg.errors import ConfigError, DeliveryError

API_KEYS = "MAGTILES_API_KEYS"
"""Setting of the service that every target hands through where the environment has it."""

_PORT = "8000"
"""Where the container listens on a Docker host; Heroku and Fly give `$PORT`."""

_EXISTS = "."
_RUNS = "running|restarting|paused"


def plan_heroku(image: str, stage: str, environ: Mapping[str, str]) -> Plan:
    """Plan a release on Heroku: the image goes to its registry, in the manifest form it takes.

    A release of Heroku holds the image and the settings, so one rollback brings back both.

    Args:
        image: Built with `--provenance=false`: Heroku takes Docker manifests v2.2, no OCI index.
        stage: Stands in the messages.
        environ: `DEPLOY_APP`; `HEROKU_API_KEY` is checked, and read by the commands.

    Raises:
        ConfigError: A variable is missing.
    """
    app = _needed("heroku", stage, environ)["DEPLOY_APP"]
    theirs = f"registry.heroku.com/{app}/web"
    login = ("docker", "login", "--username=_", "--password-stdin", "registry.heroku.com")
    back = (Command(("heroku", "rollback", PREVIOUS, "--app", app)),)
    steps = [
        Step(Command(login, stdin="${HEROKU_API_KEY}")),
        Step(Command(("docker", "tag", image, theirs))),
        Step(Command(("docker", "push", theirs))),
    ]
    release = Command(("heroku", "container:release", "web", "--app", app))
    if environ.get(API_KEYS):  # the shell puts the value in, so that no plan and no log holds it
        keys = f'exec heroku config:set "{API_KEYS}=${API_KEYS}" --app "$0"'
        steps += [Step(Command(("sh", "-c", keys, app)), undo=back), Step(release)]
    else:
        steps += [Step(release, undo=back)]
    return Plan(
        url=environ.get("DEPLOY_URL") or f"https://{app}.herokuapp.com",
        remember=Command(("heroku", "releases", "--app", app, "--json")),
        read=_heroku_release,
        steps=tuple(steps),
    )


def plan_fly(image: str, stage: str, environ: Mapping[str, str]) -> Plan:
    """Plan a release on Fly; the way back deploys the image that the machines ran before.

    The keys are staged, so that they come with the release. Fly keeps them apart from releases: the
    way back serves the former image with the new keys.

    Args:
        image: In a registry that Fly can read.
        stage: Stands in the messages.
        environ: `DEPLOY_APP`; `FLY_API_TOKEN` is checked, and read by flyctl.

    Raises:
        ConfigError: A variable is missing.
    """
    app = _needed("fly", stage, environ)["DEPLOY_APP"]
    start = ("flyctl", "deploy", "--app", app, "--strategy", "rolling", "--image")
    stage_keys = ("flyctl", "secrets", "import", "--stage", "--app", app)
    keys = Command(stage_keys, stdin=f"{API_KEYS}=${{{API_KEYS}}}")
    return Plan(
        url=environ.get("DEPLOY_URL") or f"https://{app}.fly.dev",
        remember=Command(("flyctl", "image", "show", "--app", app, "--json")),
        read=_fly_image,
        steps=(
            *([Step(keys)] if environ.get(API_KEYS) else []),
            Step(Command((*start, image)), undo=(Command((*start, PREVIOUS)),)),
        ),
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
    given = _needed("ssh", stage, environ)
    docker = ("docker", "--host", f"ssh://{given['DEPLOY_HOST']}")
    name, former = f"magtiles-{stage}", f"magtiles-{stage}-former"
    ports = f"{environ.get('DEPLOY_PORT') or _PORT}:{_PORT}"
    start = (*docker, "run", "--detach", "--name", name, "--restart", "unless-stopped")
    limits = ("--read-only", "--publish", ports, "--env", f"PORT={_PORT}")
    keys = ("--env", API_KEYS) if environ.get(API_KEYS) else ()  # docker reads the value itself
    shown = (*docker, "container", "ls", "--all", "--filter", f"name=^/{name}$")
    remove = (*docker, "rm", "--force")
    return Plan(
        url=given["DEPLOY_URL"],
        remember=Command((*shown, "--format", "{{.State}}")),
        serves=_RUNS,
        steps=(
            Step(Command((*docker, "pull", image))),
            Step(Command((*remove, former), may_fail=True), needs=_EXISTS),
            Step(
                Command((*docker, "stop", name)),
                undo=(Command((*docker, "start", name)),),
                needs=_RUNS,
            ),
            Step(
                Command((*docker, "rename", name, former)),
                undo=(Command((*docker, "rename", former, name), may_fail=True),),
                needs=_EXISTS,
            ),
            Step(
                Command((*start, *limits, *keys, image)),
                undo=(Command((*remove, name), may_fail=True),),
            ),
        ),
    )


PLANS = {"heroku": plan_heroku, "fly": plan_fly, "ssh": plan_ssh}


def _needed(target: str, stage: str, environ: Mapping[str, str]) -> dict[str, str]:
    missing = [name for name in NEEDED[target] if not environ.get(name)]
    if missing:
        raise ConfigError(
            f"target {target}, stage {stage}: the environment lacks {', '.join(missing)}; set "
            "them as secrets of the CI's environment, or export them here"
        )
    return {name: environ[name] for name in NEEDED[target]}


def _heroku_release(printed: str) -> str:
    """Return the release that `heroku releases --json` calls current, such as `v42`."""
    releases = _list_of("heroku", printed)
    current = [release for release in releases if release.get("current")]
    working = [release for release in releases if release.get("status") == "succeeded"]
    return next((f"v{release['version']}" for release in (*current, *working)), "")


def _fly_image(printed: str) -> str:
    """Return the image that most machines run, as `flyctl image show --json` lists them."""
    images: Counter[str] = Counter()
    for machine in _list_of("flyctl", printed):
        name = f"{machine.get('Registry')}/{machine.get('Repository')}"
        digest, tag = machine.get("Digest"), machine.get("Tag")
        images[f"{name}@{digest}" if digest else f"{name}:{tag}"] += 1
    return images.most_common(1)[0][0] if images else ""


def _list_of(program: str, printed: str) -> list[dict[str, Any]]:
    try:
        found = json.loads(printed or "[]") or []
    except ValueError as error:
        raise DeliveryError(f"{program} printed no JSON: {printed[:200]!r}") from error
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DeliveryError(f"{program} printed no list of mappings: {printed[:200]!r}")
    return found
