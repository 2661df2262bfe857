"""Call: one call to a model by hand, as a block. What is sent in it is counted by it alone. Spend: one that was made.

For what the hooks cannot see (boto3, gRPC, a model of one's own), and for worst cases that the caller knows better.
"""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from token_budget._errors import BudgetOverrun
from token_budget._money import shown_type, to_tokens, to_usd
from token_budget.contract import Spendable
from token_budget.metering._ask import Ask
from token_budget.metering._charge import Charge, logger
from token_budget.metering._objects import fields
from token_budget.metering._pending import Pending, Terms, begin, record_of
from token_budget.metering._run import Off, Run, _metering_off, current_run
from token_budget.metering._shapes import Reading, UnknownUsage, read
from token_budget.metering._usage import Usage

_CONTAINERS = (list, tuple, set, frozenset, deque)
_OF_TEXT = frozenset({"argparse", "collections", "string", "types"})  # modules of Python whose objects may hold text
_DEEPEST = 4  # objects inside objects: a framework's agent, its message, its part, its text


def checked_pools(pool: Any) -> tuple[Spendable, ...]:
    """Return the pools of a call's own.

    Raises:
        TypeError: it is no pool.
    """
    if pool is None:
        return ()
    if not hasattr(pool, "reserve"):
        raise TypeError(f"pool must be a BudgetPool or keep its contract, not {shown_type(pool)}")
    return (pool,)


def ask_for(model: Any, input_tokens: Any, max_output_tokens: Any, default_output: int) -> Ask:
    """Return what is asked for by hand.

    Raises:
        TypeError, ValueError: the model is no text, or the tokens are no counts.
    """
    if not isinstance(model, str):
        raise TypeError(f"model must be a str, not {shown_type(model)}")
    limited = max_output_tokens is not None
    output = to_tokens(max_output_tokens, "max_output_tokens") if limited else default_output
    worst = Usage(input_tokens=to_tokens(input_tokens, "input_tokens"), output_tokens=output)
    return Ask(operation="chat", provider=None, model=model, worst=worst, limited=limited)


class Call:
    """One call by hand: ``with meter.call(...) as call:`` (or ``async with``), and `settle` in the block.

    The room is held while the block runs. A block that is left without `settle`, by an exception or not, is charged in
    full: most providers bill a call that failed after it was sent. Say `release` if nothing was sent. The hooks count
    nothing that is sent in the block before it is settled. A block is entered once.
    """

    __slots__ = ("_ask", "_context", "_off", "_pending", "_pools", "_terms", "_token_before")

    def __init__(self, terms: Terms, ask: Ask, pools: tuple[Spendable, ...], context: Mapping[str, Any] | None) -> None:
        self._terms = terms
        self._ask = ask
        self._pools = pools
        self._context = context
        self._pending: Pending | None = None
        self._off = Off()
        self._token_before: Off | None = None

    # ------------------------------------------------------------------ what it is

    @property
    def model(self) -> str:
        """The model that is asked."""
        return self._ask.model or ""

    @property
    def max_output_tokens(self) -> int:
        """The output that is paid for: hand it to the model as its limit. ``cap_output="fit"`` may have lowered it."""
        return self._ask.worst.output_tokens

    @property
    def usd(self) -> float | None:
        """The dollars that are held, the worst case; None before the block is entered."""
        return None if self._pending is None else to_usd(self._pending.nanos)

    @property
    def overrun(self) -> BudgetOverrun | None:
        """The error of a cost that passed a cap; it is recorded, and the next call will be refused."""
        return None if self._pending is None else self._pending.overrun

    # ------------------------------------------------------------------ ending it

    def settle(self, answer: object) -> BudgetOverrun | None:
        """Commit what the answer cost, and return the overrun if it passed a cap. Raise nothing else.

        An answer whose usage cannot be read is charged in full, and logged. The first to settle wins.

        Args:
            answer: what the SDK returned (parsed JSON, its object, a list of stream events), or a `Usage`.

        Raises:
            RuntimeError: the block was not entered.
        """
        pending = self._entered()
        reading = _reading(answer)
        if reading is None:
            pending.charge()
        else:
            pending.settle(reading)
        self._off.open = False
        return pending.overrun

    async def asettle(self, answer: object) -> BudgetOverrun | None:
        """Do what `settle` does, without blocking the event loop on the pool of a store."""
        pending = self._entered()
        reading = _reading(answer)
        await (pending.acharge() if reading is None else pending.asettle(reading))
        self._off.open = False
        return pending.overrun

    def release(self) -> None:
        """Give the room back: nothing was sent.

        Raises:
            RuntimeError: the block was not entered.
        """
        self._entered().release()
        self._off.open = False

    def __enter__(self) -> Call:
        """Hold the worst case. The thread may wait for room, as long as the meter's ``timeout`` says.

        Raises:
            BudgetExceeded: it does not fit.
            RunStopped, ModelBlocked, UnknownModel, LoopDetected: it is refused.
            BudgetUnavailable: a pool cannot answer.
            RuntimeError: it was entered before.
        """
        pending = self._begin()
        pending.hold()
        return self._hold(pending)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """Charge in full what was not settled."""
        self._leave()
        self._entered().charge()

    async def __aenter__(self) -> Call:
        """Do what ``__enter__`` does; the task waits, and not the thread."""
        pending = self._begin()
        await pending.ahold()
        return self._hold(pending)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        """Charge in full what was not settled, without blocking the event loop."""
        self._leave()
        await self._entered().acharge()

    # ------------------------------------------------------------------ inside

    def _begin(self) -> Pending:
        if self._pending is not None:
            raise RuntimeError("a call block is entered once: make another with meter.call()")
        return begin(self._terms, self._ask, current_run(), self._pools, self._context)

    def _hold(self, pending: Pending) -> Call:
        self._pending = pending
        self._token_before = _metering_off.get()
        _metering_off.set(self._off)
        return self

    def _leave(self) -> None:
        self._off.open = False
        if _metering_off.get() is self._off:  # else it is left in another context (a generator's)
            _metering_off.set(self._token_before)

    def _entered(self) -> Pending:
        if self._pending is None:
            raise RuntimeError("the call holds nothing yet: write `with meter.call(...) as call:`")
        return self._pending


def _reading(answer: object) -> Reading | None:
    """Return what an answer says of its price; None if it says nothing that can be used."""
    try:
        return read(answer)
    except Exception as error:  # noqa: BLE001 - the answer is there, and nothing may keep it from its caller
        why = str(error) if isinstance(error, UnknownUsage) else type(error).__name__  # the first shows names of fields
        logger().warning("an answer is charged in full, for its usage cannot be read: %s", why)
        return None


def decorated(function: Callable[..., Any], call: Callable[[tuple[Any, ...], dict[str, Any]], Call]) -> Any:
    """Return a function whose calls are metered: its arguments make the `Call`, its result settles it.

    Raises:
        TypeError: it cannot be called, or is a generator function.
    """
    from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction

    if not callable(function):
        raise TypeError(f"metered takes a function, not {shown_type(function)}")
    kinds = (function, type(function).__call__)
    if any(isgeneratorfunction(one) or isasyncgenfunction(one) for one in kinds):
        raise TypeError(
            "metered takes functions that return an answer, and no generators: write `with meter.call(...)`"
        )
    if any(iscoroutinefunction(one) for one in kinds):

        @wraps(function)
        async def ametered(*args: Any, **kwargs: Any) -> Any:
            async with call(args, kwargs) as block:
                answer = await function(*args, **kwargs)
                await block.asettle(answer)
                return answer

        return ametered

    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        with call(args, kwargs) as block:
            answer = function(*args, **kwargs)
            block.settle(answer)
            return answer

    return metered


class Spend:
    """A call that was made, as `Meter.record` books it."""

    __slots__ = ("_late", "_model", "_run", "_usage", "charge", "nanos", "tokens")

    def __init__(
        self, model: str, usage: Usage, nanos: int, run: Run | None, charge: Charge, late: Exception | None
    ) -> None:
        self._model = model
        self._usage = usage
        self._run = run
        self._late = late  # what is raised once it is booked
        self.charge = charge
        self.nanos = nanos
        self.tokens = usage.input_tokens + usage.output_tokens

    def told(self, terms: Terms) -> None:
        """Book it in its runs, and tell whoever listens."""
        ask = Ask(operation="chat", provider=None, model=self._model, worst=self._usage)
        terms.tell(self._run, record_of(ask, self._run, self._model, self._usage, self.nanos, 0.0, "settled", None))

    def outcome(self, overrun: BudgetOverrun | None) -> BudgetOverrun | None:
        """Return the overrun, or raise what kept the spend from being known."""
        if self._late is not None:
            raise self._late
        return overrun


def texts(arguments: object) -> list[str]:
    """Return all text in the arguments of a function: in containers, and in the fields of objects four deep.

    A message, a document and a prompt of a framework are such objects. Each is read once, so that those that refer to
    each other end. Left out are names of fields, private fields, classes, functions, and the objects of Python itself
    (a lock, a file, a path): an agent that is handed to its own method brings its history, and not its clients' locks.
    """
    found: list[str] = []
    pending: list[tuple[object, int]] = [(arguments, 0)]
    seen: set[int] = set()
    for one, depth in pending:  # it grows meanwhile
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, (bytes, bytearray)):
            found.append(one.decode("latin-1"))
        elif id(one) not in seen:
            seen.add(id(one))
            if isinstance(one, Mapping):
                pending += [(inner, depth) for pair in one.items() for inner in pair]
            elif isinstance(one, _CONTAINERS):
                pending += [(inner, depth) for inner in one]
            elif depth < _DEEPEST and not _is_of_python(type(one)) and not isinstance(one, type):
                told = fields(one) or {}
                pending += [(inner, depth + 1) for name, inner in told.items() if str(name)[:1] != "_"]
    return found


def _is_of_python(kind: type) -> bool:
    module = kind.__module__.partition(".")[0]
    return module in sys.stdlib_module_names and module not in _OF_TEXT


def told_usage(answer: object, input_tokens: Any, output_tokens: Any, usd: Any) -> Reading:
    """Return the usage that was handed to `Meter.record`."""
    given = input_tokens is not None or output_tokens is not None
    if answer is not None:
        if given:
            raise TypeError("give the answer or its tokens, not both")
        return read(answer)
    if not given and usd is None:
        raise TypeError("give the answer (or a Usage), its tokens, or what it cost")
    counts = {
        "input_tokens": to_tokens(input_tokens or 0, "input_tokens"),
        "output_tokens": to_tokens(output_tokens or 0, "output_tokens"),
    }
    return Reading(Usage(**counts), None, None)
