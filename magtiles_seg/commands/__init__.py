"""The verbs of the command line, a module each, in the order of `--help`.

A module has `add`, which puts its options on the parser, and a function that runs the verb and
returns the exit code. They and `cli` are the only modules that print. Each imports the library's
parts when it runs, so that `--help` is quick and needs no extra.
"""

from magtiles_seg.commands import (
    batch,
    bench,
    crossval,
    data,
    demo,
    deploy,
    ensemble,
    evaluate,
    export,
    gate,
    info,
    loop,
    parity,
    promote,
    report,
    screen,
    segment,
    serve,
    smoke,
    stream,
    train,
)

VERBS = (
    segment,
    batch,
    stream,
    serve,
    demo,
    data,
    loop,
    train,
    crossval,
    ensemble,
    screen,
    evaluate,
    export,
    parity,
    bench,
    info,
    report,
    gate,
    promote,
    deploy,
    smoke,
)
