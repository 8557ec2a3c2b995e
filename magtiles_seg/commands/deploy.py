"""`magtiles-seg deploy`: release a model, smoke-test it, roll back where that fails."""

from __future__ import annotations

import argparse
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from magtiles_seg.commands import options
from magtiles_seg.errors import ConfigError

if TYPE_CHECKING:
    from magtiles_seg.delivery.deploy import Target
    from magtiles_seg.delivery.local import LocalTarget

_EXAMPLES = """
  magtiles-seg deploy --target local --stage dev --model runs/model.onnx
  magtiles-seg deploy --target ssh --stage prod --check
  magtiles-seg deploy --target ssh --stage prod --image ghcr.io/me/magtiles:abc --dry-run

  Variables: DEPLOY_APP (heroku, fly), DEPLOY_HOST and DEPLOY_URL (ssh), HEROKU_API_KEY,
  FLY_API_TOKEN, ENDPOINT_API_KEY, MAGTILES_API_KEYS. Exit code 1: --check found a lack; 2: it
  failed, and the message says what runs now.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "deploy", "release a model, with smoke test and way back", run, examples=_EXAMPLES
    )
    verb.add_argument("--target", required=True, choices=("local", "heroku", "fly", "ssh"))
    verb.add_argument("--stage", required=True, choices=("dev", "prod"))
    options.add_model(verb)
    verb.add_argument("--image", metavar="NAME", help="container image (all but local)")
    verb.add_argument("--version", metavar="vX.Y.Z", help="that the endpoint must name")
    verb.add_argument(
        "--min-iou", type=float, default=0.5, metavar="X", help="on the golden tile (default: 0.5)"
    )
    verb.add_argument(
        "--port", type=options.port, help="of local (default: DEPLOY_PORT, 8001 dev, 8002 prod)"
    )
    verb.add_argument("--state", type=Path, help="of local (default: DEPLOY_STATE, runs/local)")
    verb.add_argument("--check", action="store_true", help="say what is missing, with its fix")
    verb.add_argument("--dry-run", action="store_true", help="print what would happen")
    verb.add_argument("--stop", action="store_true", help="stop what runs on a local stage")


def run(arguments: argparse.Namespace) -> int:
    """Deploy, or say what would happen."""
    from magtiles_seg.delivery.deploy import deploy
    from magtiles_seg.delivery.smoke import Expectation

    if arguments.stop:
        return _stop(arguments)
    if arguments.check:
        return _check(arguments)
    target = _target(arguments)
    if arguments.dry_run:
        print(target.describe())
        return options.ACCEPTED
    expected = Expectation(
        model=_model(arguments),
        version=arguments.version,
        min_iou=arguments.min_iou,
        api_key=os.environ.get("ENDPOINT_API_KEY"),
    )
    with _alone(target), options.interrupted_once():
        print(deploy(target, expected))
    return options.ACCEPTED


def _alone(target: Target) -> AbstractContextManager[None]:
    from magtiles_seg.delivery.local import LocalTarget

    return target.alone() if isinstance(target, LocalTarget) else nullcontext()


def _target(arguments: argparse.Namespace) -> Target:
    from magtiles_seg.delivery.plan import CommandTarget
    from magtiles_seg.delivery.targets import PLANS

    if arguments.target == "local":
        return _local(arguments)
    if arguments.image is None:
        raise ConfigError(f"target {arguments.target} needs --image; build and push one first")
    plan = PLANS[arguments.target](arguments.image, arguments.stage, os.environ)
    return CommandTarget(plan, os.environ)


def _check(arguments: argparse.Namespace) -> int:
    from magtiles_seg.delivery import preflight

    job = f"deploy-{arguments.stage}"
    lacks = preflight.check(job, os.environ, Path.cwd(), target=arguments.target)
    print(preflight.report(job, lacks, os.environ))
    return options.REJECTED if lacks else options.ACCEPTED


def _stop(arguments: argparse.Namespace) -> int:
    if arguments.target != "local":
        raise ConfigError(f"--stop is for the target local, got {arguments.target}")
    target = _local(arguments)
    with target.alone():
        target.stop()
    return options.ACCEPTED


def _local(arguments: argparse.Namespace) -> LocalTarget:
    from magtiles_seg.delivery.local import LocalTarget

    return LocalTarget(
        _model(arguments),
        arguments.stage,
        state=arguments.state or Path(os.environ.get("DEPLOY_STATE") or "runs/local"),
        port=arguments.port or _port_of_environment(),
        version=arguments.version or "",
    )


def _port_of_environment() -> int:
    try:
        return options.port(os.environ.get("DEPLOY_PORT") or "0")
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"DEPLOY_PORT: {error}") from error


def _model(arguments: argparse.Namespace) -> Path:
    from magtiles_seg.model.bundled import model_path

    return model_path(arguments.model)
