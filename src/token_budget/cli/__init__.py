"""The command line: ``token-budget COMMAND``, or ``python -m token_budget COMMAND``.

Each command is declared by a module of this package that has ``add_command(commands)``: it declares the options, the
parser and the function that runs the command. That function takes the parsed options and returns the exit status. Only
the module of the command that is asked for is loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from token_budget import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
COMPLETE = "_TOKEN_BUDGET_COMPLETE"  # the variable by which a shell asks for completions
COMMANDS = {  # each command, in the order of the help, and the module that declares it
    "run": "run",
    "status": "store_status",
    "expired": "store_expired",
    "settle": "store_expired",
    "reset": "store_reset",
    "completion": "_run_completion",
    "demo": "demo",
    "scopes": "scopes",
    "meter-demo": "meter_demo",
    "stores-demo": "stores_demo",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; bad options raise SystemExit(2), as argparse does.

    Args:
        argv: the arguments after the program's name; None for the arguments of this process.
    """
    runs = list(sys.argv[1:2] if argv is None else argv[:1]) == ["run"]
    if sys.stdout is None and not runs:  # closed before the interpreter started, as by `>&-`
        return _cannot_write("it is closed")
    try:
        if argv is None:
            if COMPLETE in os.environ:
                return _complete(os.environ[COMPLETE])
            argv = sys.argv[1:]
        try:
            options, unknown = _parser(*argv[:1]).parse_known_args(argv)
            if unknown:  # reported by the command's own parser, so that its own usage is shown
                options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
            run: Callable[[argparse.Namespace], int] = options.run
            return run(options)
        finally:
            _flush_output()  # here, so that an error is reported below and not by the interpreter's own last flush
    except KeyboardInterrupt:
        return _interrupted(runs=runs)
    except BrokenPipeError:  # the reader of the output has gone (`| head`), which is not an error
        _discard_output()
        return 1
    except OSError as error:
        if error.errno is None:  # a failure of the simulated model: a bug of the demo
            raise
        _discard_output()
        return _cannot_write(str(error.strerror))


def _interrupted(*, runs: bool) -> int:
    """End as the program of ``run`` would have, which was not started yet; return the exit status otherwise."""
    if runs:
        from token_budget.cli._run_child import end_by_interrupt

        end_by_interrupt()
    return INTERRUPTED


def _flush_output() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _cannot_write(reason: str) -> int:
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(f"token-budget: error: cannot write to standard output: {reason}\n")
    return 1


def _discard_output() -> None:
    """Send what is still buffered to nowhere, so that the interpreter's last flush does not fail as well."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _complete(asked: str) -> int:
    """Answer a shell that asks for completions."""
    from token_budget.cli import _run_completion

    return _run_completion.answer(_parser(), asked)


def _parser(command: str = "") -> argparse.ArgumentParser:
    """Return the parser of one command; that of all commands if it is none of them."""
    parser = argparse.ArgumentParser(
        prog="token-budget", description="A budget lock for concurrent LLM work: one pool of tokens and dollars."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in dict.fromkeys([COMMANDS[command]] if command in COMMANDS else COMMANDS.values()):
        import_module(f"token_budget.cli.{module}").add_command(commands)
    return parser
