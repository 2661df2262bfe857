"""The names of scopes: text that a store can keep, and the paths that are made of them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

from token_budget._arguments import checked_name
from token_budget._money import shown_type

_PLAIN = (
    "!$'()*+;=@~ "  # what stays as it is beside letters, digits and _.-; never / : % { } | , or a control character
)


def encoded(text: str) -> str:
    """Return a name as one part of a path: without ``/ : % { } | ,``, without control characters, in ASCII."""
    return quote(text, safe=_PLAIN, errors="surrogatepass")


def decoded(part: str) -> str:
    """Return the name of a part of a path."""
    return unquote(part, errors="surrogatepass")


def required_name(name: Any, what: str) -> str:
    """Return the name of a scope.

    Raises:
        TypeError: it is no text.
        ValueError: there is none, it is empty, or it has more than 200 characters.
    """
    checked = checked_name(name)
    if not checked:
        raise ValueError(
            f"{what} needs a name: all processes find it in the store by its name, so that they share one budget"
        )
    return checked


def checked_key(key: Any) -> str:
    """Return the key of a keyed pool.

    Raises:
        TypeError: it is no text. Other processes must find the same key, so its type must not play a part.
        ValueError: it is empty, or has more than 200 characters.
    """
    if not issubclass(type(key), str):
        raise TypeError(f"a key of a store's pool must be a str, not {shown_type(key)}: say str(key)")
    checked = checked_name(key, "key")
    if not checked:
        raise ValueError("a key must not be empty")
    return checked


def path_of(above: str | None, name: str, key: str | None = None) -> str:
    """Return a scope's path: ``total``, ``total/atlas``; of a key of a group ``total/user:ann`` (``total/:ann``)."""
    part = encoded(name) if key is None else f"{encoded(name)}:{encoded(key)}"
    return part if above is None else f"{above}/{part}"


def name_at(path: str) -> str:
    """Return what errors call the scope of a path: the text of its last part, without a group's empty name."""
    group, colon, key = path.rpartition("/")[2].partition(":")
    if not colon:
        return decoded(group)
    return f"{decoded(group)}:{decoded(key)}" if group else decoded(key)
