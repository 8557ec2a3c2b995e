"""The verbs of the command line, a module each, in the order of `--help`.

A module has `add`, which puts its options on the parser, and a function that runs the verb and
returns the exit code. They and `cli` are the only modules that print. Each imports the library's
parts when it runs, so that `--help` is quick and needs no extra.
"""

from magtiles_seg.commands import data, evaluate, export, info, segment, stream, train

VERBS = (segment, stream, data, train, evaluate, export, info)
