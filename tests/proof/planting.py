"""A second copy of the package with planted faults: `planted` copies, edits and imports it.

The copy has its own name, so the package under test is not touched. Only one copy exists at a time.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import textwrap
import types
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import token_budget
from scheduler import functions_of

COPY = "planted_budget"
SOURCE = Path(token_budget.__file__).parent

# The modules whose code works on memory that threads share.
ROOMS = (
    *("_account", "_change", "_family", "_telling", "_bells", "_waiting", "_line", "_ledger", "_periods", "_settings"),
    *("_scope", "_straight", "_reservation", "_sleep", "_tree", "_governed", "_group", "_keyed", "_pool"),
)
# The modules among them that, under the lock, only decide on a change and note it. `_family.py` then makes the change.
DECIDING = ("_account", "_change", "_line", "_ledger", "_periods", "_settings", "_tree")

Edit = tuple[str, str]
Edits = dict[str, tuple[Edit, ...]]  # by function: ``_module.Class.method`` or ``_module.function``


def room(package: types.ModuleType, name: str) -> Any:
    """Return a module of the package or of its copy."""
    return importlib.import_module(f"{package.__name__}.{name}")


def watched(package: types.ModuleType, *, deciding: bool = True) -> list[types.CodeType]:
    """Return the code whose steps count. Without `deciding`, leave out the modules that only decide under the lock.

    A switch inside such a module is like a switch before it: the lock is held, and no other thread sees a note.
    """
    rooms = [name for name in ROOMS if deciding or name not in DECIDING]
    return functions_of(*[room(package, name) for name in rooms])


def text_of(where: str) -> str:
    """Return the text of a function (``_module.Class.method`` or ``_module.function``)."""
    source, first, last = _found(where)
    return "".join(source.splitlines(keepends=True)[first:last])


def planted(edits: Edits) -> Any:
    """Return a copy of the package with edited functions. Each old text must occur once in its function."""
    changed: dict[str, str] = {}
    for where, pairs in edits.items():
        module = where.partition(".")[0]
        source, first, last = _found(where, changed.get(module))
        lines = source.splitlines(keepends=True)
        text = _edited(where, "".join(lines[first:last]), pairs)
        changed[module] = "".join([*lines[:first], text, *lines[last:]])
    for name in [name for name in sys.modules if name.partition(".")[0] == COPY]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Copies(changed))
    try:
        return importlib.import_module(COPY)
    finally:
        del sys.meta_path[0]


def _found(where: str, source: str | None = None) -> tuple[str, int, int]:
    """Return the source of the function's module, and the numbers of its first line and of the line after its last."""
    module, *path = where.split(".")
    source = source or (SOURCE / f"{module}.py").read_text(encoding="utf-8")
    node: Any = _parsed(source)
    for name in path:
        (node,) = [
            one
            for one in node.body
            if isinstance(one, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and one.name == name
        ]
    return source, node.lineno - 1, node.end_lineno


@cache
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


def _edited(where: str, text: str, edits: tuple[Edit, ...]) -> str:
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {where}"
        start = text.index(old)
        indent = " " * (start - text.rindex("\n", 0, start) - 1)
        first, *rest = new.splitlines(keepends=True)
        deeper = indent + " " * 4 if first.rstrip().endswith(":") and old == first else indent
        text = text[:start] + first + textwrap.indent("".join(rest), deeper) + text[start + len(old) :]
    return text


class _Copies(MetaPathFinder, Loader):
    """Imports the modules of the copy."""

    def __init__(self, changed: dict[str, str]) -> None:
        self.changed = changed

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name.partition(".")[0] != COPY:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name == COPY)

    def exec_module(self, module: types.ModuleType) -> None:
        name = module.__name__.partition(".")[2] or "__init__"
        exec(_compiled(name, self.changed.get(name)), vars(module))


@cache
def _compiled(name: str, changed: str | None) -> types.CodeType:
    source = changed or (SOURCE / f"{name}.py").read_text(encoding="utf-8")
    return compile(re.sub(r"\btoken_budget\b", COPY, source), f"{COPY}/{name}.py", "exec")
