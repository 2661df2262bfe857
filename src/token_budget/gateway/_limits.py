"""Limits: what the gateway takes of one client, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. Each has a default that no honest client meets."""

    body: int = 64 << 20  # of a request; more is answered 413
    header: int = 16 << 10  # of one header, and of the request line; more is answered 400
    headers: int = 256  # how many; more is answered 400
    body_seconds: float = 60  # until a request's body is there; later is answered 408
    idle_seconds: float = 120  # of a connection on which no request comes to its end of headers: it is closed
    linger_seconds: float = 10  # for what a client still sends after its answer: else it would see a reset
    connections: int = 512  # that are open at once; one more is answered 503
    copy: int = 32 << 20  # of a JSON answer that is kept to be read; a longer one is charged in full
    connect_seconds: float = 30  # until a provider is reached
    read_seconds: float = 900  # between two reads of a provider's answer; later is answered 504
