"""Calls: what a request is for the meter, and how what it holds is settled.

What always holds: what the meter cannot read or bound is refused, unless it was told to let it pass; a path or a body
that it does not know is such a thing too. What a call holds is settled once, also where its handler is cancelled.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

from token_budget._pool import BudgetPool
from token_budget.gateway._client import Body
from token_budget.gateway._upstreams import Upstream
from token_budget.metering import _requests, _routes
from token_budget.metering._ask import Ask
from token_budget.metering._body import parsed
from token_budget.metering._meter import Meter
from token_budget.metering._pending import Pending, bound
from token_budget.metering._refusals import UnknownModel, Unmetered
from token_budget.metering._routes import Route
from token_budget.metering._run import Run
from token_budget.metering._settling import Outcome, asettle, settle
from token_budget.metering._stream import unpacked
from token_budget.metering._usage import Usage
from token_budget.metering._watch import Watch

_UNTOUCHED = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_DOUBTFUL = frozenset("?#;\r\n\0")  # of a path, decoded
_HOSTS = {"openai": "api.openai.com", "azure": "a.openai.azure.com", "aws": "bedrock.a.amazonaws.com"}


def host_of(upstream: Upstream) -> str:
    """Return the host by which the requests of an upstream are read: its own, or that of the provider it stands for."""
    host = (urlsplit(upstream.url).hostname or "").lower()
    provider = upstream.provider
    if provider is None or _routes.provider_of(host) == provider:
        return host
    known = (one for one, paid in _routes._HOSTS.items() if paid == provider)
    return _HOSTS.get(provider) or next(known, host)


def _find(method: str, host: str, provider: str | None, path: str) -> Route:
    found = _routes.route(method, host, path)
    if found.kind == "metered" and method != "POST":
        return _routes.UNKNOWN  # a PUT may be sent twice by those on its way, and no provider takes one
    if found.kind == "free" and method == "POST" and not _DOUBTFUL.isdisjoint(unquote(path)):
        return _routes.UNKNOWN  # some servers read such a path as another one, that spends
    return replace(found, provider=provider or found.provider)


_route = functools.lru_cache(maxsize=1024)(_find)
_LONGEST_KEPT = 512  # bytes of a path that is remembered


def route_of(method: str, host: str, upstream: Upstream, rest: str) -> Route:
    """Return what a request is, by its method and path. ``host`` is what `host_of` says."""
    path = urlsplit(upstream.url).path + rest
    find = _route if len(path) <= _LONGEST_KEPT else _find
    return find(method, host, upstream.provider, path)


class Call:
    """One request that is metered: what it holds, and how it leaves."""

    __slots__ = ("_asked", "body", "content", "pending", "route", "status", "strip")

    def __init__(self, pending: Pending, route: Route, content: bytes, asked: bytes | None) -> None:
        self.pending = pending
        self.route = route
        self.content = content  # as it leaves, without the question for the usage
        self._asked = asked  # with that question, or None
        self.strip = asked is not None  # whether the answer's usage is left out
        self.body = Body(content if asked is None else asked)
        self.status = 0  # of the answer, once there is one

    def ask_plainly(self) -> None:
        """Make it the call without the question for the usage, which is sent anew."""
        self.strip, self.status, self.body = False, 0, Body(self.content)

    def watch(self, content_type: bytes, encoding: bytes, *, framed: bool, longest: int) -> Watch:
        """Return what reads its answer."""
        return Watch(
            shape=self.route.shape,
            choices=self.pending.ask.choices,
            content_type=content_type,
            encoding=encoding,
            strip=self.strip,
            framed=framed,
            counting=self.pending.terms.broken == "seen",
            longest=longest,
        )

    def outcome(self, watch: Watch | None) -> Outcome:
        """Return how it is settled where its answer has not come to its end."""
        if not self.body.leaving or (self.status and not 200 <= self.status < 300):
            return "release"
        if watch is None:
            return "charge"
        return watch.ready or watch.told or watch.seen()


def examine(
    meter: Meter,
    run: Run | None,
    found: Route,
    headers: Mapping[str, str],
    body: bytes,
    *,
    declining: Container[str | None],
    most: int,
) -> Call | None:
    """Return the call that a request is; None if it passes unmetered. It holds nothing yet.

    Args:
        meter: the meter.
        run: the run that its calls belong to.
        found: its route.
        headers: its headers.
        body: its body.
        declining: the models of its upstream that do not take the question for the usage of a stream.
        most: bytes to which a packed body is unpacked to be read.

    Raises:
        Refusal, PoolClosed: it is refused.
    """
    lenient = meter.unmetered == "allow"
    if found.kind == "free":
        return None
    try:
        request, fields = _asked(meter, found, headers, body, most)
    except Unmetered as error:
        if lenient:
            return None
        empty = Ask(operation=found.operation, provider=found.provider, model=found.model, worst=Usage())
        meter._refused(empty, run, error)
        raise
    if request is None:
        return None
    if lenient:
        if not _has_price(meter, request, request.model):
            return None
        request.others = tuple(one for one in request.others if _has_price(meter, request, one))
    fixed = "content-encoding" in headers or headers.get("authorization", "").startswith("AWS4-")
    request.limited = request.limited or fixed  # no limit can be written into a body that is packed or signed
    pending = meter._begin(request, run)
    try:
        return _changed(pending, found, body, fields, ask=not fixed and request.model not in declining)
    except Unmetered as error:
        pending._refused(error)
        raise


def _asked(
    meter: Meter, found: Route, headers: Mapping[str, str], body: bytes, most: int
) -> tuple[Ask | None, dict[str, Any] | None]:
    """Return what a request asks for, None if that is nothing of a model; and the object that its body is.

    Raises:
        Unmetered: nobody can tell what it costs.
    """
    if found.kind != "metered":
        raise Unmetered(_UNMETERED.format(found.operation or "this request"))
    plain = unpacked(headers, body, most) if "content-encoding" in headers else body
    if found.vague and meter.unmetered != "allow":
        found = replace(found, vague=False)  # a body that is for no model is refused, and not passed on
    fields = parsed(plain) if _requests.is_json(found, plain) else None
    request = _requests.read(
        found, headers, plain, estimate=meter.estimate, default_output=meter.default_output, fields=fields
    )
    return request, fields


def _has_price(meter: Meter, request: Ask, model: str | None) -> bool:
    try:
        bound(meter._terms, replace(request, model=model, others=()), request.worst)
    except UnknownModel:
        return False
    return True


_UNMETERED = "what {} costs cannot be bounded before it is sent, so it is refused"


def _changed(pending: Pending, found: Route, body: bytes, fields: dict[str, Any] | None, *, ask: bool) -> Call:
    """Return the call as it leaves: with its output limited, and the usage of its stream asked for."""
    asked = None
    if pending.output_limit is not None:
        body = _requests.with_output_limit(found, body, pending.output_limit, fields)
    if ask and pending.ask.stream:
        asked = _requests.with_stream_usage(found, "", body, fields=fields)
    return Call(pending, found, body, asked)


class Settling:
    """Settles calls. What has to go to a store is done in a task of its own, which nobody cancels."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(self, pending: Pending, outcome: Outcome) -> None:
        """Settle a call, unless it is settled. Raise nothing but CancelledError; then it is settled all the same."""
        if all(isinstance(pool, BudgetPool) for pool in pending._charge.pools):  # in memory: at once
            settle(pending, outcome)
            return
        task = asyncio.get_running_loop().create_task(asettle(pending, outcome))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def finish(self) -> None:
        """Wait until all that was begun is done."""
        while self._tasks:
            await asyncio.wait(self._tasks)
