"""The processes of the benchmarks of stores: each runs one contender for a while and prints what it did, as JSON.

``python _store_workers.py '{"contender": "sqlite", ...}'``. It says ``ready``, waits for a line, and begins. So all
processes of a round begin together, and what it takes to start an interpreter is not measured.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Pair = Callable[[], object]

TOKENS, USD, TOKENS_USED, USD_USED = 2_000, 0.012, 1_650, 0.0099
TOKEN_CAP, USD_CAP = 10**17, 10**8

TWO_HINCRBY = "redis.call('HINCRBY', KEYS[1], 'n', ARGV[1]) return redis.call('HINCRBY', KEYS[2], 'n', ARGV[2])"
# The least that tests caps, and keeps and removes a hold, on both axes of two scopes.
CAP_AND_HOLD = """
for i = 1, 2 do
  local a = redis.call('HMGET', KEYS[i], 'tc', 't', 'nc', 'n')
  local tokens, nanos = tonumber(a[2] or 0) + ARGV[2], tonumber(a[4] or 0) + ARGV[3]
  if tokens > tonumber(a[1] or 1e17) or nanos > tonumber(a[3] or 1e17) then return 0 end
end
for i = 1, 2 do
  redis.call('HINCRBY', KEYS[i], 't', ARGV[2])
  redis.call('HINCRBY', KEYS[i], 'n', ARGV[3])
end
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
else
  redis.call('HDEL', KEYS[3], ARGV[1])
end
return 1
"""


def bare_sqlite(config: dict[str, Any]) -> Pair:
    """Return two transactions of two guarded UPDATEs each, under a file lock: the least that does the same writes."""
    folder = Path(config["folder"], "bare")  # of its own: a folder where files come and go costs our calls more
    folder.mkdir(exist_ok=True)
    path = folder / f"{config['synchronous']}.db"
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    database = sqlite3.connect(path, isolation_level=None, timeout=30)
    execute = database.cursor().execute
    execute("PRAGMA page_size = 1024")
    execute("PRAGMA journal_mode = WAL")
    execute(f"PRAGMA synchronous = {config['synchronous']}")
    execute("CREATE TABLE IF NOT EXISTS scope (id INTEGER PRIMARY KEY, tokens INTEGER, nanos INTEGER)")
    execute("INSERT OR IGNORE INTO scope VALUES (1, ?, ?), (2, ?, ?)", (TOKEN_CAP, 10**17) * 2)
    fcntl.flock(lock, fcntl.LOCK_UN)
    update = "UPDATE scope SET tokens = tokens - ?, nanos = nanos - ? WHERE id = ? AND tokens >= ? AND nanos >= ?"

    def pair() -> None:
        for tokens, nanos in ((TOKENS, 12_000_000), (TOKENS_USED - TOKENS, -2_100_000)):
            fcntl.flock(lock, fcntl.LOCK_EX)
            execute("BEGIN IMMEDIATE")
            execute(update, (tokens, nanos, 2, tokens, nanos))
            execute(update, (tokens, nanos, 1, tokens, nanos))
            execute("COMMIT")
            fcntl.flock(lock, fcntl.LOCK_UN)

    return pair


def ours_sqlite(config: dict[str, Any]) -> Pair:
    """Return a reserve and a commit over two scopes of a file."""
    from token_budget.stores import SQLiteBudgetPool

    path = Path(config["folder"], f"budget-{config['durable']}.db")
    pool = SQLiteBudgetPool(
        path, TOKEN_CAP, USD_CAP, name="total", durable=config["durable"], timeout=60, caps="stored"
    )
    return pair_of(pool.child(TOKEN_CAP, USD_CAP, name="run"))


def ours_redis(config: dict[str, Any]) -> Pair:
    """Return a reserve and a commit over two scopes of a server."""
    from token_budget.stores import RedisBudgetPool

    pool = RedisBudgetPool(client(config), TOKEN_CAP, USD_CAP, name="bench", caps="stored")
    return pair_of(pool.child(TOKEN_CAP, USD_CAP, name="run"))


def pair_of(pool: Any) -> Pair:
    """Return the pair that is measured: the whole public calls."""

    def pair() -> None:
        pool.reserve(tokens=TOKENS, usd=USD).commit(tokens=TOKENS_USED, usd=USD_USED)

    return pair


def client(config: dict[str, Any]) -> Any:
    """Return a client of the server."""
    return import_module("redis").Redis(port=config["port"], socket_timeout=30)


def bare_redis(config: dict[str, Any]) -> Pair:
    """Return two scripts of two HINCRBY each."""
    script = client(config).register_script(TWO_HINCRBY)

    def pair() -> None:
        script(keys=("bare:{b}:1", "bare:{b}:2"), args=(TOKENS, TOKENS))
        script(keys=("bare:{b}:1", "bare:{b}:2"), args=(TOKENS_USED - TOKENS, TOKENS_USED - TOKENS))

    return pair


def held_redis(config: dict[str, Any]) -> Pair:
    """Return two scripts with a test of caps, and a hold that is kept and removed."""
    script = client(config).register_script(CAP_AND_HOLD)
    keys = ("held:{b}:1", "held:{b}:2", "held:{b}:h")

    def pair() -> None:
        script(keys=keys, args=("id", TOKENS, 12_000_000, 1))
        script(keys=keys, args=("id", TOKENS_USED - TOKENS, -2_100_000, 0))

    return pair


def limits(config: dict[str, Any]) -> Pair:
    """Return two hits of the package `limits`: a fixed window, one counter, no hold."""
    storage = import_module("limits.storage").RedisStorage(f"redis://127.0.0.1:{config['port']}/1")
    limiter = import_module("limits.strategies").FixedWindowRateLimiter(storage)
    item = import_module("limits").RateLimitItemPerDay(10**15)

    def pair() -> None:
        limiter.hit(item, "total", cost=TOKENS)
        limiter.hit(item, "total", cost=1)

    return pair


def token_throttle(config: dict[str, Any]) -> Pair:
    """Return a reservation of the package `token-throttle` over two metrics, and its refund, on one event loop."""
    import asyncio

    throttle = import_module("token_throttle")
    made = import_module("redis.asyncio").Redis(port=config["port"], db=2)
    quotas = throttle.UsageQuotas(
        [
            throttle.Quota(metric="tokens", limit=10**15, per_seconds=86_400),
            throttle.Quota(metric="requests", limit=10**12, per_seconds=86_400),
        ]
    )
    limiter = throttle.RateLimiter(
        lambda _model: throttle.PerModelConfig(quotas=quotas), backend=throttle.RedisBackendBuilder(made)
    )
    loop = asyncio.new_event_loop()

    async def both() -> None:
        held = await limiter.acquire_capacity({"tokens": TOKENS, "requests": 1}, model="m")
        await limiter.refund_capacity({"tokens": TOKENS_USED, "requests": 1}, held)

    return lambda: loop.run_until_complete(both())


CONTENDERS: dict[str, Callable[[dict[str, Any]], Pair]] = {
    "bare sqlite": bare_sqlite,
    "sqlite": ours_sqlite,
    "bare redis": bare_redis,
    "held redis": held_redis,
    "redis": ours_redis,
    "limits": limits,
    "token-throttle": token_throttle,
}


class Line:
    """Threads of this process that wait for room, hold it for a while, and ask again."""

    def __init__(self, config: dict[str, Any]) -> None:
        from token_budget.stores import open_pool

        self.pool: Any = open_pool(config["store"], token_cap=config["room"], caps="stored", durable=False)
        self.config = config
        self.waits: list[float] = []

    def run(self) -> dict[str, Any]:
        """Return how long each waited, how many were served, and how long that took."""
        started = time.monotonic()
        end = started + self.config["seconds"]

        def work() -> None:
            while time.monotonic() < end:
                begun = time.monotonic()
                with self.pool.reserve(tokens=1, timeout=60) as reservation:
                    self.waits.append(time.monotonic() - begun)
                    time.sleep(self.config["hold"])
                    reservation.release()

        threads = [threading.Thread(target=work) for _ in range(self.config["threads"])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"waits": self.waits, "count": len(self.waits), "seconds": time.monotonic() - started}


def run_for(pair: Pair, seconds: float) -> dict[str, Any]:
    """Repeat a pair for so many seconds; return how often, and what each took in nanoseconds."""
    took: list[int] = []
    clock = time.perf_counter_ns
    begun = before = clock()
    end = begun + int(seconds * 1e9)
    while before < end:
        pair()
        now = clock()
        took.append(now - before)
        before = now
    return {"count": len(took), "seconds": (before - begun) / 1e9, "took": took}


def main() -> None:
    """Run the contender that the one argument describes."""
    config = json.loads(sys.argv[1])
    if config["contender"] == "line":
        line = Line(config)
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(line.run()), flush=True)
        return
    pair = CONTENDERS[config["contender"]](config)
    for _ in range(20):
        pair()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(run_for(pair, config["seconds"])), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
