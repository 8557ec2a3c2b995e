"""The code behind a result: which modules it rests on, and a digest that comments leave alone.

A training takes hours and a docstring seconds. So a run is known by the syntax tree of every module
of this package that it can reach, without docstrings: another comment is the same run, another
constant is not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from magtiles_seg.files import sha256_of

_PACKAGE = Path(__file__).parent.name
_ROOT = Path(__file__).parent.parent
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def import_closure(roots: Iterable[str]) -> frozenset[str]:
    """Return every module of this package that some modules import, directly or through others.

    Imports inside functions count; those under `if TYPE_CHECKING:` do not, as they never run.

    Args:
        roots: Names such as `magtiles_seg.train.loop`; `module:function` starts from what that
            function and those that it calls in its module import, and from the module's own
            imports.

    Returns:
        Names, the roots' modules among them. A package's `__init__` counts as imported with each
        of its modules, but for the outermost, which holds the version and the public names.

    Raises:
        ModuleNotFoundError: A root is no module of this package, or no function of its module.
    """
    found: set[str] = set()
    waiting = [_enter(root, found) for root in roots]
    while waiting:
        for name in waiting.pop():
            if name not in found:
                found.add(name)
                waiting.append(_imports(name))
    return frozenset(found)


def code_sha256(roots: Iterable[str]) -> str:
    """Return a digest of the code of an import closure, in 64 hexadecimal digits.

    It changes with every change that Python would notice, and with none of a comment, a docstring
    or the layout of a line.

    Args:
        roots: As of `import_closure`.

    Raises:
        ModuleNotFoundError: A root is no module of this package.
    """
    lines = [f"{name} {_syntax(name)}\n" for name in sorted(import_closure(roots))]
    return sha256_of("".join(lines).encode())


def _enter(root: str, found: set[str]) -> frozenset[str]:
    """Note a root's module, and return what the root imports."""
    module, _, function = root.partition(":")
    tree = _tree(module)
    found.add(module)
    if not function:
        return _imports(module)
    parts = {node.name: node for node in tree.body if isinstance(node, _DEFINITIONS)}
    if function not in parts:
        raise ModuleNotFoundError(f"no function {function!r} in {module}", name=module)
    kept: list[ast.stmt] = [node for node in tree.body if not isinstance(node, _DEFINITIONS)]
    waiting = [function]
    while waiting:  # what the function calls of its own module
        node = parts.pop(waiting.pop(), None)
        if node is not None:
            kept.append(node)
            waiting += [name.id for name in ast.walk(node) if isinstance(name, ast.Name)]
    return _imported_by(module, kept)


@cache
def _imports(module: str) -> frozenset[str]:
    return _imported_by(module, _tree(module).body)


def _imported_by(module: str, nodes: Iterable[ast.stmt]) -> frozenset[str]:
    names = {name for node in nodes for name in _mentioned(node) if name.startswith(_PACKAGE)}
    names.add(module.rpartition(".")[0] or module)
    parents = {parent for name in names for parent in _with_parents(name)} - {_PACKAGE}
    return frozenset(parent for parent in parents if _file_of(parent) is not None)


def _mentioned(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a statement imports, those that are no module among them."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and str(node.value).startswith(f"{_PACKAGE}."):
        yield str(node.value).partition(":")[0]  # what import_module or a server is given
    for child in children:
        yield from _mentioned(child)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def _file_of(module: str) -> Path | None:
    base = _ROOT.joinpath(*module.split("."))
    return next(
        (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None
    )


def _tree(module: str) -> ast.Module:
    path = _file_of(module)
    if path is None:
        raise ModuleNotFoundError(f"no module {module!r} in {_PACKAGE}", name=module)
    return ast.parse(path.read_bytes())


@cache
def _syntax(module: str) -> str:
    tree = _tree(module)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *_DEFINITIONS)):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return sha256_of(ast.dump(tree).encode())


def _is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is a text and no more, as a docstring is."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
