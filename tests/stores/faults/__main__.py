"""Proof by faults: ``python tests/stores/faults [--seconds 60] [NAME...]``; see `fault_program`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[2] / "src"), str(HERE.parent), str(HERE)]

import fault_program  # noqa: E402

if __name__ == "__main__":
    sys.exit(fault_program.main())
