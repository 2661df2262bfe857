"""P1 to P7 and P10 over a tree of scopes with windows, joins, keys and waiters, against a naive model.

The model holds a `Ledger` a scope and a list of those who wait. After each step it serves them as plainly as can be
said: refuse who can never fit; else give room to the oldest who fits everywhere and behind nobody older; again, until
nothing changes. It knows no queues, no journal and no locks, and looks at everybody each time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger import Amount, Ledger, grid
from token_budget import BudgetExceeded, BudgetOverrun, BudgetPool, PoolClosed, Reservation, ReservationClosed, Window
from token_budget._waiting import GRANTED, REFUSED, WAITING, Waiter

tokens = st.integers(0, 12)
usd = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0])
token_caps = st.none() | st.integers(0, 30)
usd_caps = st.none() | st.sampled_from([0.3, 1.0, 2.5])


@dataclass
class Scope:
    """What the model knows of one pool."""

    name: str
    ledger: Ledger
    period: float | None = None  # the length of its window
    ends: float = float("inf")
    closed: bool = False

    def fits(self, amount: Amount) -> bool:
        return not self.closed and self.ledger.over(amount) is None

    def hopeless(self, amount: Amount) -> bool:
        ledger = Ledger(self.ledger.token_cap, self.ledger.usd_cap, self.ledger.spent)
        return self.closed or ledger.over(amount) is not None


@dataclass
class Request:
    """One that waits, or a reservation in flight."""

    key: int
    chain: list[Scope]
    amount: Amount
    reservation: Reservation
    waiter: Waiter | None = None
    refused: bool = False


@dataclass
class Model:
    now: float = 0.0
    waiting: list[Request] = field(default_factory=list)

    def roll_over(self, chain: list[Scope]) -> None:
        for scope in chain:
            if scope.period is not None and self.now >= scope.ends:
                scope.ledger.spent.clear()
                scope.ends = (self.now // scope.period + 1) * scope.period
        self.serve()

    def blocked(self, chain: list[Scope], amount: Amount, places: list[Scope]) -> Scope | None:
        """Return the first scope without room, or at which one of those who came before waits."""
        return next((scope for scope in chain if not scope.fits(amount) or any(scope is at for at in places)), None)

    def places(self) -> list[Scope]:
        """Return the scope at which each one waits, oldest first."""
        found: list[Scope] = []
        for request in self.waiting:
            at = self.blocked(request.chain, request.amount, found)
            assert at is not None
            found.append(at)
        return found

    def serve(self) -> None:
        while True:
            hopeless = [one for one in self.waiting if any(scope.hopeless(one.amount) for scope in one.chain)]
            for one in hopeless:
                one.refused = True
                self.waiting.remove(one)
            found: list[Scope] = []
            for one in self.waiting:
                at = self.blocked(one.chain, one.amount, found)
                if at is None:
                    self.waiting.remove(one)
                    for scope in one.chain:
                        scope.ledger.held[one.key] = one.amount
                    break
                found.append(at)
            else:
                return


class Bell:
    def ring(self) -> bool:
        return True

    def deaf(self) -> bool:
        return False


class FamilyAgainstModel(RuleBasedStateMachine):
    @initialize(caps=st.tuples(token_caps, usd_caps), period=st.none() | st.just(10.0))
    def start(self, caps: tuple[int | None, float | None], period: float | None) -> None:
        self.model = Model()
        self.made = 0
        self.pools: list[tuple[BudgetPool, list[Scope]]] = []
        self.open: list[Request] = []
        window = self.window(period)
        root = BudgetPool(*caps, name="root", window=window)
        self.pools.append((root, [self.scope("root", caps, period)]))

    def window(self, period: float | None) -> Window | None:
        return None if period is None else Window.every(timedelta(seconds=period), clock=lambda: self.model.now)

    def scope(self, name: str, caps: tuple[int | None, float | None], period: float | None = None) -> Scope:
        ends = float("inf") if period is None else (self.model.now // period + 1) * period
        return Scope(name, Ledger(caps[0], None if caps[1] is None else grid(caps[1])), period, ends)

    def pick(self, data: st.DataObject) -> tuple[BudgetPool, list[Scope]]:
        return data.draw(st.sampled_from(self.pools))

    # ---------------------------------------------------------------- the tree

    @precondition(lambda self: len(self.pools) < 6)
    @rule(data=st.data(), caps=st.tuples(token_caps, usd_caps), period=st.sampled_from([None, None, 10.0, 25.0]))
    def child(self, data: st.DataObject, caps: tuple[int | None, float | None], period: float | None) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        name = f"child {len(self.pools)}"
        if any(scope.closed for scope in chain):
            with pytest.raises(PoolClosed):
                pool.child(*caps, name=name)
            return
        by_key = data.draw(st.booleans())
        window = self.window(period)
        made = pool.keyed(*caps, window=window)[name] if by_key else pool.child(*caps, name=name, window=window)
        self.pools.append((made, [self.scope(name, caps, period), *chain]))

    @precondition(lambda self: len(self.pools) in {3, 4, 5})
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        (one, chain), (other, other_chain) = self.pick(data), self.pick(data)
        union = [scope for scope in [*chain, *other_chain] if scope is not self.pools[0][1][0]]
        scopes = [scope for index, scope in enumerate(union) if not any(scope is s for s in union[:index])]
        scopes.append(self.pools[0][1][0])
        self.model.roll_over(scopes)
        if any(scope.closed for scope in scopes):
            return
        name = f"join {len(self.pools)}"
        self.pools.append((BudgetPool.join(one, other, name=name), [self.scope(name, (None, None)), *scopes]))

    @rule(step=st.sampled_from([-3.0, 1.0, 4.0, 10.0, 30.0]))
    def time_passes(self, step: float) -> None:
        self.model.now = max(0.0, self.model.now + step)

    @rule(data=st.data(), caps=st.tuples(token_caps, usd_caps))
    def set_caps(self, data: st.DataObject, caps: tuple[int | None, float | None]) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        if chain[0].closed:
            with pytest.raises(PoolClosed):
                pool.set_caps(token_cap=caps[0], usd_cap=caps[1])
            return
        pool.set_caps(token_cap=caps[0], usd_cap=caps[1])
        chain[0].ledger.token_cap = caps[0]
        chain[0].ledger.usd_cap = None if caps[1] is None else grid(caps[1])
        self.model.serve()

    @precondition(lambda self: len(self.pools) > 4)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        pool, chain = self.pick(data)
        if len(chain) == 1:
            return
        self.model.roll_over(chain)
        pool.close()
        chain[0].closed = True
        self.model.serve()

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        pool.reset()
        chain[0].ledger.spent.clear()
        self.model.serve()

    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        assert pool.snapshot().tokens_used == chain[0].ledger.used()[0]

    # ---------------------------------------------------------------- spending

    def refused(self, error: Exception, chain: list[Scope], amount: Amount) -> None:
        """Hold that the right scope refused."""
        hopeless = next((scope for scope in chain if scope.hopeless(amount)), None)
        scope = hopeless or self.model.blocked(chain, amount, self.model.places())
        assert scope is not None, "it fits"
        if isinstance(error, BudgetExceeded):
            assert not scope.closed
            assert error.pool == scope.name
            assert error.exhausted == (hopeless is not None)
            axis = scope.ledger.over(amount)
            assert axis is None or error.axis == axis
        else:
            assert isinstance(error, PoolClosed)
            assert scope.closed

    @rule(data=st.data(), tokens=tokens, usd=usd, force=st.booleans())
    def record(self, data: st.DataObject, tokens: int, usd: float, *, force: bool) -> None:
        pool, chain = self.pick(data)
        amount = (tokens, grid(usd))
        self.model.roll_over(chain)
        possible = self.model.blocked(chain, amount, self.model.places()) is None
        if possible or force:
            for scope in chain:
                scope.ledger.spent.append(amount)
            over = next((scope for scope in chain if scope.ledger.overrun(amount)), None) if force else None
            if over is None:
                pool.record(tokens=tokens, usd=usd, force=force)
            else:
                with pytest.raises(BudgetOverrun) as raised:
                    pool.record(tokens=tokens, usd=usd, force=True)
                assert (raised.value.pool, raised.value.axis) == (over.name, over.ledger.overrun(amount))
        else:
            with pytest.raises((BudgetExceeded, PoolClosed)) as refused:
                pool.record(tokens=tokens, usd=usd, force=force)
            self.refused(refused.value, chain, amount)
        self.model.serve()

    @rule(data=st.data(), tokens=tokens, usd=usd)
    def reserve(self, data: st.DataObject, tokens: int, usd: float) -> None:
        pool, chain = self.pick(data)
        amount = (tokens, grid(usd))
        self.model.roll_over(chain)
        if self.model.blocked(chain, amount, self.model.places()) is None:
            self.made += 1
            reservation = pool.reserve(tokens=tokens, usd=usd)
            self.open.append(Request(self.made, chain, amount, reservation))
            for scope in chain:
                scope.ledger.held[self.made] = amount
        else:
            with pytest.raises((BudgetExceeded, PoolClosed)) as refused:
                pool.reserve(tokens=tokens, usd=usd)
            self.refused(refused.value, chain, amount)

    @rule(data=st.data(), tokens=tokens, usd=usd)
    def wait(self, data: st.DataObject, tokens: int, usd: float) -> None:
        pool, chain = self.pick(data)
        amount = (tokens, grid(usd))
        self.model.roll_over(chain)
        reservation = Reservation()
        reservation._pool, reservation._tokens, reservation._state = pool, tokens, None
        reservation._nanos = int(amount[1] * 10**9)
        waiter = Waiter(pool._scopes(), reservation, Bell())  # type: ignore[arg-type]
        if any(scope.hopeless(amount) for scope in chain):
            with pytest.raises((BudgetExceeded, PoolClosed)) as refused:
                pool._family.reserve(reservation, waiter)
            self.refused(refused.value, chain, amount)
            return
        pool._family.reserve(reservation, waiter)
        self.made += 1
        request = Request(self.made, chain, amount, reservation, waiter)
        self.open.append(request)
        if self.model.blocked(chain, amount, self.model.places()) is None:
            for scope in chain:
                scope.ledger.held[self.made] = amount
        else:
            self.model.waiting.append(request)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.model.waiting))
        assert request.waiter is not None
        request.reservation._pool._family.withdraw(request.waiter)
        self.model.waiting.remove(request)
        self.open.remove(request)
        self.model.serve()

    def held(self) -> list[Request]:
        return [one for one in self.open if one not in self.model.waiting and not one.refused]

    @precondition(lambda self: self.held())
    @rule(data=st.data(), tokens=st.none() | tokens, usd=st.none() | usd)
    def commit(self, data: st.DataObject, tokens: int | None, usd: float | None) -> None:
        request = data.draw(st.sampled_from(self.held()))
        self.model.roll_over(request.chain)
        held = request.amount
        amount = (held[0] if tokens is None else tokens, held[1] if usd is None else grid(usd))
        for scope in request.chain:
            del scope.ledger.held[request.key]
            scope.ledger.spent.append(amount)
        above = (amount[0] - held[0], amount[1] - held[1])
        over = next((scope for scope in request.chain if scope.ledger.overrun(above)), None)
        if over is None:
            request.reservation.commit(tokens=tokens, usd=usd)
        else:
            with pytest.raises(BudgetOverrun) as raised:
                request.reservation.commit(tokens=tokens, usd=usd)
            assert (raised.value.pool, raised.value.axis) == (over.name, over.ledger.overrun(above))
        with pytest.raises(ReservationClosed):
            request.reservation.commit()
        self.open.remove(request)
        self.model.serve()

    @precondition(lambda self: self.held())
    @rule(data=st.data(), drop=st.booleans())
    def release(self, data: st.DataObject, *, drop: bool) -> None:
        request = data.draw(st.sampled_from(self.held()))
        if drop and request.waiter is not None:
            return  # the test's own waiter holds it
        for scope in request.chain:
            del scope.ledger.held[request.key]
        self.open.remove(request)
        if drop:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                chain, reservation = request.chain, request.reservation
                pool = reservation._pool
                request.reservation = None  # type: ignore[assignment]
                del reservation
            pool.reset()  # the next operation finds it
            self.model.serve()
            self.model.roll_over(chain)
            chain[0].ledger.spent.clear()
        else:
            request.reservation.release()  # which looks at no clock
        self.model.serve()

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def same_numbers(self) -> None:
        for pool, chain in getattr(self, "pools", []):
            shown, ledger = pool._scopes()[0]._shown(), chain[0].ledger
            if pool._family.dropped:
                pool._family._reclaim()
            assert (shown.tokens_used, shown.tokens_reserved) == (ledger.used()[0], ledger.reserved()[0])
            assert shown.usd_used_nanos == ledger.used()[1] * 10**9
            assert shown.usd_reserved_nanos == ledger.reserved()[1] * 10**9
            assert shown.in_flight == len(ledger.held)

    @invariant()
    def the_same_wait_and_the_same_were_served(self) -> None:
        for request in getattr(self, "open", []):
            if request.waiter is not None and request.waiter.ticket:
                waits = any(request is one for one in self.model.waiting)
                expected = WAITING if waits else REFUSED if request.refused else GRANTED
                assert request.waiter.state is expected

    @invariant()
    def whenever_the_lock_is_let_go_the_head_of_the_queue_does_not_fit(self) -> None:
        if not getattr(self, "pools", []):
            return
        family = self.pools[0][0]._family
        assert family.journal is None
        assert family.touched == ()
        for pool, _ in self.pools:
            account: Any = pool._scopes()[0]
            if account._queue is not None:
                head = account._queue.head(account)
                if head is not None:
                    assert family._blocker(head.chain, head.tokens, head.nanos, head.ticket) is account
        assert len(family.waiters) == len(self.model.waiting)

    def teardown(self) -> None:
        for request in getattr(self, "open", []):
            request.reservation.release()


TestFamilyAgainstModel = FamilyAgainstModel.TestCase
