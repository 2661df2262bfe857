"""Notice a fork that ran none of Python's hooks, as a server in C makes it.

On Linux, `HERE` is a page of memory that the kernel empties in a forked child (``MADV_WIPEONFORK``, madvise(2), Linux
4.14). To look at it takes a tenth of what the system call behind ``os.getpid`` takes, and that is half of a whole
`record`. Elsewhere `HERE` asks the system.
"""

from __future__ import annotations

import os

_WIPE_ON_FORK = 18  # `mmap` has no name for it

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without importing `typing`; type checkers know the name
if TYPE_CHECKING:
    from typing import Any


class AskedEachTime:
    """Stands for the page where there is none: what was stored is there only in the process that stored it."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = -1

    def __getitem__(self, _index: int) -> bool:
        return self._pid == os.getpid()

    def __setitem__(self, _index: int, _value: int) -> None:
        self._pid = os.getpid()


def page() -> Any:
    """Return one byte, at index 0, that is 0 until it is set, and 0 again in a forked child."""
    try:
        import mmap

        memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(_WIPE_ON_FORK)
    except (ImportError, AttributeError, TypeError, ValueError, OSError):  # another system, or an older Linux
        return AskedEachTime()
    return memory


HERE = page()
HERE[0] = 1
