"""Run a command under a display, as ``token-budget run`` does: ``python shown_child.py MODE EVERY LOOKS COMMAND ...``.

Each look spends a little more, so that the display has something to show, and is counted in the file LOOKS. The mode
``none`` runs the command without a display.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from token_budget.cli._run_status import RunStatus


def begun(mode: str, every: float, looks: Path) -> Any:
    """Return a display that was started."""
    from runs import a_status
    from token_budget.cli._run_display import display

    number = itertools.count(1)

    def look() -> RunStatus:
        calls = next(number)
        looks.write_text(str(calls), encoding="utf-8")
        return a_status(usd_nanos=calls * 10**8, calls=calls, seconds=calls / 10)

    one = display(mode, look, stderr=sys.stderr, stdout=sys.stdout, every=every)
    one.start()
    return one


def main(mode: str, every: str, looks: str, *command: str) -> int:
    shown = None
    try:
        with subprocess.Popen(command) as child:
            if mode != "none":
                shown = begun(mode, float(every), Path(looks))
            return child.wait()
    except KeyboardInterrupt:
        return 130
    finally:
        if shown is not None:
            shown.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
