"""Meter: the public class. It prices calls before they are sent, holds their worst case, and settles what they cost.

What always holds: what does not fit is refused before it is sent. After an answer nothing is raised: an overrun is
recorded, and the next call is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from token_budget._arguments import checked_callback, checked_timeout
from token_budget._errors import BudgetOverrun, PoolClosed, PoolForked
from token_budget._money import shown_type, to_nanos, to_tokens
from token_budget.contract import Amount, BudgetUnavailable, Spendable
from token_budget.metering._ask import Ask
from token_budget.metering._call import Call, Spend, ask_for, checked_pools, decorated, texts, told_usage
from token_budget.metering._charge import Charge
from token_budget.metering._decision import Decision, Policies, Reason, weigh
from token_budget.metering._pending import (
    NOTHING,
    Pending,
    Terms,
    begin,
    bound,
    charge_or_refuse,
    check_policies,
    fit,
)
from token_budget.metering._prices import Prices
from token_budget.metering._refusals import LoopDetected, ModelBlocked, RunStopped, UnknownModel
from token_budget.metering._report import CallRecord, locked
from token_budget.metering._run import Run, current_run
from token_budget.metering._shapes import Reading, UnknownUsage

if TYPE_CHECKING:
    from decimal import Decimal

Client = TypeVar("Client")
F = TypeVar("F", bound=Callable[..., Any])
Tokens = int | Callable[..., int]

_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (RunStopped, "stopped"),
    (PoolClosed, "stopped"),
    (PoolForked, "stopped"),
    (ModelBlocked, "model_blocked"),
    (UnknownModel, "unknown_model"),
    (LoopDetected, "loop"),
    (BudgetUnavailable, "unreachable"),
    (OSError, "unreachable"),
)


class Meter:
    """Prices calls to models, and holds what they can cost in a pool before they are sent.

    ``meter.wrap(client)`` caps an SDK's client; `call` is the way by hand; `check` and `record` ask before and book
    after. All methods may be called from any thread and event loop.

    Args:
        pool: the budget that all calls count against; None: only the pools of runs and of single calls.
        prices: a `Prices`, or a table for one; None: the list of genai-prices, if it is installed.
        default_output: the output tokens that are held for a request that does not limit them.
        cap_output: True also writes that limit into the request, so that the bound is real; ``"fit"`` writes what the
            budget still pays for, at least 256.
        broken: what is charged for an answer that broke off: ``"full"``, the worst case; ``"seen"``, the input, what
            was seen, and 256 tokens.
        unmetered: whether requests that cannot be bounded (batches, video) are refused or let through.
        on_error: whether calls are refused (``"block"``) or let through (``"allow"``) while a pool cannot answer.
        estimate: ``"typical"``, or ``"bytes"`` for a true bound of the input, one token a byte.
        timeout: seconds that a call waits for room which other calls hold. What is used up refuses at once, unless its
            next period begins within that time. 0 never waits; None waits without end, for calls in flight only.
        policies: pairs such as ``({"plan": "free"}, ["gpt-5*"])``: where the context says so, these models are denied.

    Raises:
        TypeError, ValueError: an argument is none that is taken.

    Example:
        >>> from token_budget import BudgetPool
        >>> from token_budget.metering import Meter, Usage
        >>> meter = Meter(BudgetPool(usd_cap=1.00), {"house-model": (1, 4)})
        >>> with meter.call("house-model", input_tokens=2000, max_output_tokens=800) as call:
        ...     _ = call.settle(Usage(input_tokens=1900, output_tokens=400))  # or the answer of an SDK
        >>> meter.pool.snapshot().usd_used
        0.0035
    """

    def __init__(
        self,
        pool: Spendable | None = None,
        prices: Prices | Mapping[str, Any] | None = None,
        *,
        default_output: int = 4096,
        cap_output: bool | Literal["fit"] = False,
        broken: Literal["full", "seen"] = "full",
        unmetered: Literal["refuse", "allow"] = "refuse",
        on_error: Literal["block", "allow"] = "block",
        estimate: Literal["typical", "bytes"] = "typical",
        timeout: float | None = 30,
        policies: Any = (),
    ) -> None:
        terms = self._terms = Terms()
        terms.pool = next(iter(checked_pools(pool)), None)
        terms.prices = _checked_prices(prices)
        terms.default_output = to_tokens(default_output, "default_output")
        terms.cap_output = _one_of(cap_output, "cap_output", *(False, True, "fit"))
        terms.broken = _one_of(broken, "broken", "full", "seen")
        terms.lenient = _one_of(on_error, "on_error", "block", "allow") == "allow"
        terms.timeout = checked_timeout(timeout)
        terms.policies = Policies(policies)
        terms.charge = Charge(checked_pools(pool))
        terms.callbacks = ()
        self._renew()
        locked.add(self)
        self._unmetered: Literal["refuse", "allow"] = _one_of(unmetered, "unmetered", "refuse", "allow")
        self._estimate: Literal["typical", "bytes"] = _one_of(estimate, "estimate", "typical", "bytes")

    def _renew(self) -> None:
        self._listening = threading.RLock()  # of the callbacks; a finaliser may end a subscription

    # ------------------------------------------------------------------ what it is

    @property
    def pool(self) -> Any:
        """The pool that all calls count against, or None."""
        return self._terms.pool

    @property
    def prices(self) -> Prices:
        """What calls are priced by."""
        return self._terms.prices

    @property
    def default_output(self) -> int:
        """The output tokens that are held for a request that does not limit them."""
        return self._terms.default_output

    @property
    def unmetered(self) -> Literal["refuse", "allow"]:
        """Whether requests that cannot be bounded are refused or let through."""
        return self._unmetered

    @property
    def estimate(self) -> Literal["typical", "bytes"]:
        """How the input of a request is estimated."""
        return self._estimate

    # ------------------------------------------------------------------ clients

    def wrap(self, client: Client) -> Client:
        """Meter every call of an SDK's client from now on, and return the same client.

        Takes the clients of openai, anthropic, groq, mistralai and google-genai, and those of httpx and httpx2.

        Raises:
            TypeError: there is no HTTP client in it that can be metered.
        """
        from token_budget.metering import _clients

        return _clients.wrap(self, client)

    def http_client(self, base_class: Any, **arguments: Any) -> Any:
        """Return a new HTTP client of a class of httpx or httpx2, whose calls are metered.

        Args:
            base_class: such as ``openai.DefaultHttpxClient`` or ``httpx.AsyncClient``.
            **arguments: what the class takes.

        Raises:
            TypeError: it is no such class.
        """
        from token_budget.metering import _clients

        return _clients.http_client(self, base_class, **arguments)

    def patch(self) -> AbstractContextManager[Any]:
        """Return a block in which the calls of every client of the process are metered, whoever made it."""
        from token_budget.metering import _clients

        return _clients.patch(self)

    # ------------------------------------------------------------------ calls by hand

    def call(
        self,
        model: str,
        *,
        input_tokens: int,
        max_output_tokens: int | None = None,
        pool: Spendable | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Call:
        """Return a block for one call that is made by hand: ``with meter.call(...) as call:``, or ``async with``.

        Args:
            model: what is asked, by the name that it is priced under.
            input_tokens: the most that the input can be.
            max_output_tokens: the limit that the request has; ``default_output`` if it has none.
            pool: a budget that this call counts against as well.
            context: what the policies look at.

        Raises:
            TypeError, ValueError: an argument is none that is taken. Refusals come as the block is entered.
        """
        ask = ask_for(model, input_tokens, max_output_tokens, self._terms.default_output)
        return Call(self._terms, ask, checked_pools(pool), _checked_context(context))

    def metered(
        self,
        model: str | Callable[..., str],
        *,
        input_tokens: Tokens | None = None,
        max_output_tokens: Tokens | None = None,
        pool: Spendable | Callable[..., Spendable] | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator for a function, sync or async, that makes one call and returns its answer.

        Each argument may be a function of what the decorated function is called with.

        Args:
            model: as `call`.
            input_tokens: as `call`; if it is left out, an estimate of all text in the function's arguments, also in
                the fields of objects. Say it where the prompt stands elsewhere: in a file, an iterator, a variable.
            max_output_tokens: as `call`; ``default_output`` also with ``cap_output="fit"``, of which nothing would tell
                the function.
            pool: as `call`.

        Raises:
            TypeError: what is decorated is no function, or a generator function.

        Example:
            >>> from token_budget import BudgetPool
            >>> from token_budget.metering import Meter
            >>> meter = Meter(BudgetPool(usd_cap=1.00), {"house-model": (1, 4)})
            >>> @meter.metered("house-model", max_output_tokens=800)
            ... def ask(prompt):
            ...     return {"usage": {"input_tokens": 1900, "output_tokens": 400}}  # call the model here
            >>> _ = ask("Why is the sky blue?")
            >>> meter.pool.snapshot().usd_used
            0.0035
        """

        def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
            def told(value: Any) -> Any:
                return value(*args, **kwargs) if callable(value) else value

            name = told(model)
            tokens = self._text_tokens((args, kwargs), name) if input_tokens is None else told(input_tokens)
            limit = told(max_output_tokens)
            limit = self.default_output if limit is None else limit
            return self.call(name, input_tokens=tokens, max_output_tokens=limit, pool=told(pool))

        return lambda function: decorated(function, call)

    # ------------------------------------------------------------------ ask before, book after

    def check(
        self,
        model: str,
        *,
        input_tokens: int,
        max_output_tokens: int | None = None,
        pool: Spendable | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Decision:
        """Return whether a call would be let through now. It holds nothing, counts nothing and refuses nothing.

        Another call may take the room before this one is made: `call` holds it. Arguments are those of `call`.

        Raises:
            TypeError, ValueError: an argument is none that is taken.
        """
        terms, run, pools = self._terms, current_run(), checked_pools(pool)
        ask = ask_for(model, input_tokens, max_output_tokens, terms.default_output)
        said, nanos = _checked_context(context), None
        try:
            if run is not None:
                run._check_open()
            check_policies(terms, ask, run, said)
            nanos = bound(terms, ask, ask.worst)
            charge = charge_or_refuse(terms, run, pools)
            if charge.closed():
                return Decision(allowed=False, reason="stopped", usd_nanos=nanos)
            if terms.cap_output == "fit" and not ask.limited:
                _, nanos = fit(terms, ask, charge, nanos)
            if run is not None:
                run._look(ask)
            return weigh(charge.snapshots(), ask.worst.input_tokens + ask.worst.output_tokens, nanos)
        except (RunStopped, PoolClosed, PoolForked, ModelBlocked, UnknownModel, LoopDetected) as error:
            return Decision(allowed=False, reason=_reason(error), usd_nanos=nanos)
        except (BudgetUnavailable, OSError):
            return Decision(allowed=terms.lenient, reason="unreachable", usd_nanos=nanos)

    def record(
        self,
        model: str,
        answer: object = None,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        usd: Amount | None = None,
        pool: Spendable | None = None,
    ) -> BudgetOverrun | None:
        """Book a call that was made, in the pools of the meter, of this call and of the current run. It is never lost.

        Args:
            model: what was asked.
            answer: what the SDK returned, or a `Usage`; or else give the tokens.
            input_tokens: all input, with what a cache gave or took.
            output_tokens: all output, with reasoning.
            usd: what it cost, if that is known; else it is priced.
            pool: a budget that it counts against as well.

        Returns:
            The overrun, if a cap was passed; else None. It is booked in both cases.

        Raises:
            UnknownModel: there is no price for it; its tokens are booked.
            UnknownUsage: the answer has no usage that is known; nothing is booked but ``usd``, if that is given.
            TypeError, ValueError: an argument is none that is taken; nothing is booked.
        """
        terms, spend = self._terms, self._spend(model, answer, input_tokens, output_tokens, usd, pool)
        try:
            overrun = spend.charge.record(spend.tokens, spend.nanos, lenient=terms.lenient)
        finally:
            spend.told(terms)
        return spend.outcome(overrun)

    async def arecord(
        self,
        model: str,
        answer: object = None,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        usd: Amount | None = None,
        pool: Spendable | None = None,
    ) -> BudgetOverrun | None:
        """Do what `record` does, without blocking the event loop on the pool of a store."""
        terms, spend = self._terms, self._spend(model, answer, input_tokens, output_tokens, usd, pool)
        try:
            overrun = await spend.charge.arecord(spend.tokens, spend.nanos, lenient=terms.lenient)
        finally:
            spend.told(terms)
        return spend.outcome(overrun)

    def _spend(self, model: Any, answer: object, input_tokens: Any, output_tokens: Any, usd: Any, pool: Any) -> Spend:
        """Return the spend that `record` was told of."""
        if not isinstance(model, str):
            raise TypeError(f"model must be a str, not {shown_type(model)}")
        pools, nanos = checked_pools(pool), None if usd is None else to_nanos(usd)
        run, late = current_run(), None
        try:
            reading = told_usage(answer, input_tokens, output_tokens, usd)
        except UnknownUsage as error:
            if nanos is None:
                raise
            late, reading = error, Reading(NOTHING, None, None)
        if nanos is None:
            try:
                usage, tier = reading.usage, reading.service_tier
                nanos = self._terms.prices._cost(model, usage, None, tier, reading.images)
            except UnknownModel as error:
                return Spend(model, reading.usage, 0, run, self._terms.charge_to_record(run, pools), error)
        return Spend(model, reading.usage, nanos, run, self._terms.charge_to_record(run, pools), late)

    def quote(self, model: str, input_tokens: int, output_tokens: int = 0, **details: Any) -> Decimal:
        """Return what a call costs, in dollars. Arguments and errors are those of `Prices.quote`."""
        return self._terms.prices.quote(model, input_tokens, output_tokens, **details)

    # ------------------------------------------------------------------ listening

    def subscribe(self, callback: Callable[[CallRecord], object]) -> Callable[[], None]:
        """Call back with a `CallRecord` after each call, also a refused one, and return how to end it.

        The callback runs in the thread of the call, and holds it up. What it raises is logged.

        Raises:
            TypeError: it cannot be called, or it is a coroutine function.
        """
        checked, terms = checked_callback(callback), self._terms

        def told(record: CallRecord) -> object:  # one for each subscription, so that subscribing twice is two
            return checked(record)

        def unsubscribe() -> None:
            with self._listening:
                terms.callbacks = tuple(one for one in terms.callbacks if one is not told)

        with self._listening:
            terms.callbacks = (*terms.callbacks, told)
        return unsubscribe

    # ------------------------------------------------------------------ for the hooks

    def _begin(self, ask: Ask, run: Run | None, *, pools: tuple[Spendable, ...] = ()) -> Pending:
        """Examine a request: see `_pending.begin`."""
        return begin(self._terms, ask, run, pools)

    def _refused(self, ask: Ask, run: Run | None, error: BaseException) -> None:
        """Note that a hook refused a request before it came to `_begin` (`Unmetered`)."""
        self._terms.refused(run, ask, error)

    def _text_tokens(self, arguments: object, model: str) -> int:
        from token_budget.metering._estimate import text_tokens

        text = "\n".join(texts(arguments))
        return len(text.encode()) if self._estimate == "bytes" else text_tokens(text, model)

    def __repr__(self) -> str:
        return f"<Meter of {self._terms.pool!r}>"


def _reason(error: Exception) -> Reason:
    return next(reason for kind, reason in _REASONS if isinstance(error, kind))


def _checked_prices(prices: Any) -> Prices:
    if prices is None:
        return Prices()
    if isinstance(prices, Mapping):
        return Prices(prices)
    if not isinstance(prices, Prices):
        raise TypeError(f"prices must be a Prices or a table for one, not {shown_type(prices)}")
    return prices


def _checked_context(context: Any) -> Mapping[str, Any] | None:
    if context is not None and not isinstance(context, Mapping):
        raise TypeError(f"context must be a dict, not {shown_type(context)}")
    return context


def _one_of(value: Any, name: str, *choices: Any) -> Any:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}")
    return value
