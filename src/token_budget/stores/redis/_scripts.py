"""The scripts of the Redis store: found, put together and handed to the client.

Each is a file of ``scripts/`` with its contract on top. A line ``-- include _a _b`` stands for the text of those files,
since a script cannot call another.
"""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import Any

_INCLUDE = re.compile(r"^-- include (.+)$", re.MULTILINE)
NAMES = (
    "cancel", "caps", "charged", "close", "commit", "expire", "forget", "hand", "leave", "look", "make", "numbers",
    "open", "read", "record", "register", "renew", "reserve", "reset", "revive", "roll", "told",
)  # fmt: skip


@functools.cache
def source(name: str) -> str:
    """Return the text of one file."""
    return files("token_budget.stores.redis").joinpath("scripts", f"{name}.lua").read_text(encoding="ascii")


@functools.cache
def text_of(name: str) -> str:
    """Return the whole text of a script."""
    return _INCLUDE.sub(lambda line: "\n".join(map(source, line[1].split())), source(name))


class Scripts:
    """All scripts, as a client takes them."""

    cancel: Any
    caps: Any
    charged: Any
    close: Any
    commit: Any
    expire: Any
    forget: Any
    hand: Any
    leave: Any
    look: Any
    make: Any
    numbers: Any
    open: Any
    read: Any
    record: Any
    register: Any
    renew: Any
    reserve: Any
    reset: Any
    revive: Any
    roll: Any
    told: Any

    deleting: frozenset[Any]  # those that take the numbers of answers that were heard: they include ``_scopes.lua``

    def __init__(self, client: Any) -> None:
        for name in NAMES:
            setattr(self, name, client.script(text_of(name)))
        self.deleting = frozenset(getattr(self, name) for name in NAMES if " _scopes" in source(name))
