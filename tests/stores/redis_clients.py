"""What the tests of the Redis client share: each package that is installed, and scripts."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from redis_server import Server, new_name, shared
from token_budget.stores.redis._client import Client

PACKAGES = [package for package in ("redis", "valkey") if importlib.util.find_spec(package)]
each_package = pytest.mark.parametrize("package", PACKAGES)

# Counts once an id, however often it is run: what every script of the store does.
COUNT = """
if redis.call('HSETNX', KEYS[2], ARGV[1], 1) == 1 then return redis.call('HINCRBY', KEYS[1], 'n', ARGV[2]) end
return redis.call('HGET', KEYS[1], 'n')
"""


def new_key() -> str:
    """Return a key that no other test uses, with a hash tag."""
    return f"tb:{{{new_name()}}}"


def client_of(
    server: Server | None = None, package: str = PACKAGES[0], *, timeout: float = 30, **settings: Any
) -> Client:
    """Return a `Client` of a server (the shared one if none is given), for a key of its own."""
    return Client((server or shared()).client(package, **settings), key=new_key(), timeout=timeout)


def count(client: Client, operation: str, amount: int = 1, **settings: Any) -> int:
    """Count an operation once, and return the sum."""
    key = client._key
    return int(client.run(client.script(COUNT), (key, f"{key}:ids"), (operation, amount), **settings))


def counted(client: Client) -> int:
    """Return the sum."""
    return int(client.command("HGET", client._key, "n") or 0)
