"""The structure of the package: layers without circles, small modules, classes and functions, a light import."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import token_budget
from support import run_program

PACKAGE = Path(token_budget.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# A module imports only modules of lower layers. Modules of layer 0 may import each other, but not in a circle.
LAYER = {
    "_lazy.py": 0,
    "_money.py": 0,
    "_window.py": 0,
    "_arguments.py": 0,
    "_errors.py": 0,
    "_snapshot.py": 0,
    "_events.py": 0,
    "_process.py": 0,
    "_bells.py": 0,
    "_once.py": 0,
    "_waiting.py": 1,
    "_account.py": 2,
    "_telling.py": 3,
    "_change.py": 4,
    "_family.py": 5,
    "_scope.py": 6,
    "_line.py": 6,
    "_straight.py": 7,
    "_periods.py": 7,
    "_ledger.py": 8,
    "_settings.py": 9,
    "_tree.py": 9,
    "_reservation.py": 9,
    "_group.py": 10,
    "_sleep.py": 10,
    "_keyed.py": 11,
    "_governed.py": 11,
    "_environment.py": 11,
    "_pool.py": 12,
    "__init__.py": 13,
    "pool.py": 14,
    "contract.py": 15,
    "stores/_errors.py": 16,
    "stores/_names.py": 16,
    "stores/_store.py": 16,
    "stores/redis/__init__.py": 16,
    "stores/redis/_scripts.py": 16,
    "stores/redis/_wire.py": 16,
    "stores/sqlite/__init__.py": 16,
    "stores/sqlite/_lock.py": 16,
    "stores/sqlite/_schema.py": 16,
    "stores/_hand.py": 17,
    "stores/_joined.py": 17,
    "stores/_outage.py": 17,
    "stores/_refusing.py": 17,
    "stores/redis/_faults.py": 17,
    "stores/redis/_keys.py": 17,
    "stores/redis/_listener.py": 17,
    "stores/redis/_rows.py": 17,
    "stores/redis/_settings.py": 17,
    "stores/sqlite/_alive.py": 17,
    "stores/sqlite/_faults.py": 17,
    "stores/sqlite/_rows.py": 17,
    "stores/_listening.py": 18,
    "stores/_places.py": 18,
    "stores/redis/_process.py": 18,
    "stores/redis/_routes.py": 18,
    "stores/sqlite/_file.py": 18,
    "stores/_areserve.py": 19,
    "stores/_owed.py": 19,
    "stores/_waiting.py": 19,
    "stores/redis/_client.py": 19,
    "stores/redis/_reading.py": 19,
    "stores/sqlite/_registry.py": 19,
    "stores/_family.py": 20,
    "stores/_reservation.py": 20,
    "stores/redis/_mending.py": 20,
    "stores/sqlite/_connection.py": 20,
    "stores/_governed.py": 21,
    "stores/redis/_claims.py": 21,
    "stores/sqlite/_step.py": 21,
    "stores/_keyed.py": 22,
    "stores/redis/_scopes.py": 22,
    "stores/redis/_watching.py": 22,
    "stores/sqlite/_owners.py": 22,
    "stores/sqlite/_scopes.py": 22,
    "stores/_pool.py": 23,
    "stores/redis/_store.py": 23,
    "stores/sqlite/_claims.py": 23,
    "stores/sqlite/_settings.py": 23,
    "stores/sqlite/_waiters.py": 23,
    "stores/redis/pool.py": 24,
    "stores/sqlite/_slow.py": 24,
    "stores/sqlite/_fast.py": 25,
    "stores/sqlite/_store.py": 26,
    "stores/sqlite/pool.py": 27,
    "stores/_opening.py": 28,
    "stores/__init__.py": 29,
    "metering/_refusals.py": 16,
    "metering/_objects.py": 16,
    "metering/_counts.py": 17,
    "metering/_written.py": 17,
    "metering/_names.py": 17,
    "metering/_images.py": 18,
    "metering/_answers.py": 19,
    "metering/_usage.py": 20,
    "metering/_shapes.py": 21,
    "metering/_ask.py": 21,
    "metering/_rates.py": 21,
    "metering/_table.py": 22,
    "metering/_catalogue.py": 23,
    "metering/_prices.py": 24,
    "metering/_estimate.py": 21,
    "metering/_media.py": 21,
    "metering/_routes.py": 22,
    "metering/_body.py": 22,
    "metering/_input.py": 22,
    "metering/_requests.py": 23,
    "metering/_charge.py": 24,
    "metering/_decision.py": 24,
    "metering/_report.py": 24,
    "metering/_guards.py": 25,
    "metering/_run.py": 26,
    "metering/_pending.py": 27,
    "metering/_settling.py": 28,
    "metering/_watch.py": 28,
    "metering/_refused.py": 28,
    "metering/_stream.py": 29,
    "metering/_send.py": 30,
    "metering/_clients.py": 31,
    "metering/_call.py": 31,
    "metering/_meter.py": 32,
    "metering/_block.py": 33,
    "metering/__init__.py": 34,
    "adapters/__init__.py": 35,
    "adapters/litellm.py": 36,
    "adapters/opentelemetry.py": 36,
    "progress.py": 36,
    "cli/_provider_tools.py": 39,
    "gateway/_families.py": 31,
    "gateway/_messages.py": 31,
    "gateway/_upstreams.py": 32,
    "gateway/_keys.py": 33,
    "gateway/_codex.py": 34,
    "gateway/_limits.py": 33,
    "gateway/_threads.py": 33,
    "gateway/_address.py": 33,
    "gateway/_headers.py": 34,
    "gateway/_environment.py": 35,
    "gateway/_refusals.py": 33,
    "gateway/_client.py": 34,
    "gateway/_calls.py": 35,
    "gateway/_relay.py": 36,
    "gateway/_forward.py": 37,
    "gateway/_server.py": 38,
    "gateway/__init__.py": 39,
    "cli/_provider_shapes.py": 40,
    "cli/_provider.py": 41,
    "cli/_options.py": 40,
    "cli/_run_signals.py": 40,
    "cli/_run_tree.py": 40,
    "cli/_run_child.py": 41,
    "cli/_workload.py": 40,
    "cli/_audit.py": 41,
    "cli/_contrast.py": 42,
    "cli/_display.py": 43,
    "cli/_fanout.py": 44,
    "cli/_meter_calls.py": 44,
    "cli/_meter_audit.py": 45,
    "cli/scopes.py": 45,
    "cli/demo.py": 45,
    "cli/meter_demo.py": 46,
    "cli/_valkey.py": 41,
    "cli/_store_commands.py": 41,
    "cli/_stores_worker.py": 41,
    "cli/_stores_audit.py": 42,
    "cli/_stores_join.py": 41,
    "cli/_store_tree.py": 44,
    "cli/_stores_run.py": 44,
    "cli/store_expired.py": 45,
    "cli/store_reset.py": 45,
    "cli/store_status.py": 46,
    "cli/stores_demo.py": 45,
    "cli/_run_completion.py": 40,
    "cli/_run_options.py": 41,
    "cli/_run_budget.py": 42,
    "cli/_run_notes.py": 42,
    "cli/run.py": 47,
    "cli/_run_status.py": 40,
    "cli/_run_terminal.py": 40,
    "cli/_run_files.py": 41,
    "cli/_run_rich.py": 41,
    "cli/_run_text.py": 41,
    "cli/_run_line.py": 42,
    "cli/_run_summary.py": 42,
    "cli/_run_title.py": 42,
    "cli/_run_view.py": 45,
    "cli/_run_display.py": 46,
    "cli/__init__.py": 50,
    "__main__.py": 51,
}
# The libraries of the extra `cli`, and the modules that need them.
LIBRARIES = {
    "gateway/": {"aiohttp", "multidict", "truststore", "yarl"},
    "cli/_run": {"click", "psutil", "rich"},
}
WORDS = 0
CORE = 14  # this layer and all layers below

MODULE_LINES = 450
CLASS_LINES = 300
FUNCTION_LINES = 45
NOT_LOADED = {"typing", "dataclasses", "decimal", "fractions", "asyncio", "datetime", "inspect"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def source(module: str) -> str:
    return (PACKAGE / module).read_text(encoding="utf-8")


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(source(module))


def file_of(name: str) -> str | None:
    """Return the file of a module of the package by the module's name, or None if there is none."""
    path = name.replace(".", "/").removeprefix("token_budget").lstrip("/")
    candidates = [f"{path}.py", f"{path}/__init__.py".lstrip("/")]
    return next((candidate for candidate in candidates if candidate in MODULES), None)


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return the names of all modules that a file imports, including in functions and for type checkers."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            below = {f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("token_budget")}
            modules = {name for name in below if file_of(name) is not None}
            names |= modules
            if len(modules) < len(node.names):  # a name that the module itself defines
                names.add(node.module)
    return frozenset(names)


def imported(module: str) -> set[str]:
    """Return the files of the package that it imports."""
    ours = {name for name in imports(module) if name.split(".")[0] == "token_budget"}
    files = {file_of(name) for name in ours}
    assert None not in files, f"{module} imports modules that do not exist: {ours}"
    return files  # type: ignore[return-value]


# ---------------------------------------------------------------- who imports whom


def test_every_module_has_a_layer() -> None:
    assert set(LAYER) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_of_lower_layers(module: str) -> None:
    for other in imported(module):
        words = LAYER[module] == LAYER[other] == WORDS
        assert LAYER[other] < LAYER[module] or words, f"{module} imports {other}"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith(("stores/", "metering/"))])
def test_stores_and_metering_do_not_know_each_other(module: str) -> None:
    other = "metering/" if module.startswith("stores/") else "stores/"
    assert not [one for one in imported(module) if one.startswith(other)]


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {module: imported(module) for module in MODULES}
    while left:
        free = [module for module, others in left.items() if not others & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for module in free:
            del left[module]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_outside_of_the_standard_library_is_imported(module: str) -> None:
    foreign = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"token_budget"}
    allowed = {name for prefix, names in LIBRARIES.items() if module.startswith(prefix) for name in names}
    assert foreign <= allowed


def test_the_command_line_loads_no_library_until_a_command_needs_it() -> None:
    program = "import sys\nimport token_budget.cli\nprint(*{name.partition('.')[0] for name in sys.modules})\n"
    loaded = set(run_program(program).stdout.split())
    assert not loaded & {name for names in LIBRARIES.values() for name in names}


def test_importing_the_package_loads_the_core_alone_and_no_module_that_is_slow_to_load() -> None:
    program = "import sys\nbefore = set(sys.modules)\nimport token_budget\nprint(*sorted(set(sys.modules) - before))\n"
    loaded = set(run_program(program).stdout.split())
    core = {module for module in MODULES if LAYER[module] <= CORE} - {"pool.py", "_environment.py"}
    ours = {name for name in loaded if name.startswith("token_budget")}
    assert ours == {f"token_budget.{module}".removesuffix(".py").removesuffix(".__init__") for module in core}
    assert {name.split(".")[0] for name in loaded - ours} <= sys.stdlib_module_names
    assert not NOT_LOADED & loaded


# ---------------------------------------------------------------- sizes


def body_lines(function: Function, module: str) -> int:
    """Return the lines from the first statement after the docstring to the last, without blank ones and comments."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    lines = source(module).splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)


def methods(node: ast.ClassDef) -> list[Function]:
    return [child for child in node.body if isinstance(child, Function)]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short(module: str) -> None:
    assert len(source(module).splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("module", MODULES)
def test_a_class_is_short(module: str) -> None:
    classes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
    lines = {node.name: sum(body_lines(method, module) for method in methods(node)) for node in classes}
    assert {name: count for name, count in lines.items() if count > CLASS_LINES} == {}


@pytest.mark.parametrize("module", MODULES)
def test_a_function_is_short(module: str) -> None:
    functions = [node for node in ast.walk(tree(module)) if isinstance(node, Function)]
    lines = {node.name: body_lines(node, module) for node in functions}
    assert {name: count for name, count in lines.items() if count > FUNCTION_LINES} == {}


# ---------------------------------------------------------------- what is public


def public() -> list[tuple[str, Any]]:
    """Return every public class, method, property and function, with its name."""
    found: list[tuple[str, Any]] = []
    for name in token_budget.__all__:
        thing = getattr(token_budget, name)
        if name == "__version__":
            continue
        found.append((name, thing))
        if isinstance(thing, type):
            for attribute, value in inspect.getmembers(thing):
                if not attribute.startswith("_") or attribute in {"__init__", "__enter__", "__exit__", "__aexit__"}:
                    inner = value.fget if isinstance(value, property) else value
                    if inspect.isfunction(inner) or inspect.ismethod(inner):
                        found.append((f"{name}.{attribute}", inner))
    return found


@pytest.mark.parametrize(("name", "thing"), public(), ids=[name for name, _ in public()])
def test_the_annotations_of_everything_public_resolve(name: str, thing: Any) -> None:
    hints = typing.get_type_hints(thing)
    if not isinstance(thing, type) and thing.__module__.startswith("token_budget"):
        assert "return" in hints, name


def test_everything_public_is_listed_and_documented() -> None:
    for name in token_budget.__all__:
        thing = getattr(token_budget, name)
        assert name == "__version__" or thing.__doc__
