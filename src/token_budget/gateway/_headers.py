"""Headers: what crosses the gateway, in both directions.

What always holds: the gateway's secret never leaves it, in no header. What belongs to one connection alone (hop by hop)
stays on its side. All else crosses as it came, each line of its own, in its order and its own spelling.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from multidict import CIMultiDict

from token_budget.gateway._address import SECRET_HEADER

Raw = Sequence[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
# Of a request: what the gateway writes itself, or has answered itself.
_OF_REQUESTS = _HOP_BY_HOP | {b"host", b"content-length", b"expect", SECRET_HEADER.encode()}
# With these, some servers take a GET for another method, that would spend.
_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
_OF_REQUESTS_THAT_GET = _OF_REQUESTS | _OVERRIDES
_ENCODING = b"accept-encoding"
# Of an answer: `alt-svc` names another port of the provider's host, which the child takes for ours.
_OF_ANSWERS = _HOP_BY_HOP | {b"alt-svc"}
_USUAL = [b"keep-alive"]  # of ``Connection``: nothing but what stays here in any case
_CONTROLS = bytes({*range(32), 127} - {9})
_LEFT_OUT = dict.fromkeys(_CONTROLS)
_READABLE = frozenset({b"gzip", b"deflate", b"identity"})


def to_upstream(raw: Raw, secret: str, encoding: bytes | None, *, post: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request as they leave.

    Args:
        raw: as they came.
        secret: the gateway's own; a header that has it stays here.
        encoding: what `readable_encoding` says, to stand in place of the client's own; None keeps that.
        post: whether it is a POST; else headers that make a POST of it stay here.
    """
    dropped = _OF_REQUESTS if post else _OF_REQUESTS_THAT_GET
    named = _named(raw)
    if named:
        dropped |= named
    hidden = secret.encode()
    kept = [line for line in raw if line[0].lower() not in dropped and hidden not in line[1]]
    if encoding is not None:
        kept = [(name, value) for name, value in kept if name.lower() != _ENCODING]
        kept.append((b"Accept-Encoding", encoding))
    return kept


def readable_encoding(raw: Raw, *, plain: bool = False) -> bytes | None:
    """Return the ``Accept-Encoding`` with which the meter can read the answer; None if the client's own will do.

    Args:
        raw: the headers of the request.
        plain: whether the answer is to be rewritten, and so must not be packed.
    """
    if plain:
        return b"identity"
    return _readable(tuple(_values(raw, _ENCODING)))


@functools.lru_cache(maxsize=64)  # there are few clients, and each asks for the same
def _readable(asked: tuple[bytes, ...]) -> bytes | None:
    codings = [one.strip() for value in asked for one in value.split(b",")]
    readable = [one for one in codings if one.partition(b";")[0].strip().lower() in _READABLE]
    return None if len(readable) == len(codings) else b", ".join(readable) or b"identity"


def to_client(raw: Raw, *, rewritten: bool = False, decoded: bool = False) -> CIMultiDict[str]:
    """Return the headers of an answer as the client gets them.

    Args:
        raw: as they came.
        rewritten: whether its bytes are changed, so that its length is not known.
        decoded: whether it is unpacked.
    """
    dropped, named = _OF_ANSWERS, _named(raw)
    if named:
        dropped |= named
    if rewritten:
        dropped |= {b"content-length"}
    if decoded:
        dropped |= {b"content-encoding"}
    return as_headers([line for line in raw if line[0].lower() not in dropped])


def as_headers(raw: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
    """Return headers as aiohttp takes them: it writes no byte that is no UTF-8, and no control character."""
    return CIMultiDict(
        [
            (name.decode("ascii", "replace"), value.translate(None, _CONTROLS).decode("utf-8", "replace"))
            for name, value in raw
        ]
    )


def as_reason(reason: str | None) -> str:
    """Return the words after the status of an answer as aiohttp takes them."""
    return (reason or "").translate(_LEFT_OUT)


def _named(raw: Raw) -> frozenset[bytes]:
    """Return the headers that ``Connection`` says belong to this connection alone."""
    named = _values(raw, b"connection")
    if not named or named == _USUAL:
        return frozenset()
    return frozenset([one.strip().lower() for value in named for one in value.split(b",")])


def _values(raw: Raw, header: bytes) -> list[bytes]:
    """Return what each line of a header says."""
    size = len(header)  # nearly all other names have another: those are not put into small letters
    return [value for name, value in raw if len(name) == size and name.lower() == header]
