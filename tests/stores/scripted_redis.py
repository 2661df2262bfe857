"""A server that speaks RESP2 and says what a test wants: errors, parts of answers, nothing."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

Reply = bytes | list[bytes] | None  # None: no answer ever; a list: pieces that are sent one by one


class ScriptedRedis:
    """Answers each command by a function of its words; also those of the client's handshake."""

    def __init__(
        self,
        answer: Callable[[list[str]], Reply],
        between: Callable[[], object] = lambda: None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Listen on a free port.

        Args:
            answer: returns what is sent for the words of a command.
            between: is called between the pieces of an answer.
            context: with it the server speaks TLS.
        """
        self.asked: list[list[str]] = []  # all commands so far
        self.connections = 0
        self._answer = answer
        self._between = between
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._wires: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, _ = self._listening.accept()
                self.connections += 1
                self._wires.append(wire)
                threading.Thread(target=self._talk, args=(wire,), daemon=True).start()

    def _talk(self, wire: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), wire:
            if self._context is None:
                self._converse(wire)
            else:
                with self._context.wrap_socket(wire, server_side=True) as encrypted:
                    self._converse(encrypted)

    def _converse(self, wire: socket.socket) -> None:
        with wire.makefile("rb") as incoming:
            while line := incoming.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int(incoming.readline()[1:])
                    words.append(incoming.read(length + 2)[:-2].decode())
                self.asked.append(words)
                reply = self._answer(words)
                for piece in [reply] if isinstance(reply, bytes) else reply or []:
                    wire.sendall(piece)
                    self._between()

    def count(self, *words: str) -> int:
        """Return how often a command that begins with these words was asked."""
        return sum(asked[: len(words)] == list(words) for asked in self.asked)

    def hang_up(self) -> None:
        """Close all connections that are open."""
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.hang_up()


@contextlib.contextmanager
def scripted(answer: Callable[[list[str]], Reply], **settings: Any) -> Iterator[ScriptedRedis]:
    """Run such a server for a block. What it is not told to answer otherwise (None of a handshake), gets +OK."""
    server = ScriptedRedis(lambda words: b"+OK\r\n" if words[0] in {"CLIENT", "SELECT"} else answer(words), **settings)
    try:
        yield server
    finally:
        server.close()
