"""Client: how a request leaves for its provider, over TLS with the system's own certificates, through the user's proxy.

What always holds: no redirect is followed, no cookie kept, no byte unpacked and none of the URL written anew. A request
with a body is sent once. `Body.leaving` says whether any of it can have left: before that, nothing can be billed.
"""

from __future__ import annotations

import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, hdrs
from aiohttp.payload import Payload
from multidict import CIMultiDict
from yarl import URL

from token_budget.gateway._limits import Limits
from token_budget.gateway._upstreams import Upstream

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

_PIECE = 1 << 18  # bytes of a long body that are written at once
_HEADER, _HEADERS = 256 << 10, 2048  # bytes of one header of an answer, and how many: it is paid for, so it must arrive
_AUTOMATIC = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)


class UnusableProxyError(ClientError):
    """The proxy of the user's environment, or system, is no URL. Its text is not shown: it may have a password."""


class Body(Payload):
    """The body of a request. A long one is written in pieces, so that the loop goes on between them."""

    _autoclose = True

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._size = len(content)
        self._content = content
        self.leaving = False  # whether any of it can have left

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return it as text."""
        return self._content.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write it: aiohttp calls this when there is a connection."""
        self.leaving = True
        if self._size is None or self._size <= _PIECE:
            await writer.write(self._content)
            return
        view = memoryview(self._content)
        for start in range(0, len(view), _PIECE):
            await writer.write(view[start : start + _PIECE])


class Client:
    """The gateway's own HTTP client. It belongs to the event loop in which it is made."""

    def __init__(self, limits: Limits) -> None:
        self._session = ClientSession(
            connector=TCPConnector(limit=0),
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
            skip_auto_headers=_AUTOMATIC,
            max_line_size=_HEADER,
            max_field_size=_HEADER,
            max_headers=_HEADERS,
            timeout=ClientTimeout(
                total=None,
                connect=2 * limits.connect_seconds,  # with what a proxy takes to open its tunnel
                sock_connect=limits.connect_seconds,
                sock_read=limits.read_seconds,
            ),
        )
        self._tls: ssl.SSLContext | None = None
        self._proxies: dict[str, URL | None] = {}  # by upstream

    async def send(
        self, upstream: Upstream, method: str, target: str, headers: CIMultiDict[str], body: Body | None
    ) -> ClientResponse:
        """Send a request, and return the head of its answer.

        Args:
            upstream: where it goes.
            method: as it came.
            target: the path and the query, which follow the upstream's URL byte for byte.
            headers: all that it has, but for its host and length.
            body: what it carries.

        Raises:
            ClientError, OSError, TimeoutError: there is no answer.
        """
        name = upstream.name
        if name not in self._proxies:
            self._proxies[name] = proxy_for(upstream.url)
        return await self._session.request(
            method,
            URL(upstream.url + target, encoded=True),
            headers=_spelled_alike(headers),
            data=body,
            allow_redirects=False,
            ssl=self._trusted() if upstream.url.startswith("https:") else True,
            proxy=self._proxies[name],
        )

    def _trusted(self) -> ssl.SSLContext:
        """Return the certificates that the system trusts. They are looked for as the first request needs them."""
        if self._tls is None:
            import truststore

            self._tls = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return self._tls

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()


def _spelled_alike(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """Return headers of which the lines of one name have one spelling: of ``A`` and ``a``, aiohttp would send one."""
    names = {name for name, _ in headers.items()}
    if len(names) == len({name.lower() for name in names}):
        return headers
    first: dict[str, str] = {}
    return CIMultiDict([(first.setdefault(name.lower(), name), value) for name, value in headers.items()])


def proxy_for(url: str) -> URL | None:
    """Return the proxy that the user's environment, or system, has for a URL; None if it is reached directly.

    It is asked once for each upstream, and not for each request: aiohttp's ``trust_env`` would do that in a thread, and
    would put passwords out of ``~/.netrc`` into requests. A loopback address is always reached directly.

    Raises:
        UnusableProxyError: what is said there is no URL.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = getproxies().get(parts.scheme)
    if not proxy or _is_loopback(host) or proxy_bypass(host if parts.port is None else f"{host}:{parts.port}"):
        return None
    try:
        return URL(proxy if "://" in proxy else f"http://{proxy}")
    except ValueError:
        raise UnusableProxyError from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
