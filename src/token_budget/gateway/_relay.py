"""Relay: an answer on its way to the client, unbuffered, while the meter reads along.

What always holds: the call is settled before the client gets the bytes that end the answer. An answer that was cut is
cut for the client as well: it never looks whole. What the client is sent are the provider's own bytes, but for the one
event that the gateway asked for itself.
"""

from __future__ import annotations

import re
import zlib
from urllib.parse import urlsplit

from aiohttp import ClientError, ClientResponse, HttpVersion11, hdrs
from aiohttp.web import BaseRequest, StreamResponse

from token_budget.gateway._calls import Call, Settling
from token_budget.gateway._headers import as_reason, to_client
from token_budget.metering._watch import Watch

# What can happen to an answer on its way: the provider's connection, or the client's, ends.
BROKEN = (ClientError, OSError, TimeoutError, zlib.error)

_SCHEME = re.compile(r"[^/?#]*:")  # httpx takes an empty one as well
_PASSED_OVER = dict.fromkeys(map(ord, "\t\r\n"))  # by clients that read a URL as browsers do


class _Together(StreamResponse):
    """An answer whose head leaves with its first bytes, which are there already: one packet in place of two."""

    _send_headers_immediately = False


class Relay:
    """One answer, from the provider to the client."""

    def __init__(self, request: BaseRequest, settling: Settling, url: str, name: str) -> None:
        self._request = request
        self._url = url  # of the upstream
        self._name = name
        self._settling = settling
        self._call: Call | None = None
        self.watch: Watch | None = None

    def watch_over(self, call: Call, answer: ClientResponse, longest: int) -> None:
        """Read the answer for the meter."""
        headers = answer.headers
        self._call = call
        self.watch = call.watch(
            _bytes(headers.get(hdrs.CONTENT_TYPE, "")),
            _bytes(headers.get(hdrs.CONTENT_ENCODING, "").strip()),
            framed=hdrs.CONTENT_LENGTH in headers or hdrs.TRANSFER_ENCODING in headers,
            longest=longest,
        )

    async def run(self, answer: ClientResponse, begun: bytes = b"") -> StreamResponse:
        """Send the answer to the client, and return it.

        Args:
            answer: of the provider, whose head is there.
            begun: bytes of it that have been read already.
        """
        request, watch, content = self._request, self.watch, answer.content
        chunk = begun or content.read_nowait()
        out = self._head(answer, together=bool(chunk) or content.at_eof())
        try:
            await out.prepare(request)
            while True:
                kept = chunk
                if watch is not None and chunk:
                    kept = watch.feed(chunk)
                    if watch.ready is not None:
                        await self._settle()
                if content.at_eof():
                    if watch is not None:
                        kept += watch.end()
                        await self._settle()
                    await out.write_eof(kept)
                    return out
                if kept:
                    await out.write(kept)
                chunk = await content.readany()
        except BROKEN:
            cut(request)
            return out

    def _head(self, answer: ClientResponse, *, together: bool) -> StreamResponse:
        """Return the answer to the client, which has a head and no body yet."""
        watch, request = self.watch, self._request
        rewritten = watch is not None and watch.strip
        decoded = watch is not None and watch.decodes
        headers = to_client(answer.raw_headers, rewritten=rewritten, decoded=decoded)
        if hdrs.LOCATION in headers:
            first = request.raw_path.split("/", 2)[1]  # the secret, or what stands for it
            headers[hdrs.LOCATION] = moved(headers[hdrs.LOCATION], self._url, f"/{first}/{self._name}")
        kind = _Together if together else StreamResponse
        out = kind(status=answer.status, reason=as_reason(answer.reason), headers=headers)
        if request.version < HttpVersion11 and hdrs.CONTENT_LENGTH not in headers:
            out.force_close()  # its end is the end of the connection
        return out

    async def _settle(self) -> None:
        """Settle the call by what is known now: its usage, or the end of the answer."""
        call = self._call
        if call is not None and call.pending.open:
            await self._settling.settle(call.pending, call.outcome(self.watch))


def _bytes(header: str) -> bytes:
    """Return a header in small letters; what is no UTF-8 in it is of no meaning."""
    return header.lower().encode(errors="replace")


def moved(location: str, url: str, here: str) -> str:
    """Return where a redirect leads: through the gateway again, if it stays at its upstream; else where it says.

    Args:
        location: what the answer says.
        url: the upstream's.
        here: the path of the upstream in the gateway.
    """
    prefix = url if "://" in location else urlsplit(url).path
    if location.startswith("//") or not location.startswith(f"{prefix}/"):
        return location
    return here + location[len(prefix) :]


def leads_away(location: str) -> bool:
    """Return whether a redirect leads to another host, in the eyes of any client: some take a backslash for a slash."""
    plain = location.translate(_PASSED_OVER).strip().replace("\\", "/")
    return plain.startswith("//") or _SCHEME.match(plain) is not None


def cut(request: BaseRequest) -> None:
    """End the connection of a client in the middle of its answer."""
    transport = request.transport
    if transport is not None:
        transport.abort()
