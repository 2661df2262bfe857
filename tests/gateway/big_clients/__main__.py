"""Runs the big clients through ``token-budget run``: ``python tests/gateway/big_clients``, or some of them by name.

Each is installed into a folder of its own (``.venvs/big_clients``, or ``--folder``), from npm or PyPI. Then it is asked
one question in print mode: with a budget, with a budget and a model that calls one of its tools, and without a budget.
Its key is false, its home empty, its provider the fake one. Running it needs no network: what asks for another host
meets a proxy that refuses, and is told. It prints a table, and exits 0 only if every client that was asked for could be
installed and is right.
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
    *("client", "version", "requests, with a tool", "metered = billed (nanodollars)", "first to last word"),
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


@dataclass(frozen=True)
class Trial:
    """A client's runs."""

    client: BigClient
    plain: Asked
    tool: Asked | None  # the model calls a tool; None: the client has none
    poor: Asked  # without a budget

    @property
    def paid(self) -> list[Asked]:
        """The runs with a budget."""
        return [self.plain] if self.tool is None else [self.plain, self.tool]

    @property
    def billed(self) -> int:
        """All nanodollars that the provider billed in them."""
        return sum(asked.billed for asked in self.paid)

    @property
    def metered(self) -> int:
        """All nanodollars that their reports say."""
        return sum(asked.ran.report["spent"]["usd_nanos"] for asked in self.paid if asked.ran.report)

    @property
    def refused(self) -> int:
        """The requests that were refused."""
        return int(self.poor.ran.report["refused"]) if self.poor.ran.report else 0

    def faults(self) -> list[str]:
        """Return what is wrong with the client."""
        plain, apart = self.plain, spread(self.client, self.plain.ran)
        reports = [asked.ran.report for asked in self.paid]
        found = {
            "it failed": any(asked.ran.code for asked in self.paid),
            "nothing was metered": not plain.billed,
            "metered is not billed": self.metered != self.billed,
            "something is still held": any(not each or each["held"]["usd_nanos"] for each in reports),
            "the answer is not told": TEXT not in plain.ran.output and apart is None,
            "its stream came at once": apart is None or apart <= PACE,
            "it does not go on after a tool": self.tool is not None and self.tool.bills <= plain.bills,
            "the provider was asked without a budget": bool(self.poor.requests),
            "nothing was refused": not self.refused,
            f"more than {self.client.tries} for a call": self.refused > self.client.tries * plain.bills,
        }
        return [name for name, wrong in found.items() if wrong]

    def cells(self) -> Iterator[object]:
        """Go through the cells of the client's line, after its name and its version."""
        yield ", ".join(str(asked.bills) for asked in self.paid)
        equal = self.metered == self.billed
        yield f"{self.metered:,} = {self.billed:,}" if equal else f"{self.metered:,}, not {self.billed:,}"
        apart = spread(self.client, self.plain.ran)
        yield f"{apart * 1000:.0f} ms" if apart is not None else "not in their order"
        yield f"{self.refused} of {self.plain.bills} call{'s' if self.plain.bills > 1 else ''}"
        yield ", ".join(str(asked.ran.code) for asked in (*self.paid, self.poor))
        yield ", ".join(sorted(set().union(*(asked.hosts for asked in (*self.paid, self.poor))))) or "none"
        yield "; ".join(self.faults()) or "nothing"


def row(name: str, below: Path, python: str | None, *, verbose: bool) -> tuple[list[str], bool]:
    """Install and ask a client; return its line of the table, and whether it is right."""
    client = CLIENTS[name]
    try:
        folder, version = install(client, below, python)
    except NotInstalled as error:
        return [name, "", *["-"] * (len(HEADINGS) - 3), f"not installed: {error}"], False
    trial = Trial(
        client,
        ask(client, folder, f"{QUESTION} [slow]", "5"),
        ask(client, folder, f"{QUESTION} [call-tool]", "5") if client.tools else None,
        ask(client, folder, QUESTION, "0.000001"),
    )
    if verbose:
        for asked in (*trial.paid, trial.poor):
            print(asked.ran.output, asked.ran.report, sep="\n", file=sys.stderr)
    return [name, version, *map(str, trial.cells())], not trial.faults()


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
