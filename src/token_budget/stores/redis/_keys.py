"""The names of the keys of a budget in Redis. All have the hash tag ``{name}``, so that a cluster has them in one slot.

tb:{name}               hash of the root's scope, with the budget's generation and its counters
tb:{name}:s:<path>      hash of a scope
tb:{name}:w:<path>      who waits for room in a scope: ids of claims by ticket
tb:{name}:g:<path>      hash of a group: what holds for its keys
tb:{name}:p:<path>      what each process gave at opening: a hash by process
tb:{name}:n             the paths of all scopes and groups that have a name; a key's is not here
tb:{name}:z             the leases: processes by the time at which they end; and ``.``, which never does: where that
                        is gone, the leases were deleted, and what the dead hold would be held for ever
tb:{name}:h             the beats: processes that wait, by the time at which they last said so
tb:{name}:o:<owner>     hash of a process: who it is, what it holds, and its answers that were not acknowledged
tb:{name}:o:<owner>:x   hash of what was charged of it in full or settled from elsewhere, and of the answers that were
                        not acknowledged when it ended, kept for 7 days; and that it has ended, kept for a day at least
tb:{name}:x             processes of which such a thing is kept since they ended, by the time of it; or settled from
                        elsewhere, where the server evicts keys that expire
tb:{name}:c:<owner>     the channel on which a process is told that room may have come
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from token_budget.stores._names import encoded
from token_budget.stores._store import Group, Scope


def root_key(name: str) -> str:
    """Return the key of a budget's root, whose hash tag all of its keys share."""
    return f"tb:{{{encoded(name)}}}"


def location_of(client: Any, name: str) -> str:
    """Return the text that finds a budget: the client's location, and the name after a ``#``."""
    return f"{client.location}#{quote(name, safe='', errors='surrogatepass')}"


def escaped(text: str) -> str:
    """Return a text as a pattern of Redis that fits nothing else."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)


class Keys:
    """The names of one budget's keys."""

    def __init__(self, name: str) -> None:
        self.root: str = root_key(name)
        self.path: str = encoded(name)
        self.names: str = f"{self.root}:n"
        self.leases: str = f"{self.root}:z"
        self.beats: str = f"{self.root}:h"
        self.charges: str = f"{self.root}:x"

    def owner(self, owner: str) -> str:
        """Return the key of a process."""
        return f"{self.root}:o:{owner}"

    def channel(self, owner: str) -> str:
        """Return the channel of a process."""
        return f"{self.root}:c:{owner}"

    def given(self, path: str) -> str:
        """Return the key of what processes gave for a scope or a group."""
        return f"{self.root}:p:{path}"

    def scope(self, path: str) -> str:
        """Return the key of a scope."""
        return self.root if path == self.path else f"{self.root}:s:{path}"

    def parts(self, path: str) -> tuple[str, str, str]:
        """Return all keys of a scope by its path."""
        return self.scope(path), f"{self.root}:w:{path}", self.given(path)

    def group_parts(self, path: str) -> tuple[str, str]:
        """Return all keys of a group by its path."""
        return f"{self.root}:g:{path}", self.given(path)

    def of(self, scope: Scope) -> tuple[str, str, str]:
        """Return the keys of a scope that scripts take: its hash, its line, and its group's hash or the root's."""
        path, group = scope.path, scope.group
        above = self.root if group is None else f"{self.root}:g:{group.path}"
        return self.scope(path), f"{self.root}:w:{path}", above

    def of_group(self, group: Group) -> tuple[str, str, str]:
        """Return the three keys of a group, where a script takes it in the place of a scope."""
        return f"{self.root}:g:{group.path}", f"{self.root}:w:{group.path}", self.root
