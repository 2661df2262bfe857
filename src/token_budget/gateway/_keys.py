"""Held keys: the child has a placeholder where its key was, and the gateway puts the real key in its place."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, unquote_plus

_BARE = frozenset({b"x-api-key", b"x-goog-api-key", b"api-key"})  # Anthropic, Google, Azure: the key and nothing else
_QUERY = "key"  # Google's


def with_real_key(
    headers: Iterable[tuple[bytes, bytes]], query: str, placeholder: str, real: str
) -> tuple[list[tuple[bytes, bytes]], str]:
    """Return a request's headers and query with the real key where the placeholder stands. It does not block.

    Only the places where clients put their key are looked at: ``Authorization`` after its scheme, ``x-api-key``,
    ``x-goog-api-key``, ``api-key``, and ``key=`` in the query. All else stays as it is, byte for byte.

    Args:
        headers: names and values as they came, in any case.
        query: the query as it came, with its question mark or without.
        placeholder: what the child has.
        real: what the provider is to get.
    """
    before, after = placeholder.encode(), real.encode()
    changed = [(name, _header(name.lower(), value, before, after)) for name, value in headers]
    if placeholder not in unquote_plus(query):
        return changed, query
    mark = query[: query.startswith("?")]
    parts = [_parameter(part, placeholder, real) for part in query[len(mark) :].split("&")]
    return changed, mark + "&".join(parts)


def _header(name: bytes, value: bytes, placeholder: bytes, real: bytes) -> bytes:
    """Return the value of one header, with the real key if the placeholder is its key."""
    if name in _BARE:
        return real if value.strip() == placeholder else value
    if name == b"authorization":
        scheme, space, key = value.strip().partition(b" ")
        if space and key.strip() == placeholder:
            return scheme + b" " + real
        return real if scheme == placeholder else value
    return value


def _parameter(part: str, placeholder: str, real: str) -> str:
    """Return one parameter of the query, with the real key if it is the key."""
    name, equals, value = part.partition("=")
    if equals and unquote_plus(name) == _QUERY and unquote_plus(value) == placeholder:
        return f"{name}={quote(real, safe='')}"
    return part
