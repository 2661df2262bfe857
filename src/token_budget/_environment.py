"""A pool, made of what environment variables say."""

from __future__ import annotations

from decimal import Decimal
from difflib import get_close_matches
from importlib import import_module

from token_budget._arguments import checked_name
from token_budget._money import to_nanos, to_tokens
from token_budget._window import Window

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

_CAPS = ("TOKEN_CAP", "USD_CAP")


def pool_of(make: type[Any], prefix: str, environ: Mapping[str, str], *, require_cap: bool, in_stores: bool) -> Any:
    """Return the pool that the variables after a prefix say: one that `make` makes, or one of a store.

    ``in_stores`` is whether `make` is the core's own class, in whose place a pool of a store may stand.

    Raises:
        TypeError: the variables name a store, and `make` is another class.
        ValueError: a variable says nothing that can be read, or no cap is found and one is required.
    """
    arguments = _arguments(prefix, environ)
    where = environ.get(f"{prefix}STORE", "").strip()
    if where:
        if not in_stores:
            raise TypeError(f"{prefix}STORE is set, and {make.__name__} counts in this process alone")
        # The core knows nothing of the stores: they are layers above it, and are loaded where a variable names one.
        stores: Any = import_module("token_budget.stores._opening")
        return stores.open_of_environment(where, arguments, prefix, require_cap=require_cap)
    if require_cap and arguments["token_cap"] is arguments["usd_cap"] is None:
        raise ValueError(_no_cap(prefix, environ))
    return make(**arguments)


def _arguments(prefix: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the keyword arguments of a pool that the variables after a prefix say."""

    def read(name: str, convert: Callable[[str], Any], wanted: str) -> Any:
        text = environ.get(prefix + name, "").strip()
        if not text:
            return None
        try:
            return convert(text)
        except (ArithmeticError, ValueError) as error:
            detail = f": {error}" if name == "WINDOW" else ""
            raise ValueError(f"{prefix}{name} must be {wanted}, got {text[:60]!r}{detail}") from None

    return {
        "token_cap": read("TOKEN_CAP", lambda text: to_tokens(int(text)), "a whole number of tokens, at most 10**18"),
        "usd_cap": read("USD_CAP", _dollars, "a number of dollars, at most 10**9"),
        "name": read("NAME", checked_name, "at most 200 characters"),
        "window": read("WINDOW", Window.parse, "a window: daily, weekly or monthly and a time zone, or every 5h"),
    }


def _dollars(text: str) -> Decimal:
    value = Decimal(text)
    to_nanos(value)
    return value


def _no_cap(prefix: str, environ: Mapping[str, str]) -> str:
    wanted = [prefix + name for name in _CAPS]
    by_capitals = {name.upper(): name for name in environ}
    near: list[str] = []
    for name in wanted:
        ending = name[len(prefix) :].replace("_", "")
        near += [
            by_capitals[one]
            for one in (*get_close_matches(name.upper(), by_capitals, cutoff=0.8), *sorted(by_capitals))
            if one.replace("_", "").endswith(ending) or one in get_close_matches(name.upper(), [one], cutoff=0.8)
        ]
    found = [name for name in dict.fromkeys(near) if name not in wanted][:5]
    hint = f" Similar names are set: {', '.join(found)}." if found else ""
    return (
        f"no cap was found in the environment: neither {wanted[0]} nor {wanted[1]} is set, so the pool would refuse "
        f"nothing.{hint} The prefix is taken as it is, its underscore included. Set one of them, or pass "
        "require_cap=False for a pool without caps"
    )
