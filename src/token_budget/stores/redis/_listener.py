"""Listener: waits for messages of one channel, over a connection of its own that heals itself."""

from __future__ import annotations

from typing import Any


class Listener:
    """Waits for messages of one channel. For one thread at a time; `close` may come from any."""

    def __init__(self, client: Any, channel: str) -> None:
        self._client = client
        self._channel = channel

    def wait(self, seconds: float) -> bool:
        """Block until a message comes, or for so many seconds. Return whether one came.

        It never raises for what the server or the network does. It returns True early where messages may have been
        missed: when it has just subscribed, at first or after the connection was lost. Messages can get lost without a
        sign (Redis promises no delivery), so look now and then in any case.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the wait of another thread, if there is one, and close the connection. `wait` may be called again."""

    def forked(self) -> None:
        """In a forked child: forget the parent's connection, without a word to the server."""
