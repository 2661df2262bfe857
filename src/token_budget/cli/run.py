"""``token-budget run``: a program whose calls to models are capped before they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from token_budget.cli._run_options import RunOptions, checked, declare

if TYPE_CHECKING:
    import argparse


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``run`` and its options."""
    parser = declare(commands)
    parser.set_defaults(run=run, parser=parser)


def run(options: RunOptions) -> int:
    """Run the program, and return the exit status."""
    checked(options)
    print(options)
    return 0
