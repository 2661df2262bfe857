"""Objects: any answer as a mapping of names to values, whether it is parsed JSON or an object of some SDK.

What always holds: nothing is serialized, and no method of the object is called; only its attributes and properties are
read. What raises while it is read counts as absent.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

_PLAIN = (str, bytes, bytearray, memoryview, int, float, complex, list, tuple, set, frozenset, type)


def fields(x: object, properties: frozenset[str] = frozenset()) -> Mapping[Any, Any] | None:
    """Return ``x`` by name: a mapping as it is, an object by its attributes; None for what has no fields.

    Args:
        x: Parsed JSON, a pydantic model, a dataclass, a named tuple, any object.
        properties: Names that are looked up on the object's class too, where they may be properties.
    """
    if type(x) is dict or x is None:
        return x
    if isinstance(x, Mapping):
        return x
    if isinstance(x, _PLAIN):
        return _named_tuple(x)
    found: dict[Any, Any] = dict(getattr(x, "__dict__", None) or {})
    kind: Any = type(x)
    for name in _declared(kind, properties):
        _take(x, name, found)
    # What a pydantic model was given beyond its fields: a provider's own counts, in an answer of OpenAI's SDK.
    extra = getattr(x, "__pydantic_extra__", None)
    if type(extra) is dict:
        found.update(extra)
    return found


@functools.lru_cache(maxsize=256)
def _declared(kind: type, properties: frozenset[str]) -> tuple[str, ...]:
    """Return the names of a class's slots and of its properties among ``properties``."""
    names = [name for name in properties if isinstance(getattr(kind, name, None), property)]
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        names += [name for name in ((slots,) if isinstance(slots, str) else slots) if not name.startswith("__")]
    return tuple(names)


def _take(x: object, name: str, found: dict[Any, Any]) -> None:
    try:
        found[name] = getattr(x, name)
    except Exception:  # noqa: BLE001 - a slot that was never set, or a property of somebody's class that fails
        return


def _named_tuple(x: object) -> Mapping[Any, Any] | None:
    names = getattr(x, "_fields", None)
    if isinstance(x, tuple) and isinstance(names, tuple):
        return dict(zip(names, x, strict=False))
    return None
