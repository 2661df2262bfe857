"""Threads: where the event loop has done what would block it: a host's name looked up, a long body read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any


class DaemonThreads(ThreadPoolExecutor):
    """Runs each call in a thread of its own, for which nobody waits as the process ends.

    A name server that does not answer holds up a lookup for long, also where nobody wants the answer any more. Python
    waits for the usual threads of an event loop before a process ends.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call; its result is the future's.

        Raises:
            RuntimeError: the system has no thread for it.
        """
        future: Future[Any] = Future()
        call = partial(fn, *args, **kwargs)
        threading.Thread(target=_run, args=(future, call), name="token-budget-work", daemon=True).start()
        return future


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
        future.set_exception(error)
    else:
        future.set_result(result)
