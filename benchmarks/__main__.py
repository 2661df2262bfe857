"""Run the benchmarks: ``python benchmarks``, or ``python benchmarks single threads --size tiny``.

``python benchmarks --against FOLDER`` compares a lone pool with that of another checkout. It runs nothing else, but for
the benchmarks that are named beside it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("single", "threads", "scopes", "growth", "waiting", "memory", "import_time", "metering", "stores", "gateway")


def main() -> None:
    """Measure what was asked for, and print its tables."""
    parser = argparse.ArgumentParser(prog="python benchmarks", description="Ratios of our costs to the references'.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--size", choices=["tiny", "full"], default="full", help="tiny only shows that it runs")
    parser.add_argument("--repeats", type=int, help="how often each is timed (default: 15; tiny: 2)")
    parser.add_argument("--reference", type=Path, default=ROOT / "benchmarks" / ".reference", metavar="FOLDER")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="compare a lone pool with another checkout's")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"no benchmark {', '.join(unknown)}: choose from {', '.join(NAMES)}")

    tiny = arguments.size == "tiny"
    repeats = arguments.repeats if arguments.repeats is not None else 2 if tiny else 15
    if repeats < 2:
        parser.error("--repeats must be at least 2")
    against = arguments.against
    if against is not None and not (against / "src" / "token_budget" / "__init__.py").exists():
        parser.error(f"--against {against} is no checkout: it has no src/token_budget")
    _find_ours()
    from benchmarks._measure import Options, machine
    from benchmarks.references import INSTALL, REFERENCE, load_reference

    print(f"{machine()}\n")
    if load_reference(arguments.reference) is None:
        print(f"Without {REFERENCE}, which is not installed here: {INSTALL}\n")
    options = Options(tiny=tiny, repeats=repeats, reference=arguments.reference, against=against)
    names = arguments.names or NAMES
    if against is not None:
        names = [*arguments.names, "against"]
    for name in names:
        for table in importlib.import_module(f"benchmarks.{name}").run(options):
            print(f"{table}\n", flush=True)


def _find_ours() -> None:
    """Let `benchmarks` be imported, and `token_budget` from src if what is installed is not ours or nothing is."""
    sys.path.insert(0, str(ROOT))
    spec = find_spec("token_budget")
    folders = (spec and spec.submodule_search_locations) or []
    if not any((Path(folder) / "_pool.py").exists() for folder in folders):
        sys.path.insert(0, str(ROOT / "src"))
        importlib.invalidate_caches()


if __name__ == "__main__":
    main()
