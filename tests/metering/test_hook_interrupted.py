"""An interrupt at any line of the hook: nothing stays held, and what was sent is paid."""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooked import CHAT, LIBRARIES, Door, answer, streamed
from token_budget.metering import _clients, _send, _settling, _stream, _watch

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs httpx or httpx2")

MODULES = {str(Path(str(module.__file__)).resolve()) for module in (_clients, _send, _settling, _stream, _watch)}


class Planned(BaseException):
    """The interrupt."""


class Bomb:
    """Raises at the n-th line that is run in the hook's modules."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, frame: Any, kind: str, _: Any) -> Any:
        if frame.f_code.co_filename not in MODULES:
            return None
        if kind == "line":
            self.left -= 1
            if self.left == 0:
                raise Planned
        return self

    @contextlib.contextmanager
    def set(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def call(door: Door, kind: str) -> None:
    if kind == "json":
        door.send(answer())
    elif kind == "error":
        door.send(answer(status=429))
    elif kind == "whole":
        door.send(streamed(), body={**CHAT, "stream": True})
    else:
        door.read(streamed())


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("kind", ["json", "error", "whole", "stream"])
def test_an_interrupt_at_any_line_leaves_nothing_held(
    kind: str, is_async: bool, request: pytest.FixtureRequest
) -> None:
    after, interrupted = 0, True
    gc.freeze()  # the collections below then look at what a call left
    request.addfinalizer(gc.unfreeze)
    while interrupted:
        after += 1
        interrupted = False
        door = Door(LIBRARIES[-1], "wrap", is_async=is_async)
        bomb = Bomb(after)
        try:
            with bomb.set():
                call(door, kind)
        except Planned:
            interrupted = True
        assert interrupted == (bomb.left <= 0)
        with warnings.catch_warnings():  # a reservation that nobody knows of yet is given back by its own finaliser
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        sent = bool(door.requests)
        assert door.spent > 0 if sent and kind != "error" else door.spent >= 0
    assert after > 20
