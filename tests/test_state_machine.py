"""P1 to P7: any sequence of operations leaves the pool with exactly the numbers of the naive ledger."""

from __future__ import annotations

import warnings
from fractions import Fraction

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import strategies
from ledger import Alarm, Amount, Ledger, grid
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool, Reservation, ReservationClosed


class PoolAgainstLedger(RuleBasedStateMachine):
    """Each rule does the same operation on the pool and on the ledger, and both must give the same answer."""

    pool: BudgetPool
    ledger: Ledger

    @initialize(token_cap=strategies.token_caps, usd_cap=strategies.usd_caps)
    def start(self, token_cap: int | None, usd_cap: float | None) -> None:
        self.pool = BudgetPool(token_cap, usd_cap)
        self.ledger = Ledger(token_cap, None if usd_cap is None else grid(usd_cap))
        self.open: dict[int, Reservation] = {}
        self.closed: list[Reservation] = []
        self.made = 0
        self.heard: list[int] = []
        self.told: list[int] = []

    def check_numbers(self, error: BudgetExceeded, axis: str, before: Ledger, request: Amount) -> None:
        which = 0 if axis == "tokens" else 1
        unit = 1 if axis == "tokens" else 10**9
        nanos = (error.used_nanos, error.reserved_nanos, error.requested_nanos, error.attempted_nanos)
        shown: object = (error.used, error.reserved, error.requested, error.attempted) if axis == "tokens" else nanos
        used, reserved, asked = before.used()[which] * unit, before.reserved()[which] * unit, request[which] * unit
        assert error.axis == axis
        assert shown == (used, reserved, asked, used + reserved + asked)
        cap = self.ledger.token_cap if axis == "tokens" else self.ledger.usd_cap
        assert cap is not None
        assert error.exhausted == (used + asked > cap * unit)

    def after(self) -> None:
        """Note the alarms that an operation sets off."""
        self.told += self.ledger.told()

    @rule(tokens=strategies.tokens, usd=strategies.usd)
    def record(self, tokens: int, usd: float) -> None:
        amount = (tokens, grid(usd))
        axis = self.ledger.over(amount)
        if axis is None:
            self.pool.record(tokens=tokens, usd=usd)
            self.ledger.spent.append(amount)
        else:
            with pytest.raises(BudgetExceeded) as raised:
                self.pool.record(tokens=tokens, usd=usd)
            assert type(raised.value) is BudgetExceeded
            self.check_numbers(raised.value, axis, self.ledger, amount)
        self.after()

    @rule(tokens=strategies.tokens, usd=strategies.usd)
    def record_what_was_spent_already(self, tokens: int, usd: float) -> None:
        amount = (tokens, grid(usd))
        before = Ledger(None, None, list(self.ledger.spent), dict(self.ledger.held))
        self.ledger.spent.append(amount)
        axis = self.ledger.overrun(amount)
        if axis is None:
            self.pool.record(tokens=tokens, usd=usd, force=True)
        else:
            with pytest.raises(BudgetOverrun) as raised:
                self.pool.record(tokens=tokens, usd=usd, force=True)
            self.check_numbers(raised.value, axis, before, amount)
        self.after()

    @rule(tokens=strategies.tokens, usd=strategies.usd, by_try=st.booleans())
    def reserve(self, tokens: int, usd: float, *, by_try: bool) -> None:
        amount = (tokens, grid(usd))
        axis = self.ledger.over(amount)
        function = self.pool.try_reserve if by_try else self.pool.reserve
        if axis is None:
            reservation = function(tokens=tokens, usd=usd)
            assert reservation.reserved_tokens == tokens
            assert reservation.reserved_usd_nanos == amount[1] * 10**9
            assert not reservation.completed
            self.made += 1
            self.open[self.made] = reservation
            self.ledger.held[self.made] = amount
        else:
            with pytest.raises(BudgetExceeded) as raised:
                function(tokens=tokens, usd=usd)
            self.check_numbers(raised.value, axis, self.ledger, amount)
        self.after()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.none() | strategies.tokens, usd=st.none() | strategies.usd)
    def commit(self, data: st.DataObject, tokens: int | None, usd: float | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.open)))
        reservation = self.open.pop(key)
        held = self.ledger.held.pop(key)
        amount = (held[0] if tokens is None else tokens, held[1] if usd is None else grid(usd))
        before = Ledger(None, None, list(self.ledger.spent), dict(self.ledger.held))
        self.ledger.spent.append(amount)
        axis = self.ledger.overrun((amount[0] - held[0], amount[1] - held[1]))
        if axis is None:
            reservation.commit(tokens=tokens, usd=usd)
        else:
            with pytest.raises(BudgetOverrun) as raised:
                reservation.commit(tokens=tokens, usd=usd)
            self.check_numbers(raised.value, axis, before, amount)
        self.closed.append(reservation)
        self.after()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), by_block=st.booleans())
    def release(self, data: st.DataObject, *, by_block: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.open)))
        reservation = self.open.pop(key)
        del self.ledger.held[key]
        if by_block:
            with reservation:
                pass
        else:
            reservation.release()
        self.closed.append(reservation)
        self.after()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.open)))
        del self.ledger.held[key]
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            del self.open[key]
        assert [warning.category for warning in seen] == [ResourceWarning]
        self.pool.snapshot()  # an operation, which releases the dropped reservation
        self.after()

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        reservation = data.draw(st.sampled_from(self.closed))
        reservation.release()
        with pytest.raises(ReservationClosed):
            reservation.commit(tokens=5, usd=0.5)
        with pytest.raises(ReservationClosed), reservation:
            pass
        assert reservation.completed

    @rule()
    def reset(self) -> None:
        self.pool.reset()
        self.ledger.begin_anew()
        self.after()

    @rule(token_cap=strategies.token_caps, usd_cap=strategies.usd_caps)
    def set_caps(self, token_cap: int | None, usd_cap: float | None) -> None:
        self.pool.set_caps(token_cap=token_cap, usd_cap=usd_cap)
        self.ledger.set_caps(token_cap, None if usd_cap is None else grid(usd_cap))

    @precondition(lambda self: len(self.ledger.alarms) < 3)
    @rule(share=st.sampled_from(["1/10", "1/2", "4/5", "1", "3/2"]).map(Fraction))
    def on_threshold(self, share: Fraction) -> None:
        name = len(self.ledger.alarms)
        self.pool.on_threshold(share, lambda _event: self.heard.append(name))
        self.ledger.alarms.append(Alarm(name, share))

    @invariant()
    def same_alarms(self) -> None:
        assert self.heard == self.told

    @invariant()
    def same_numbers(self) -> None:
        snapshot = self.pool.snapshot()
        ledger = self.ledger
        assert snapshot.tokens_used == ledger.used()[0]
        assert snapshot.tokens_reserved == ledger.reserved()[0]
        assert snapshot.usd_used_nanos == ledger.used()[1] * 10**9
        assert snapshot.usd_reserved_nanos == ledger.reserved()[1] * 10**9
        assert snapshot.in_flight == len(ledger.held)
        assert snapshot.token_cap == ledger.token_cap
        assert snapshot.usd_used == float(ledger.used()[1])
        if ledger.token_cap is None:
            assert snapshot.tokens_remaining is None
        else:
            assert snapshot.tokens_remaining == ledger.token_cap - ledger.used()[0] - ledger.reserved()[0]
        if ledger.usd_cap is None:
            assert snapshot.usd_remaining_nanos is None
        else:
            remaining = ledger.usd_cap - ledger.used()[1] - ledger.reserved()[1]
            assert snapshot.usd_remaining_nanos == remaining * 10**9

    def teardown(self) -> None:
        for reservation in getattr(self, "open", {}).values():
            reservation.release()


TestPoolAgainstLedger = PoolAgainstLedger.TestCase
