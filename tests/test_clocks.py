"""Clocks that were wrong and are corrected, and clocks, locks and threads that are patched after the import."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from unittest import mock

import pytest

from shapes import SHAPES, WAYS, Clock
from support import caught, run_program
from token_budget import BudgetExceeded, BudgetPool, Window

DAY = 86_400
NOW = 20_000.0 * DAY + DAY / 4  # six in the morning
YEAR = 365 * DAY


def _record(pool: BudgetPool) -> list[object]:
    pool.record(tokens=1)
    return []


LOOKS: dict[str, Callable[[BudgetPool], object]] = {
    "record": lambda pool: pool.record(tokens=1),
    "reserve": lambda pool: pool.reserve(tokens=1).commit(),
    "areserve": lambda pool: WAYS["areserve"](pool, tokens=1),
    "commit": lambda pool: pool.reserve(tokens=1).commit(tokens=1),
    "snapshot": lambda pool: [pool.snapshot(), *_record(pool)],
    "tree": lambda pool: [pool.snapshot(tree=True), *_record(pool)],
    "refusal": lambda pool: [caught(BudgetExceeded, pool.record, tokens=99), *_record(pool)],
    "force": lambda pool: pool.record(tokens=1, force=True),
}


def end_of(pool: BudgetPool) -> float:
    resets_at = pool.snapshot().resets_at
    assert resets_at is not None
    return resets_at.timestamp()


# ---------------------------------------------------------------- a clock that was a year ahead


@pytest.mark.parametrize("looks", LOOKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_pool_follows_a_clock_that_was_a_year_ahead_and_is_corrected_and_keeps_its_usage(
    shape: str, looks: str
) -> None:
    clock = Clock(NOW)
    asked, pool = SHAPES[shape](token_cap=10, window=Window.daily(clock=clock))
    asked.record(tokens=2)
    clock.now = NOW + YEAR
    LOOKS[looks](asked)  # in another period: the 2 tokens of the first are gone
    assert pool.snapshot().tokens_used == 1
    clock.now = NOW + 1
    LOOKS[looks](asked)
    assert end_of(pool) == 20_001 * DAY
    assert pool.snapshot().tokens_used == 2  # the correction gives no budget a second time
    asked.record(tokens=8)
    assert caught(BudgetExceeded, asked.record, tokens=1)
    clock.now += DAY  # the straight runs see the corrected period's end, not the one a year ahead
    for used in (1, 2, 3):
        LOOKS[looks](asked)
        assert pool.snapshot().tokens_used == used
    clock.now += DAY
    LOOKS[looks](asked)
    assert pool.snapshot().tokens_used == 1
    assert end_of(pool) == 20_003 * DAY


@pytest.mark.parametrize("shape", SHAPES)
def test_reset_follows_the_corrected_clock_too(shape: str) -> None:
    clock = Clock(NOW)
    _asked, pool = SHAPES[shape](token_cap=10, window=Window.daily(clock=clock))
    clock.now += YEAR
    pool.record(tokens=10)
    clock.now -= YEAR
    pool.reset()
    assert end_of(pool) == 20_001 * DAY
    assert pool.snapshot().tokens_used == 0


@pytest.mark.parametrize("steps", [1, 3600, DAY - 1, DAY, DAY + DAY / 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_smaller_step_back_changes_nothing(shape: str, steps: float) -> None:
    clock = Clock(NOW)
    asked, pool = SHAPES[shape](token_cap=10, window=Window.daily(clock=clock))
    asked.record(tokens=10)
    clock.now = NOW - steps  # at most a whole period before the start of the current one
    for ask in WAYS.values():
        assert caught(BudgetExceeded, ask, pool=asked, tokens=1)
    assert end_of(pool) == 20_001 * DAY
    clock.now = NOW + DAY
    asked.record(tokens=10)


def test_a_step_back_of_just_more_than_a_period_before_its_start_is_a_correction() -> None:
    clock = Clock(NOW)
    pool = BudgetPool(token_cap=10, window=Window.daily(clock=clock))
    pool.record(tokens=9)
    clock.now = 19_999.0 * DAY - 0.001
    pool.record(tokens=1)
    assert end_of(pool) == 19_999 * DAY
    assert pool.snapshot().tokens_used == 10
    clock.now += 1
    pool.record(tokens=1)
    assert pool.snapshot().tokens_used == 1


def test_each_key_and_each_new_key_follows_the_corrected_clock() -> None:
    clock = Clock(NOW)
    users = BudgetPool().keyed(token_cap=10, window=Window.daily(clock=clock))
    users["before"].record(tokens=1)
    clock.now += YEAR
    users["before"].record(tokens=3)
    users["during"].record(tokens=4)
    clock.now -= YEAR
    for key, used in (("before", 3), ("during", 4), ("after", 0)):
        users[key].record(tokens=1)
        assert (key, users[key].snapshot().tokens_used) == (key, used + 1)
        assert end_of(users[key]) == 20_001 * DAY
    clock.now += DAY
    for key in ("before", "during", "after", "later"):
        users[key].record(tokens=10)
        assert end_of(users[key]) == 20_002 * DAY


@pytest.mark.parametrize("looks", LOOKS)
def test_parents_and_children_follow_the_corrected_clock_each_by_its_own_period(looks: str) -> None:
    clock = Clock(NOW)
    total = BudgetPool(token_cap=100, window=Window.monthly(clock=clock), name="total")
    team = total.child(token_cap=50, window=Window.daily(clock=clock), name="team")
    asked = team.child()
    clock.now += YEAR
    asked.record(tokens=10)
    clock.now -= YEAR
    LOOKS[looks](asked)
    assert [pool.snapshot().tokens_used for pool in (asked, team, total)] == [11, 11, 11]
    assert end_of(team) == 20_001 * DAY
    assert end_of(total) == datetime(2024, 11, 1, tzinfo=timezone.utc).timestamp()
    clock.now += DAY
    LOOKS[looks](asked)
    assert [pool.snapshot().tokens_used for pool in (asked, team, total)] == [12, 1, 12]


def test_a_pool_that_is_used_up_before_the_correction_has_room_again_at_the_corrected_end() -> None:
    clock = Clock(NOW)
    pool = BudgetPool(token_cap=10, window=Window.every(timedelta(seconds=10), clock=clock))
    start, end = pool._account.terms[3:]
    assert start <= NOW < end
    clock.now += YEAR
    pool.record(tokens=10)
    clock.now -= YEAR
    assert caught(BudgetExceeded, pool.record, tokens=1)
    clock.now = end
    pool.record(tokens=10)


# ---------------------------------------------------------------- clocks and locks are looked up at each use


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_see_a_patched_time(shape: str) -> None:
    with mock.patch("time.time", return_value=NOW):
        asked, pool = SHAPES[shape](token_cap=10, window=Window.daily())
        asked.record(tokens=10)
        assert end_of(pool) == 20_001 * DAY
        assert caught(BudgetExceeded, asked.record, tokens=1)
    with mock.patch("time.time", return_value=NOW + DAY):
        assert pool.snapshot().tokens_used == 0
        asked.record(tokens=9)
        assert end_of(pool) == 20_002 * DAY
    with mock.patch("time.time", return_value=NOW + 2 * DAY):
        asked.reserve(tokens=10).commit()  # by a straight run, with no snapshot before it
        assert pool.snapshot().tokens_used == 10


@pytest.mark.parametrize("window", ["daily", "weekly", "monthly", "every 5h"])
def test_freezegun_moves_every_window(window: str) -> None:
    pytest.importorskip("freezegun")
    program = """
import freezegun
from datetime import timedelta
from support import caught
from token_budget import BudgetExceeded, BudgetPool, Window

pool = BudgetPool(token_cap=10, window=Window.parse(WINDOW))  # made before the freeze, with the real clock
with freezegun.freeze_time("2200-01-01 00:30"):  # of its own process: it visits every module that is loaded
    pool.record(tokens=10)
    assert caught(BudgetExceeded, pool.record, tokens=1)
with freezegun.freeze_time("2200-02-02") as frozen:
    assert pool.snapshot().tokens_used == 0
    pool.record(tokens=10)
    frozen.tick(timedelta(days=40))
    pool.record(tokens=10)
"""
    here = str(Path(__file__).parent)
    run_program(f"import sys; sys.path.insert(0, {here!r}); WINDOW = {window!r}\n{program}")


def test_a_waiting_greenlet_lets_others_run_even_if_gevent_patched_after_the_import() -> None:
    pytest.importorskip("gevent")
    program = """
        import token_budget
        from token_budget import BudgetPool, BudgetTimeout
        import gevent
        from gevent import monkey
        monkey.patch_all()

        def main(asked, pool):
            held = asked.reserve(tokens=10)
            order = []

            def waits():
                with asked.reserve(tokens=4, timeout=60) as reservation:
                    order.append("served")
                    reservation.commit()

            def gives():
                while not pool.statistics().waiters:
                    gevent.sleep(0)
                order.append("others run")
                held.release()

            def gives_up():
                try:
                    asked.reserve(tokens=11 - 1, timeout=0.01)
                except BudgetTimeout:
                    order.append("gave up")

            first = gevent.spawn(gives_up)
            first.join()
            gevent.joinall([gevent.spawn(waits), gevent.spawn(gives)], raise_error=True)
            print(order, asked.snapshot().in_flight)

        pool = BudgetPool(token_cap=10)
        main(pool, pool)
        pool = BudgetPool(token_cap=10)
        main(pool.child(), pool)
        pool = BudgetPool()
        user = pool.keyed(token_cap=10)["user"]
        main(user, user)
        """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["['gave up', 'others run', 'served'] 0"] * 3
