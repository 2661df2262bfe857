"""The hand: the one worker thread of a family, which does steps of the store off an event loop and off finalisers.

It starts at its first use, as a daemon, and does its jobs one after another in the order in which they were given. So
`areserve` keeps the order of its calls.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from token_budget.stores._store import Store

T = TypeVar("T")


class Hand:
    """The worker thread of one family."""

    begun: bool

    def __init__(self, store: Store) -> None:
        raise NotImplementedError

    def begin(self) -> None:
        """Let the thread tend the store from now on, if the store has anything to tend: `if not hand.begun: hand.begin()`.

        For whoever was just granted the first claim of this process.
        """
        raise NotImplementedError

    def tend_soon(self) -> None:
        """Let the thread call `Store.tend` at once: a step has met BudgetUnavailable."""
        raise NotImplementedError

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Let the thread call a function after all that it was given before."""
        raise NotImplementedError

    def drop(self, function: Callable[..., object], *arguments: Any) -> None:
        """Do the same for a finaliser or a signal handler: it takes no lock. Nobody gets the answer.

        A call that raises BudgetUnavailable is repeated until the store answers.
        """
        raise NotImplementedError

    async def off_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        """Let the thread call a function, and await its answer, in a task of asyncio or trio.

        Also where the task is cancelled it waits for the end, so that nothing is lost that was begun; then it raises
        the cancellation.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """End the thread after what it was given."""
        raise NotImplementedError

    def forked(self) -> None:
        """In a forked child: begin anew, without a thread and without the parent's jobs."""
        raise NotImplementedError
