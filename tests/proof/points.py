"""Acts before the k-th instruction of the package, for every k: raises an interrupt, collects garbage or signals.

An interrupt is delivered as CPython delivers Ctrl-C: it is made *pending*, and the interpreter raises it at the next
place at which it checks for signals. There must be no such place on the way back from our callback, nor at the entry
of the next callback. So the callback unregisters itself first, and `_Pending.fire` is a property whose getter is a
function in C: reading it runs no Python code and so does not check for signals.
"""

from __future__ import annotations

import _thread
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

# What an operation may raise. `worlds.World.block_failed` raises the last one itself.
REFUSALS = {
    *("BudgetExceeded", "BudgetOverrun", "BudgetTimeout", "ReservationClosed", "PoolClosed", "PoolForked"),
    "ValueError",
}


class _Pending(int):
    """Reading `fire` makes the signal of this number pending."""

    fire = property(_thread.interrupt_main)


_SIGINT = _Pending(signal.SIGINT)


class Points:
    """Counts the instructions of some code, and acts before one of them.

    Args:
        codes: the code whose instructions count.
        act: what to do before the instruction. By default, SIGINT is made pending.
    """

    def __init__(self, codes: Iterable[types.CodeType], act: Callable[[], object] | None = None) -> None:
        self.codes = set(codes)
        self.act = act
        self.count = 0
        self.at = -1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the code over many uses of `armed`: starting and stopping takes longer than most operations."""
        if sys.version_info < (3, 12):
            yield
            return
        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.DEBUGGER_ID, "points")
        for code in self.codes:
            monitoring.set_local_events(monitoring.DEBUGGER_ID, code, monitoring.events.INSTRUCTION)
        try:
            yield
        finally:
            for code in self.codes:
                monitoring.set_local_events(monitoring.DEBUGGER_ID, code, monitoring.events.NO_EVENTS)
            monitoring.free_tool_id(monitoring.DEBUGGER_ID)

    @contextmanager
    def armed(self, at: int) -> Iterator[None]:
        """Act before instruction number `at` (from 0) of the code in the block. With -1, only count."""
        self.count, self.at = 0, at
        if sys.version_info < (3, 12):
            before = sys.gettrace()
            sys.settrace(self._trace)
            try:
                yield
            finally:
                sys.settrace(before)
            return
        monitoring = sys.monitoring
        watched = monitoring.get_tool(monitoring.DEBUGGER_ID) is not None
        with nullcontext() if watched else self.watching():
            monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, self._instruction)
            try:
                yield
            finally:
                monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, None)

    def _instruction(self, _code: types.CodeType, _offset: int) -> object:
        now = self.count
        self.count = now + 1
        if now != self.at:
            return None
        if self.act is not None:
            return self.act() and None
        if sys.version_info >= (3, 12):
            sys.monitoring.register_callback(sys.monitoring.DEBUGGER_ID, sys.monitoring.events.INSTRUCTION, None)
        return _SIGINT.fire

    def _trace(self, frame: types.FrameType, event: str, _argument: object) -> Any:
        if frame.f_code not in self.codes:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            now = self.count
            self.count = now + 1
            if now == self.at:
                if self.act is not None:
                    self.act()
                else:
                    sys.settrace(None)
                    _SIGINT.fire
                    return None
        return self._trace


def handled(operation: Callable[[], Any], points: Points, at: int) -> str:
    """Run the operation with the action at one point, and return how it ended: done, refused or interrupted."""
    ended = "interrupted"
    try:
        try:
            with points.armed(at):
                operation()
            ended = "done"
        except Exception as error:  # noqa: BLE001 - an interrupt is no Exception
            assert type(error).__name__ in REFUSALS, f"it raised {error!r}"
            ended = "refused"
        for _ in range(3):  # an interrupt that was made pending at the end is delivered here
            pass
    except KeyboardInterrupt:
        return "interrupted"
    return ended
