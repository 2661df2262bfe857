"""``token-budget completion SHELL``: the script that completes commands and options in a shell, by click.

The parsers of the commands are argparse's. For click they are mirrored: each command, option, choice and help text is
read from its parser when the shell asks, so that nothing is written twice.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

PROGRAM = "token-budget"
ASKED = "_TOKEN_BUDGET_COMPLETE"  # the variable that the shell's script sets as it asks (`cli.COMPLETE`)
INSTALL = "pip install 'token-budget-pool[cli]'"
SHELLS = ("bash", "zsh", "fish")
_FILES = frozenset({"FILE", "PATH"})
_HOW = """\
where it goes:
  bash  token-budget completion bash \\
          > ~/.local/share/bash-completion/completions/token-budget
  zsh   token-budget completion zsh > "${fpath[1]}/_token-budget"
  fish  token-budget completion fish \\
          > ~/.config/fish/completions/token-budget.fish

or for this shell alone:
  source <(token-budget completion bash)

exit status: 0; 2 bad options, or click is not installed (the extra [cli])"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare ``completion``."""
    parser = commands.add_parser(
        "completion",
        help="print the script that completes commands in bash, zsh or fish",
        description="Print a script for a shell. It completes the commands, their\noptions and what these take.",
        epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Print the script, and return the exit status."""
    try:
        from click.shell_completion import get_completion_class
    except ImportError:
        parser: argparse.ArgumentParser = options.parser
        parser.error(f"click is not installed: {INSTALL}")
    kind: Any = get_completion_class(options.shell)
    sys.stdout.write(f"{kind(None, {}, PROGRAM, ASKED).source().strip()}\n")
    return 0


def answer(parser: argparse.ArgumentParser, instruction: str) -> int:
    """Print what completes the words that the shell has (in ``COMP_WORDS`` and ``COMP_CWORD``), by its own rules.

    Args:
        parser: the parser of the whole command line.
        instruction: what the script says in `ASKED`: ``bash_complete`` and the like.

    Returns:
        0; 1 if the instruction is none that is known, or click is not installed.
    """
    try:
        from click.shell_completion import get_completion_class
    except ImportError:
        return 1
    shell, _, what = instruction.partition("_")
    kind: Any = get_completion_class(shell)
    if kind is None or what != "complete":
        return 1
    sys.stdout.write(f"{kind(_mirror(parser), {}, PROGRAM, ASKED).complete()}\n")
    return 0


# ---------------------------------------------------------------- the mirror


def _mirror(parser: argparse.ArgumentParser) -> click.Command:
    """Return click's command line of the same commands and options."""
    import click

    group = click.Group(PROGRAM, params=[_option(one) for one in parser._actions if _shown(one)], add_help_option=False)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                group.add_command(_command(name, command, helps.get(name)))
    return group


def _command(name: str, parser: argparse.ArgumentParser, short_help: str | None) -> click.Command:
    import click

    class Command(click.Command):
        """Completes options up to the program that is to be run, and none of ours behind it."""

        def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
            if ctx.params.get("program"):
                return []
            return super().shell_complete(ctx, incomplete)

    ends = any(action.nargs == argparse.REMAINDER for action in parser._actions)
    return Command(
        name,
        params=[_option(one) for one in parser._actions if _shown(one)] + _arguments(parser),
        add_help_option=False,
        short_help=short_help,
        context_settings={"allow_interspersed_args": not ends, "ignore_unknown_options": ends},
    )


def _shown(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.help != argparse.SUPPRESS


def _option(action: argparse.Action) -> click.Option:
    import click
    from click.shell_completion import CompletionItem

    class Option(click.Option):
        """Completes its value, unless it stands behind the program and is that one's own."""

        def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
            if ctx.params.get("program"):
                return [CompletionItem(incomplete, type="file")]
            return super().shell_complete(ctx, incomplete)

    flag = action.nargs == 0
    told = (action.help or "") % {"prog": PROGRAM, "default": action.default}
    names = [*action.option_strings, action.dest.replace("-", "_")]
    if flag:
        return Option(names, is_flag=True, help=told)
    return Option(names, type=_type(action), multiple=isinstance(action, argparse._AppendAction), help=told)


def _arguments(parser: argparse.ArgumentParser) -> list[click.Parameter]:
    """Return what stands without an option: a choice, a store, the program and its own arguments."""
    import click

    found: list[click.Parameter] = []
    for action in parser._actions:
        if action.option_strings:
            continue
        if action.nargs == argparse.REMAINDER:
            found.append(click.Argument([action.dest], nargs=-1, shell_complete=_program))
        else:
            found.append(click.Argument([action.dest], type=_type(action), required=action.nargs != "?"))
    return found


def _type(action: argparse.Action) -> click.ParamType[Any]:
    import click

    if action.choices is not None:
        return click.Choice([str(choice) for choice in action.choices])
    return click.Path() if action.metavar in _FILES else click.STRING


def _program(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the programs that begin so; files where it is a path, or where the program is there already."""
    from click.shell_completion import CompletionItem

    before = [word for word in ctx.params.get(param.name or "", None) or () if word != "--"]
    if before or os.sep in incomplete:
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(name) for name in programs(incomplete)]


def programs(beginning: str) -> list[str]:
    """Return the names of the programs of the path that begin so.

    bash puts a name into the line as it is. So one that it would take apart, or run a part of, is left out.
    """
    found: set[str] = set()
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        with suppress(OSError):  # there is no such folder
            files = [one for one in Path(folder or os.curdir).iterdir() if one.name.startswith(beginning)]
            found |= {one.name for one in files if quote(one.name) == one.name and os.access(one, os.X_OK)}
    return sorted(found)
