"""OpenTelemetry: what a meter's calls used as metrics of the semantic conventions, and gauges of its pools.

What always holds: no prompt, no answer and no key goes into a metric. An instrument is made once for each meter
provider, however many meters are observed. A pool that cannot answer when the gauges are read is left out, and logged.

`CONVENTIONS` has the metrics of the semantic conventions, as they were read on 2026-11-27; beside it stand their
attributes and providers. "1.41.0" is the last release that has them. They have since moved to a repository of their
own, which has released nothing yet; its main branch has replaced the histogram by what stands under "development".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

from token_budget._money import shown_type
from token_budget.contract import Spendable
from token_budget.metering import CallRecord, Meter, Usage

INSTALL = "pip install 'token-budget-pool[otel]'"

BUCKETS = [4**power for power in range(14)]

# Version -> metrics: (name, kind, the count of `Usage`, the attributes of its own). What they share stands below.
CONVENTIONS: dict[str, tuple[tuple[str, str, str, dict[str, str]], ...]] = {
    "1.41.0": (
        ("gen_ai.client.token.usage", "histogram", "input_tokens", {"gen_ai.token.type": "input"}),
        ("gen_ai.client.token.usage", "histogram", "output_tokens", {"gen_ai.token.type": "output"}),
    ),
    "development": (
        ("gen_ai.client.inference.operation.input_tokens", "histogram", "input_tokens", {}),
        ("gen_ai.client.inference.operation.output_tokens", "histogram", "output_tokens", {}),
        *(
            (f"gen_ai.client.inference.usage.{name}", "counter", count, {"gen_ai.token.modality": "unknown"})
            for name, count in (
                ("input_tokens", "input_tokens"),
                ("output_tokens", "output_tokens"),
                ("cache_read.input_tokens", "cache_read_input_tokens"),
                ("cache_write.input_tokens", "cache_creation_input_tokens"),
                ("reasoning.output_tokens", "reasoning_output_tokens"),
            )
        ),
    ),
}
DESCRIPTIONS = {"histogram": "Number of tokens used by one operation.", "counter": "Number of tokens used."}
OPERATION, PROVIDER, MODEL = "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"
PROVIDERS: dict[str | None, str] = {  # our ids that have another name there
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google": "gcp.gen_ai",
    "mistral": "mistral_ai",
    "moonshotai": "moonshot_ai",
    "x-ai": "x_ai",
    None: "unknown",
}

# The project's own names: the gauges, and what tells a usage that was not told by the provider.
GAUGES = {
    "cap": "The most that a pool may spend.",
    "used": "What is spent of a pool, in its current period.",
    "reserved": "What calls in flight hold of a pool.",
}
POOL, AXIS, STATUS = "token_budget.pool", "token_budget.axis", "token_budget.status"


def observe(
    meter: Meter,
    *pools: Any,
    meter_provider: Any = None,
    conventions: Literal["1.41.0", "development"] = "1.41.0",
    estimates: bool = False,
) -> Callable[[], None]:
    """Send what a meter's calls use, and how its pools stand, to OpenTelemetry; return how to end it.

    The tokens of each answer go into the histogram ``gen_ai.client.token.usage``. The gauges ``token_budget.cap``,
    ``token_budget.used`` and ``token_budget.reserved`` have the attributes ``token_budget.pool`` (the pool's name) and
    ``token_budget.axis`` ("tokens" or "usd", in dollars). A pool is read when metrics are collected, which blocks for
    nothing but a lock that is held for a few additions; a store's pool may ask its store.

    Args:
        meter: whose calls are counted.
        *pools: what the gauges show: pools, or groups of them (`BudgetPool.keyed`); the meter's pool if left out. Name
            them: of two of one name the second is shown as "name #2".
        meter_provider: OpenTelemetry's MeterProvider; the global one if left out.
        conventions: which names the counts of tokens have: see the head of this module.
        estimates: whether calls count too of which the provider told no usage (broken streams, time-outs), as they were
            charged: with the attribute ``token_budget.status``, "charged" or "seen". The conventions want none of them.

    Raises:
        ImportError: OpenTelemetry's API is not installed; the error has the line that installs it.
        TypeError: the meter is no Meter, or a pool is none.
        ValueError: there are no such conventions.

    Example::

        meter = Meter(BudgetPool(usd_cap=10, name="batch"))
        stop = observe(meter)
    """
    if not isinstance(meter, Meter):
        raise TypeError(f"observe takes a Meter, not {shown_type(meter)}")
    if conventions not in CONVENTIONS:
        raise ValueError(f"conventions must be one of {', '.join(map(repr, CONVENTIONS))}")
    shown = pools or ((meter.pool,) if meter.pool is not None else ())
    for pool in shown:
        if not (hasattr(pool, "snapshot") or hasattr(pool, "values")):
            raise TypeError(f"observe shows pools and groups of pools, not {shown_type(pool)}")
    board = _board(meter_provider)
    counts = board.counts(conventions)
    board.add(shown)

    def count(record: CallRecord) -> None:
        if record.status == "settled" or (estimates and record.status in {"charged", "seen"}):
            _count(counts, record)

    end = meter.subscribe(count)

    def stop() -> None:
        end()
        board.remove(shown)

    return stop


def _count(counts: list[tuple[Any, str, dict[str, str]]], record: CallRecord) -> None:
    shared = {OPERATION: record.operation, PROVIDER: PROVIDERS.get(record.provider) or str(record.provider)}
    if record.model is not None:
        shared[MODEL] = record.model
    if record.status != "settled":
        shared[STATUS] = record.status
    usage: Usage = record.usage
    for put, name, attributes in counts:
        put(getattr(usage, name), {**shared, **attributes})


class _Board:
    """The instruments of one meter provider, and the pools that its gauges show."""

    def __init__(self, metrics: Any, provider: Any) -> None:
        from token_budget import __version__

        self._metrics = metrics
        self._meter = metrics.get_meter("token_budget", __version__, meter_provider=provider)
        self._lock = threading.Lock()
        self._made: dict[str, Any] = {}
        self._shown: tuple[tuple[Any, ...], ...] = ()
        for name, description in GAUGES.items():
            callbacks = [self._reader(name)]
            self._meter.create_observable_gauge(f"token_budget.{name}", callbacks, description=description)

    def counts(self, conventions: str) -> list[tuple[Any, str, dict[str, str]]]:
        """Return what each count of a usage is handed to."""
        with self._lock:
            return [
                (self._instrument(name, kind), count, attributes)
                for name, kind, count, attributes in CONVENTIONS[conventions]
            ]

    def _instrument(self, name: str, kind: str) -> Any:
        made = self._made.get(name)
        if made is None:
            about = {"unit": "{token}", "description": DESCRIPTIONS[kind]}
            if kind == "histogram":
                made = self._meter.create_histogram(name, explicit_bucket_boundaries_advisory=BUCKETS, **about).record
            else:
                made = self._meter.create_counter(name, **about).add
            self._made[name] = made
        return made

    def add(self, pools: tuple[Any, ...]) -> None:
        """Show these pools too."""
        with self._lock:
            self._shown = (*self._shown, pools)

    def remove(self, pools: tuple[Any, ...]) -> None:
        """Show them no more. Does nothing the second time."""
        with self._lock:
            self._shown = tuple(one for one in self._shown if one is not pools)

    def _reader(self, number: str) -> Callable[[Any], Iterable[Any]]:
        def read(_options: Any) -> Iterator[Any]:
            for name, tokens, usd in self._numbers(number):
                for axis, value in (("tokens", tokens), ("usd", usd)):
                    if value is not None:
                        yield self._metrics.Observation(value, {POOL: name, AXIS: axis})

        return read

    def _numbers(self, number: str) -> Iterator[tuple[str, int | None, float | None]]:
        """Return a number of each pool on both axes, with the pool's name; two pools never have one name."""
        seen: dict[str, int] = {}
        for pool in _each([one for pools in self._shown for one in pools]):
            try:
                snapshot = pool.snapshot()
            except Exception as error:  # noqa: BLE001 - a store out of reach, or a fork: the others are shown
                _warn(pool, error)
                continue
            name = snapshot.name or "unnamed"
            count = seen[name] = seen.get(name, 0) + 1
            name = name if count == 1 else f"{name} #{count}"
            if number == "cap":
                yield name, snapshot.token_cap, snapshot.usd_cap
            elif number == "used":
                yield name, snapshot.tokens_used, snapshot.usd_used
            else:
                yield name, snapshot.tokens_reserved, snapshot.usd_reserved


def _each(pools: Iterable[Any]) -> list[Spendable]:
    """Return every pool once, those of the groups too."""
    every = [one for pool in pools for one in ([pool] if hasattr(pool, "snapshot") else pool.values())]
    return list({id(pool): pool for pool in every}.values())


def _warn(pool: Any, error: Exception) -> None:
    from logging import getLogger

    getLogger("token_budget").warning("pool %r is not shown: %s", getattr(pool, "name", None), error)


_lock = threading.Lock()
_boards: WeakKeyDictionary[Any, _Board] = WeakKeyDictionary()
_global: list[_Board] = []  # the board of the global provider, which may be set later


def _board(provider: Any) -> _Board:
    """Return the board of a provider, made once."""
    from importlib import import_module

    try:
        metrics = import_module("opentelemetry.metrics")
    except ImportError as error:
        raise ImportError(f"OpenTelemetry's API is not installed: {INSTALL}") from error
    with _lock:
        if provider is None:
            if not _global:
                _global.append(_Board(metrics, None))
            return _global[0]
        board = _boards.get(provider)
        if board is None:
            board = _boards[provider] = _Board(metrics, provider)
        return board
