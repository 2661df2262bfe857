"""Addresses: where a request wants to go, read from its target as it came, and whether it may come here at all.

What always holds: a target that has not the secret leads nowhere, and the two are compared in a time that tells
nothing. The rest of a path is passed on byte for byte. One that could climb out of its upstream's prefix is none.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple
from urllib.parse import unquote

SECRET_HEADER = "x-token-budget-secret"  # noqa: S105 - the name of a header
IN_HEADER = "-"  # stands where the secret would, if that header has it
STATUS = "_status"

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_CODED_TWICE = 3  # times that a path is decoded, since a provider may do so more than once


class Target(NamedTuple):
    """Where a request goes: ``/SECRET/NAME/rest?query``."""

    name: str  # of the upstream, or `STATUS`
    rest: str  # the path as it came, with its first slash; "" if there is none
    query: str  # as it came, with its question mark; "" if there is none


def is_loopback(host: str) -> bool:
    """Return whether a ``Host`` header names this machine: a page that was rebound to it has a name of its own."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = host.partition(":")
    return name.lower() in _LOOPBACK and (not port or port.isdecimal())


def target_of(raw: str, secret: str, header: str | None) -> Target | None:
    """Return where a request goes; None if it goes nowhere.

    Args:
        raw: the target of the request line, as it came.
        secret: the gateway's own.
        header: what the request has in its header for the secret.
    """
    path, mark, query = raw.partition("?")
    first, _, tail = path[1:].partition("/")
    given = (header or "") if first == IN_HEADER else first
    known = secrets.compare_digest(given.encode(errors="replace"), secret.encode())
    if not known or not raw.startswith("/") or "#" in raw:
        return None
    name, slash, rest = tail.partition("/")
    if climbs(rest) or secret in rest or not _is_text(raw):
        return None
    return Target(name, slash + rest, mark + query)


def climbs(path: str) -> bool:
    """Return whether a part of a path is ``.`` or ``..``, however it is written."""
    if "." not in path and "%" not in path:
        return False
    for _ in range(_CODED_TWICE):
        if _climbs_as_it_is(path):
            return True
        if "%" not in path:
            return False
        path = unquote(path)
    return _climbs_as_it_is(path)


def _climbs_as_it_is(path: str) -> bool:
    """Return whether a part is ``.`` or ``..``, also with a parameter after it, which servers in Java leave out."""
    parts = path.replace("\\", "/").split("/")
    return any(part[:1] == "." and part.partition(";")[0] in {".", ".."} for part in parts)


def _is_text(raw: str) -> bool:
    """Return whether it can be sent on: what is no UTF-8 cannot."""
    try:
        raw.encode()
    except UnicodeEncodeError:
        return False
    return True
