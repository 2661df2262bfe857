"""The clients of the benchmark of the gateway: real SDKs for the rate, bare sockets for one call or chunk."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks._gateway_servers import DELAY, MODEL, request_body

if TYPE_CHECKING:
    from types import TracebackType

_SENT = re.compile(rb'"sent": ?(\d+)}')  # the last of its event: so it is whole
_PROMPT = "The harbour master counted the boats again, wrote 27 into the book and closed the window. " * 42
_CALL: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": _PROMPT}],
    "max_completion_tokens": 500,
}


def async_rate(openai: Any, base: str, calls: int, at_once: int, delay: int) -> float:
    """Return the calls a second of so many tasks of AsyncOpenAI. ``delay``: ms that the provider takes."""

    async def work() -> float:
        headers = {DELAY: str(delay)}
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, default_headers=headers) as client:

            async def task(count: int) -> None:
                for _ in range(count):
                    await client.chat.completions.create(**_CALL)

            await asyncio.gather(*(task(1) for _ in range(at_once)))  # connections are made, modules imported
            begun = time.perf_counter()
            await asyncio.gather(*(task(calls // at_once) for _ in range(at_once)))
            return calls // at_once * at_once / (time.perf_counter() - begun)

    return asyncio.run(work())


def threads_rate(openai: Any, base: str, calls: int, at_once: int, delay: int) -> float:
    """Return the calls a second of OpenAI in so many threads."""
    headers = {DELAY: str(delay)}
    with (
        openai.OpenAI(base_url=base, api_key="none", max_retries=0, default_headers=headers) as client,
        ThreadPoolExecutor(at_once) as threads,
    ):

        def work(count: int) -> None:
            for _ in range(count):
                client.chat.completions.create(**_CALL)

        list(threads.map(work, [1] * at_once))
        begun = time.perf_counter()
        list(threads.map(work, [calls // at_once] * at_once))
        return calls // at_once * at_once / (time.perf_counter() - begun)


class Connection:
    """One keep-alive connection, on which a call is sent as an SDK would, by a bare socket."""

    def __init__(self, base: str, *, stream: bool = False, gap: int | None = None) -> None:
        """Connect."""
        parts = urlsplit(base)
        body = request_body(stream=stream)
        lines = [
            f"POST {parts.path}/chat/completions HTTP/1.1",
            f"Host: {parts.netloc}",
            "Accept-Encoding: gzip, deflate",
            "Connection: keep-alive",
            "Accept: application/json",
            "Content-Type: application/json",
            "User-Agent: OpenAI/Python 3.57.0",
            *(
                f"X-Stainless-{name}: something"
                for name in ("Lang", "OS", "Arch", "Runtime", "Async", "Package-Version")
            ),
            "Authorization: Bearer none",
            *([] if gap is None else [f"{DELAY}: {gap}"]),
            f"Content-Length: {len(body)}",
        ]
        self._request = "\r\n".join([*lines, "", ""]).encode() + body
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        """Return it, connected."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self._socket.close()

    def call(self) -> int:
        """Make one call, and return the nanoseconds until its answer is whole."""
        begun = time.perf_counter_ns()
        self._socket.sendall(self._request)
        come = self._more(b"")
        while (end := come.find(b"\r\n\r\n")) < 0:
            come = self._more(come)
        head = come[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"the call is refused: {come!r}")
        whole = end + 4 + int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        while len(come) < whole:
            come = self._more(come)
        return time.perf_counter_ns() - begun

    def ask(self) -> None:
        """Send the call, and do not wait for the answer."""
        self._socket.sendall(self._request)

    def late(self) -> list[int]:
        """Read a stream that was asked for to its end; return how old each chunk was as it came, in nanoseconds."""
        ages: list[int] = []
        come, seen = b"", 0
        while not come.endswith(b"0\r\n\r\n"):
            come = self._more(come)
            now = time.monotonic_ns()
            for found in _SENT.finditer(come, seen):
                ages.append(now - int(found[1]))
                seen = found.end()
        return ages

    def _more(self, come: bytes) -> bytes:
        more = self._socket.recv(1 << 16)
        if not more:
            raise RuntimeError(f"the connection is closed: {come!r}")
        return come + more
