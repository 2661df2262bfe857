"""budget_run: the block of a run. Every call of an SDK that is made in it counts, whoever makes it."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cache
from typing import Any

from token_budget._arguments import checked_caps, checked_name
from token_budget._money import shown_type
from token_budget._pool import BudgetPool
from token_budget.contract import Amount, Spendable
from token_budget.metering._guards import Guards
from token_budget.metering._meter import Meter
from token_budget.metering._run import Run, _current, current_run


class budget_run:  # noqa: N801 - it is used as a function is: `with budget_run(...)`
    """Cap one job: ``with budget_run("refactor", usd_cap=2.00) as run:`` (or ``async with``).

    Every call in the block through an SDK on httpx or httpx2 counts, whoever makes it: the hook is put on their classes
    once, and is inert outside of runs. The run's budget is a child of ``pool``, else of the run around it, else of the
    meter's pool, else one of its own. Leaving the block ends the run: what outlives it (a task, a thread) is refused
    with RunStopped. Tasks take the run with them; threads do so where it is handed over (`Run.bind`, ``threads=True``).
    A generator that opens a run leaks it to its caller between two yields.

    The block may be entered again, also while it is open: each time begins a new run. One that is dropped while it is
    open, as when an interrupt comes before ``__exit__`` does anything, ends what it began.

    Args:
        name: what reports and refusals call the run, at most 200 characters.
        usd_cap: the most dollars that it may spend; None for no cap but those above it.
        token_cap: the same in tokens.
        pool: the budget that it is a part of.
        meter: prices and settings of the calls of clients that have no meter of their own; the outer run's if left out.
        user: whom the run is for: a label, or the pool of that user, which is charged as well.
        context: what the meter's policies look at, beside ``"user"``.
        threads: whether every thread that has no run of its own belongs to this one. For scripts, not for servers. Only
            one such run may be open, or one inside the other.
        calls_per_minute: how many calls may begin in any 60 seconds.
        growth: ``(share, k)``: refuse the k-th of k calls in a row whose input grows from each to the next and by the
            share in all: ``(0.5, 4)``.
        repeats: how often the same request may be sent; the SDK's own retries do not count. It looks at the bodies of
            requests, so it does nothing for calls by hand (`Meter.call`, `Meter.metered`), whose text nobody sees.

    Raises:
        TypeError, ValueError: an argument is none that is taken.
        RuntimeError: on entering: another run with ``threads=True`` is open, and this one is not inside of it, in the
            same thread or task.
        PoolClosed: on entering: the pool that it would be a part of is closed.
        RunStopped: on entering: the run around it was stopped.

    Example:
        >>> from token_budget.metering import Meter, Usage, budget_run
        >>> meter = Meter(prices={"house-model": (1, 4)})
        >>> with budget_run("job", usd_cap=0.50, meter=meter) as run:
        ...     with meter.call("house-model", input_tokens=2000, max_output_tokens=800) as call:
        ...         _ = call.settle(Usage(input_tokens=1900, output_tokens=400))
        >>> run.report()["usd"]
        0.0035
    """

    def __init__(
        self,
        name: str = "run",
        *,
        usd_cap: Amount | None = None,
        token_cap: int | None = None,
        pool: Spendable | None = None,
        meter: Meter | None = None,
        user: str | Spendable | None = None,
        context: Mapping[str, Any] | None = None,
        threads: bool = False,
        calls_per_minute: int | None = None,
        growth: tuple[float, int] | None = None,
        repeats: int | None = None,
    ) -> None:
        checked = checked_name(name)
        if checked is None:
            raise TypeError("name must be a str, not NoneType")
        checked_caps(token_cap, usd_cap)
        if meter is not None and not isinstance(meter, Meter):
            raise TypeError(f"meter must be a Meter, not {shown_type(meter)}")
        if context is not None and not isinstance(context, Mapping):
            raise TypeError(f"context must be a dict, not {shown_type(context)}")
        if type(threads) is not bool:
            raise TypeError(f"threads must be True or False, not {shown_type(threads)}")
        for argument, value in (("pool", pool), ("user", user)):
            text = argument == "user" and isinstance(value, str)
            if value is not None and not text and not hasattr(value, "reserve"):
                raise TypeError(
                    f"{argument} must be {'a str or ' if argument == 'user' else ''}a pool, not {shown_type(value)}"
                )
        self._guards = {"calls_per_minute": calls_per_minute, "growth": growth, "repeats": repeats}
        Guards(**self._guards)
        self._name = checked
        self._token_cap = token_cap
        self._usd_cap = usd_cap
        self._pool = pool
        self._meter = meter
        self._user = user
        self._context = context
        self._threads = threads
        self._open: list[tuple[Run, Run | None]] = []

    def __enter__(self) -> Run:
        """Begin a run, and return it."""
        _patch_classes()
        outer = current_run()
        if outer is not None:
            outer._check_open()
        run, before = self._new(outer), _current.get()
        try:
            self._open.append((run, run._open(for_all=self._threads)))
        except BaseException:  # also an interrupt: nobody else would end it
            self._end((run, before))
            raise
        return run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """End the run."""
        here = _current.get()
        around = () if here is None else here.around
        begun = [*self._open]
        mine = [entry for entry in begun if entry[0] in around] or begun  # in another context (a generator's): the last
        if mine:
            self._end(mine[-1])

    def __del__(self) -> None:
        """End what an interrupt left open, as it came before ``__exit__`` did anything."""
        for entry in reversed(getattr(self, "_open", ())):
            self._end(entry)

    def _end(self, entry: tuple[Run, Run | None]) -> None:
        run, before = entry
        try:
            run._end(before)
        except BaseException:  # an interrupt: once more, which does what is not done
            run._end(before)
            raise
        finally:
            if entry in self._open:
                self._open.remove(entry)

    async def __aenter__(self) -> Run:
        """Do what ``__enter__`` does; never suspends."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """Do what ``__exit__`` does; never suspends."""
        self.__exit__(kind, error, traceback)

    def _new(self, outer: Run | None) -> Run:
        meter = self._meter if self._meter is not None else outer._meter if outer is not None else _default_meter()
        above: Any = self._pool if self._pool is not None else outer._pool if outer is not None else meter.pool
        others: list[Spendable] = [] if self._user is None or isinstance(self._user, str) else [self._user]
        if isinstance(above, BudgetPool):
            pool = above.child(self._token_cap, self._usd_cap, name=self._name)
        else:  # none, or one of a store, which has no children here: it is charged beside a budget of the run's own
            pool = BudgetPool(self._token_cap, self._usd_cap, name=self._name)
            others += [] if above is None else [above]
        user = self._user if self._user is None or isinstance(self._user, str) else self._user.name
        return Run(
            self._name,
            pool,
            outer=outer,
            meter=meter,
            others=others,
            guards=Guards(**self._guards),
            user=user,
            context=self._context,
        )


@cache
def _default_meter() -> Meter:
    """Return the meter of runs that were given none."""
    return Meter()


def _patch_classes() -> None:
    from token_budget.metering._clients import patch_classes

    patch_classes()
