"""The gateway: an HTTP server on loopback, in a thread and an event loop of its own.

What always holds: it listens on 127.0.0.1 alone, and answers 404 to all that has not its secret. It logs nothing:
neither a key, nor its secret, nor a body. When `Gateway.close` returns, every call is settled and the thread has ended.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, cast

from aiohttp import hdrs
from aiohttp.web import BaseRequest, Response, Server, StreamResponse

from token_budget.gateway._address import SECRET_HEADER, STATUS, Target, is_loopback, target_of
from token_budget.gateway._forward import Forward, Refused, answered
from token_budget.gateway._limits import Limits
from token_budget.gateway._refusals import gateway_error
from token_budget.gateway._threads import DaemonThreads
from token_budget.gateway._upstreams import Upstream
from token_budget.metering._meter import Meter
from token_budget.metering._run import Run

_SECRET_BYTES = 24
_BACKLOG = 512
_SHUTDOWN = 1.0  # seconds for connections that are answered and not yet closed; 0 would mean for ever


_listening: weakref.WeakSet[Gateway] = weakref.WeakSet()  # the gateways that have a port


def _let_go() -> None:
    """Close the port in a forked child: else it would be held open after the gateway has ended."""
    for gateway in [*_listening]:
        if gateway._socket is not None:
            gateway._socket.close()


if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(after_in_child=_let_go)


class _Full(asyncio.Protocol):
    """A connection too many: it is told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so."""
        plain = cast("asyncio.Transport", transport)
        plain.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        plain.close()


class Gateway:
    """Meters the calls that reach it, and forwards them: ``with Gateway(meter, upstreams(os.environ)) as gateway``.

    A client's base URL is ``gateway.base + "/openai/v1"``: ``/SECRET/NAME/rest`` goes to the upstream's ``url/rest``.
    All methods may be called from any thread. A forked child has no gateway: it lets go of the port, and `close` does
    nothing there.

    Args:
        meter: what prices and bounds the calls, and holds and settles what they cost.
        upstreams: where requests may go, by name: nowhere else.
        run: the run that the calls belong to.
        keys: of each upstream whose key the child does not have, what the child has in its place, and the key.
        limits: of sizes, times and connections.
        status: what ``GET /SECRET/_status`` answers, as a dict that is ready for JSON. It is called in the gateway's
            thread, and must not block.

    Attributes:
        keys: as above; it may be set while the gateway runs.
        secret: 24 random bytes, as text for a URL.
    """

    def __init__(
        self,
        meter: Meter,
        upstreams: Mapping[str, Upstream],
        *,
        run: Run | None = None,
        keys: Mapping[str, tuple[str, str]] | None = None,
        limits: Limits | None = None,
        status: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.secret: str = secrets.token_urlsafe(_SECRET_BYTES)
        self._upstreams = dict(upstreams)
        self._limits = limits or Limits()
        self._status = status
        self._forward = Forward(meter, self._upstreams, self.secret, self._limits, run=run)
        self._forward.keys = keys or {}
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: Server | None = None
        self._listener: asyncio.AbstractServer | None = None
        self._failure: Exception | None = None  # what kept it from listening
        self._process = 0
        self._port = 0
        self._closing = False
        self._ending = threading.Lock()
        self._open: set[asyncio.Task[Any]] = set()  # the requests that are being answered
        self._last: asyncio.Event | None = None  # set when there is none
        self._spared: set[Any] = set()  # the connections that make no room for another: see `_connect`

    # ---------------------------------------------------------------- what it is

    @property
    def base(self) -> str:
        """The URL that its clients start from: ``http://127.0.0.1:PORT/SECRET``."""
        return f"http://127.0.0.1:{self.port}/{self.secret}"

    @property
    def port(self) -> int:
        """Where it listens. 0 before `start`."""
        return self._port

    @property
    def passed(self) -> int:
        """How many requests were forwarded unmetered."""
        return self._forward.passed

    @property
    def metered(self) -> int:
        """How many requests were held and forwarded."""
        return self._forward.metered

    @property
    def keys(self) -> Mapping[str, tuple[str, str]]:
        """By upstream: what the child has in place of its key, and the key."""
        return self._forward.keys

    @keys.setter
    def keys(self, keys: Mapping[str, tuple[str, str]]) -> None:
        self._forward.keys = keys

    def __repr__(self) -> str:
        state = "closed" if self._closing else "open" if self._port else "not started"
        return f"<Gateway {state} on port {self._port}: {self.metered} metered, {self.passed} passed>"

    def __enter__(self) -> Gateway:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- start and end

    def start(self) -> None:
        """Listen, and answer from now on. It blocks for some milliseconds.

        Raises:
            OSError: there is no port to listen on.
            RuntimeError: it was started before, or there is no thread for it.
        """
        if self._thread is not None or self._closing:
            raise RuntimeError("a gateway is started once")
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._port = self._socket.getsockname()[1]
        try:
            loop = self._loop = asyncio.new_event_loop()
        except OSError:  # too many open files
            self._socket.close()
            self._closing = True
            raise
        self._process = os.getpid()
        _listening.add(self)
        listening = threading.Event()
        arguments = (loop, listening)
        self._thread = threading.Thread(target=self._serve, args=arguments, name="token-budget-gateway", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no thread
            self._socket.close()
            loop.close()
            self._closing = True
            raise
        listening.wait()
        if self._failure is not None:
            self._thread.join()
            self._socket.close()
            self._closing = True
            raise self._failure
        atexit.register(self.close, 0)

    def close(self, grace: float = 5.0) -> None:
        """Answer 503 to what is new, let what is open come to its end, and end.

        It blocks up to ``grace`` seconds for that; then it cancels what is still open, and waits until it is settled.
        Closing twice does nothing.

        Args:
            grace: seconds.
        """
        if self._process not in {0, os.getpid()}:
            return
        atexit.unregister(self.close)
        self._closing = True
        with self._ending:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or not thread.is_alive():
                return
            asyncio.run_coroutine_threadsafe(self._end(grace), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _serve(self, loop: asyncio.AbstractEventLoop, listening: threading.Event) -> None:
        """Run the event loop: this is the thread."""
        try:
            loop.run_until_complete(self._begin())
        except Exception as error:  # noqa: BLE001 - `start` raises it
            self._failure = error
            loop.run_until_complete(self._forward.close())
        else:
            loop.call_soon(listening.set)
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            listening.set()

    async def _begin(self) -> None:
        self._last = asyncio.Event()
        self._last.set()
        self._forward.open()
        limits = self._limits
        self._server = Server(
            self._answer,
            handler_cancellation=True,
            access_log=None,
            logger=_silent(),
            auto_decompress=False,
            keepalive_timeout=limits.idle_seconds,
            lingering_time=limits.linger_seconds,
            max_line_size=limits.header,
            max_field_size=limits.header,
            max_headers=limits.headers,
        )
        loop = asyncio.get_running_loop()
        loop.set_default_executor(DaemonThreads())
        assert self._socket is not None  # noqa: S101 - `start` made it
        self._listener = await loop.create_server(self._connect, sock=self._socket, backlog=_BACKLOG)

    async def _end(self, grace: float) -> None:
        assert self._last is not None  # noqa: S101
        assert self._server is not None  # noqa: S101
        try:
            await asyncio.wait_for(self._last.wait(), grace)
        except asyncio.TimeoutError:
            for task in [*self._open]:
                task.cancel()
            await self._last.wait()
        assert self._listener is not None  # noqa: S101
        self._listener.close()
        self._server.pre_shutdown()  # ends connections that are idle
        await self._server.shutdown(_SHUTDOWN)
        await self._forward.close()

    def _connect(self) -> asyncio.BaseProtocol:
        """Return what serves a new connection.

        Where there are too many, the oldest that has not shown the secret is closed: another user of this machine can
        hold connections, but keeps no client out.
        """
        server = self._server
        assert server is not None  # noqa: S101
        connections = server.connections
        if len(self._spared) > len(connections):
            self._spared.intersection_update(connections)
        if len(connections) < self._limits.connections:
            return server()
        stranger = next((one for one in connections if one not in self._spared), None)
        if stranger is None:
            return _Full()
        self._spared.add(stranger)  # it is gone only in the loop's next turn
        stranger.force_close()
        return server()

    # ---------------------------------------------------------------- answers

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        """Answer one request."""
        task: Any = asyncio.current_task()
        assert self._last is not None  # noqa: S101
        self._open.add(task)
        self._last.clear()
        try:
            return await self._routed(request)
        except Refused as refused:
            return answered(refused)
        finally:
            self._open.discard(task)
            if not self._open:
                self._last.set()

    async def _routed(self, request: BaseRequest) -> StreamResponse:
        """Answer one request, or raise `Refused`.

        Who does not show the secret gets one answer for each connection: it holds little up, and no unread answers keep
        its connection open.
        """
        raw, headers = request.raw_path, request.headers
        target = target_of(raw, self.secret, headers.get(SECRET_HEADER))
        if target is not None:
            self._spared.add(request.protocol)
        if request.method == hdrs.METH_CONNECT or not raw.startswith("/"):
            raise Refused(gateway_error(404, "this is no proxy"), closing=True)
        if not is_loopback(headers.get(hdrs.HOST, "")):
            raise Refused(gateway_error(421, "the request is for another host"), closing=True)
        if target is None:
            raise Refused(gateway_error(404, "there is nothing here"), closing=True)
        if target.name == STATUS and request.method == hdrs.METH_GET and not target.rest:
            return self._told()
        upstream = self._upstreams.get(target.name)
        if upstream is None:
            raise Refused(gateway_error(404, f"there is no upstream {target.name!r}; --upstream NAME=URL adds one"))
        self._check(request, upstream, target)
        return await self._forward.handle(request, upstream, target)

    def _check(self, request: BaseRequest, upstream: Upstream, target: Target) -> None:
        """Raise `Refused` for what is not forwarded, whatever its body."""
        if self._closing:
            text = "the run has ended, so its gateway takes no new request"
            raise Refused(gateway_error(503, text, upstream, path=target.rest), closing=True)
        if "websocket" in request.headers.get(hdrs.UPGRADE, "").lower():
            text = "a websocket cannot be metered; use HTTP"
            raise Refused(gateway_error(426, text, upstream, path=target.rest))
        expected = request.headers.get(hdrs.EXPECT, "100-continue")
        if expected.lower() != "100-continue":
            text = f"Expect: {expected[:64]} cannot be met"
            raise Refused(gateway_error(417, text, upstream, path=target.rest))

    def _told(self) -> StreamResponse:
        """Answer how things stand."""
        told = {} if self._status is None else self._status()
        return Response(body=json.dumps(told).encode(), content_type="application/json")


def _silent() -> logging.Logger:
    """Return a logger that logs nothing: aiohttp's would show the headers of a request that it cannot read."""
    logger = logging.getLogger("token_budget.gateway")
    logger.disabled = True
    return logger
