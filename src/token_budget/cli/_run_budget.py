"""The budget of one run: its pool, the scopes of its job and its user, the meter, and what can be seen of them.

What always holds: a run has a cap, its own or one that is stored. It spends from its own pool and from every scope that
its options name, each once, or from none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from token_budget import BudgetExceeded, BudgetPool, Window
from token_budget.cli._run_options import MISMATCH, UNAVAILABLE, USAGE, CannotStartError
from token_budget.contract import BudgetUnavailable

if TYPE_CHECKING:
    from token_budget import BudgetSnapshot
    from token_budget.cli._run_options import RunOptions
    from token_budget.metering import Meter
    from token_budget.metering._run import Run

_LOGGER = logging.getLogger("token_budget")
_REFUSED_BY = "the run"  # what the summary calls a budget that no other run shares


class RunBudget:
    """What one run may spend, and where it is counted.

    All methods may be called from any thread.

    Attributes:
        pool: the whole: a pool of a store, or one of this process.
        scopes: those below it that this run names: its job's, its user's.
        run: what the gateway charges; ``meter`` is its meter.
        shared: whether other runs and programs may spend from the pool.
        usd_cap_nanos: the cap that bounds this run and nothing else; None where others share it. So is ``token_cap``.
    """

    def __init__(self, options: RunOptions, pool: Any, run: Run, *, job: Any = None, user: Any = None) -> None:
        self.pool = pool
        named = [(kind, one) for kind, one in (("pool", pool), ("job", job), ("user", user)) if one is not None]
        self.scopes: tuple[Any, ...] = tuple(one for _, one in named[1:])
        self._kinds = [(kind, one.name) for kind, one in named]
        self.run = run
        self.meter: Meter = run.meter
        self.shared: bool = options.pool is not None
        self._looking = threading.Lock()  # held while a thread asks the store
        self._told: dict[str, Any] | None = None
        self.usd_cap_nanos: int | None = None
        self.token_cap: int | None = None
        own = job if self.shared else pool
        if own is not None and options.per is None:  # else the caps hold for more, or for less, than this run
            first = own.snapshot()
            if not (first.tokens_used or first.usd_used_nanos or first.in_flight):
                self.usd_cap_nanos, self.token_cap = first.usd_cap_nanos, first.token_cap

    def whole(self) -> dict[str, Any] | None:
        """Return the snapshot of the whole, ready for JSON, with this run's scopes as ``children``.

        It waits for no store: of one it returns what was seen last (None at first), and another thread looks anew.
        """
        if not self.shared:
            return self._look()
        if self._looking.acquire(blocking=False):
            try:
                threading.Thread(target=self._look_and_let_go, name="token-budget-pool", daemon=True).start()
            except RuntimeError:  # the system has no thread: the next look may have one
                self._looking.release()
        return self._told

    def look_at_last(self) -> dict[str, Any] | None:
        """Return the same as of now. It blocks for the store, and returns what was seen last if that cannot answer."""
        with self._looking:
            return self._look()

    def _look_and_let_go(self) -> None:
        try:
            self._look()
        finally:
            self._looking.release()

    def _look(self) -> dict[str, Any] | None:
        if not self.shared:
            return self._shown()
        from token_budget.stores import StoreError

        with suppress(BudgetUnavailable, StoreError):
            self._told = self._shown()
        return self._told

    def _shown(self) -> dict[str, Any]:
        told: dict[str, Any] = self.pool.snapshot().to_dict()
        told["children"] = [scope.snapshot().to_dict() for scope in self.scopes]
        return told

    def cap_of(self, error: BudgetExceeded) -> str:
        """Return which cap a refusal speaks of: ``usd of pool 'team'``."""
        if not self.shared:
            return f"{error.axis} of {_REFUSED_BY}"
        kind = next((kind for kind, name in self._kinds if name == error.pool), "budget")
        return f"{error.axis} of {kind} {error.pool!r}"

    def close(self) -> None:
        """End the run, and let go of the store. What begins is refused from now on. It blocks for the store.

        A store that is lost raises nothing: the program has ended, and its exit status is to be told.
        """
        self.run._end(None)
        if self.shared:
            from token_budget.stores import StoreError

            try:
                self.pool.close()
            except BudgetUnavailable:  # it is let go in any case, and has said so
                pass
            except StoreError as error:
                _LOGGER.warning("%s", error)

    def __enter__(self) -> RunBudget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_budget(options: RunOptions) -> RunBudget:
    """Open the budget that the options tell of. It blocks for the store, if there is one.

    Raises:
        CannotStartError: it cannot be opened, or nothing caps it.
    """
    window = None if options.per is None else Window.parse(options.per)
    if options.pool is None:
        pool: Any = BudgetPool(options.tokens, options.usd, name=options.job or "run", window=window)
        return RunBudget(options, pool, _run_of(options, pool, options.user))
    with _told():
        pool, job, user = _scopes(options, window)
        try:
            run = _run_of(options, pool if job is None else job, user)
            return RunBudget(options, pool, run, job=job, user=user)
        except BaseException:
            pool.close()
            raise


def _run_of(options: RunOptions, pool: Any, user: Any) -> Run:
    """Return the run: a budget of its own without caps, below the pool or charged beside it."""
    from token_budget.metering._block import budget_run
    from token_budget.metering._meter import Meter
    from token_budget.metering._prices import Prices

    meter = Meter(
        None,
        Prices(dict(options.price)),
        default_output=options.default_output,
        cap_output="fit" if options.cap_output == "fit" else options.cap_output == "yes",
        broken=options.broken,
        unmetered="allow" if options.allow_unmetered else "refuse",
        timeout=options.wait,
    )
    block = budget_run(
        options.job or "run",
        pool=pool,
        meter=meter,
        user=user,
        calls_per_minute=options.calls_per_minute,
        growth=options.growth,
        repeats=options.repeats,
    )
    return block._new(None)  # not as a block: nothing in this process is to be hooked, and the gateway has it by name


# ---------------------------------------------------------------- of a store


@contextmanager
def _told() -> Iterator[None]:
    """Raise CannotStartError in place of what a store raises."""
    from token_budget.stores import StoreError, StoreMismatch

    try:
        yield
    except StoreMismatch as error:
        raise CannotStartError(f"{error}\n{_WAYS_OUT}", MISMATCH) from None
    except (ImportError, TypeError, ValueError) as error:
        raise CannotStartError(f"--pool: {error}", USAGE) from None
    except (BudgetUnavailable, StoreError) as error:
        raise CannotStartError(error, UNAVAILABLE) from None


_WAYS_OUT = "For run: give the same caps and the same --per as the other one, or none, so that the stored ones hold."


def _scopes(options: RunOptions, window: Window | None) -> tuple[Any, Any, Any]:
    """Open the pool, the job's budget and the user's, and return them; None where there is none.

    ``--per`` belongs to whatever the caps of this command line belong to: the job, else the pool, and the user's.
    """
    from token_budget.stores import StoreLost, open_pool
    from token_budget.stores._opening import place_of

    where = options.pool or ""
    place = place_of(where)
    if place.kind == "memory":
        raise ValueError("a budget in memory is known to its own process alone; leave --pool out")
    if place.name is None:
        raise ValueError(f"the pool has no name: write {place.kind}:...#team")
    own: dict[str, Any] = {"token_cap": options.tokens, "usd_cap": options.usd, "window": window}
    of_users: dict[str, Any] = {} if options.user_usd is None else {"usd_cap": options.user_usd, "window": window}
    if options.job is None and of_users and options.usd is None and options.tokens is None:
        own["window"] = None  # the users' caps are the only ones of this command line
    capped = any(cap is not None for cap in (options.usd, options.tokens, options.user_usd))
    try:
        pool: Any = open_pool(where, create=capped, **(own if options.job is None else {}))
    except StoreLost as error:
        if capped:
            raise
        raise ValueError(f"{error}; and there is no cap to make it with: say --usd or --tokens") from None
    try:
        job = None if options.job is None else pool.child(name=options.job, **own)
        user = None if options.user is None else pool.keyed(name="user", **of_users)[options.user]
        if not capped:
            _check_caps([one for one in (pool, job, user) if one is not None])
    except BaseException:
        pool.close()
        raise
    return pool, job, user


def _check_caps(pools: list[Any]) -> None:
    """Raise ValueError if none of them has a cap in the store."""
    snapshots: list[BudgetSnapshot] = [pool.snapshot() for pool in pools]
    if all(one.token_cap is None and one.usd_cap_nanos is None for one in snapshots):
        raise ValueError(
            f"the store has no cap for {pools[0].name!r}, so that nothing would be refused: say --usd or --tokens"
        )
