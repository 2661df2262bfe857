"""P1 to P7 and P10 over a tree of scopes with windows, joins, keys, alarms and waiters, against a naive model.

The model holds a `Ledger` for each scope and a list of waiters. After each step it serves the waiters as plainly as
possible. It refuses those that can never fit. It gives room to the oldest one that fits everywhere and is behind no
older waiter. It repeats this until nothing changes. It has no lines, bounds or locks, and checks all waiters each time.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ledger import Alarm, Amount, Ledger, grid
from support import waiters
from token_budget import (
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    KeyedPools,
    PoolClosed,
    Reservation,
    ReservationClosed,
    Window,
    _ledger,
)
from token_budget._line import blocker
from token_budget._reservation import new_reservation
from token_budget._waiting import GRANTED, NEW, REFUSED, WAITING, Waiter

tokens = st.integers(0, 12)
usd = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0])
token_caps = st.none() | st.integers(0, 30)
usd_caps = st.none() | st.sampled_from([0.3, 1.0, 2.5])
caps_of_both = st.tuples(token_caps, usd_caps)
periods = st.sampled_from([None, None, 10.0, 25.0])
shares = st.sampled_from(["1/10", "1/2", "4/5", "1"]).map(Fraction)
timeouts = st.sampled_from([None, 1.5, 8.5, 20.5, 60.5])  # none ends exactly at the end of a period
parts = st.sets(st.sampled_from(["token_cap", "usd_cap", "window"]))


@dataclass
class Calendar:
    """The latest period that a key of a group was in."""

    start: float = float("-inf")
    end: float = float("inf")


@dataclass
class Scope:
    """The model's state of one pool. Its period is the one that its clock was in when it was last read."""

    name: str
    ledger: Ledger
    length: float | None = None  # the length of its window's periods
    start: float = float("-inf")
    end: float = float("inf")
    closed: bool = False
    own: set[str] = field(default_factory=set)  # the settings made on the pool itself
    calendar: Calendar = field(default_factory=Calendar)  # shared by all keys that have the window of their group

    def begin(self, now: float) -> None:
        """Begin the period that the clock is in."""
        self.start, self.end = float("-inf"), float("inf")
        if self.length is not None:
            self.start = now // self.length * self.length
            self.end = self.start + self.length
        self.calendar.start, self.calendar.end = self.start, self.end

    def roll_over(self, now: float) -> None:
        """Begin the next period if this one is over. Follow the clock if it steps back by more than a period."""
        if now >= self.end:
            self.ledger.begin_anew()
            self.begin(now)
        elif self.length is not None and now < self.start - self.length:
            self.begin(now)

    def fits(self, amount: Amount) -> bool:
        return not self.closed and self.ledger.over(amount) is None

    def exhausted(self, amount: Amount) -> bool:
        """Return whether an amount would not fit in this period even if everything in flight came back."""
        return Ledger(self.ledger.token_cap, self.ledger.usd_cap, self.ledger.spent).over(amount) is not None

    def fits_an_empty_one(self, amount: Amount) -> bool:
        """Return whether an amount fits in a new period, before anything is used."""
        return Ledger(self.ledger.token_cap, self.ledger.usd_cap).over(amount) is None

    def hopeless(self, amount: Amount, until: float | None) -> bool:
        """Return whether a waiter has no chance until a moment (None: it waits only for calls in flight)."""
        next_period = until is not None and self.end <= until and self.fits_an_empty_one(amount)
        return self.closed or (self.exhausted(amount) and not next_period)

    def set_caps(self, news: dict[str, Any], now: float) -> None:
        """Change the settings that are given, named like the arguments of `set_caps`."""
        ledger = self.ledger
        usd_cap = news.get("usd_cap", ledger.usd_cap)
        ledger.set_caps(news.get("token_cap", ledger.token_cap), None if usd_cap is None else grid(usd_cap))
        if "window" in news:
            self.length = news["window"]
            self.begin(now)


@dataclass
class Request:
    """A waiter, or a reservation in flight."""

    key: int
    chain: list[Scope]
    amount: Amount
    reservation: Reservation
    waiter: Waiter | None = None
    refused: bool = False
    until: dict[str, float] = field(default_factory=dict)  # by scope, the clock's reading when the time-out ends
    timeout: float | None = None

    def see(self, scope: Scope, now: float) -> None:
        """Note the reading of a scope's clock at which the time-out ends, if that clock runs at normal speed."""
        if self.timeout is not None:
            self.until[scope.name] = now + self.timeout

    def hopeless(self) -> bool:
        return any(scope.hopeless(self.amount, self.until.get(scope.name)) for scope in self.chain)


@dataclass
class Group:
    """The keys of one group, and the settings of all of them."""

    users: KeyedPools[BudgetPool]
    name: str
    chain: list[Scope]
    caps: dict[str, Any]
    keys: dict[str, Scope] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)
    calendar: Calendar = field(default_factory=Calendar)


@dataclass
class Model:
    now: float = 0.0
    waiting: list[Request] = field(default_factory=list)
    told: list[int] = field(default_factory=list)  # the alarms that went off

    def roll_over(self, chain: list[Scope]) -> None:
        for scope in chain:
            scope.roll_over(self.now)
        self.serve()

    def look(self, chain: list[Scope]) -> None:
        """Let the alarms go off after an operation on a chain."""
        for scope in chain:
            self.told += scope.ledger.told()

    def blocked(self, chain: list[Scope], amount: Amount, places: list[Scope]) -> Scope | None:
        """Return the first scope without room, or where an older waiter waits."""
        return next((scope for scope in chain if not scope.fits(amount) or any(scope is at for at in places)), None)

    def places(self) -> list[Scope]:
        """Return the scope at which each waiter waits, oldest first."""
        found: list[Scope] = []
        for request in self.waiting:
            at = self.blocked(request.chain, request.amount, found)
            assert at is not None
            found.append(at)
        return found

    def serve(self) -> None:
        while True:
            for one in [one for one in self.waiting if one.hopeless()]:
                one.refused = True
                self.waiting.remove(one)
                self.look(one.chain)
            found: list[Scope] = []
            for one in self.waiting:
                at = self.blocked(one.chain, one.amount, found)
                if at is None:
                    self.waiting.remove(one)
                    for scope in one.chain:
                        scope.ledger.held[one.key] = one.amount
                    self.look(one.chain)
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
    @initialize(caps=caps_of_both, period=st.none() | st.just(10.0))
    def start(self, caps: tuple[int | None, float | None], period: float | None) -> None:
        self.model = Model()
        self.made = 0
        self.pools: list[tuple[BudgetPool, list[Scope]]] = []
        self.groups: list[Group] = []
        self.open: list[Request] = []
        self.heard: list[int] = []
        self.alarms = 0
        root = BudgetPool(*caps, name="root", window=self.window(period))
        self.pools.append((root, [self.scope("root", caps, period)]))

    def clock(self) -> float:
        return self.model.now

    def window(self, period: float | None) -> Window | None:
        return None if period is None else Window.every(timedelta(seconds=period), clock=self.clock)

    def scope(self, name: str, caps: tuple[int | None, float | None], period: float | None = None) -> Scope:
        made = Scope(name, Ledger(caps[0], None if caps[1] is None else grid(caps[1])), period)
        made.begin(self.model.now)
        return made

    def pick(self, data: st.DataObject) -> tuple[BudgetPool, list[Scope]]:
        return data.draw(st.sampled_from(self.pools))

    # ---------------------------------------------------------------- the tree

    @precondition(lambda self: len(self.pools) < 7)
    @rule(data=st.data(), caps=caps_of_both, period=periods)
    def child(self, data: st.DataObject, caps: tuple[int | None, float | None], period: float | None) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        name = f"child {len(self.pools)}"
        if any(scope.closed for scope in chain):
            with pytest.raises(PoolClosed):
                pool.child(*caps, name=name)
            return
        made = pool.child(*caps, name=name, window=self.window(period))
        self.pools.append((made, [self.scope(name, caps, period), *chain]))

    @precondition(lambda self: len(self.pools) in {3, 4, 5})
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        (one, chain), (other, other_chain) = self.pick(data), self.pick(data)
        union = [scope for scope in [*chain, *other_chain] if scope is not self.pools[0][1][0]]
        scopes = [scope for index, scope in enumerate(union) if not any(scope is s for s in union[:index])]
        scopes.append(self.pools[0][1][0])
        self.model.roll_over(scopes)
        name = f"join {len(self.pools)}"
        if any(scope.closed for scope in scopes):
            with pytest.raises(PoolClosed):
                BudgetPool.join(one, other, name=name)
            return
        self.pools.append((BudgetPool.join(one, other, name=name), [self.scope(name, (None, None)), *scopes]))

    @rule(step=st.sampled_from([-30.0, -3.0, 1.0, 4.0, 10.0, 30.0]))
    def time_passes(self, step: float) -> None:
        self.model.now = max(0.0, self.model.now + step)

    @rule(data=st.data(), caps=caps_of_both, period=periods, named=parts)
    def set_caps(
        self, data: st.DataObject, caps: tuple[int | None, float | None], period: float | None, named: set[str]
    ) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        news, arguments = self.news(caps, period, named)
        if chain[0].closed:
            with pytest.raises(PoolClosed):
                pool.set_caps(**arguments)
            return
        pool.set_caps(**arguments)
        if "window" in news:
            chain[0].calendar = Calendar()  # the key no longer shares its group's calendar
        chain[0].own |= named
        self.set_caps_of(chain[0], news)
        self.model.serve()

    def set_caps_of(self, scope: Scope, news: dict[str, Any]) -> None:
        """Change the given settings. Waiters learn of a window that their scope gets."""
        scope.set_caps(news, self.model.now)
        for request in self.model.waiting:
            if "window" in news and any(scope is one for one in request.chain):
                request.see(scope, self.model.now)

    def news(
        self, caps: tuple[int | None, float | None], period: float | None, named: set[str]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings to change, for the model and as arguments of `set_caps`."""
        news = {"token_cap": caps[0], "usd_cap": caps[1], "window": period}
        news = {name: value for name, value in news.items() if name in named}
        return news, {name: self.window(value) if name == "window" else value for name, value in news.items()}

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
        chain[0].ledger.begin_anew()
        self.model.look(chain)
        self.model.serve()

    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        assert pool.snapshot().tokens_used == chain[0].ledger.used()[0]

    @rule(data=st.data(), share=shares)
    def on_threshold(self, data: st.DataObject, share: Fraction) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        self.alarms += 1
        name = self.alarms
        pool.on_threshold(share, lambda _event: self.heard.append(name))
        chain[0].ledger.alarms.append(Alarm(name, share))

    # ---------------------------------------------------------------- keys

    @precondition(lambda self: len(self.groups) < 2)
    @rule(data=st.data(), caps=caps_of_both, period=periods)
    def keyed(self, data: st.DataObject, caps: tuple[int | None, float | None], period: float | None) -> None:
        pool, chain = self.pick(data)
        self.model.roll_over(chain)
        name = f"group {len(self.groups)}"
        if any(scope.closed for scope in chain):
            with pytest.raises(PoolClosed):
                pool.keyed(name=name)
            return
        users = pool.keyed(*caps, name=name, window=self.window(period))
        news = {"token_cap": caps[0], "usd_cap": caps[1], "window": period}
        self.groups.append(Group(users, name, chain, news))

    @precondition(lambda self: self.groups and len(self.pools) < 9)
    @rule(data=st.data(), key=st.sampled_from("ab"))
    def key(self, data: st.DataObject, key: str) -> None:
        group = data.draw(st.sampled_from(self.groups))
        pool = group.users[key]
        if key not in group.keys:
            caps = group.caps
            made = self.scope(f"{group.name}:{key}", (caps["token_cap"], caps["usd_cap"]), caps["window"])
            latest = group.calendar
            if made.length is not None and latest.start - made.length <= self.model.now < latest.end < float("inf"):
                made.start, made.end = latest.start, latest.end  # a new key does not reopen the period
            made.calendar = latest
            latest.start, latest.end = made.start, made.end
            made.ledger.alarms += [Alarm(alarm.name, alarm.share) for alarm in group.alarms]
            group.keys[key] = made
            self.pools.append((pool, [made, *group.chain]))
        assert sum(known is pool for known, _ in self.pools) == 1

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), key=st.sampled_from("ab"))
    def forget(self, data: st.DataObject, key: str) -> None:
        group = data.draw(st.sampled_from(self.groups))
        scope = group.keys.get(key)
        if scope is None or scope.ledger.held:
            with pytest.raises((KeyError, ValueError)):
                del group.users[key]
            return
        del group.users[key]
        del group.keys[key]
        scope.closed = True
        self.model.serve()

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), caps=caps_of_both, period=periods, named=parts)
    def set_caps_of_all(
        self, data: st.DataObject, caps: tuple[int | None, float | None], period: float | None, named: set[str]
    ) -> None:
        group = data.draw(st.sampled_from(self.groups))
        scopes = list(group.keys.values())
        if named & {"window"}:
            for scope in scopes:  # no waiter is served in between
                scope.roll_over(self.model.now)
        news, arguments = self.news(caps, period, named)
        group.users.set_caps(**arguments)
        group.caps.update(news)
        if named & {"window"}:
            latest = self.scope(group.name, (None, None), period)
            group.calendar.start, group.calendar.end = latest.start, latest.end
        for scope in scopes:
            self.set_caps_of(scope, {name: value for name, value in news.items() if name not in scope.own})
        self.model.serve()

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), share=shares)
    def on_threshold_of_all(self, data: st.DataObject, share: Fraction) -> None:
        group = data.draw(st.sampled_from(self.groups))
        self.alarms += 1
        name = self.alarms
        group.users.on_threshold(share, lambda _event: self.heard.append(name))
        group.alarms.append(Alarm(name, share))
        for scope in group.keys.values():
            scope.ledger.alarms.append(Alarm(name, share))

    # ---------------------------------------------------------------- spending

    def refused(self, error: Exception, chain: list[Scope], amount: Amount) -> None:
        """Check that the right scope refused."""
        closed = next((scope for scope in chain if scope.closed), None)
        exhausted = next((scope for scope in chain if scope.exhausted(amount)), None)
        scope = closed or exhausted or self.model.blocked(chain, amount, self.model.places())
        assert scope is not None, "a request that fits was refused"
        if isinstance(error, BudgetExceeded):
            assert closed is None
            assert error.pool == scope.name
            assert error.exhausted == (exhausted is not None)
            axis = scope.ledger.over(amount)
            assert axis is None or error.axis == axis
            self.told_when(error, [one for one in chain if one.exhausted(amount)], scope, amount)
        else:
            assert isinstance(error, PoolClosed)
            assert closed is not None
        self.model.look(chain)

    def told_when(self, error: BudgetExceeded, exhausted: list[Scope], busy: Scope, amount: Amount) -> None:
        """Check that a refusal says when asking again can help."""
        ends = [scope.end for scope in exhausted or [busy] if scope.length is not None]
        never = [one for one in exhausted if one.length is None or not one.fits_an_empty_one(amount)]
        assert (error.resets_at and error.resets_at.timestamp()) == (max(ends) if ends else None)
        seconds = None if never else max(ends) - self.model.now if exhausted else 0.0
        assert error.retry_after == seconds

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
            self.model.look(chain)
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
            self.model.look(chain)
        else:
            with pytest.raises((BudgetExceeded, PoolClosed)) as refused:
                pool.reserve(tokens=tokens, usd=usd)
            self.refused(refused.value, chain, amount)

    @rule(data=st.data(), tokens=tokens, usd=usd, timeout=timeouts)
    def wait(self, data: st.DataObject, tokens: int, usd: float, timeout: float | None) -> None:
        pool, chain = self.pick(data)
        amount = (tokens, grid(usd))
        self.model.roll_over(chain)
        reservation = new_reservation(pool, tokens, int(amount[1] * 10**9))
        waiter = Waiter(reservation, Bell(), timeout, _ledger.give_back)
        request = Request(self.made + 1, chain, amount, reservation, timeout=timeout)
        for scope in chain:
            request.see(scope, self.model.now)
        fits = self.model.blocked(chain, amount, self.model.places()) is None
        if not fits and request.hopeless():
            with pytest.raises((BudgetExceeded, PoolClosed)) as refused:
                _ledger.reserve(reservation, waiter)
            self.refused(refused.value, chain, amount)
            return
        _ledger.reserve(reservation, waiter)
        assert waiter.state is (NEW if fits else WAITING)
        self.made += 1
        request.waiter = None if fits else waiter
        self.open.append(request)
        if fits:
            for scope in chain:
                scope.ledger.held[self.made] = amount
            self.model.look(chain)
        else:
            self.model.waiting.append(request)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.model.waiting))
        assert request.waiter is not None
        _ledger.leave(request.waiter)
        self.model.waiting.remove(request)
        self.open.remove(request)
        self.model.look(request.chain)
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
        self.open.remove(request)
        self.model.look(request.chain)
        self.model.serve()
        with pytest.raises(ReservationClosed):
            request.reservation.commit()

    @precondition(lambda self: self.held())
    @rule(data=st.data(), drop=st.booleans())
    def release(self, data: st.DataObject, *, drop: bool) -> None:
        request = data.draw(st.sampled_from(self.held()))
        if drop and request.waiter is not None:
            return  # the test's own waiter keeps it alive
        for scope in request.chain:
            del scope.ledger.held[request.key]
        self.open.remove(request)
        self.model.look(request.chain)
        if drop:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                chain, reservation = request.chain, request.reservation
                pool: Any = reservation._pool
                request.reservation = None  # type: ignore[assignment]
                del reservation
            pool.reset()  # an operation, which finds the drop
            self.model.serve()
            self.model.roll_over(chain)
            chain[0].ledger.begin_anew()
            self.model.look(chain)
        else:
            request.reservation.release()  # a release reads no clock
        self.model.serve()

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def same_numbers(self) -> None:
        for pool, chain in getattr(self, "pools", []):
            assert not pool._family.owed
            shown, ledger = pool._account.shown(), chain[0].ledger
            assert (shown.tokens_used, shown.tokens_reserved) == (ledger.used()[0], ledger.reserved()[0])
            assert shown.usd_used_nanos == ledger.used()[1] * 10**9
            assert shown.usd_reserved_nanos == ledger.reserved()[1] * 10**9
            assert shown.in_flight == len(ledger.held)
            end = None if shown.resets_at is None else shown.resets_at.timestamp()
            assert end == (None if chain[0].length is None else chain[0].end)

    @invariant()
    def the_same_alarms_went_off(self) -> None:
        if getattr(self, "pools", []):
            assert sorted(self.heard) == sorted(self.model.told)

    @invariant()
    def the_same_wait_and_the_same_were_served(self) -> None:
        for request in getattr(self, "open", []):
            if request.waiter is not None:
                waits = any(request is one for one in self.model.waiting)
                expected = WAITING if waits else REFUSED if request.refused else GRANTED
                assert request.waiter.state is expected

    @invariant()
    def whenever_the_lock_is_let_go_the_head_of_no_line_fits(self) -> None:
        for pool, _ in getattr(self, "pools", []):
            assert not pool._family.stirred
            account: Any = pool._account
            head = None if account.line is None else account.line.head(account)
            if head is not None:
                assert max(account.token_bound, account.nano_bound) < 0
                assert blocker(head.scope._chain, head.tokens, head.nanos, head.ticket) is pool._account
            assert account.token_bound <= account.token_limit
            assert account.nano_bound <= account.nano_limit
        if getattr(self, "pools", []):
            assert len(waiters(self.pools[0][0])) == len(self.model.waiting)

    def teardown(self) -> None:
        for request in getattr(self, "open", []):
            request.reservation.release()


TestFamilyAgainstModel = FamilyAgainstModel.TestCase
