"""`magtiles-seg promote`: a version of the model on a stage, as Git tags."""

from __future__ import annotations

import argparse
from pathlib import Path

from magtiles_seg.commands import options

_EXAMPLES = """
  magtiles-seg promote                          give this commit's model a version, print it
  magtiles-seg promote --stage dev              this commit's model, with the next version
  magtiles-seg promote --stage prod --revision v1.2.0 --push    an older version: back to it

  The tags are GTO's: magtiles@v1.2.0, magtiles#dev#3. `gto show` lists them.
"""


def add(verbs: options.Verbs) -> None:
    """Add the verb."""
    verb = options.add_verb(
        verbs, "promote", "put a version of the model on a stage", run, examples=_EXAMPLES
    )
    verb.add_argument("--stage", metavar="NAME", help="dev or prod (default: a version alone)")
    verb.add_argument("--name", default="magtiles", help="artifact in dvc.yaml (default: magtiles)")
    verb.add_argument(
        "--revision", default="HEAD", metavar="REV", help="commit or version (default: HEAD)"
    )
    verb.add_argument("--version", metavar="vX.Y.Z", help="default: the next patch version")
    verb.add_argument("--push", action="store_true", help="get and send tags from and to origin")


def run(arguments: argparse.Namespace) -> int:
    """Make the tags."""
    from magtiles_seg.delivery import registry

    root, name = Path.cwd(), arguments.name
    which = {"revision": arguments.revision, "version": arguments.version}
    if arguments.push:
        registry.fetch(root)
    if arguments.stage is None:
        said = registry.register(root, name, **which)[0]
    else:
        said = str(registry.promote(root, name, arguments.stage, **which))
    if arguments.push:
        registry.push(root, name, arguments.revision)
    print(said)
    return options.ACCEPTED
