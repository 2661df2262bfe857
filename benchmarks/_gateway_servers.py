"""The other processes of the benchmark of the gateway: the provider, a proxy that meters nothing, the gateway's child.

``python _gateway_servers.py provider`` and ``… proxy URL`` print their base URL and serve; ``… child`` is the program
that `token-budget run` starts: it prints the base URL that it was given. Each ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from typing import Any

MODEL = "gpt-5-mini"
_PROSE = "The harbour master counted the boats again, wrote 27 into the book and closed the window against the rain. "
USAGE = {"prompt_tokens": 874, "completion_tokens": 132, "total_tokens": 1006}
ANSWER = json.dumps(
    {
        "id": "chatcmpl-9",
        "object": "chat.completion",
        "created": 1790000000,
        "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": _PROSE * 34}, "finish_reason": "stop"},
        ],
        "usage": USAGE,
    }
).encode()
DELAY = "x-delay-ms"  # a header of the request: how long the provider takes
CHUNKS, GAP = 100, 10  # of a stream; ms between two, unless the request has its own DELAY
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_HOP_BY_HOP = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "content-length"})


def request_body(*, stream: bool = False) -> bytes:
    """Return the body of a call of about 4 KB."""
    messages = [{"role": "user", "content": _PROSE * 35}]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_completion_tokens": 500}
    return json.dumps({**body, "stream": True} if stream else body).encode()


class Provider(asyncio.Protocol):
    """Answers each request with the same 4 KB, or with a stream whose chunks say when they were sent."""

    def __init__(self) -> None:
        """Serve one connection."""
        self._come = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._come += data
        while (end := self._come.find(b"\r\n\r\n")) >= 0:
            head = self._come[:end].lower()
            whole = end + 4 + (_header(head, b"content-length") or 0)
            if len(self._come) < whole:
                return
            body, self._come = self._come[end + 4 : whole], self._come[whole:]
            self._answer(_header(head, DELAY.encode()), body)

    def _answer(self, delay: int | None, body: bytes) -> None:
        if b'"stream":true' in body.replace(b" ", b""):
            self._transport.write(_STREAM)
            self._stream(CHUNKS, GAP if delay is None else delay, usage=b"include_usage" in body)
        elif delay:
            asyncio.get_running_loop().call_later(delay / 1e3, self._transport.write, _HEAD + ANSWER)
        else:
            self._transport.write(_HEAD + ANSWER)

    def _stream(self, left: int, gap: int, *, usage: bool) -> None:
        """Send a chunk now, and the others later."""
        if self._transport.is_closing():
            return
        if left:
            choice = {"index": 0, "delta": {"content": " harbour"}, "finish_reason": "stop" if left == 1 else None}
            self._send({"choices": [choice], "sent": time.monotonic_ns()})
            asyncio.get_running_loop().call_later(gap / 1e3, lambda: self._stream(left - 1, gap, usage=usage))
            return
        if usage:
            self._send({"choices": [], "usage": USAGE})
        self._write(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")

    def _send(self, event: dict[str, Any]) -> None:
        event = {"id": "chatcmpl-9", "object": "chat.completion.chunk", "model": MODEL, **event}
        self._write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def _header(head: bytes, name: bytes) -> int | None:
    """Return the number that a header of a request has. ``head`` is in small letters."""
    _, found, rest = head.partition(b"\r\n" + name + b":")
    return int(rest.partition(b"\r\n")[0]) if found else None


async def provide() -> None:
    """Serve as the provider."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def forward(upstream: str) -> None:
    """Serve as a proxy that has the gateway's settings, and meters nothing."""
    from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
    from aiohttp.web import BaseRequest, Server, StreamResponse
    from yarl import URL

    session = ClientSession(
        connector=TCPConnector(limit=0),
        auto_decompress=False,
        cookie_jar=DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        timeout=ClientTimeout(total=None, sock_connect=30, sock_read=900),
    )
    origin = upstream.removesuffix("/v1")

    async def answer(request: BaseRequest) -> StreamResponse:
        body = await request.read()
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP]
        url = URL(origin + request.raw_path, encoded=True)
        async with session.request(request.method, url, headers=headers, data=body, allow_redirects=False) as answered:
            out = StreamResponse(status=answered.status, reason=answered.reason)
            for name, value in answered.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    out.headers.add(name, value)
            if answered.content_length is not None:
                out.content_length = answered.content_length
            await out.prepare(request)
            async for piece in answered.content.iter_any():
                await out.write(piece)
            await out.write_eof()
            return out

    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = Server(answer, handler_cancellation=True, access_log=None, auto_decompress=False)
    await asyncio.get_running_loop().create_server(server, sock=listening, backlog=512)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await session.close()


def main() -> None:
    """Be the process that is asked for."""
    what, *more = sys.argv[1:]
    if what == "provider":
        asyncio.run(provide())
    elif what == "proxy":
        asyncio.run(forward(*more))
    else:
        print(os.environ["OPENAI_BASE_URL"], flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
