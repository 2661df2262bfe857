"""A fake provider on loopback, which keeps its own books: ``with Provider() as provider``. Standard library alone.

It speaks as OpenAI, Anthropic and Gemini do (`_provider_shapes`), and goes wrong where it is told to: by the header
``x-fault`` of a request (several are separated by commas), by a word in brackets in the prompt (``[cut]``), or by
`Provider.script` for the next requests, whoever sends them. See `FAULTS`.

What always holds: a request that is not turned away is billed before its answer is sent, whether that arrives or not;
and `Provider.close` returns within seconds, whatever still hangs.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import socketserver
import struct
import sys
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from token_budget.cli._provider_shapes import Answer, Asked, Count, Route, count, model_of, models, route

# A status from 400 to 599 is a fault too: the request is turned away and not billed. Each of them, and each status, may
# end in "-once": then it strikes every second time that the same request comes, so that a retry gets its answer.
FAULTS = {
    "hang": "no byte of the answer, until `release` is called or the client leaves",
    "stall": "the same in the middle of the answer",
    "reset": "the connection is reset before the answer",
    "reset-mid": "the same in the middle of the answer",
    "cut": "the connection ends in the middle of the answer",
    "slow": "the answer comes in pieces, one every `pace` seconds",
    "gzip": "the answer is packed, if the client takes that",
    "no-usage": "the answer has no usage",
    "null-usage": "its usage is null",
    "negative": "its usage is negative",
    "huge": "its usage is above 10**15",
    "html": "it is a page, with status 200",
    "truncated": "its JSON breaks off, and the connection does not",
    "call-tool": "no fault at all: the model calls the first tool that it is offered, until it is given a result",
}
_MIDWAY = frozenset({"stall", "reset-mid", "cut", "slow"})
_IN_BRACKETS = re.compile(r"\[([a-z0-9-]+)\]")
_STATUS = re.compile(r"[45]\d\d")
_ONCE = "-once"
_PAGE = b"<!doctype html><title>Bad gateway</title><p>The model is out for lunch.</p>"
_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
_PATIENCE = 5.0  # seconds that `close` waits for the threads of the answers
_LOOK = 0.05  # seconds between two looks at what an answer hangs on


@dataclass(frozen=True)
class Rate:
    """What a model costs: nanodollars a token (1,000 of them are a dollar for a million tokens)."""

    input: int
    output: int
    cached: int

    def nanos(self, counted: Count) -> int:
        """Return what a request costs, in nanodollars."""
        fresh = counted.input_tokens - counted.cached_tokens
        return fresh * self.input + counted.cached_tokens * self.cached + counted.output_tokens * self.output


RATES: Mapping[str, Rate] = {
    "house-small": Rate(150, 600, 75),
    "house-large": Rate(3_000, 15_000, 300),
    "house-embed": Rate(20, 0, 20),
}
OTHERS = Rate(1_000, 4_000, 100)  # of models that the table does not name


@dataclass(frozen=True)
class Bill:
    """What one request cost."""

    path: str
    model: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    nanos: int  # nanodollars
    faults: frozenset[str]

    @property
    def usd(self) -> float:
        """The same in dollars."""
        return self.nanos / 10**9


class Provider:
    """The provider. It listens from the moment it is made; leaving its block closes it.

    Args:
        rates: what its models cost; those that are not named cost `OTHERS`.
        pace: seconds between the pieces of an answer that is ``slow``.
        latency: seconds before the answer to each request that is billed.
    """

    def __init__(self, rates: Mapping[str, Rate] = RATES, *, pace: float = 0.02, latency: float = 0) -> None:
        self.rates = rates
        self.pace = pace
        self.latency = latency
        self.bills: list[Bill] = []
        self.requests: list[str] = []  # the path of each
        self.errors: list[BaseException] = []  # of this provider's own: there should be none
        self.most_at_once: int = 0  # requests
        self._script: deque[str | None] = deque()
        self._struck: set[tuple[str, str]] = set()
        self._at_once = 0
        self._connections: set[socket.socket] = set()
        self._idle = threading.Condition()  # over all of the above; notified as a connection ends
        self._released = threading.Event()
        self._closed = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def billed(self) -> tuple[int, int]:
        """All input tokens and all output tokens that are billed."""
        bills = list(self.bills)
        return sum(bill.input_tokens for bill in bills), sum(bill.output_tokens for bill in bills)

    @property
    def billed_nanos(self) -> int:
        """All nanodollars that are billed."""
        return sum(bill.nanos for bill in list(self.bills))

    def script(self, *faults: str | None) -> None:
        """Say what goes wrong with the next requests that would be billed, in their order; None: nothing.

        Raises:
            ValueError: there is no such fault.
        """
        for fault in faults:
            if fault is not None and not is_fault(fault):
                raise ValueError(f"{fault!r} is no fault: take a status or one of {', '.join(FAULTS)}")
        self._script.extend(faults)

    def release(self) -> None:
        """Let all answers that hang now go on."""
        with self._idle:
            released, self._released = self._released, threading.Event()
        released.set()

    def close(self) -> None:
        """Stop listening and end all connections. It returns within seconds; closing twice does nothing."""
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        with self._idle:
            for connection in self._connections:
                _end(connection)
            self._idle.wait_for(lambda: not self._connections, _PATIENCE)

    def __enter__(self) -> Provider:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- for its handlers

    def _faults(self, header: str, body: str, path: str) -> frozenset[str]:
        """Return what goes wrong with a request."""
        asked = {name.strip() for name in header.split(",")} - {""}
        asked |= {name for name in _IN_BRACKETS.findall(body) if is_fault(name)}
        with self._idle:
            if self._script and (next_one := self._script.popleft()) is not None:
                asked.add(next_one)
            return frozenset(
                fault.removesuffix(_ONCE)
                for fault in asked
                if not fault.endswith(_ONCE) or self._strikes((fault, path + body))
            )

    def _strikes(self, key: tuple[str, str]) -> bool:
        """Return whether a fault that strikes every second time strikes this time."""
        if key in self._struck:
            self._struck.remove(key)
            return False
        self._struck.add(key)
        return True

    def _bill(self, asked: Asked) -> None:
        counted, model = asked.count, asked.model
        nanos = self.rates.get(model, OTHERS).nanos(counted)
        tokens = (counted.input_tokens, counted.output_tokens, counted.cached_tokens)
        self.bills.append(Bill(asked.path, model, *tokens, nanos, asked.faults))

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        with self._idle:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._idle:
                self._at_once -= 1


def is_fault(name: str) -> bool:
    """Return whether this is the name of a fault."""
    name = name.removesuffix(_ONCE)
    return name in FAULTS or _STATUS.fullmatch(name) is not None


def _end(connection: socket.socket) -> None:
    """End a connection, also under the hands of the thread that reads it."""
    with contextlib.suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingTCPServer):
    """Listens, and gives each connection a thread."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: tuple[str, int], provider: Provider) -> None:
        self.provider = provider
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, so that it can be ended."""
        with self.provider._idle:
            self.provider._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection: its thread is done with it."""
        super().shutdown_request(request)
        with self.provider._idle:
            self.provider._connections.discard(request)
            self.provider._idle.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as the class has it
        """Keep an error of our own. Clients that leave early do so on purpose."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.provider.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def _provider(self) -> Provider:
        server: Any = self.server
        provider: Provider = server.provider
        return provider

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the class names it
        """Say nothing."""

    def do_GET(self) -> None:
        """List the models."""
        provider = self._provider
        with provider._serving():
            provider.requests.append(self.path)
            if self.path.partition("?")[0].endswith("/models"):
                self._send(models(list(provider.rates)), frozenset())
            else:
                self._refuse(404, f"there is nothing at GET {self.path}")

    def do_POST(self) -> None:
        """Answer a request to a model."""
        provider = self._provider
        with provider._serving():
            body = self._body()
            provider.requests.append(self.path)
            path, _, query = self.path.partition("?")
            way = route(path)
            if way is None:
                self._refuse(404, f"there is nothing at POST {path}")
                return
            try:
                parsed = json.loads(body)
            except (ValueError, RecursionError):
                parsed = None
            if not isinstance(parsed, dict):
                self._refuse(400, "the body is no JSON object")
                return
            self._serve(way, path, query, parsed, body.decode(errors="replace"))

    def _serve(self, way: Route, path: str, query: str, body: dict[str, Any], text: str) -> None:
        provider = self._provider
        faults = provider._faults(self.headers.get("x-fault", ""), text, path) if way.billed else frozenset()
        unknown = sorted(fault for fault in faults if not is_fault(fault))
        status = next((int(fault) for fault in faults if _STATUS.fullmatch(fault)), 0)
        if unknown or (way.billed and not model_of(path, body)):
            self._refuse(400, f"there is no fault {', '.join(unknown)}" if unknown else "no model is named")
            return
        if status:
            self._refuse(status, "planned", {"retry-after-ms": "1", "retry-after": "1"})
            return
        agent = self.headers.get("user-agent", "")
        asked = Asked(path, query, agent, body, count(body, made=way.made), faults)
        if way.billed:
            provider._bill(asked)
            provider._closed.wait(provider.latency)
        if "hang" in faults and not self._hang():
            return
        if "reset" in faults:
            self._reset()
            return
        self._send(way.shape(asked), faults)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    # ---------------------------------------------------------------- answering

    def _refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        error = {"type": "error", "error": {"type": "fault", "code": status, "message": message}}
        self._send(Answer([json.dumps(error).encode()]), frozenset(), status, headers)

    def _send(
        self, answer: Answer, faults: frozenset[str], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        pieces, kind = _spoilt(answer, faults)
        sent = {"content-type": kind, **(headers or {})}
        if "gzip" in faults and "gzip" in self.headers.get("accept-encoding", ""):
            pieces = list(_packed(pieces)) if answer.streamed else [gzip.compress(b"".join(pieces))]
            sent["content-encoding"] = "gzip"
        if not answer.streamed:
            whole = b"".join(pieces)
            pieces = [whole[: len(whole) // 2], whole[len(whole) // 2 :]] if faults & _MIDWAY else [whole]
            sent["content-length"] = str(len(whole))
        else:
            sent["transfer-encoding"] = "chunked"
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*filter(None, pieces), b""]]
        self.send_response(status)
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self._write(pieces, faults)

    def _write(self, pieces: list[bytes], faults: frozenset[str]) -> None:
        """Send the pieces of an answer, as far as the faults let it come."""
        for number, piece in enumerate(pieces):
            if "slow" in faults and number:
                self._provider._closed.wait(self._provider.pace)
            if number == min(2, len(pieces) - 1):
                if "stall" in faults and not self._hang():
                    return
                if "reset-mid" in faults:
                    self._reset()
                    return
                if "cut" in faults:
                    self.close_connection = True
                    _end(self.connection)
                    return
            self.wfile.write(piece)

    def _hang(self) -> bool:
        """Wait until it is released; return False if the client has left or the provider is closed."""
        released = self._provider._released
        while not released.is_set():
            if self._left():
                self.close_connection = True
                return False
        return True

    def _left(self) -> bool:
        """Return whether the client has left, after a short wait for that."""
        self.connection.settimeout(_LOOK)
        try:
            if not self.connection.recv(1, socket.MSG_PEEK):
                return True
        except TimeoutError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(None)
        return self._provider._closed.wait(_LOOK)  # it has sent its next request, and waits for this one

    def _reset(self) -> None:
        """End the connection as a crash does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        self.rfile.close()
        self.connection.close()


def _spoilt(answer: Answer, faults: frozenset[str]) -> tuple[list[bytes], str]:
    """Return the pieces of an answer and its type, after what the faults do to them."""
    if "html" in faults:
        return [_PAGE], "text/html"
    if "truncated" in faults:
        kept = answer.pieces[:3]
        return [*kept[:-1], kept[-1][: len(kept[-1]) // 2]], answer.content_type
    return answer.pieces, answer.content_type


def _packed(pieces: list[bytes]) -> Iterator[bytes]:
    """Pack the pieces of a stream, each so that it can be unpacked when it comes."""
    packer = zlib.compressobj(wbits=31)
    for piece in pieces:
        yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()
