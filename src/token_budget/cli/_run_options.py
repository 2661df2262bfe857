"""The options of ``token-budget run``: how they are declared, read and checked, and what the help says of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Literal

from token_budget.cli._options import real, whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from decimal import Decimal

    Price = Literal["free"] | tuple[str, ...]

USAGE = 2
REQUIRED = 65  # sysexits' EX_DATAERR: nothing was metered, and that was required
UNAVAILABLE = 69  # EX_UNAVAILABLE: the store
NO_GATEWAY = 71  # EX_OSERR
NO_REPORT = 73  # EX_CANTCREAT
MISMATCH = 78  # EX_CONFIG: another run has opened the pool with other caps

MOST_TOKENS = 10**18
_DESCRIPTION = """\
Run a program with a budget. Its calls to models go through a gateway on this
machine. The gateway holds the most that a call can cost before it forwards
it, and refuses a call that does not fit. A refused call costs nothing.

The program gets the gateway by the variables that its SDK reads
(OPENAI_BASE_URL, ANTHROPIC_BASE_URL, GOOGLE_GEMINI_BASE_URL and more). What
ignores them is not metered; --hold-keys and --require-metered help there."""
_EPILOG = """\
examples:
  token-budget run --usd 5 -- claude -p "Fix the tests"
  token-budget run --usd 20 --per day --pool sqlite:budget.db#team -- aider
  token-budget run --pool sqlite:budget.db#team --job nightly --usd 2 -- make

exit status:
  the program's own; 128 + n where signal n ended it (as --on-exceeded end
  does: 143 or 137); 127 it was not found; 126 it cannot be executed
  2   bad options, no cap, or a part of the extra [cli] is not installed
  65  --require-metered: no call was metered, and the program's status was 0
  69  the pool's store cannot be reached, was lost, or keeps no budget
  71  the gateway cannot be started
  73  the file of --report cannot be written
  78  the pool is open elsewhere with other caps or another window
  After 2, 69, 71 and 78 the program was not started."""


class CannotStartError(Exception):
    """Nothing is started, for a reason that is not the program's: the text says which.

    ``status`` is what the command exits with.
    """

    def __init__(self, text: object, status: int) -> None:
        super().__init__(str(text))
        self.status = status


class RunOptions(argparse.Namespace):
    """The parsed options of one run."""

    parser: argparse.ArgumentParser
    usd: Decimal | None
    tokens: int | None
    per: str | None
    wait: float
    pool: str | None
    job: str | None
    user: str | None
    user_usd: Decimal | None
    calls_per_minute: int | None
    growth: tuple[float, int] | None
    repeats: int | None
    upstream: list[str]
    price: list[tuple[str, Price]]
    default_output: int
    cap_output: Literal["no", "yes", "fit"]
    broken: Literal["full", "seen"]
    on_exceeded: Literal["continue", "end"]
    require_metered: bool
    allow_unmetered: bool
    hold_keys: bool
    progress: str
    report: str | None
    program: list[str]


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Declare ``run`` with all its options, and return its parser."""
    parser = commands.add_parser(
        "run",
        help="run a program with a budget: its calls to models are capped",
        usage="%(prog)s [options] [--] COMMAND [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an older argparse looks for abbreviations in the program's own arguments, too
    )
    _declare_budget(parser)
    _declare_models(parser)
    _declare_guards(parser)
    _declare_program(parser)
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def checked(options: RunOptions) -> RunOptions:
    """Return the options with the program and its arguments, without the ``--`` before it.

    Raises:
        SystemExit: 2, with the reason on standard error: options that do not go together.
    """
    error = options.parser.error
    if options.program[:1] == ["--"]:
        del options.program[0]
    if not options.program or not options.program[0]:
        error("which program? Say it after the options: token-budget run --usd 5 -- claude -p hello")
    if options.user_usd is not None and options.user is None:
        error("--user-usd is the budget of a user: say --user NAME as well")
    if options.pool is None:
        if options.user_usd is not None:
            error("--user-usd is kept in a pool: say --pool STORE#NAME as well, such as sqlite:budget.db#team")
        if options.usd is None and options.tokens is None:
            error(f"there is no cap: say --usd or --tokens, or --pool with a pool that has one{_misplaced(options)}")
    return options


def _misplaced(options: RunOptions) -> str:
    """Return the hint for a cap that stands behind the program; "" if none does."""
    given = {word.partition("=")[0] for word in options.program[1:]}
    name = next((name for name in ("--usd", "--tokens", "--pool") if name in given), None)
    return "" if name is None else f". {name} stands behind the program, and is the program's: say it before"


# ---------------------------------------------------------------- the groups


def _declare_budget(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the budget").add_argument
    add("--usd", type=dollars, metavar="X", help="the most dollars")
    add("--tokens", type=whole(0, MOST_TOKENS), metavar="N", help="the most tokens, input and output together")
    add(
        "--per",
        type=period,
        metavar="PERIOD",
        help="day, week or month: the caps hold for each, in the local time zone; or a window as in "
        "'daily Europe/Berlin at 06:00', 'every 5h'",
    )
    add(
        "--wait",
        type=real(0, 86_400),
        default=20.0,
        metavar="S",
        help="seconds that a call waits for room that other calls hold (20); what is used up refuses at once",
    )
    add(
        "--pool",
        metavar="STORE#NAME",
        help="share a budget with other runs and programs: sqlite:budget.db#team, redis://host/0#team. The caps and "
        "--per are the pool's; with none the stored ones hold",
    )
    add(
        "--job",
        type=name,
        metavar="NAME",
        help="a budget of that name inside the pool, for this run and others of the name: the caps and --per are its",
    )
    add("--user", type=name, metavar="NAME", help="whom the run is for; in a pool each user has a budget")
    add("--user-usd", type=dollars, metavar="X", help="the most dollars of each user of the pool")


def _declare_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("models and prices").add_argument
    add(
        "--price",
        type=price,
        action="append",
        default=[],
        metavar="MODEL=IN,OUT",
        help="dollars for a million tokens of a model that the list of prices lacks, or '=free'; * stands for any "
        "characters; a third number is for input from a cache. May be repeated",
    )
    add(
        "--upstream",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a provider beside the known ones, or another place of a known one; the URL has no /v1. May be repeated",
    )
    add(
        "--default-output",
        type=whole(1, 10**9),
        default=4096,
        metavar="N",
        help="output tokens that are held for a call that sets no limit (4096)",
    )
    add(
        "--cap-output",
        choices=("no", "yes", "fit"),
        default="no",
        help="yes: write that limit into the call, so that the cap is hard; fit: what the budget still pays for",
    )
    add(
        "--broken",
        choices=("full", "seen"),
        default="full",
        help="charge an answer that broke off at its worst case (full), or for what came (seen)",
    )
    add(
        "--allow-unmetered",
        action="store_true",
        help="forward what cannot be bounded (batches, images, audio) uncounted: a hole in the cap",
    )


def _declare_guards(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("guards against loops").add_argument
    add("--calls-per-minute", type=whole(1, 10**9), metavar="N", help="refuse the call after N in 60 seconds")
    add(
        "--growth",
        type=growth,
        metavar="SHARE,K",
        help="refuse the K-th of K calls in a row whose input grows each time, and by SHARE in all: 0.5,4",
    )
    add("--repeats", type=whole(1, 10**9), metavar="N", help="refuse the same request after N times")


def _declare_program(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the program").add_argument
    add(
        "--on-exceeded",
        choices=("continue", "end"),
        default="continue",
        help="once the budget or a guard refuses a call: let the program go on with its error, or end it and all that "
        "it started",
    )
    add("--require-metered", action="store_true", help="exit 65 if no call came through the gateway")
    add(
        "--hold-keys",
        action="store_true",
        help="keep the API keys from the program: only the gateway has them",
    )
    add(
        "--progress",
        choices=("auto", "line", "rich", "plain", "off"),
        default="auto",
        help="auto: the terminal's title, or a line now and then where there is no terminal; line: a line at the "
        "bottom, for programs that only print; rich: only where the program's output goes elsewhere",
    )
    add("--report", metavar="FILE", help="write what was spent as JSON when the program has ended")


# ---------------------------------------------------------------- values


def dollars(text: str) -> Decimal:
    """Read an amount of dollars, 0 to 10**9, exactly.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    from decimal import Decimal

    from token_budget._money import to_nanos

    try:
        value = Decimal(text)
        to_nanos(value)
    except (ArithmeticError, ValueError):
        raise argparse.ArgumentTypeError(
            f"must be a number of dollars from 0 to 10**9, such as 5 or 0.25, without commas, not {text!r:.60}"
        ) from None
    return value


def name(text: str) -> str:
    """Read a name of a budget, up to 200 characters."""
    if not 0 < len(text) <= 200 or not text.isprintable():
        raise argparse.ArgumentTypeError("must be a name of up to 200 characters")
    return text


def growth(text: str) -> tuple[float, int]:
    """Read ``SHARE,K`` for the guard of growing inputs."""
    from token_budget.metering._guards import Guards

    share, _, calls = text.partition(",")
    try:
        value = float(share), int(calls)
        Guards(growth=value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a share above 0 and a number of calls from 2 on, such as 0.5,4, not {text!r:.60}"
        ) from None
    return value


def price(text: str) -> tuple[str, Price]:
    """Read ``MODEL=IN,OUT``, ``MODEL=IN,OUT,CACHED``, ``MODEL=IN,OUT,CACHED,WRITTEN`` or ``MODEL=free``."""
    from token_budget.metering._prices import Prices

    model, _, rates = text.rpartition("=")
    numbers = tuple(part.strip() for part in rates.split(","))
    value: Price = "free" if rates.strip().lower() == "free" else numbers
    if not model.strip():
        raise argparse.ArgumentTypeError(f"must be MODEL=IN,OUT, such as my-model=0.25,2, not {text!r:.60}")
    try:
        Prices({model.strip(): value}, catalogue=False)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be dollars for a million tokens: {error}") from None
    return model.strip(), value


def period(text: str) -> str:
    """Read a period: a word for a calendar period of the local time zone, or the text of a window; return the latter.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    from token_budget._window import Window

    word = {"day": "daily", "week": "weekly", "month": "monthly"}.get(text.strip().lower())
    try:
        return f"{word} {local_zone()}" if word else str(Window.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be day, week or month, or a window: {error}") from None


def local_zone() -> str:
    """Return the name of this machine's time zone as `Window.parse` reads it.

    It is the IANA name where the system tells one (the variable TZ, else the link /etc/localtime), else the offset from
    UTC that holds now: that one does not follow the changes between summer and winter time.
    """
    import os
    import time

    told = os.environ.get("TZ")
    zone = (told.removeprefix(":") if told else "UTC") if told is not None else _linked("/etc/localtime")
    if zone and _is_zone(zone):
        return zone
    minutes = time.localtime().tm_gmtoff // 60
    return f"UTC{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}" if minutes else "UTC"


def _linked(path: str) -> str:
    """Return the zone that the system's link leads to; "" if there is no such link."""
    from pathlib import Path

    link = Path(path)
    return link.resolve().as_posix().rpartition("zoneinfo/")[2] if link.is_symlink() else ""


def _is_zone(zone: str) -> bool:
    from token_budget._window import Window

    read: Callable[[str], Any] = Window.daily
    try:
        read(zone)
    except ValueError:
        return False
    return True
