"""`cli._fanout.Turns`: a thousand threads of the demo run a few at a time, in the order in which they asked."""

from __future__ import annotations

import threading

from token_budget.cli._fanout import Turns


def start_waiting(turns: Turns, begun: list[str], name: str) -> threading.Thread:
    """Start a thread that asks for a turn, and return once it waits."""

    def wait_and_note() -> None:
        turns.begin()
        begun.append(name)
        done[name].release()

    done[name] = threading.Semaphore(0)
    waiting = len(turns._waiting)
    thread = threading.Thread(target=wait_and_note, daemon=True)
    thread.start()
    while len(turns._waiting) == waiting:  # the thread cannot report that it waits
        thread.join(0.001)
    return thread


done: dict[str, threading.Semaphore] = {}


def test_a_turn_that_ends_goes_to_the_thread_that_has_waited_longest() -> None:
    turns = Turns(2)
    turns.begin()
    turns.begin()
    begun: list[str] = []
    threads = [start_waiting(turns, begun, name) for name in ("first", "second")]
    assert begun == []
    turns.end()
    assert done["first"].acquire(timeout=30)
    assert begun == ["first"]
    turns.end()
    assert done["second"].acquire(timeout=30)
    assert begun == ["first", "second"]
    for thread in threads:
        thread.join(30)


def test_a_turn_that_nobody_waits_for_stays_free() -> None:
    turns = Turns(1)
    for _ in range(3):
        turns.begin()
        turns.end()
    assert turns._free == 1
