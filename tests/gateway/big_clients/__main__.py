"""Runs the big clients through ``token-budget run``: ``python tests/gateway/big_clients``, or some of them by name.

Each is installed into a folder of its own (``.venvs/big_clients``, or ``--folder``), from npm or PyPI. Then it is asked
one question in print mode, once with a budget and once without, with a false key, in an empty home, before the fake
provider. Running them needs no network: what asks for another host meets a proxy that refuses, and is told. It prints a
table, and exits 0 only if every client that was asked for could be installed and is right.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT / "src"), str(HERE.parent)]

from big_clients.installed import CLIENTS, BigClient, NotInstalled, install  # noqa: E402
from big_clients.outside import Outside  # noqa: E402
from clients import Ran, environment, run_client  # noqa: E402
from token_budget.cli._provider import Provider  # noqa: E402
from token_budget.cli._provider_shapes import TEXT, WORDS  # noqa: E402

PACE = 0.25  # seconds between two pieces of a stream
QUESTION = "Why is the sky blue?"
HEADINGS = (
    *("client", "version", "requests", "metered = billed (nanodollars)", "first to last word"),
    *("requests until it gives up", "exit codes", "other hosts wanted", "wrong"),
)


@dataclass(frozen=True)
class Asked:
    """A client that was asked once, and the books of its provider."""

    ran: Ran
    bills: int
    billed: int  # nanodollars
    requests: int
    hosts: frozenset[str]


def ask(client: BigClient, folder: Path, question: str, usd: str) -> Asked:
    """Ask a client a question, with a budget."""
    with tempfile.TemporaryDirectory() as home, Provider(pace=PACE) as provider, Outside() as outside:
        for name, text in client.at_home.items():
            file = Path(home, name)
            file.parent.mkdir(parents=True)
            file.write_text(text, encoding="utf-8")
        work = Path(home, "work")
        work.mkdir()
        environ = environment(
            provider, HOME=home, TMPDIR=home, HTTPS_PROXY=outside.url, TERM="xterm-256color", **client.environ
        )
        command = client.command(folder, question)
        ran = run_client(command, provider, usd=usd, environ=environ, folder=work, one_output=True)
        provider.close()
        if provider.errors:
            raise provider.errors[0]
        posts = [path for path in provider.requests if not path.endswith("/models")]
        return Asked(ran, len(provider.bills), provider.billed_nanos, len(posts), frozenset(outside.hosts))


def spread(client: BigClient, ran: Ran) -> float | None:
    """Return the seconds from the first word of the answer to the last; None if they did not come in their order."""
    text, at, times = ran.output, 0, []
    for word in WORDS:
        at = text.find(client.word.replace("WORD", word), at)
        if at < 0:
            return None
        times.append(_time_of(ran, at))
        at += 1
    return times[-1] - times[0]


def _time_of(ran: Ran, place: int) -> float:
    for time, text in ran.pieces:
        place -= len(text)
        if place < 0:
            return time
    raise AssertionError("there is no such place")


def faults(client: BigClient, first: Asked, second: Asked, apart: float | None) -> list[str]:
    """Return what is wrong with a client's two runs."""
    report, refused = first.ran.report, second.ran.report
    found = {
        "it failed": first.ran.code != 0,
        "nothing was metered": not first.billed,
        "metered is not billed": not report or report["spent"]["usd_nanos"] != first.billed,
        "something is still held": not report or report["held"]["usd_nanos"] != 0,
        "the answer is not told": TEXT not in first.ran.output and apart is None,
        "its stream came at once": apart is None or apart <= PACE,
        "the provider was asked without a budget": bool(second.requests),
        "nothing was refused": not refused or not refused["refused"],
        f"more than {client.tries} for a call": bool(refused) and refused["refused"] > client.tries * first.bills,
    }
    return [name for name, wrong in found.items() if wrong]


def row(name: str, below: Path, python: str | None, *, verbose: bool) -> tuple[list[str], bool]:
    """Install and ask a client; return its line of the table, and whether it is right."""
    client = CLIENTS[name]
    try:
        folder, version = install(client, below, python)
    except NotInstalled as error:
        return [name, "", *["-"] * (len(HEADINGS) - 3), f"not installed: {error}"], False
    first = ask(client, folder, f"{QUESTION} [slow]", "5")
    second = ask(client, folder, QUESTION, "0.000001")
    if verbose:
        print(first.ran.output, first.ran.report, second.ran.output, second.ran.report, sep="\n", file=sys.stderr)
    apart = spread(client, first.ran)
    wrong = faults(client, first, second, apart)
    return [str(cell) for cell in cells_of(name, version, first, second, apart, wrong)], not wrong


def cells_of(
    name: str, version: str, first: Asked, second: Asked, apart: float | None, wrong: list[str]
) -> Iterator[object]:
    """Go through the cells of a client's line."""
    yield from (name, version, first.bills)
    metered = first.ran.report["spent"]["usd_nanos"] if first.ran.report else 0
    yield f"{metered:,} = {first.billed:,}" if metered == first.billed else f"{metered:,}, not {first.billed:,}"
    yield f"{apart * 1000:.0f} ms" if apart is not None else "not in their order"
    refused = second.ran.report["refused"] if second.ran.report else 0
    yield f"{refused} of {first.bills} call{'s' if first.bills > 1 else ''}"
    yield f"{first.ran.code}, {second.ran.code}"
    yield ", ".join(sorted(first.hosts | second.hosts)) or "none"
    yield "; ".join(wrong) or "nothing"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 0 if all is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", help=f"some of {', '.join(CLIENTS)}; all, if none is named")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venvs" / "big_clients", help="where they are installed")
    parser.add_argument("--python", help="the interpreter that aider is installed for (3.10 to 3.12)")
    parser.add_argument("--verbose", action="store_true", help="show what they print")
    options = parser.parse_args(argv)
    unknown = set(options.clients) - set(CLIENTS)
    if unknown:
        parser.error(f"no client is named {', '.join(sorted(unknown))}")
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    right = True
    for name in options.clients or CLIENTS:
        cells, good = row(name, options.folder, options.python, verbose=options.verbose)
        print(f"| {' | '.join(cells)} |", flush=True)
        right = right and good
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
