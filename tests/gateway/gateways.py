"""What the tests of the gateway share: an upstream that says what it is told to, byte for byte, and ways to ask."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from token_budget import BudgetPool
from token_budget.gateway import Gateway, Upstream
from token_budget.metering import Meter, Prices

# USD for a million tokens: one of input costs 1,000 nanodollars, one of output 4,000. The provider's own are cheaper.
TABLE = {"small": (1, 4), "house-small": (0.15, 0.6), "house-large": (3, 15), "house-embed": (0.02, 0)}
CHAT = "/v1/chat/completions"
SECONDS = 30.0  # until a test gives up


@dataclass(frozen=True)
class Asked:
    """A request as an upstream got it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Connection:
    """One connection to `Wire`, in the hands of a test's function."""

    def __init__(self, plain: socket.socket, closing: threading.Event) -> None:
        self._socket = plain
        self._closing = closing
        self.open = True
        self.bare = False  # an answer to HEAD

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, body: bytes = b"{}", status: str = "200 OK", *headers: str) -> None:
        """Send a whole answer with its length."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if self.bare else body))

    def begin(self, *headers: str) -> None:
        """Send the head of a stream of events."""
        lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *headers]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def close(self) -> None:
        self.open = False

    def reset(self) -> None:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.open = False

    def left(self) -> bool:
        """Wait until the other side has left; False if the test ended before."""
        self._socket.settimeout(0.02)
        while not self._closing.is_set():
            try:
                if not self._socket.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.open = False
        return not self._closing.is_set()


Respond = Callable[[Connection, Asked], None]


class Wire:
    """An upstream on loopback: ``respond`` writes each answer, with its head and its faults."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.seen: list[Asked] = []
        self.connections = 0
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=600)
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _start(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            plain, _ = self._listener.accept()
            if self._closing.is_set():
                plain.close()
                return
            self.connections += 1
            self._start(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        connection = Connection(plain, self._closing)
        with plain, plain.makefile("rb") as file, contextlib.suppress(OSError):
            while connection.open and not self._closing.is_set():
                asked = self._read(plain, file)
                if asked is None:
                    return
                self.seen.append(asked)
                plain.settimeout(None)
                connection.bare = asked.method == "HEAD"
                self.respond(connection, asked)

    def _read(self, plain: socket.socket, file: Any) -> Asked | None:
        plain.settimeout(0.02)
        while not self._closing.is_set():
            try:
                if not plain.recv(1, socket.MSG_PEEK):
                    return None
            except TimeoutError:
                continue
            break
        else:
            return None
        plain.settimeout(SECONDS)
        method, target, _ = file.readline().decode().split(" ")
        headers = []
        while line := file.readline().decode().rstrip("\r\n"):
            name, _, value = line.partition(":")
            headers.append((name, value.strip()))
        found = {name.lower(): value for name, value in headers}
        return Asked(method, target, headers, file.read(int(found.get("content-length", 0))))

    def close(self) -> None:
        self._closing.set()
        with socket.create_connection(self._listener.getsockname()):
            pass
        for thread in [*self._threads]:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def upstream(url: str, name: str = "openai", *, provider: str | None = None, dialect: Any = "openai") -> Upstream:
    return Upstream(name, url, provider, dialect)


def meter_of(pool: Any = None, **settings: Any) -> Meter:
    return Meter(BudgetPool(usd_cap=1) if pool is None else pool, Prices(TABLE, catalogue=False), **settings)


@contextlib.contextmanager
def gateway_to(url: str, meter: Meter | None = None, **settings: Any) -> Iterator[Gateway]:
    """Return a gateway whose one upstream is ``openai``, or those in ``upstreams``."""
    table = settings.pop("upstreams", None) or {"openai": upstream(url)}
    with Gateway(meter or meter_of(), table, **settings) as gateway:
        yield gateway


@contextlib.contextmanager
def wired(respond: Respond, meter: Meter | None = None, **settings: Any) -> Iterator[tuple[Gateway, Wire]]:
    """Return a gateway, and the upstream behind it."""
    with Wire(respond) as wire, gateway_to(wire.url, meter, **settings) as gateway:
        yield gateway, wire


@dataclass(frozen=True)
class Got:
    """An answer as a client got it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def message(self) -> str:
        error: Any = json.loads(self.body)["error"]
        return str(error["message"])


def ask(
    gateway: Gateway,
    method: str = "POST",
    rest: str = CHAT,
    body: bytes | dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    *,
    name: str = "openai",
) -> Got:
    """Ask through the gateway, on a connection of its own."""
    return asked(gateway, method, f"/{gateway.secret}/{name}{rest}", body, headers)


def asked(
    gateway: Gateway,
    method: str,
    target: str,
    body: bytes | dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Got:
    """Do what `ask` does, with the whole target."""
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=SECONDS)) as connection:
        connection.request(method, target, content, headers or {})
        answer = connection.getresponse()
        return Got(answer.status, answer.getheaders(), answer.read())


def chat(model: str = "small", **more: Any) -> dict[str, Any]:
    """Return the body of a call that is worth 1,000 to 1,300 tokens at most."""
    return {
        "model": model,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    } | more


def completion(input_tokens: int = 8, output_tokens: int = 100) -> bytes:
    """Return the body of an answer, which tells its usage."""
    usage = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    return json.dumps({"id": "1", "choices": [{"message": {"content": "Blue."}}], "usage": usage}).encode()


def raw(gateway: Gateway, data: bytes, *, until: bytes | None = None) -> bytes:
    """Send bytes, and return all that comes until the connection ends, or until these bytes have come."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain:
        plain.sendall(data)
        return received(plain, until)


def received(plain: socket.socket, until: bytes | None = None) -> bytes:
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while until is None or until not in got:
            chunk = plain.recv(1 << 18)
            if not chunk:
                break
            got += chunk
    return bytes(got)


def head(gateway: Gateway, method: str = "POST", rest: str = CHAT, *headers: str) -> bytes:
    """Return the head of a request to the upstream ``openai``, with these lines in it."""
    lines = [f"{method} /{gateway.secret}/openai{rest} HTTP/1.1", f"Host: 127.0.0.1:{gateway.port}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def used(meter: Meter) -> tuple[int, int, int]:
    """Return (tokens used, nanodollars used, calls in flight)."""
    snapshot = meter.pool.snapshot()
    return snapshot.tokens_used, snapshot.usd_used_nanos, snapshot.in_flight


def eventually(true: Callable[[], bool]) -> None:
    """Wait until something is so. Fail if it does not become so."""
    waiting = threading.Event()
    for _ in range(int(SECONDS * 200)):
        if true():
            return
        waiting.wait(0.005)
    raise AssertionError("it never became so")
