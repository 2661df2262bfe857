"""The layers of the design: a module imports only from layers below its own, and the core only the standard library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import token_budget

PACKAGE = Path(token_budget.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

LAYER = {
    "_errors.py": 0,
    "_money.py": 0,
    "_events.py": 0,
    "_snapshot.py": 0,
    "_window.py": 0,
    "_waiting.py": 1,
    "_family.py": 2,
    "_keyed.py": 2,
    "_pool.py": 2,
    "__init__.py": 2,
    "pool.py": 2,
    "__main__.py": 5,
}
FRONT = 5


def layer(module: str) -> int:
    return FRONT if module.startswith("cli/") else LAYER[module]


def imports(module: str) -> set[str]:
    """Return the names of all modules that it imports, wherever it does."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "token_budget"}
    return names


def file_of(name: str) -> str | None:
    path = name.replace(".", "/").removeprefix("token_budget").lstrip("/")
    candidates = [f"{path}.py", f"{path}/__init__.py".lstrip("/")]
    return next((candidate for candidate in candidates if candidate in MODULES), None)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_layer_and_below(module: str) -> None:
    for name in imports(module):
        if name.split(".")[0] == "token_budget":
            target = file_of(name)
            assert target is None or layer(target) <= layer(module), f"{module} imports {name}"
        else:
            assert name.split(".")[0] in sys.stdlib_module_names, f"{module} imports {name}"


def test_importing_the_package_loads_neither_the_front_nor_anything_foreign() -> None:
    program = "import sys\nbefore = set(sys.modules)\nimport token_budget\nprint(*sorted(set(sys.modules) - before))\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    ours = {name for name in loaded if name.startswith("token_budget")}
    modules = ("_errors", "_events", "_family", "_keyed", "_money", "_pool", "_snapshot", "_waiting", "_window")
    assert ours == {"token_budget", *(f"token_budget.{name}" for name in modules)}
    assert {name.split(".")[0] for name in loaded} - {"token_budget"} <= sys.stdlib_module_names
    assert not {"typing", "dataclasses", "decimal", "fractions", "asyncio"} & set(loaded)


def test_everything_public_is_listed_and_documented() -> None:
    for name in token_budget.__all__:
        thing = getattr(token_budget, name)
        assert name == "__version__" or thing.__doc__
