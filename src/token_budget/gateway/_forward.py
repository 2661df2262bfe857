"""Forward: the life of one request that may pass: read, examined, held, sent, relayed, settled.

What always holds: nothing leaves before its worst case is held. What is held is settled once, whatever happens:

| what happens | done with what is held |
|---|---|
| 2xx with usage | the real cost is committed |
| 2xx without | charged in full |
| any other status; nothing has left | released |
| time-out, reset, cut, cancelled | charged in full, unless the usage was seen |

An overrun is the meter's own affair: the client gets its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial

from aiohttp import ClientError, ClientResponse, HttpVersion11, SocketTimeoutError, hdrs
from aiohttp.web import BaseRequest, Response, StreamResponse

from token_budget.gateway._address import Target
from token_budget.gateway._calls import Call, Settling, examine, host_of, route_of
from token_budget.gateway._client import Body, Client
from token_budget.gateway._headers import as_headers, readable_encoding, to_client, to_upstream
from token_budget.gateway._keys import with_real_key
from token_budget.gateway._limits import Limits
from token_budget.gateway._refusals import Answer, Refusals, gateway_error
from token_budget.gateway._relay import Relay, leads_away, moved
from token_budget.gateway._threads import DaemonThreads
from token_budget.gateway._upstreams import Upstream
from token_budget.metering._meter import Meter
from token_budget.metering._run import Run
from token_budget.metering._stream import PEEKED, unpacked

_SENT_AGAIN = frozenset(range(300, 400)) - {303}  # the redirects upon which some client sends a POST again
_LONG = 1 << 20  # bytes of a body that takes more than about 10 ms to read
_DECLINED = frozenset({400, 422})  # the status of a server that does not take `stream_options`


class Refused(Exception):
    """The gateway answers a request itself."""

    def __init__(self, answer: Answer, *, closing: bool = False) -> None:
        super().__init__(answer.status)
        self.answer = answer
        self.closing = closing  # whether the connection ends with it


class Forward:
    """Forwards requests. It belongs to one event loop."""

    def __init__(
        self,
        meter: Meter,
        upstreams: Mapping[str, Upstream],
        secret: str,
        limits: Limits,
        *,
        run: Run | None,
    ) -> None:
        self._meter = meter
        self._run = run
        self._secret = secret
        self._limits = limits
        self._refusals = Refusals()
        self._hosts = {name: host_of(one) for name, one in upstreams.items()}
        # By upstream: the models that do not take `stream_options`.
        self._declining: dict[str, set[str | None]] = {name: set() for name in upstreams}
        self._client: Client | None = None
        self.keys: Mapping[str, tuple[str, str]] = {}
        self.settling = Settling()
        self._threads = DaemonThreads()
        self._turn = asyncio.Lock()  # of a long body to be read
        self.passed = 0
        self.metered = 0

    def open(self) -> None:
        """Make the client, in the event loop to which it will belong."""
        self._client = Client(self._limits)

    async def close(self) -> None:
        """Wait for what is being settled, and end all connections to providers."""
        await self.settling.finish()
        assert self._client is not None  # noqa: S101 - whoever closes it has opened it
        await self._client.close()

    async def handle(self, request: BaseRequest, upstream: Upstream, target: Target) -> StreamResponse:
        """Answer a request.

        Raises:
            Refused: the gateway answers it itself.
        """
        body = await self._read(request, upstream, target)
        found = route_of(request.method, self._hosts[upstream.name], upstream, target.rest)
        declining = self._declining[upstream.name]
        try:
            look = partial(
                examine,
                self._meter,
                self._run,
                found,
                request.headers,
                body,
                declining=declining,
                most=self._limits.body,
            )
            # What takes long is done in a thread; meanwhile other calls go on.
            if self._meter._terms.cap_output == "fit":  # a store is asked what is left
                call = await self._in_thread(look)
            elif len(body) > _LONG or hdrs.CONTENT_ENCODING in request.headers:  # a packed one may be long as well
                async with self._turn:  # many at once would hold up the loop, and take much memory
                    call = await self._in_thread(look)
            else:
                call = look()
            if call is not None:
                await call.pending.ahold()
        except Exception as error:
            agent = request.headers.get(hdrs.USER_AGENT, "")
            answer = self._refusals.answer(error, upstream, agent=agent, body=body, path=target.rest)
            raise Refused(answer) from error
        if call is None:
            self.passed += 1
            return await self._pass(request, upstream, target, body)
        self.metered += 1
        self._refusals.passed(upstream, body)
        return await self._meter_it(request, upstream, target, call)

    async def _in_thread(self, look: Callable[[], Call | None]) -> Call | None:
        """Return the call that a request is. Where its client has left meanwhile, nothing is counted of it."""
        reading = self._threads.submit(look)
        try:
            return await asyncio.wrap_future(reading)
        except asyncio.CancelledError:
            reading.add_done_callback(_unsent)
            raise

    async def _read(self, request: BaseRequest, upstream: Upstream, target: Target) -> bytes:
        """Return the body of a request.

        Raises:
            Refused: it is too long, or comes too slowly.
        """
        content, limits = request.content, self._limits
        if int(request.headers.get(hdrs.CONTENT_LENGTH, 0)) > limits.body:
            raise self._too_long(upstream, target)
        if hdrs.EXPECT in request.headers and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        chunk = content.read_nowait()
        chunks, size, timer = [], 0, None
        try:
            while True:
                if chunk:
                    chunks.append(chunk)
                    size += len(chunk)
                if size > limits.body:
                    raise self._too_long(upstream, target)
                if content.at_eof():
                    return b"".join(chunks)
                if timer is None:
                    late = asyncio.TimeoutError()
                    timer = asyncio.get_running_loop().call_later(limits.body_seconds, content.set_exception, late)
                chunk = await content.readany()
        except asyncio.TimeoutError:
            text = f"the body of the request did not come within {limits.body_seconds:g} seconds"
            raise Refused(gateway_error(408, text, upstream, path=target.rest), closing=True) from None
        finally:
            if timer is not None:
                timer.cancel()

    def _too_long(self, upstream: Upstream, target: Target) -> Refused:
        text = f"the body of the request is longer than {self._limits.body:,} bytes"
        return Refused(gateway_error(413, text, upstream, path=target.rest), closing=True)

    # ---------------------------------------------------------------- unmetered

    async def _pass(self, request: BaseRequest, upstream: Upstream, target: Target, body: bytes) -> StreamResponse:
        """Forward a request that costs nothing, or of which nothing is counted."""
        try:
            answer = await self._send(request, upstream, target, Body(body) if body else None, metered=False)
        except (ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._failed(error, upstream, target) from error
        try:
            return await Relay(request, self.settling, upstream.url, target.name).run(answer)
        finally:
            answer.close()

    # ---------------------------------------------------------------- metered

    async def _meter_it(self, request: BaseRequest, upstream: Upstream, target: Target, call: Call) -> StreamResponse:
        """Forward a request whose worst case is held, and settle it."""
        relay = Relay(request, self.settling, upstream.url, target.name)
        answer: ClientResponse | None = None
        try:
            answer, begun = await self._exchange(request, upstream, target, call)
            if 200 <= call.status < 300:
                relay.watch_over(call, answer, self._limits.copy)
            else:
                await self.settling.settle(call.pending, "release")
                self._check_redirect(answer, upstream, target)
            return await relay.run(answer, begun)
        except (ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._failed(error, upstream, target) from error
        finally:
            if answer is not None:
                answer.close()
            if call.pending.open:
                await self.settling.settle(call.pending, call.outcome(relay.watch))

    def _check_redirect(self, answer: ClientResponse, upstream: Upstream, target: Target) -> None:
        """Raise `Refused` for an answer by which the client would send the call again, past the gateway."""
        if answer.status not in _SENT_AGAIN:
            return
        where = to_client(answer.raw_headers).get(hdrs.LOCATION, "")  # as the client gets it
        if leads_away(moved(where, upstream.url, "")):
            text = (
                f"{upstream.name} ({self._hosts[upstream.name]}) sends the call on to another address, where nothing "
                "would meter it. Make that address its base URL, in its variable or by --upstream"
            )
            raise Refused(gateway_error(403, text, upstream, path=target.rest))

    async def _exchange(
        self, request: BaseRequest, upstream: Upstream, target: Target, call: Call
    ) -> tuple[ClientResponse, bytes]:
        """Send the call, and again without the question for usage where the server declines that.

        Returns:
            The answer, and what has been read of it.
        """
        answer = await self._send(request, upstream, target, call.body, metered=True, plain=call.strip)
        call.status = answer.status
        if not call.strip or answer.status not in _DECLINED:
            return answer, b""
        begun = await _beginning(answer)
        if b"stream_options" not in unpacked(answer.headers, begun, PEEKED):
            return answer, begun
        answer.close()
        call.ask_plainly()
        answer = await self._send(request, upstream, target, call.body, metered=True)
        call.status = answer.status
        if answer.status not in _DECLINED:
            self._declining[upstream.name].add(call.pending.ask.model)
        return answer, b""

    # ---------------------------------------------------------------- both

    async def _send(
        self,
        request: BaseRequest,
        upstream: Upstream,
        target: Target,
        body: Body | None,
        *,
        metered: bool,
        plain: bool = False,
    ) -> ClientResponse:
        """Send a request, with the real key if the child has none."""
        raw, query = list(request.raw_headers), target.query
        held = self.keys.get(upstream.name)
        if held is not None:
            raw, rest = with_real_key(raw, query[1:], *held)
            query = query[:1] + rest
        encoding = readable_encoding(raw, plain=plain) if metered else None
        headers = as_headers(to_upstream(raw, self._secret, encoding, post=request.method == "POST"))
        assert self._client is not None  # noqa: S101 - it is opened before anybody can call
        path = target.rest + query.replace(self._secret, "")
        return await self._client.send(upstream, request.method, path, headers, body)

    def _failed(self, error: Exception, upstream: Upstream, target: Target) -> Refused:
        """Return the answer to a request whose provider gives none."""
        late = isinstance(error, SocketTimeoutError)
        status, text = (504, "did not answer in time") if late else (502, "cannot be reached, or broke off")
        text = f"{upstream.name} ({self._hosts[upstream.name]}) {text}: {type(error).__name__}"
        return Refused(gateway_error(status, text, upstream, path=target.rest))


def _unsent(reading: Future[Call | None]) -> None:
    """Give back what was counted of a call for which nobody waits any more."""
    if not reading.cancelled() and reading.exception() is None and (call := reading.result()) is not None:
        call.pending._refused(asyncio.CancelledError())


async def _beginning(answer: ClientResponse) -> bytes:
    """Return the first bytes of an answer, up to `PEEKED` and somewhat more."""
    begun = b""
    while len(begun) < PEEKED and (chunk := await answer.content.readany()):
        begun += chunk
    return begun


def answered(refused: Refused) -> Response:
    """Return the answer that a client gets."""
    answer = refused.answer
    response = Response(status=answer.status, headers=answer.headers, body=answer.body)
    if refused.closing:
        response.force_close()
    return response
