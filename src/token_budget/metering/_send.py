"""The hook at `send()` of an httpx or httpx2 client, sync and async: it holds, sends, and settles.

What always holds: a request is metered once, by the outermost hook on its way. It leaves only after its worst case is
held, and what is held is settled before the caller gets the answer, or by the watch on the answer's stream. After the
answer nothing is raised. A request that is changed (a limit of its output, the usage of its stream) is a new one; the
caller's own is left as it is. A server that does not take the question for the usage gets the request without it. One
that is signed or packed leaves as it is.

| what happens | done with what is held |
|---|---|
| 2xx with usage | the real cost is committed |
| 2xx with its input alone, and something that a model wrote | the output is charged as it was held |
| 2xx without | charged in full |
| any other status; no connection came about | released |
| time-out, reset, cancelled, interrupted | charged in full |
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from token_budget.contract import Spendable
from token_budget.metering import _requests, _shapes
from token_budget.metering._ask import Ask
from token_budget.metering._pending import Pending
from token_budget.metering._refusals import Unmetered
from token_budget.metering._refused import is_of_stainless, library_of, refuse
from token_budget.metering._routes import Route, route
from token_budget.metering._run import Run, metering_is_off
from token_budget.metering._settling import Outcome, asettle, settle
from token_budget.metering._stream import apeek, peek, unpacked, watch_stream
from token_budget.metering._usage import Usage
from token_budget.metering._watch import LONGEST, Watch

MARK = "token_budget"  # the extension of a request that is metered already

# Errors of httpx after which nothing can be billed: there was no connection, or no whole request went over it.
_NOT_SENT = frozenset(
    {
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "ProxyError",
        "UnsupportedProtocol",
        "LocalProtocolError",
        "TooManyRedirects",
    }
)
_READABLE = frozenset({"gzip", "deflate", "identity"})

# Ends of paths that belong to a model's API also without a version before them, where an SDK asks for them: its base
# URL is then one such as ``https://models.github.ai/inference``.
_OF_SDKS = frozenset({"responses", "embeddings", "completions", "batches", "videos"})

_DECLINED = frozenset({400, 422})  # the status of a server that does not take `stream_options`
_SERVERS = 1000  # of these that are remembered
_declining: dict[bytes, bool] = {}

_sending: ContextVar[Any] = ContextVar("token_budget.sending", default=None)  # the mark of what is sent here

patching: list[Any] = []  # the meters of the `Meter.patch` blocks that are open, the latest last

Send = Callable[..., Any]
AsyncSend = Callable[..., Awaitable[Any]]


class _Call:
    """One metered request: how it leaves, what it holds, how its answer is read."""

    __slots__ = ("_asked", "_mark", "_original", "_outer", "_route", "pending", "request", "strip")

    def __init__(self, pending: Pending, request: Any, route: Route, asked: Any = None, *, strip: bool) -> None:
        self.pending = pending
        self.request = request
        self._outer: Any = None  # the mark of the request in whose sending this one is sent
        self._original: Any = None  # the caller's request, if a copy of it leaves
        self._asked = asked  # the caller's request, if this is another
        self._route = route
        self.strip = strip  # whether the usage of its stream was asked for here
        self._mark = [True]  # false once it is emptied, in every request that was made from this one (a redirect)

    def leave(self) -> Any:
        """Return the request, marked as metered."""
        request = self.request
        if request.extensions.get(MARK):  # the caller sends it in another thread or task at this moment
            self._original = request
            own = self.request = object.__new__(type(request))
            own.__dict__.update(request.__dict__)
            request = own
        request.extensions = {**request.extensions, MARK: self._mark}
        self._outer = _sending.get()
        _sending.set(self._mark)
        return request

    def sent(self) -> None:
        """Take the mark off: whoever sends the request again sends another one."""
        self._mark.clear()
        _sending.set(self._outer)
        self.request.extensions.pop(MARK, None)

    def hand_back(self, response: Any) -> None:
        """Name the caller's own request in the answer to its copy."""
        if self._original is not None and response._request is self.request:
            response._request = self._original

    def is_declined(self, head: bytes) -> bool:
        """Return whether a server refuses the question for the usage; then this is the call without it."""
        if b"stream_options" not in head:
            return False
        self.sent()
        again = _changed(self.pending, self._asked, self._route, self._asked.content, ask=False)
        self.request, self.strip, self._mark = again.request, again.strip, again._mark
        self._original = None  # of the request that is not sent again
        return True

    def remember(self, status: int) -> None:
        """Do not ask this server again, if it took the request without the question: else something else was wrong."""
        if status in _DECLINED:
            return
        _declining[self.request.url.netloc] = True
        while len(_declining) > _SERVERS:
            _declining.pop(next(iter(_declining)), None)

    def judge(self, response: Any) -> Outcome | None:
        """Return what is done with what is held; None while the answer is streamed: the watch says it then."""
        if not 200 <= response.status_code < 300:
            return "release"
        content = getattr(response, "_content", None)
        if content is None:
            watch_stream(response, self.pending, self._watch(response))
            return None
        if content[:1] in {b"{", b"["}:
            try:
                return _shapes.read(json.loads(content))
            except Exception:  # noqa: BLE001 - whatever a provider sends: the answer is there
                return "charge"
        watch = self._watch(response, decoded=True)
        kept = watch.feed(content) + watch.end()
        if watch.strip:
            response._content = kept
        return watch.ready or watch.told or "charge"

    def _watch(self, response: Any, *, decoded: bool = False) -> Watch:
        headers = {name.lower(): value.lower() for name, value in response.headers.raw}
        version = response.extensions.get("http_version", b"HTTP/1.1")
        ask = self.pending.ask
        return Watch(
            shape=self._route.shape,
            choices=ask.choices,
            content_type=headers.get(b"content-type", b""),
            encoding=b"" if decoded else headers.get(b"content-encoding", b"").strip(),
            strip=self.strip,
            framed=not version.startswith(b"HTTP/1") or b"transfer-encoding" in headers or b"content-length" in headers,
            counting=self.pending.terms.broken == "seen",
        )


def send(client: Any, original: Send, meter: Any, run: Run | None, request: Any, options: dict[str, Any]) -> Any:
    """Send a request through a sync client, metered.

    Args:
        client: The client.
        original: Its own `send`, unbound.
        meter: The meter of the client, or of the run.
        run: The current run.
        request: The request.
        options: What else `send` was given.

    Raises:
        BudgetExceeded, Refusal: It is refused, and was not sent (see `_refused`).
    """
    found = _route(request)
    if found is None or client.is_closed:
        return original(client, request, **options)
    body: Any = getattr(request, "_content", None)
    if body is None and found.kind == "metered":
        if not hasattr(request.stream, "__iter__"):  # a body for an async client: the client's own error
            return original(client, request, **options)
        body = request.read()
    try:
        call = _examine(meter, run, request, found, body, options)
        if call is not None:
            call.pending.hold()
    except Exception as error:  # noqa: BLE001 - a refusal, which reaches the caller as it is
        return refuse(request, error)
    if call is None:
        return original(client, request, **options)
    pending = call.pending
    try:
        response = _exchange(client, original, call, options)
        call.hand_back(response)
        outcome = call.judge(response)
        if outcome is not None:
            settle(pending, outcome)
        if pending.ask.stream and not options.get("stream"):
            _read(response)
    except BaseException as error:
        settle(pending, _after(error))
        raise
    finally:
        call.sent()
    return response


async def asend(
    client: Any, original: AsyncSend, meter: Any, run: Run | None, request: Any, options: dict[str, Any]
) -> Any:
    """Do what `send` does, through an async client; the task waits for room, and not the thread."""
    found = _route(request)
    if found is None or client.is_closed:
        return await original(client, request, **options)
    body: Any = getattr(request, "_content", None)
    if body is None and found.kind == "metered":
        if not hasattr(request.stream, "__aiter__"):
            return await original(client, request, **options)
        body = await request.aread()
    try:
        call = _examine(meter, run, request, found, body, options)
        if call is not None:
            await call.pending.ahold()
    except Exception as error:  # noqa: BLE001 - as in `send`
        return refuse(request, error)
    if call is None:
        return await original(client, request, **options)
    pending = call.pending
    try:
        response = await _aexchange(client, original, call, options)
        call.hand_back(response)
        outcome = call.judge(response)
        if outcome is not None:
            await asettle(pending, outcome)
        if pending.ask.stream and not options.get("stream"):
            await _aread(response)
    except BaseException as error:
        await asettle(pending, _after(error))
        raise
    finally:
        call.sent()
    return response


# ---------------------------------------------------------------- before


def _route(request: Any) -> Route | None:
    """Return where a request goes that spends; None if it passes untouched."""
    mark = request.extensions.get(MARK)
    if (mark and (type(mark) is not list or mark is _sending.get())) or metering_is_off():
        return None
    url = request.url
    found = route(request.method, url.host, url.path)
    if found.kind == "unknown":
        tail = url.path.rstrip("/").rpartition("/")[2]
        if tail in _OF_SDKS and is_of_stainless(request):
            found = route(request.method, url.host, f"/v1/{tail}")
    return found if found.kind in {"metered", "unmetered"} else None


def _examine(
    meter: Any, run: Run | None, request: Any, found: Route, body: Any, options: dict[str, Any]
) -> _Call | None:
    """Return the call that a request is; None if it passes untouched. It holds nothing yet.

    Raises:
        Refusal: It is refused.
    """
    if found.kind == "unmetered":
        if meter.unmetered == "allow":
            return None
        raise _unmetered(meter, run, found, Unmetered(_UNMETERED.format(found.operation)))
    headers = request.headers
    try:
        plain = unpacked(headers, body, LONGEST) if "content-encoding" in headers else body
        if found.vague and plain is body and "content-encoding" in headers and is_of_stainless(request):
            found = replace(found, vague=False)  # an SDK's body that cannot be read is refused, and not passed on
        ask = _requests.read(found, headers, plain, estimate=meter.estimate, default_output=meter.default_output)
        if ask is None:
            return None
        if not ask.limited and _is_fixed(headers):  # no limit can be written into it
            ask.limited = True
        pending = meter._begin(ask, run, pools=_others(meter) if patching else ())
        if ask.stream or options.get("stream") or pending.output_limit is not None:
            return _changed(pending, request, found, body)
    except Unmetered as error:
        raise _unmetered(meter, run, found, error) from None
    return _Call(pending, request, found, strip=False)


def _others(meter: Any) -> tuple[Spendable, ...]:
    """Return the pools of the other meters whose `Meter.patch` blocks are open: they count the call too."""
    return tuple(other.pool for other in [*patching] if other is not meter and other.pool is not None)


_UNMETERED = (
    "what {} costs cannot be bounded before it is sent, so it is refused; Meter(unmetered='allow') lets it pass "
    "uncounted"
)


def _unmetered(meter: Any, run: Run | None, found: Route, error: Unmetered) -> Unmetered:
    """Note the refusal of what cannot be metered."""
    ask = Ask(operation=found.operation, provider=found.provider, model=found.model, worst=Usage())
    meter._refused(ask, run, error)
    return error


def _is_fixed(headers: Any) -> bool:
    """Return whether no byte of a request may change: it is signed, or its body is packed."""
    return headers.get("authorization", "").startswith("AWS4-") or "content-encoding" in headers


def _changed(pending: Pending, request: Any, found: Route, body: bytes, *, ask: bool = True) -> _Call:
    """Return the call with the request as it leaves: its output limited, its stream readable, its usage asked for."""
    asked, headers = request, request.headers
    if _is_fixed(headers):
        return _Call(pending, request, found, strip=False)
    sent, strip = body, False
    if pending.output_limit is not None:
        sent = _requests.with_output_limit(found, sent, pending.output_limit)
    if ask and pending.ask.stream and request.url.netloc not in _declining:
        asking = _requests.with_stream_usage(found, request.url.host, sent)
        if asking is not None:
            sent, strip = asking, True
    readable = _READABLE.issuperset(one.strip() for one in headers.get("accept-encoding", "*").split(","))
    if sent is not body or not readable:
        headers = headers.copy()
        headers.pop("transfer-encoding", None)
        headers["content-length"] = str(len(sent))
        if not readable:
            headers["accept-encoding"] = "gzip, deflate"
        make = library_of(type(request)).Request
        request = make(request.method, request.url, headers=headers, content=sent, extensions=request.extensions)
    return _Call(pending, request, found, asked, strip=strip)


def _streamed(options: dict[str, Any], ask: Ask) -> dict[str, Any]:
    """Return the options that let the watch see a stream's bytes, also where the caller wants them as a whole."""
    return {**options, "stream": True} if ask.stream else options


def _exchange(client: Any, original: Send, call: _Call, options: dict[str, Any]) -> Any:
    """Send the call's request, and again without the question for usage where the server declines that."""
    options = _streamed(options, call.pending.ask)
    response = original(client, call.leave(), **options)
    if call.strip and response.status_code in _DECLINED and call.is_declined(peek(response)):
        response.close()
        response = original(client, call.leave(), **options)
        call.remember(response.status_code)
    return response


async def _aexchange(client: Any, original: AsyncSend, call: _Call, options: dict[str, Any]) -> Any:
    """Do what `_exchange` does, through an async client."""
    options = _streamed(options, call.pending.ask)
    response = await original(client, call.leave(), **options)
    if call.strip and response.status_code in _DECLINED and call.is_declined(await apeek(response)):
        await response.aclose()
        response = await original(client, call.leave(), **options)
        call.remember(response.status_code)
    return response


# ---------------------------------------------------------------- after


def _after(error: BaseException) -> Outcome:
    """Return what is done with what is held after an error: it is charged unless nothing can be billed."""
    kinds = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("httpx")}
    if "HTTPStatusError" in kinds:  # a hook of the client's looks at the status itself
        return "charge" if 200 <= error.response.status_code < 300 else "release"  # type: ignore[attr-defined]
    return "charge" if _NOT_SENT.isdisjoint(kinds) else "release"


def _read(response: Any) -> None:
    try:
        response.read()
    except BaseException:
        response.close()
        raise


async def _aread(response: Any) -> None:
    try:
        await response.aread()
    except BaseException:
        await response.aclose()
        raise
