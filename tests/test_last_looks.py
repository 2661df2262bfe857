"""Operations that are disturbed at the worst moment. Each test constructs that moment and does not rely on luck."""

from __future__ import annotations

import sys
import threading
import warnings
from datetime import timedelta
from typing import Any

import pytest

from support import caught, waiters
from token_budget import BudgetOverrun, BudgetPool, PoolForked, Window, _lazy
from token_budget._account import Account
from token_budget._bells import TrioBell, warn_in_an_event_loop
from token_budget._family import Family
from token_budget._group import nobody
from token_budget._line import serve
from token_budget._periods import begin_due, due
from token_budget._reservation import _Warning
from token_budget._telling import Telling, teller


def test_an_operation_that_waited_for_the_lock_through_a_fork_refuses() -> None:
    pool = BudgetPool(token_cap=10)
    family, old = pool._family, pool._family.lock

    def takes() -> Any:
        old.acquire()
        family.fork()
        yield True

    assert caught(PoolForked, lambda: family.run(takes(), True, int))
    pool.detach()
    pool.record(tokens=10)
    assert pool.snapshot().tokens_used == 10


def test_an_operation_whose_signal_handler_forked_refuses_in_the_child() -> None:
    pool = BudgetPool(token_cap=10)
    family = pool._family

    def decide(change: Any) -> None:
        family.fork()
        change.set(pool._account, "tokens_claimed", 10)

    assert caught(PoolForked, lambda: family.run(family.locked, True, family.change, decide, ()))
    assert pool.snapshot().tokens_used == 0


def test_a_decision_that_fails_because_a_handler_changed_the_family_is_made_again() -> None:
    pool = BudgetPool(token_cap=10)
    family, tries = pool._family, []

    def decide(_change: Any) -> str:
        tries.append(1)
        if len(tries) == 1:
            family.change(lambda change: change.set(pool._account, "number", 7), ())
            raise KeyError
        return "decided"

    assert family.change(decide, ()) == "decided"
    with pytest.raises(ZeroDivisionError):  # without a handler's change, the error is raised
        family.change(lambda _change: 1 / 0, ())


def test_a_line_that_a_handler_stirred_after_the_last_check_is_served_when_the_debts_are_paid() -> None:
    pool = BudgetPool(token_cap=10)
    family, account = pool._family, pool._account
    looked: list[Account] = []

    def look(_family: Family, account: Account) -> bool:
        looked.append(account)
        return False

    family._serve = look
    family.stirred.append(account)
    family.pay()
    assert looked == [account]
    assert not family.stirred


def test_a_debt_whose_payment_fails_twice_is_left_to_the_next_operation() -> None:
    class Failing:
        _teller = None
        tried = 0

        def _pay(self, _takes: object) -> None:
            Failing.tried += 1
            raise KeyboardInterrupt

    pool = BudgetPool(token_cap=10)
    pool._family.owed.append(Failing())
    with pytest.raises(KeyboardInterrupt):
        pool.snapshot()
    assert Failing.tried >= 2
    assert len(pool._family.owed) == 1
    pool._family.owed.clear()


def test_an_event_that_arrives_during_the_last_check_is_delivered_at_once() -> None:
    pool, heard = BudgetPool(token_cap=10), list[object]()

    class OfAnother:
        """A debt of another, living thread. During the check whether that thread lives, a handler adds an event."""

        @staticmethod
        def _teller() -> object:
            if not heard and not any(isinstance(one, Telling) for one in pool._family.owed):
                telling = Telling(heard.append, ("event",))
                telling._teller = teller().me
                telling.event = "event"  # type: ignore[assignment]
                pool._family.owed.append(telling)
            return pool

    pool._family.owed.append(OfAnother())
    pool._family.pay()
    assert heard == ["event"]
    pool._family.owed.clear()


def test_a_thread_that_waits_in_a_forked_copy_is_woken_and_refused() -> None:
    pool, ended = BudgetPool(token_cap=10), []
    held = pool.reserve(tokens=10)

    def wait() -> None:
        ended.append(caught(PoolForked, pool.reserve, tokens=5, timeout=None))

    thread = threading.Thread(target=wait)
    thread.start()
    while not waiters(pool):
        threading.Event().wait(0.001)
    pool._family.fork()
    thread.join(30)
    assert ended == [True]
    pool.detach()
    assert held.completed


def test_a_family_without_pools_has_no_first_pool() -> None:
    assert Family(Account(None, None, None, None), serve).first() is None


def test_a_key_with_a_window_of_its_own_is_forgotten_by_the_clock_of_that_window() -> None:
    users = BudgetPool().keyed(token_cap=10)
    users["own"].set_caps(window=Window.every(timedelta(microseconds=1)))
    users["own"].record(tokens=1)
    for key in range(8):
        users[key].record(tokens=1)
    assert "own" not in users
    assert "own" in users._own


def test_a_key_that_an_interrupt_left_half_forgotten_begins_anew() -> None:
    users = BudgetPool().keyed(token_cap=10)
    users["ann"].record(tokens=4)
    users._by_key["ann"].handle = nobody
    assert "ann" not in users
    with pytest.raises(KeyError):
        del users["ann"]
    assert users["ann"].snapshot().tokens_used == 0
    assert len(users) == 1


def test_a_key_that_a_handler_makes_meanwhile_is_made_once() -> None:
    users = BudgetPool().keyed(token_cap=10)

    class Interrupted(dict[Any, Any]):
        interrupted = False

        def setdefault(self, key: Any, account: Any = None) -> Any:
            if key == "ann" and not self.interrupted:
                self.interrupted = True
                users["ann"].record(tokens=3)
            if key == "ben":
                users._own["ben"] = users._own["other"]
            return super().setdefault(key, account)

    users["other"].set_caps(token_cap=5)
    users["other"].reset()
    users["filler"], users["another"]
    assert "other" in users._own
    users._by_key = Interrupted(users._by_key)
    assert users["ann"].snapshot().tokens_used == 3
    users["ben"].record(tokens=1)
    assert users._own["ben"] is users._own["other"]  # what the handler added meanwhile is kept


def test_a_rota_that_a_handler_emptied_raises_no_error() -> None:
    users = BudgetPool().keyed(token_cap=10)
    users["ann"].record(tokens=1)
    account = users._by_key["ann"]
    users._rota.clear()
    users._look_at_next(account, 0.0)
    assert list(users) == ["ann"]


def test_removing_an_account_leaves_its_successor() -> None:
    users = BudgetPool().keyed(token_cap=10)
    users["ann"].record(tokens=1)
    old = users._by_key["ann"]
    del users["ann"]
    users["ann"].record(tokens=2)
    users._remove(old)
    assert users["ann"].snapshot().tokens_used == 2


def test_the_repr_of_a_lazy_module_says_what_it_is() -> None:
    assert repr(_lazy.typing) == "<module 'typing', imported when it is used>"


def test_a_reading_of_a_replaced_clock_begins_no_period() -> None:
    now = [0.0]
    hour = Window.every(timedelta(hours=1), clock=lambda: now[0])
    pool = BudgetPool(token_cap=10, window=hour)
    pool.record(tokens=5)
    now[0] = 3600.0
    ended = due(pool._chain)
    assert ended
    now[0] = 0.0
    pool.set_caps(window=Window.every(timedelta(hours=2), clock=lambda: now[0]))
    pool._family.change(begin_due, (ended,))
    assert pool.snapshot().tokens_used == 5


def test_a_clock_that_fails_hides_no_overrun() -> None:
    readings = iter([0.0, 0.0, 0.0])  # for making the pool, the straight run and the long way
    pool = BudgetPool(token_cap=10, window=Window.every(timedelta(hours=1), clock=lambda: next(readings)))
    with pytest.raises(BudgetOverrun) as raised:
        pool.record(tokens=11, force=True)
    assert raised.value.retry_after is None
    assert pool._account.tokens_claimed == 11


def test_an_owed_warning_does_not_stop_a_finaliser() -> None:
    pool = BudgetPool(token_cap=10)
    reservation = pool.reserve(tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pool._family.owed.append(_Warning(reservation))
        pool._family.pay_waiters()
    assert not pool._family.owed
    reservation.release()


def test_what_a_finaliser_has_paid_may_be_gone_when_it_strikes_it_off() -> None:
    pool = BudgetPool(token_cap=10)
    family, dropped = pool._family, pool.reserve(tokens=4)

    class Faster:
        """Just after it is paid, another thread, which paid it as well, takes it out of what is owed."""

        _teller = None

        def _pay(self, _takes: object) -> None:
            pass

        def _paid(self) -> bool:
            family.owed.remove(self)
            return True

    family.owed += (Faster(), dropped)
    family.pay_waiters()
    assert dropped.completed  # it went on with what else is owed
    assert not family.owed
    assert pool.snapshot().tokens_reserved == 0


def test_without_an_import_of_asyncio_the_pool_looks_for_no_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "asyncio")
    warn_in_an_event_loop(1)
    assert "asyncio" not in sys.modules


def test_the_bell_of_an_ended_trio_run_reports_that_nobody_hears_it() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> TrioBell:
        return TrioBell(trio)

    bell = trio.run(main)
    assert not bell.deaf()  # it knows only after the first ring
    assert not bell.ring()
    assert bell.deaf()
