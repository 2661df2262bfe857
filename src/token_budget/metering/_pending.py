"""Pending: one call, from the moment at which it is examined to the moment at which it is settled.

What always holds: a call that holds something is settled exactly once, and the first to settle it wins, from whatever
thread, finaliser or signal handler. Settling raises nothing: it comes after the answer. One that is dropped unsettled
is charged in full, also where an interrupt left it so: what it holds is kept until it is committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from token_budget._errors import BudgetOverrun, PoolClosed
from token_budget.contract import Spendable
from token_budget.metering._ask import Ask
from token_budget.metering._charge import Charge, Held, logger
from token_budget.metering._decision import Policies, least
from token_budget.metering._names import plain
from token_budget.metering._prices import Prices
from token_budget.metering._refusals import ModelBlocked, RunStopped, UnknownModel
from token_budget.metering._report import CallRecord, Status, recorded
from token_budget.metering._run import Admitted, Run, withdraw
from token_budget.metering._usage import Usage, without_images

FEWEST_OUTPUT_TOKENS = 256  # of `cap_output="fit"`
UNSEEN_TOKENS = 256  # of `broken="seen"`: what a provider may have made and not sent
NOTHING = Usage()
# What each open call holds, by its id. It is kept from here, so that the collector, which finalises a circle of objects
# in any order, cannot find it before the call that settles it.
_held: dict[int, Held] = {}
_NO_CONTEXT: Mapping[str, Any] = {}
_ADMITTED: Admitted = []  # where there is no run


class Terms:
    """What a meter was told: how its calls are priced, bounded, waited for and settled."""

    __slots__ = (
        "broken",
        "callbacks",
        "cap_output",
        "charge",
        "default_output",
        "lenient",
        "policies",
        "pool",
        "prices",
        "timeout",
    )
    pool: Spendable | None
    prices: Prices
    policies: Policies
    default_output: int
    cap_output: Any
    broken: str
    lenient: bool
    timeout: float | None
    charge: Charge
    callbacks: tuple[Callable[[CallRecord], object], ...]

    def charge_of(self, run: Run | None, pools: tuple[Spendable, ...]) -> Charge:
        """Return what a call is charged to: the meter's pool, those of the runs, and its own."""
        if pools:
            return Charge(self._all(run, pools))
        return self.charge if run is None else run._charge(self.pool)

    def charge_to_record(self, run: Run | None, pools: tuple[Spendable, ...]) -> Charge:
        """Return what a call that was made is booked in: the same, also where some of it is closed."""
        return Charge(self._all(run, pools), to_record=True)

    def _all(self, run: Run | None, pools: tuple[Spendable, ...]) -> list[Spendable]:
        own = [] if self.pool is None else [self.pool]
        return [*(own if run is None else run._all_pools(self.pool)), *pools]

    def tell(self, run: Run | None, record: CallRecord) -> None:
        """Book a call in its runs, and tell whoever listens. Raise nothing."""
        if run is not None:
            run._book(record)
        for callback in self.callbacks:
            try:
                callback(record)
            except Exception:  # noqa: BLE001, PERF203 - a listener's trouble is not the caller's
                logger().exception("a subscriber of the meter raised")

    def refused(self, run: Run | None, ask: Ask, error: BaseException) -> None:
        """Note that a call was refused before it was sent."""
        if run is not None or self.callbacks:
            self.tell(run, record_of(ask, run, ask.model, NOTHING, 0, 0.0, "refused", type(error).__name__))


def begin(
    terms: Terms, ask: Ask, run: Run | None, pools: tuple[Spendable, ...] = (), context: Mapping[str, Any] | None = None
) -> Pending:
    """Examine a call. It holds nothing yet.

    Raises:
        RunStopped, ModelBlocked, UnknownModel, LoopDetected: it is refused.
        PoolClosed: a pool that it counts against is closed.
    """
    try:
        if run is not None:
            run._check_open()
        if terms.policies:
            check_policies(terms, ask, run, context)
        nanos = bound(terms, ask, ask.worst)
        charge = charge_or_refuse(terms, run, pools)
        limit = None
        if terms.cap_output and not ask.limited and ask.worst.output_tokens:
            limit = terms.default_output
            if terms.cap_output == "fit":
                limit, nanos = fit(terms, ask, charge, nanos)
        admitted = _ADMITTED if run is None else run._admit(ask)
    except Exception as error:
        terms.refused(run, ask, error)
        raise
    return Pending(terms, ask, run, charge, nanos, limit, admitted)


def bound(terms: Terms, ask: Ask, usage: Usage) -> int:
    """Return the most that so many tokens can cost, in nanodollars. Raise UnknownModel where there is no price."""
    most = terms.prices._most(ask.model, usage, ask.provider, ask.service_tier, ask.image_model)
    for other in ask.others:
        most = max(most, terms.prices._most(other, usage, ask.provider, ask.service_tier, ask.image_model))
    return most


def check_policies(terms: Terms, ask: Ask, run: Run | None, context: Mapping[str, Any] | None) -> None:
    """Raise ModelBlocked where a policy denies the model in this context."""
    said = _NO_CONTEXT if run is None else run._context
    said = {**said, **context} if context else said
    for model in (ask.model or "", *ask.others):
        name = plain(model)
        for meant in {name, terms.prices._target(name)}:  # an alias stands for what it leads to
            pattern = terms.policies.denies(meant, said)
            if pattern is not None:
                raise ModelBlocked(f"a policy denies model {model!r} here (pattern {pattern!r})")


def charge_or_refuse(terms: Terms, run: Run | None, pools: tuple[Spendable, ...]) -> Charge:
    """Return what a call is charged to. Raise RunStopped where a run ended just now."""
    try:
        return terms.charge_of(run, pools)
    except PoolClosed:
        if run is not None:
            run._check_open()
        raise


def fit(terms: Terms, ask: Ask, charge: Charge, nanos: int) -> tuple[int, int]:
    """Lower the worst case of a call to what is left: return the limit of output tokens and the price.

    The limit is between 256 and the meter's ``default_output``; the ask is changed to it.
    """
    snapshots = charge.snapshots()
    dollars_left = least(one.usd_remaining_nanos for one in snapshots)
    tokens_left = least(one.tokens_remaining for one in snapshots)

    def worst(limit: int) -> Usage:
        return replace(ask.worst, output_tokens=limit * ask.choices + ask.worst.image_generation_output_tokens)

    def fits(limit: int) -> bool:
        usage = worst(limit)
        within = tokens_left is None or usage.input_tokens + usage.output_tokens <= tokens_left
        return within and (dollars_left is None or bound(terms, ask, usage) <= dollars_left)

    most = terms.default_output
    if most <= FEWEST_OUTPUT_TOKENS or fits(most):
        return most, nanos
    low, high = FEWEST_OUTPUT_TOKENS, most  # `high` does not fit; `low` is taken in any case
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    ask.worst = worst(low)
    return low, bound(terms, ask, ask.worst)


class Pending:
    """One call: examined, then held, then settled once."""

    __slots__ = (
        "_admitted",
        "_charge",
        "_started",
        "ask",
        "nanos",
        "output_limit",
        "overrun",
        "run",
        "status",
        "terms",
    )

    def __init__(
        self,
        terms: Terms,
        ask: Ask,
        run: Run | None,
        charge: Charge,
        nanos: int,
        output_limit: int | None,
        admitted: Admitted,
    ) -> None:
        self._started = 0.0
        self._admitted = admitted
        self._charge = charge
        self.terms = terms
        self.ask = ask
        self.run = run
        self.nanos = nanos  # of the worst case
        self.output_limit = output_limit  # what the request must be told, or None
        self.status: Status | None = None  # how it ended
        self.overrun: BudgetOverrun | None = None  # what the commit said

    @property
    def tokens(self) -> int:
        """The tokens of the worst case."""
        worst = self.ask.worst
        return worst.input_tokens + worst.output_tokens

    @property
    def open(self) -> bool:
        """Whether it holds something that is to be settled."""
        held = _held.get(id(self))
        return held is not None and bool(held.claims)

    # ------------------------------------------------------------------ holding

    def hold(self) -> None:
        """Hold the worst case in all pools, or in none. The thread may wait.

        Raises:
            BudgetExceeded: it does not fit, or no room came in time.
            RunStopped: the run was stopped, also while it waited.
            BudgetUnavailable: a pool cannot answer (and the meter was not told to let such calls pass).
            PoolClosed, PoolForked: as the pool says.
        """
        terms = self.terms
        try:
            held = self._charge.reserve(self.tokens, self.nanos, terms.timeout, lenient=terms.lenient)
        except BaseException as error:
            self._refused(error)
            raise
        _held[id(self)] = held
        self._started = time.perf_counter()

    async def ahold(self) -> None:
        """Do what `hold` does; the task waits, and not the thread."""
        terms = self.terms
        try:
            held = await self._charge.areserve(self.tokens, self.nanos, terms.timeout, lenient=terms.lenient)
        except BaseException as error:
            self._refused(error)
            raise
        _held[id(self)] = held
        self._started = time.perf_counter()

    def _refused(self, error: BaseException) -> None:
        """Note that it is not sent; raise RunStopped in its place where the run's end is why."""
        withdraw(self.ask, self._admitted)
        if not isinstance(error, Exception):  # cancelled or interrupted: nobody refused it
            return
        if isinstance(error, PoolClosed) and self.run is not None:
            try:
                self.run._check_open()
            except RunStopped as stopped:
                self.terms.refused(self.run, self.ask, stopped)
                raise stopped from error
        self.terms.refused(self.run, self.ask, error)

    # ------------------------------------------------------------------ settling

    def settle(self, reading: Any) -> None:
        """Commit what the answer says that it cost (a `Reading`). What cannot be priced is charged in full."""
        if self.open:
            self._end(*self._bill(reading))

    def charge(self) -> None:
        """Commit the worst case: nobody knows what the call cost."""
        self._end("charged", self.ask.model, self.ask.worst, self.nanos)

    def seen(self, output_tokens: int) -> None:
        """Commit what was seen of a broken stream: its input, that much output and 256 tokens more.

        That is never more than the worst case; with ``broken="full"`` it is the worst case.
        """
        self._end(*self._glimpse(output_tokens))

    def release(self) -> None:
        """Give everything back: nothing was sent, or nothing is billed."""
        held = self._take("released")
        if held is not None:
            _held.pop(id(self), None)  # if that is interrupted, what it held is given back as it is dropped
            held.release()
            self._tell(self.ask.model, NOTHING, 0)

    async def asettle(self, reading: Any) -> None:
        """Do what `settle` does, without blocking the event loop."""
        if self.open:
            await self._aend(*self._bill(reading))

    async def acharge(self) -> None:
        """Do what `charge` does, without blocking the event loop."""
        await self._aend("charged", self.ask.model, self.ask.worst, self.nanos)

    async def aseen(self, output_tokens: int) -> None:
        """Do what `seen` does, without blocking the event loop."""
        await self._aend(*self._glimpse(output_tokens))

    async def arelease(self) -> None:
        """Do what `release` does, without blocking the event loop."""
        held = self._take("released")
        if held is not None:
            _held.pop(id(self), None)
            await held.arelease()
            self._tell(self.ask.model, NOTHING, 0)

    def __del__(self) -> None:
        """Charge what nobody settled: a stream that was dropped is billed all the same."""
        held = _held.get(id(self))
        if held is not None:
            if not held.claims:  # whoever settled it was interrupted
                self._put_back(held)
            try:
                self.charge()
            except BaseException:  # an interrupt here: nobody comes after, so once more
                self.charge()
                raise

    # ------------------------------------------------------------------ inside

    def _take(self, status: Status) -> Held | None:
        """Return what is held to the first who asks; None to everybody else. It stays kept until it is committed."""
        held = _held.get(id(self))
        if held is None:
            return None
        try:
            held.claims.pop()
        except IndexError:  # somebody else settles it
            return None
        self.status = status
        return held

    def _end(self, status: Status, model: str | None, usage: Usage, nanos: int) -> None:
        """Settle it so, unless somebody else has."""
        held = self._take(status)
        if held is None:
            return
        try:
            self.overrun = held.commit(usage.input_tokens + usage.output_tokens, nanos)
        except BaseException:  # an interrupt
            self._put_back(held)
            raise
        _held.pop(id(self), None)
        self._tell(model, usage, nanos)

    async def _aend(self, status: Status, model: str | None, usage: Usage, nanos: int) -> None:
        """Do what `_end` does, without blocking the event loop."""
        held = self._take(status)
        if held is None:
            return
        try:
            self.overrun = await held.acommit(usage.input_tokens + usage.output_tokens, nanos)
        except BaseException:  # cancelled, on the way to a store
            self._put_back(held)
            raise
        _held.pop(id(self), None)
        self._tell(model, usage, nanos)

    def _put_back(self, held: Held) -> None:
        """Leave what an interrupt left unsettled to whoever comes next, or to the finaliser."""
        held.parts = [(pool, part) for pool, part in held.parts if part is None or not part.completed]
        if held.parts:
            held.claims = [True]
        else:
            _held.pop(id(self), None)

    def _bill(self, reading: Any) -> tuple[Status, str | None, Usage, int]:
        """Return how an answer is settled: its model, usage and price; the worst case if there is no telling.

        It is asked for before the claim is taken: the list of prices may have to be imported, which takes long.
        """
        ask = self.ask
        try:
            usage, model = ask.filled(reading.usage, untold=reading.untold), reading.model
            if ask.untold_searches and not usage.web_search_requests:
                usage = replace(usage, web_search_requests=ask.untold_searches)
            if model != ask.model and not (model is not None and self._is_priced_by_itself(model)):
                model = ask.model
            tier = reading.service_tier or ask.service_tier
            images = reading.images and ask.images(reading.images)
            nanos = self.terms.prices._cost(model, usage, ask.provider, tier, images)
            status: Status = "charged" if reading.untold else "settled"
            return status, model, usage, nanos  # noqa: TRY300 - all of it may fail on a reading that is none
        except Exception as error:  # noqa: BLE001 - the answer is there, and nothing may keep it from its caller
            logger().warning("an answer of model %r cannot be priced: %s", ask.model, type(error).__name__)
        return "charged", ask.model, ask.worst, self.nanos

    def _is_priced_by_itself(self, model: str) -> bool:
        """Return whether the answer's model, and not the request's, prices the answer.

        It does where it has a price of its own; but the user's own line for what was asked comes before the list's
        price: a line for "gpt-5" also prices "gpt-5-2025-08-07", and one for a deployment whatever answers there.
        """
        prices, asked = self.terms.prices, self.ask.model
        return prices.knows(model, self.ask.provider) and not (asked and prices._governs(asked, model))

    def _glimpse(self, output_tokens: int) -> tuple[Status, str | None, Usage, int]:
        """Return how a stream is settled of which that much was seen."""
        ask, output = self.ask, output_tokens + UNSEEN_TOKENS
        text = without_images(ask.worst)  # what shows an image is charged in full
        if self.terms.broken == "seen" and output < text.output_tokens:
            usage = replace(text, output_tokens=output)
            try:
                return "seen", ask.model, usage, min(bound(self.terms, ask, usage), self.nanos)
            except UnknownModel:  # its price has ended meanwhile
                pass
        return "charged", ask.model, ask.worst, self.nanos

    def _tell(self, model: str | None, usage: Usage, nanos: int) -> None:
        run, terms, status = self.run, self.terms, self.status
        if (run is not None or terms.callbacks) and status is not None:
            seconds = time.perf_counter() - self._started
            terms.tell(run, record_of(self.ask, run, model, usage, nanos, seconds, status, None))


def record_of(
    ask: Ask,
    run: Run | None,
    model: str | None,
    usage: Usage,
    nanos: int,
    seconds: float,
    status: Status,
    error: str | None,
) -> CallRecord:
    return recorded(
        ask.operation,
        ask.provider,
        model,
        usage,
        nanos,
        seconds,
        status,
        None if run is None else run._name,
        None if run is None else run._user,
        error,
    )
