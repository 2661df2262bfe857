"""The command line: ``token-budget COMMAND``, or ``python -m token_budget COMMAND``.

Each command is a module of this package that has ``add_command(commands)``: it declares its options and says which
function runs it. That function takes the parsed options and returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from token_budget import __version__
from token_budget.cli import demo, scopes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; bad options raise SystemExit(2), as argparse does.

    Args:
        argv: what follows the program's name; None for the arguments of this process.
    """
    options = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`). What is still buffered goes nowhere, so that the interpreter's
        # last flush does not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="token-budget", description="A budget lock for concurrent LLM work: one pool of tokens and dollars."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo.add_command(commands)
    scopes.add_command(commands)
    return parser
