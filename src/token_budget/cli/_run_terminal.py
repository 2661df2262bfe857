"""Output: a stream that is written to without harm, also where it is a terminal that others share.

What always holds: writing never raises, never waits longer than it is told, and never stops this process. A terminal
with ``stty tostop`` stops a background job that writes to it, and with it the child, which is of the same job: so
SIGTTOU is blocked in the thread that writes, for as long as it writes. The stream's own flags are left alone, since the
child has the same stream. Python's buffer of the stream is passed by: a thread that is stuck in there would hold its
lock as the interpreter ends.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_REST = 1.0  # seconds for the rest of what was begun: half an escape sequence would swallow what the child writes next
_AGAIN = 0.01
_clock = time.monotonic
_pause = time.sleep


class Output:
    """A stream as a display writes to it: all or nothing, as far as the system allows. One thread writes at a time."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._broken = stream is None

    @property
    def is_terminal(self) -> bool:
        """Whether it is a terminal. A stream that is closed is none."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    @property
    def is_broken(self) -> bool:
        """Whether it is closed, or its reader or its terminal is gone. Nothing is written any more."""
        return self._broken

    @property
    def is_ours(self) -> bool:
        """Whether the terminal shows this job: a background job has no business on the screen of another one.

        A terminal that is not this process's controlling one has no jobs, and shows all.
        """
        if self._descriptor is None or not hasattr(os, "tcgetpgrp"):
            return True
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            return True

    @property
    def size(self) -> os.terminal_size | None:
        """The columns and rows of the terminal; None where it does not say."""
        try:
            size = os.get_terminal_size(-1 if self._descriptor is None else self._descriptor)
        except OSError:
            return None
        return size if all(size) else None

    def write(self, text: str, wait: float = 0.0) -> bool:
        """Write the text, waiting at most so many seconds for a stream that is full. Return whether it is written."""
        if self._broken:
            return False
        with unstopped():
            try:
                if self._descriptor is not None:
                    data = text.encode(self._encoding, "replace")
                    return _written(self._descriptor, data, _clock() + wait)
                assert self._stream is not None  # noqa: S101 - for the type checker: it would be broken
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):  # its other end is gone, or it was closed
                self._broken = True
                return False
        return True


def say(stream: TextIO | None, text: str, wait: float = 5.0) -> bool:
    """Write one line, such as the summary. Return whether it is written; it waits so many seconds for a full stream."""
    return Output(stream).write(f"{text}\n", wait)


def is_dumb() -> bool:
    """Return whether the terminal obeys no sequences, by TERM. Windows does not set it, and obeys them."""
    kind = os.environ.get("TERM", "" if sys.platform != "win32" else "windows").lower()
    return kind in {"", "dumb", "unknown"}


@contextmanager
def unstopped() -> Iterator[None]:
    """Block SIGTTOU in this thread for the block: the terminal then lets a background job write, and stops nobody."""
    if not hasattr(signal, "SIGTTOU"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _descriptor(stream: TextIO | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None


def _written(descriptor: int, data: bytes, deadline: float) -> bool:
    """Write it all, or nothing if there is no room until then. What was begun is given time for its rest."""
    begun = False
    while data:
        if not _has_room(descriptor, deadline):
            return False
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # the child has made the stream non-blocking, and there is less room than this takes
            if _clock() >= deadline:
                return False
            _pause(_AGAIN)
        else:
            deadline, begun = (deadline, True) if begun else (max(deadline, _clock() + _REST), True)
    return True


def _has_room(descriptor: int, deadline: float) -> bool:
    try:
        return bool(select.select([], [descriptor], [], max(0.0, deadline - _clock()))[1])
    except (
        OSError,
        ValueError,
    ):  # Windows, or a number that `select` cannot take: then writing is the only way to know
        return True
