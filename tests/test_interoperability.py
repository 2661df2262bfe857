"""Snapshots, events and errors in other libraries: json, orjson, pydantic, FastAPI, result backends, pickle."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
import json
import os
import pickle
import subprocess
import sys
import typing
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

import token_budget
from token_budget import (
    BudgetEvent,
    BudgetExceeded,
    BudgetOverrun,
    BudgetPool,
    BudgetSnapshot,
    BudgetTimeout,
    Window,
    _errors,
    _events,
    _snapshot,
)

NOON = datetime(2026, 3, 30, 12, tzinfo=timezone.utc)
KINDS = [
    *("record", "reserve", "commit", "release", "refusal", "overrun", "drop", "reset", "roll-over", "threshold"),
    *("expired", "created"),
]


def tree() -> BudgetSnapshot:
    """Return a snapshot with a window, a child, and dollars that a float does not hold exactly."""
    pool = BudgetPool(
        token_cap=1000, usd_cap=9_000_000.000000001, name="total", window=Window.daily(clock=NOON.timestamp)
    )
    child = pool.child(usd_cap=1, name="step")
    child.record(tokens=5, usd=0.3)
    with child.reserve(tokens=7, usd=0.1):
        return pool.snapshot(tree=True)


def overrun() -> BudgetSnapshot:
    pool = BudgetPool(token_cap=10, usd_cap=0.1)
    with pytest.raises(BudgetOverrun):
        pool.record(tokens=15, usd=0.25, force=True)
    return pool.snapshot()


def an_event() -> BudgetEvent:
    pool = BudgetPool(token_cap=1000, name="run")
    events: list[BudgetEvent] = []
    pool.subscribe(events.append)
    pool.record(tokens=5, usd=0.1)
    return events[0]


def run(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new process that finds the same modules as this one."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, check=False, env=env
    )


# ---------------------------------------------------------------- json and orjson


def test_an_event_goes_to_json() -> None:
    event = an_event()
    assert event.to_dict() == {
        "kind": "record",
        "pool": "run",
        "tokens": 5,
        "usd": 0.1,
        "usd_nanos": 10**8,
        "snapshot": event.snapshot.to_dict(),
    }
    assert json.loads(json.dumps(event.to_dict())) == event.to_dict()


def test_orjson_refuses_a_snapshot_with_its_own_error_and_accepts_the_result_of_default() -> None:
    pytest.importorskip("orjson")
    # This runs in a new process, because the fault was a crash.
    program = """
import dataclasses, orjson
from token_budget import BudgetPool, BudgetSnapshot

class Marked(BudgetSnapshot):
    pass

events = []
pool = BudgetPool(token_cap=5, name="run")
pool.subscribe(events.append)
pool.record(tokens=1)
snapshot = pool.snapshot()
for value in (snapshot, {"budget": snapshot}, [snapshot], Marked(5), events[0]):
    try:
        orjson.dumps(value)
    except TypeError:
        pass
    else:
        raise AssertionError(value)
    assert b'"tokens' in orjson.dumps(value, default=lambda value: value.to_dict())
assert orjson.loads(orjson.dumps(snapshot, default=lambda value: value.to_dict())) == snapshot.to_dict()
assert orjson.loads(orjson.dumps(snapshot, default=dataclasses.asdict))["tokens_used"] == 1
"""
    done = run(program)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_marks_of_a_dataclass_are_not_in_the_class_itself() -> None:
    """Libraries in C treat a class as a dataclass with stored fields if its own dict has these marks."""
    assert not [name for name in vars(BudgetSnapshot) if name.startswith("__dataclass")]
    assert not hasattr(BudgetSnapshot(), "__dict__")
    with pytest.raises(AttributeError):
        BudgetSnapshot().note = 5  # type: ignore[attr-defined]


# ---------------------------------------------------------------- pydantic and FastAPI

FIELDS = [*BudgetSnapshot().to_dict()]


@pytest.mark.parametrize("make", [BudgetSnapshot, tree, overrun])
def test_pydantic_writes_all_fields_and_reads_them_back_exactly(make: Callable[[], BudgetSnapshot]) -> None:
    pydantic = pytest.importorskip("pydantic")
    snapshot = make()
    adapter = pydantic.TypeAdapter(BudgetSnapshot)
    text = adapter.dump_json(snapshot)
    assert json.loads(text.decode().replace('Z"', '+00:00"')) == snapshot.to_dict()
    assert adapter.validate_json(text) == snapshot
    assert adapter.validate_python(snapshot) is snapshot
    for fields in (adapter.dump_python(snapshot), snapshot.to_dict()):
        assert [*fields] == FIELDS
        assert adapter.validate_python(fields) == snapshot
    # A dict without the exact integers is accepted too, as `dataclasses.asdict` or a hand-made test double has it.
    fields = dataclasses.asdict(snapshot)
    assert adapter.validate_python(fields).tokens_remaining == snapshot.tokens_remaining
    assert adapter.validate_python({"tokens_used": 5, "usd_used": 0.1}) == BudgetSnapshot(5, 0.1)


def test_pydantic_refuses_a_dict_that_is_no_snapshot() -> None:
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(BudgetSnapshot)
    for wrong, message in (
        ({}, "tokens_used\n  Field required"),
        ({"tokens_used": 5}, "usd_used\n  Field required"),
        ({"tokens_used": -1, "usd_used": 0}, "tokens_used must not be negative, got -1"),
        ({"tokens_used": "many", "usd_used": 0}, "valid integer"),
        ({"tokens_used": 5, "usd_used": 0, "children": [{}]}, "children.0"),
        (5, "valid dictionary"),
    ):
        with pytest.raises(pydantic.ValidationError, match=message):
            adapter.validate_python(wrong)


def test_pydantic_takes_a_snapshot_and_an_event_as_fields_of_a_model() -> None:
    pydantic = pytest.importorskip("pydantic")
    model: Any = pydantic.create_model(
        "Report", budget=(BudgetSnapshot, ...), others=(list[BudgetSnapshot], ...), event=(BudgetEvent | None, None)
    )
    report = model(budget=tree(), others=[overrun()], event=an_event())
    assert model.model_validate_json(report.model_dump_json()) == report
    assert report.budget == tree()
    assert model(budget=tree().to_dict(), others=[]).budget == tree()
    assert report.model_dump()["event"]["snapshot"]["tokens_used"] == 5


def test_pydantic_shows_the_fields_in_a_json_schema_whose_children_refer_to_itself() -> None:
    pydantic = pytest.importorskip("pydantic")
    for mode, required in (("validation", {"tokens_used", "usd_used"}), ("serialization", {*FIELDS})):
        schema = pydantic.TypeAdapter(BudgetSnapshot).json_schema(mode=mode)
        definition = schema["$defs"]["BudgetSnapshot"]
        properties = definition["properties"]
        assert [*properties] == FIELDS
        assert {*definition["required"]} == required
        assert properties["children"]["items"] == {"$ref": "#/$defs/BudgetSnapshot"}
        assert properties["tokens_used"]["type"] == "integer"
        assert properties["usd_cap"]["anyOf"] == [{"type": "number"}, {"type": "null"}]
        assert properties["resets_at"]["anyOf"] == [{"type": "string", "format": "date-time"}, {"type": "null"}]
    schema = pydantic.TypeAdapter(BudgetEvent).json_schema(mode="serialization")
    event = schema["$defs"].get("BudgetEvent", schema)
    assert [*event["properties"]] == ["kind", "pool", "tokens", "usd", "usd_nanos", "snapshot"]
    assert event["properties"]["kind"]["enum"] == KINDS
    assert event["properties"]["snapshot"] == {"$ref": "#/$defs/BudgetSnapshot"}


def test_pydantic_writes_an_event_and_reads_it_back() -> None:
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(BudgetEvent)
    event = an_event()
    assert json.loads(adapter.dump_json(event)) == event.to_dict()
    assert adapter.validate_json(adapter.dump_json(event)) == event
    assert adapter.validate_python(event) is event
    changes: list[dict[str, Any]] = [{"kind": "other"}, {"tokens": -1}, {"usd_nanos": -1}, {"snapshot": {}}]
    for change in changes:
        with pytest.raises(pydantic.ValidationError):
            adapter.validate_python({**event.to_dict(), **change})
    fields = event.to_dict()
    del fields["usd"]  # the exact integer says the same
    assert adapter.validate_python(fields) == event
    for name in fields:
        with pytest.raises(pydantic.ValidationError, match=f"^1 validation error.*\\n{name}\\n  Field required"):
            adapter.validate_python({other: fields[other] for other in fields if other != name})


def test_pydantic_makes_a_subclass_of_a_snapshot_if_a_field_asks_for_it() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Marked(BudgetSnapshot):
        pass

    made = pydantic.TypeAdapter(Marked).validate_python(BudgetSnapshot(5).to_dict())
    assert (type(made), made) == (Marked, BudgetSnapshot(5))


def answer_of(app: Any, path: str) -> tuple[int, Any]:
    """Request a path from an ASGI application, and return the status and the parsed JSON."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "http_version": "1.1"}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_a_fastapi_route_answers_with_the_fields_and_shows_them_in_its_schema() -> None:
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()

    def budget() -> BudgetSnapshot:
        return tree()

    def budgets() -> list[BudgetSnapshot]:
        return [tree()]

    def event() -> BudgetEvent:
        return an_event()

    # The annotations of this module are strings. The route needs classes.
    for path, route, kind in (
        ("/one", budget, BudgetSnapshot),
        ("/all", budgets, list[BudgetSnapshot]),
        ("/event", event, BudgetEvent),
    ):
        route.__annotations__["return"] = kind
        app.get(path)(route)
    fields = json.loads(json.dumps(tree().to_dict()).replace('+00:00"', 'Z"'))
    assert answer_of(app, "/one") == (200, fields)
    assert answer_of(app, "/all") == (200, [fields])
    assert answer_of(app, "/event") == (200, an_event().to_dict())
    schemas = app.openapi()["components"]["schemas"]
    assert [*schemas["BudgetSnapshot"]["properties"]] == FIELDS
    assert schemas["BudgetSnapshot"]["properties"]["children"]["items"] == {
        "$ref": "#/components/schemas/BudgetSnapshot"
    }
    assert [*schemas["BudgetEvent"]["properties"]] == [*an_event().to_dict()]


def test_none_of_these_modules_is_imported_before_it_is_used() -> None:
    program = """
import sys
import token_budget
pool = token_budget.BudgetPool(token_cap=5)
pool.snapshot().to_dict()
str(pool.snapshot())
try:
    pool.record(tokens=6)
except token_budget.BudgetExceeded as error:
    str(error), error.args, error.retry_after, error.resets_at
print(*{"pydantic", "pydantic_core", "typing", "dataclasses", "decimal", "fractions", "datetime"} & set(sys.modules))
"""
    done = run(program, "-S")
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", [])


# ---------------------------------------------------------------- events and errors that travel


class Noted(BudgetEvent):
    """A user's subclass."""


def test_an_event_attribute_cannot_be_deleted_and_a_subclass_survives_pickle() -> None:
    event = Noted._of("record", "run", 5, 10**8, BudgetSnapshot(5))
    with pytest.raises(AttributeError, match="^a BudgetEvent never changes$"):
        del event._facts
    again = pickle.loads(pickle.dumps(event))
    assert (type(again), again) == (Noted, event)


def refusal(kind: type[BudgetExceeded]) -> BudgetExceeded:
    return kind._refusal_of(("run", 5, 12, 0, 10, 0, 0, 0, 0), NOON.timestamp(), 60.0)


@pytest.mark.parametrize("kind", [BudgetExceeded, BudgetOverrun, BudgetTimeout])
def test_a_result_backend_that_keeps_class_and_args_makes_the_error_again(kind: type[BudgetExceeded]) -> None:
    """Celery's JSON backends do this: they send the name of the class and its args through JSON."""
    error = refusal(kind)
    message = json.loads(json.dumps({"type": kind.__name__, "module": kind.__module__, "args": error.args}))
    again = getattr(sys.modules[message["module"]], message["type"])(*message["args"])
    assert (type(again), str(again)) == (kind, str(error))
    with pytest.raises(kind, match="budget .* in pool 'run'"):
        raise again
    assert copy.copy(again).args == pickle.loads(pickle.dumps(again)).args == again.args


@pytest.mark.parametrize("kind", [BudgetExceeded, BudgetOverrun, BudgetTimeout])
def test_an_error_gets_context_on_its_way_up(kind: type[BudgetExceeded]) -> None:
    def summarise() -> None:
        try:
            raise refusal(kind)
        except BudgetExceeded as error:
            error.args = (f"while summarising: {error.args[0]}",)
            raise

    with pytest.raises(kind, match="^while summarising: budget ") as raised:
        summarise()
    assert (raised.value.axis, raised.value.retry_after) == ("tokens", 60.0)


# ---------------------------------------------------------------- annotations

MODULES = (_errors, _snapshot, _events)
PUBLIC = [getattr(token_budget, name) for name in token_budget.__all__]
CLASSES = [thing for thing in PUBLIC if inspect.isclass(thing) and sys.modules[thing.__module__] in MODULES]


def test_every_annotation_can_be_read_at_run_time() -> None:
    assert len(CLASSES) == 9
    for owner in CLASSES:
        typing.get_type_hints(owner)
        for thing in vars(owner).values():
            function = thing.fget if isinstance(thing, property) else getattr(thing, "__func__", thing)
            if inspect.isfunction(function):
                typing.get_type_hints(function)
                if isinstance(thing, property) and thing.fset is not None:
                    typing.get_type_hints(thing.fset)


def test_annotations_name_the_real_classes() -> None:
    def returned(thing: Any) -> Any:
        return typing.get_type_hints(thing.fget)["return"]

    assert returned(BudgetExceeded.resets_at) == datetime | None
    assert typing.get_args(returned(BudgetEvent.kind)) == tuple(KINDS)
    assert returned(BudgetSnapshot.children) == tuple[BudgetSnapshot, ...]
