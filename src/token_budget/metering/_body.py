"""Body: the JSON of a request, read and written again.

What always holds: a body that is no JSON object, or too deeply nested to be read, is `Unmetered`; what is written again
says the same as before in every other field. No value of a body stands in an error: only what is wrong, and names of
fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from token_budget.metering._refusals import Unmetered

LARGEST = 10**12  # tokens: no model writes more

Path = tuple[str, ...]  # names of fields, one inside the other


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_decode: Callable[[str], Any] = json.JSONDecoder(parse_constant=_constant).decode


def parsed(body: bytes) -> dict[str, Any]:
    """Return the object that a body is.

    Raises:
        Unmetered: It is no JSON in UTF-8, no object, or nested too deeply.
    """
    try:
        fields = _decode(body.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError:
        raise Unmetered("the body of the request is no UTF-8, so what it asks for cannot be read") from None
    except RecursionError:
        raise Unmetered("the body of the request is nested too deeply to be read") from None
    except ValueError as error:  # of JSON: the message says what is wrong and where, and shows nothing of the body
        raise Unmetered(f"the body of the request is no JSON that can be read: {error}") from None
    if not isinstance(fields, dict):
        raise Unmetered(f"the body of the request is a JSON {type(fields).__name__}, not an object")
    return fields


def written(fields: dict[str, Any]) -> bytes:
    """Return the bytes of a body.

    Raises:
        Unmetered: A number in it is too large for a float, which is read and cannot be written.
    """
    try:
        return _dumped(fields)
    except (ValueError, RecursionError) as error:
        raise Unmetered(f"the body of the request cannot be written again ({type(error).__name__})") from None


def _dumped(fields: dict[str, Any]) -> bytes:
    try:
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can say
        return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()


def with_field(body: bytes, fields: dict[str, Any], name: str, value: object) -> bytes:
    """Return a body with a field set; every other byte stays where the field is new.

    Args:
        body: the body.
        fields: the object that it is, in which the field is set too.
        name: of the field.
        value: for it.

    Raises:
        Unmetered: It cannot be written again.
    """
    is_new = name not in fields and bool(fields)
    fields[name] = value
    if not is_new:
        return written(fields)
    return body.rstrip()[:-1] + f',"{name}":'.encode() + json.dumps(value).encode() + b"}"


def value_at(fields: dict[str, Any], path: Path) -> Any:
    """Return the value at a path; None if there is none."""
    value: Any = fields
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def put(fields: dict[str, Any], path: Path, value: object) -> None:
    """Set the value at a path; an object that is missing on the way, or null, is made.

    Raises:
        Unmetered: Something that is no object stands on the way.
    """
    for name in path[:-1]:
        inner = fields.get(name)
        if inner is None:
            inner = fields[name] = {}
        if not isinstance(inner, dict):
            raise Unmetered(f"{name} of the request is a {type(inner).__name__}, not an object")
        fields = inner
    fields[path[-1]] = value


def drop(fields: dict[str, Any], path: Path) -> None:
    """Remove what stands at a path, if it is there."""
    holder = value_at(fields, path[:-1])
    if isinstance(holder, dict):
        holder.pop(path[-1], None)


def whole(value: object, name: str) -> int:
    """Return a number of tokens or answers; -1 for a negative one, by which servers mean that there is no limit.

    Raises:
        Unmetered: It is no whole number, or larger than anything that a model writes.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unmetered(f"{name} of the request is a {type(value).__name__}, not a whole number, so it bounds nothing")
    if value > LARGEST:
        raise Unmetered(f"{name} of the request is larger than 10**12, so it bounds nothing")
    return max(value, -1)
