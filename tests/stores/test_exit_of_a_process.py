"""A process that ends without closing its pool: it objects to nobody, and what it held is charged."""

from __future__ import annotations

import subprocess
import sys

import pytest

from redis_server import new_name, shared
from token_budget.stores import RedisBudgetPool

PROGRAM = """
import sys
import redis
from token_budget.stores import RedisBudgetPool
pool = RedisBudgetPool(redis.Redis(port=int(sys.argv[1])), name=sys.argv[2], usd_cap=50, on_unavailable=sys.argv[3])
pool.record(usd=1)
held = pool.reserve(usd=2)
"""


@pytest.mark.parametrize("on_unavailable", ["refuse", "allow"])
@pytest.mark.parametrize("how", ["", "sys.exit(1)", "raise SystemError('a bug')"])
def test_a_process_that_has_ended_does_not_object_to_other_caps(how: str, on_unavailable: str) -> None:
    server, name = shared(), new_name()
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM + how, str(server.port), name, on_unavailable]
    subprocess.run(program, check=False, timeout=60, stderr=subprocess.DEVNULL)
    pool = RedisBudgetPool(server.client(), name=name, usd_cap=60)  # no StoreMismatch
    snapshot = pool.snapshot()
    assert (snapshot.usd_cap, snapshot.usd_used, snapshot.usd_reserved) == (60, 3, 0)
    assert [one.usd for one in pool.expired()] == [2]
    pool.close()
