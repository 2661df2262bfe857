"""Faults of Redis and Valkey: processes over one server, which is killed, paused, emptied, filled, or replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from fault_audit import life_of
from fault_crew import BudgetUnavailable, Crew, Outcome, wait_until
from faults_of_sqlite import clock_steps

from redis_server import HOST, Server, replica_of, sentinel_of


def _store(server: Server) -> str:
    return f"{server.url}#total"


def kills(scale: float, workers: int) -> Outcome:
    """Kill -9 of workers at random points."""
    with Server() as server, Crew(_store(server), workers) as crew:
        for _ in range(max(6, round(200 * scale))):
            crew.kill_at_random()
        return crew.finish()


def soak(seconds: float, workers: int) -> Outcome:
    """Go on for a while, with a kill now and then."""
    with Server() as server, Crew(_store(server), workers) as crew:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            crew.kill_at_random()
            time.sleep(crew.random.uniform(0, 1))
        return crew.finish()


def stopped_holder(scale: float, workers: int) -> Outcome:
    """SIGSTOP to a worker for longer than its lease: it is charged in full, and its late commit corrects that."""
    with Server() as server, Crew(_store(server), workers) as crew:
        for _ in range(max(1, round(5 * scale))):
            key = crew.random.choice(crew.living)
            wait_until(partial(_stopped_in_a_call, crew, key), "it is never in the middle of a call")
            try:
                wait_until(lambda: _charged(crew), "the holder is not charged at the end of its lease")
            finally:
                os.kill(crew.processes[key].pid, signal.SIGCONT)
        return crew.finish()


def _stopped_in_a_call(crew: Crew, key: str) -> bool:
    """Stop a worker; let it go on if it holds nothing."""
    pid = crew.processes[key].pid
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    if life_of(crew.folder / f"{key}.log").step == "g":
        return True
    os.kill(pid, signal.SIGCONT)
    return False


def _charged(crew: Crew) -> bool:
    crew.pool.snapshot()
    return bool(crew.pool.expired())


def restarted(scale: float, workers: int) -> Outcome:
    """Kill -9 of the server, which comes back with all that it has answered (appendfsync always)."""
    with Server(persistence="always") as server, Crew(_store(server), workers) as crew:
        for _ in range(max(2, round(10 * scale))):
            server.restart()
            time.sleep(0.3)
        crew.kill_at_random()
        return crew.finish()


def emptied(_scale: float, workers: int, *, how: str) -> Outcome:
    """The server has nothing any more: all refuse, and create=False is no fresh budget."""
    with Server() as server, Crew(_store(server), workers) as crew:
        crew.stop_watching()
        if how == "restart":
            server.restart(empty=True)
        else:
            server.ask("FLUSHALL")
        outcome = crew.lost(time.monotonic_ns())
        crew.refuses_newcomers(create=False)
        return outcome


def key_gone(_scale: float, workers: int, *, key: str, but: tuple[str, ...]) -> Outcome:
    """One key is deleted, or evicted by a policy that was set behind our back: who needs it refuses."""
    with Server() as server, Crew(_store(server), workers) as crew:
        crew.stop_watching()
        if not server.ask("DEL", key).startswith(b":1"):
            crew.findings.append(f"there is no key {key}")
        return crew.lost(time.monotonic_ns(), but=but)


def owners_gone(_scale: float, workers: int) -> Outcome:
    """The hashes of processes that live are deleted, with the claims that they hold: each of them refuses."""
    with Server() as server, Crew(_store(server), workers) as crew:
        crew.stop_watching()
        client = server.client()
        keys = [key for key in client.keys("tb:{total}:o:*") if key.count(b":") == 3]
        gone = client.delete(*keys)
        return crew.lost(time.monotonic_ns())._replace(note=f"{gone} hashes of processes deleted")


def paused(scale: float, workers: int, *, seconds: float, timeout: float) -> Outcome:
    """SIGSTOP to the server: nothing answers, all sockets stay open."""
    with Server() as server, Crew(_store(server), workers, timeout=timeout) as crew:
        for _ in range(max(1, round(4 * scale))):
            with server.paused():
                time.sleep(seconds if scale >= 1 else min(seconds, 1.5))
            time.sleep(0.5)
        return crew.finish()


def clients_killed(scale: float, workers: int) -> Outcome:
    """CLIENT KILL in a loop: no error reaches a caller."""
    with Server() as server, Crew(_store(server), workers) as crew:
        times = max(20, round(190 * scale))
        for _ in range(times):
            server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            time.sleep(0.04)
        outcome = crew.finish()
        if outcome.unavailable:
            outcome.unexplained.append(f"{outcome.unavailable} calls were refused")
        return outcome._replace(note=f"{times} times CLIENT KILL")


def memory_full(scale: float, workers: int) -> Outcome:
    """Maxmemory is reached, with noeviction: calls are refused, and go on when there is room."""
    with Server() as server, Crew(_store(server), workers, timeout=1) as crew:
        for _ in range(max(1, round(5 * scale))):
            server.ask("CONFIG", "SET", "maxmemory", "1")
            crew.wait_for_refusals()
            crew.restart(crew.random.choice(crew.living))
            server.ask("CONFIG", "SET", "maxmemory", "0")
            time.sleep(0.5)
        return crew.finish()


def promoted(_scale: float, workers: int, *, behind: bool) -> Outcome:
    """The master dies and a replica is promoted.

    Replication is asynchronous: what had not reached the replica is lost. Without ``behind`` all has reached it, since
    the master takes nothing more until it has. ``behind`` makes sure that something is lost: the replica is
    cut off for a moment before the master dies, which goes on answering meanwhile. Then scopes have less than their
    processes were told, by at most what they were told since that moment, and never more.
    """
    with (
        Server() as master,
        replica_of(master) as replica,
        sentinel_of(master) as sentinel,
        Crew(f"redis+sentinel://{HOST}:{sentinel.port}/total/0#total", workers, timeout=20) as crew,
    ):
        cut_off = time.monotonic_ns() if behind else None
        if behind:
            replica.pause()
            master.ask("CLIENT", "KILL", "TYPE", "replica")
            time.sleep(0.3)
        else:
            master.ask("CLIENT", "PAUSE", "60000", "WRITE")
            wait_until(lambda: _offset(replica) == _offset(master), "the replica does not catch up")
        master.kill()
        since = {key: len(life.grants) for key, life in crew.last().items()}
        if behind:
            replica.resume()
        wait_until(lambda: replica.info("replication").get("role") == "master", "nobody is promoted")
        wait_until(
            lambda: any(len(life.grants) > since[key] + 5 or life.ended for key, life in crew.last().items()),
            "nobody goes on",
        )
        time.sleep(0.5)
        return crew.finish(cut_off)


def _offset(server: Server) -> str:
    return server.info("replication")["master_repl_offset"]


def clock(scale: float, workers: int) -> Outcome:
    """Step the clock of the clients' host: only the server's counts."""
    with Server() as server:
        return clock_steps(scale, workers, _store(server))


def forks(scale: float, workers: int) -> Outcome:
    """Fork in the middle of a call: both go on, over connections of their own."""
    with Server() as server, Crew(_store(server), workers, fork=True) as crew:
        wait_until(lambda: sum(bool(life.child) for life in crew.last().values()) == workers, "not all fork")
        time.sleep(max(0.3, 5 * scale))
        for key in crew.living[: workers // 2]:
            crew.kill(key)
        time.sleep(max(0.3, 2 * scale))
        return crew.finish()


FAULTS: dict[str, tuple[str, Callable[..., Any], tuple[int, ...]]] = {
    "redis-kills": ("kill -9 at random points", kills, (4, 8)),
    "redis-stopped-holder": ("holder stopped past its lease", stopped_holder, (3,)),
    "redis-restarted": ("server killed and restarted, AOF always", restarted, (4,)),
    "redis-restarted-empty": ("server restarted empty", partial(emptied, how="restart"), (3,)),
    "redis-flushall": ("FLUSHALL", partial(emptied, how="flushall"), (3,)),
    "redis-root-gone": ("the root's key deleted", partial(key_gone, key="tb:{total}", but=()), (3,)),
    "redis-scope-gone": (
        "a named scope's key deleted",
        partial(key_gone, key="tb:{total}:s:total/slots", but=("bystander",)),
        (3,),
    ),
    "redis-owners-gone": ("the hashes of all processes deleted", owners_gone, (3,)),
    "redis-paused": ("server stopped 1 s", partial(paused, seconds=1, timeout=5), (4,)),
    "redis-paused-long": ("server stopped 5 s, time-out 1 s", partial(paused, seconds=5, timeout=1), (4,)),
    "redis-client-kill": ("CLIENT KILL in a loop", clients_killed, (4,)),
    "redis-memory-full": ("maxmemory reached", memory_full, (3,)),
    "redis-promoted": ("a replica promoted", partial(promoted, behind=False), (3,)),
    "redis-promoted-behind": ("a replica promoted that is behind", partial(promoted, behind=True), (3,)),
    "redis-clock": ("wall clock stepped an hour", clock, (3,)),
    "redis-fork": ("fork with open connections", forks, (4,)),
}


__all__ = ["FAULTS", "BudgetUnavailable", "soak"]
