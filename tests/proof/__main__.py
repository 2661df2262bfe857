"""The full run of all proofs, one after the other. It takes about an hour on two processors.

    python tests/proof [--seconds 60]

It exhausts the schedules, fuzzes each target for `--seconds` (with atheris, dependency group `fuzz`), stresses each
race without the GIL for half as long (if a free-threaded CPython is found), and runs the mutants (mutmut, on CPython
3.13). It says which parts it had to leave out because a tool is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def step(title: str, *command: str, needs: str | None = None) -> bool:
    """Run a command in the project's root and return whether it passed."""
    print(f"\n=== {title}", flush=True)
    if needs is not None and importlib.util.find_spec(needs) is None:
        print(f"LEFT OUT: {needs} is not installed in this environment")
        return True
    start = time.monotonic()
    passed = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode == 0
    print(f"--- {'passed' if passed else 'FAILED'} after {time.monotonic() - start:.0f} s", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="for each fuzz target (60)")
    seconds: int = parser.parse_args().seconds
    passed = [step("every schedule, every point, every fault", "-m", "pytest", "tests/proof", "--full", "-q")]
    for target in ("amounts", "operations", "families"):
        fuzz = ("tests/proof/fuzz.py", target, f"-max_total_time={seconds}", "-verbosity=0", "-print_final_stats=1")
        passed.append(step(f"fuzz: {target}", *fuzz, needs="atheris"))
    passed.append(step("stress without the GIL", "tests/proof/stress.py", "--seconds", str(seconds / 2)))
    passed.append(step("mutants", "-m", "mutmut", "run", needs="mutmut"))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
