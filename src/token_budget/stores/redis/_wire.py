"""Wire: one connection, opened by the package of the user's client, over which this module itself sends and reads.

The package (redis-py, valkey-py) connects, encrypts, logs in and selects the database. From then on RESP2 is spoken
here, in a page, for what no release of the packages has: a deadline for a whole call (theirs is for each read), error
codes as the server sends them, and the same answers whatever the client's settings are. It also takes less time: a
script over it takes 0.7 of what it takes by ``client.evalsha`` of redis-py 8 (155 to 107 us on one machine).
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable
from typing import Any

_LEAST = 0.001  # seconds: a time-out of 0 would mean "do not block", and fail at once
_MOST = 86_400.0  # seconds: what `poll` takes ends at 24 days


class Refusal(Exception):
    """The server's answer is an error: its code, such as READONLY or ERR, and its text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code: str = code
        self.text: str = text


def left(until: float) -> float:
    """Return the time-out of a socket that is left of the time until a moment."""
    return min(max(until - time.monotonic(), _LEAST), _MOST)


def packed(words: Iterable[str | int]) -> bytes:
    """Return the words of a command as they are sent, without the line before them that counts them."""
    texts = [str(word) for word in words]
    text = "".join([f"${len(word)}\r\n{word}\r\n" for word in texts])
    if text.isascii():  # characters are bytes
        return text.encode("ascii")
    coded = [word.encode("utf-8", "surrogateescape") for word in texts]
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in coded])


def command(*words: str | int) -> bytes:
    """Return a command as it is sent."""
    return b"*%d\r\n%b" % (len(words), packed(words))


class _WithinDeadline:
    """Mixed into the client's own class of connections: what connects and logs in ends at a moment, in all."""

    until: float = math.inf
    _sock: Any

    @property
    def socket_timeout(self) -> float:
        return left(self.until)

    @socket_timeout.setter
    def socket_timeout(self, value: Any) -> None:
        """Ignore the client's own value."""

    socket_connect_timeout = socket_timeout

    def read_response(self, *args: Any, **settings: Any) -> Any:
        self._sock.settimeout(self.socket_timeout)
        return super().read_response(*args, **settings)  # type: ignore[misc]


@functools.cache
def within_deadline(connection_class: type) -> type:
    """Return a class of connections that connects within a deadline."""
    return type(connection_class.__name__, (_WithinDeadline, connection_class), {})


class Wire:
    """One connection. For one thread at a time; broken by whatever interrupts it, and then to be thrown away."""

    __slots__ = ("_at", "_connection", "_data", "_socket", "generation", "used")

    def __init__(self, connection: Any, until: float) -> None:
        """Connect by a connection of the client's package, and log in.

        Raises:
            Exception: whatever the package, the operating system or a provider of credentials raises.
        """
        connection.until = until
        connection.connect()
        self._connection = connection
        self._socket = connection._sock
        self._data = b""  # what was received; it is read up to `_at`
        self._at = 0
        self.generation: int = 0  # of the client that keeps it
        self.used: bool = False  # whether it has been idle: the server may have closed it meanwhile

    def ask(self, sent: bytes, until: float) -> Any:
        """Send a command and return its answer.

        Raises:
            Refusal: the server answers with an error; the wire is as good as before.
            OSError: it is lost, or did not answer by ``until`` (TimeoutError). The wire is closed.
        """
        try:
            self.send(sent, until)
            answer = self._read(until)
        except BaseException:
            self.close()
            raise
        if type(answer) is not Refusal:
            return answer
        try:
            raise answer
        finally:
            del answer  # it refers to this frame

    def send(self, sent: bytes, until: float) -> None:
        """Send a command whose answer `receive` returns."""
        self._socket.settimeout(left(until))
        self._socket.sendall(sent)

    @property
    def pending(self) -> bool:
        """Whether more was received than was read."""
        return self._at < len(self._data)

    def receive(self, begins: float, ends: float) -> Any:
        """Return the next answer or message, or a Refusal. None if none has begun by ``begins``.

        Raises:
            OSError: the wire is lost, or what has begun is not complete by ``ends``.
        """
        if not self.pending:
            try:
                self._more(begins)
            except TimeoutError:
                return None
        return self._read(ends)

    def close(self) -> None:
        """Close the connection; this wakes a thread that reads from it."""
        self._connection.disconnect()

    # ------------------------------------------------------------------ RESP2

    def _received(self, until: float) -> bytes:
        self._socket.settimeout(left(until))
        data: bytes = self._socket.recv(65_536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data

    def _more(self, until: float) -> None:
        self._data, self._at = self._data[self._at :] + self._received(until), 0

    def _read(self, until: float) -> Any:
        """Return one answer; a Refusal is returned."""
        end = self._data.find(b"\r\n", self._at)
        while end < 0:
            self._more(until)
            end = self._data.find(b"\r\n")
        kind = self._data[self._at]
        line = self._data[self._at + 1 : end]
        self._at = end + 2
        if kind == 58:  # ":"
            return int(line)
        if kind == 36:  # "$"
            return self._bulk(int(line), until)
        if kind == 42:  # "*"
            count = int(line)
            return None if count < 0 else [self._read(until) for _ in range(count)]
        if kind == 43:  # "+"
            return _text(line)
        if kind == 45:  # "-"
            code, _, rest = _text(line).partition(" ")
            return Refusal(code, rest) if code.isupper() else Refusal("ERR", f"{code} {rest}")
        raise ConnectionError("what answers there does not speak the protocol of Redis")

    def _bulk(self, length: int, until: float) -> str | None:
        if length < 0:
            return None
        missing = self._at + length + 2 - len(self._data)
        if missing > 0:
            pieces = [self._data[self._at :]]
            while missing > 0:
                pieces.append(self._received(until))
                missing -= len(pieces[-1])
            self._data, self._at = b"".join(pieces), 0
        begin = self._at
        self._at = begin + length + 2
        return _text(self._data[begin : begin + length])


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
