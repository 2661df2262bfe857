"""Run: one job with a budget, guards and a report of its own. `budget_run` opens and ends it.

What always holds: a run has a pool that nobody else made, so that ending the run can close it: whatever outlives the
run is refused. A run inside a run charges, guards and reports to both. Which run is current is a ContextVar: tasks
take it with them, threads do not, unless it is handed over (`Run.bind`) or the run is open to all (``threads=True``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from token_budget._pool import BudgetPool
from token_budget.contract import Spendable
from token_budget.metering._ask import Ask
from token_budget.metering._charge import Charge
from token_budget.metering._guards import Counted, Guards
from token_budget.metering._refusals import LoopDetected, RunStopped
from token_budget.metering._report import CallRecord, Ledger, dollars

P = ParamSpec("P")
T = TypeVar("T")
Admitted = list[tuple[Guards, Counted]]  # what guards have counted of one call
_MOST_CHARGES = 64  # of different meters' pools that a run keeps; a server may have a meter for each request

_current: ContextVar[Run | None] = ContextVar("token_budget.run", default=None)
_for_all: list[Run] = []  # the runs with `threads=True` that are open, each around the next
_opening = threading.RLock()  # of `_for_all`; a finaliser may end a run while its thread opens one


def _renew_lock() -> None:
    """Take a new lock in a forked child, where nobody would let go of one that is held."""
    global _opening  # noqa: PLW0603
    _opening = threading.RLock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_renew_lock)


def withdraw(ask: Ask, admitted: Admitted) -> None:
    """Give back to the guards what was counted of a call that is not sent."""
    for guards, counted in admitted:
        guards.withdraw(ask, counted)


class Off:
    """What switches the hooks off: an open `Meter.call` block. It is true while the block has not settled."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = True

    def __bool__(self) -> bool:
        return self.open


_metering_off: ContextVar[Off | None] = ContextVar("token_budget.off", default=None)


def current_run() -> Run | None:
    """Return the run that this task or thread belongs to; None outside of all runs."""
    run = _current.get()
    if run is None and _for_all:
        try:
            return _for_all[-1]
        except IndexError:  # it has ended meanwhile
            return None
    return run


def metering_is_off() -> bool:
    """Return whether a `Meter.call` block stands around: it counts what is sent, and the hooks must not."""
    return bool(_metering_off.get())


class Run:
    """One job: its pool, its guards, its report. ``with budget_run(...) as run`` gives it.

    All methods may be called from any thread, and block for nothing but a lock that is held for a few additions.
    """

    def __init__(
        self,
        name: str,
        pool: BudgetPool,
        *,
        outer: Run | None,
        meter: Any,
        others: Iterable[Spendable] = (),
        guards: Guards,
        user: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = name
        self._pool = pool
        self._outer = outer
        self._meter = meter
        self._pools: tuple[Spendable, ...] = (pool, *others)
        self._guards = guards
        self._user = user
        inherited: Mapping[str, Any] = {} if outer is None else outer._context
        self._context: Mapping[str, Any] = {**inherited, **({} if user is None else {"user": user}), **(context or {})}
        self._ledger = Ledger()
        self._charges: dict[int, tuple[Spendable | None, Charge]] = {}
        self._started = time.monotonic()
        self._seconds: float | None = None  # once it has ended
        self._stopped: str | None = None
        self._above: tuple[Run, ...] = () if outer is None else outer.around  # without itself: that were a circle

    # ------------------------------------------------------------------ what it is

    @property
    def name(self) -> str:
        """The name that it was given."""
        return self._name

    @property
    def pool(self) -> BudgetPool:
        """The run's own pool: its snapshot shows what is used, and `BudgetPool.set_caps` changes the caps."""
        return self._pool

    @property
    def user(self) -> str | None:
        """Whom it is for."""
        return self._user

    @property
    def meter(self) -> Any:
        """The meter of the calls that come from clients which have none of their own."""
        return self._meter

    @property
    def stopped(self) -> bool:
        """Whether it was stopped."""
        return self._stopped is not None

    @property
    def stop_reason(self) -> str | None:
        """Why it was stopped; None if it was not."""
        return self._stopped

    @property
    def around(self) -> tuple[Run, ...]:
        """This run and those around it, the innermost first: a call counts in all of them."""
        return (self, *self._above)

    @property
    def ended(self) -> bool:
        """Whether its block is left."""
        return self._seconds is not None

    # ------------------------------------------------------------------ steering it

    def stop(self, reason: str = "stopped") -> None:
        """Refuse every further call with RunStopped, also those that wait for room. Calls in flight settle.

        The first reason stands. May be called from a signal handler.

        Raises:
            TypeError: the reason is no text.
        """
        if not isinstance(reason, str):
            raise TypeError(f"reason must be a str, not {type(reason).__name__}")
        if self._stopped is None:
            self._stopped = reason
        self._pool.close()

    def bind(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return the function, sync or async, as one whose calls belong to this run wherever it is called.

        For threads, which do not take the run with them: ``executor.map(run.bind(work), jobs)``.

        Raises:
            TypeError: it cannot be called, or is a generator function, whose body runs in its caller's context.
        """
        from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction

        if not callable(function):
            raise TypeError(f"bind takes a function, not {type(function).__name__}")
        kinds = (function, type(function).__call__)
        if any(isgeneratorfunction(one) or isasyncgenfunction(one) for one in kinds):
            raise TypeError(
                "a generator's body runs in its caller's context: open the run inside of it, or bind a function"
            )
        called: Any = function
        if any(iscoroutinefunction(one) for one in kinds):

            async def abound(*args: Any, **kwargs: Any) -> Any:
                with self._here():
                    return await called(*args, **kwargs)

            return wraps(called)(abound)  # type: ignore[return-value]

        def bound(*args: Any, **kwargs: Any) -> Any:
            with self._here():
                return called(*args, **kwargs)

        return wraps(called)(bound)

    # ------------------------------------------------------------------ what it has done

    def report(self) -> dict[str, Any]:
        """Return what was spent as a dict that is ready for JSON.

        Dollars are floats with the exact integer beside them (``usd_nanos``). ``calls`` are the latest 1,000; the sums
        are exact over all.
        """
        ended, reason = self._seconds, self._stopped
        caps = self._pool.snapshot()
        return {
            "name": self._name,
            "user": self._user,
            "seconds": time.monotonic() - self._started if ended is None else ended,
            "usd_cap": caps.usd_cap,
            "token_cap": caps.token_cap,
            "stopped": reason is not None,
            "stop_reason": reason,
            **self._ledger.report(),
        }

    def summary(self) -> str:
        """Return one line: the calls, the time, the dollars."""
        report, caps = self.report(), self._pool.snapshot()
        spent = dollars(report["usd_nanos"])
        if caps.usd_cap_nanos is not None:
            spent += f" of {dollars(caps.usd_cap_nanos)}"
        elif caps.token_cap is not None:
            spent += f", {report['tokens']:,} of {caps.token_cap:,} tokens"
        count, refused, stopped = report["call_count"], report["refused"], self._stopped
        return (
            f"run {self._name!r}: {count} {'call' if count == 1 else 'calls'} in {report['seconds']:.3f}s, {spent}"
            f"{f', {refused} refused' if refused else ''}{'' if stopped is None else f', stopped: {stopped}'}"
        )

    def __repr__(self) -> str:
        state = "stopped" if self._stopped is not None else "ended" if self.ended else "open"
        return f"<Run {self._name!r} {state} | {self._pool.snapshot()}>"

    # ------------------------------------------------------------------ for the meter

    def _check_open(self) -> None:
        """Raise RunStopped if this run, or one around it, was stopped or has ended."""
        for run in self.around:
            if run._stopped is not None:
                raise RunStopped(f"run {run._name!r} was stopped: {run._stopped}")
            if run._seconds is not None:
                raise RunStopped(f"run {run._name!r} has ended")

    def _admit(self, ask: Ask) -> Admitted:
        """Count a call in the guards of this run and of those around it, the outermost first: in all or in none."""
        guards = [run._guards for run in reversed(self.around) if run._guards.active]
        if len(guards) > 1:
            for one in guards:
                one.look(ask)
        admitted: Admitted = []
        try:
            for one in guards:
                admitted.append((one, one.admit(ask)))
        except LoopDetected:  # another thread's call came between
            withdraw(ask, admitted)
            raise
        return admitted

    def _look(self, ask: Ask) -> None:
        """Do what `_admit` does, and count nothing."""
        for run in self.around:
            if run._guards.active:
                run._guards.look(ask)

    def _charge(self, pool: Spendable | None) -> Charge:
        """Return what a call of a meter with this pool is charged to: that pool and all pools of the runs."""
        known = self._charges.get(id(pool))
        if known is not None:
            return known[1]
        charge = Charge(self._all_pools(pool))
        if len(self._charges) >= _MOST_CHARGES:
            self._charges = {}
        self._charges[id(pool)] = (pool, charge)  # the pool stays alive, so that its id stays its own
        return charge

    def _all_pools(self, pool: Spendable | None) -> list[Spendable]:
        return [*([] if pool is None else [pool]), *(one for run in self.around for one in run._pools)]

    def _book(self, record: CallRecord) -> None:
        for run in self.around:
            run._ledger.add(record)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """Make it the current run of this task or thread for a while."""
        before = _current.get()
        _current.set(self)
        try:
            yield
        finally:
            _current.set(before)

    def _open(self, *, for_all: bool) -> Run | None:
        """Make it the current run. Return which was it before.

        Raises:
            RuntimeError: it is for all threads, and another such run is open that does not stand around it.
        """
        before = _current.get()
        if for_all:
            around = () if before is None else before.around
            with _opening:
                if _for_all and _for_all[-1] not in around:  # it may be that of another thread
                    raise RuntimeError(
                        f"run {_for_all[-1]._name!r} takes all threads (threads=True) until it ends: two such runs "
                        "must stand one inside the other, in one thread or task"
                    )
                _for_all.append(self)
        _current.set(self)
        return before

    def _end(self, before: Run | None) -> None:
        """End it: whatever outlives it is refused. May be called in another context than `_open`.

        An interrupt at any step leaves none of the others undone. It is the current run no more before it has ended:
        a signal handler in between may begin one of its own.
        """
        try:
            here = _current.get()
            inner = () if here is None else here.around
            # Where a run inside of it is open, that one stays, and its calls are refused from now on.
            if self in inner and all(one.ended for one in inner[: inner.index(self)]):
                around = () if before is None else before.around
                _current.set(next((one for one in around if not one.ended and one not in _for_all), None))
        finally:
            try:
                with _opening:
                    if self in _for_all:
                        _for_all.remove(self)
            finally:
                self._seconds = time.monotonic() - self._started
                self._pool.close()
