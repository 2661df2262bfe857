"""OpenTelemetry is told what each answer used, and how the pools stand, in the names of the semantic conventions."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from typing import Any

import pytest

from hooked import LIBRARIES, Door, Reply, answer
from meters import meter_of
from support import run_program
from token_budget import BudgetExceeded, BudgetPool, BudgetSnapshot
from token_budget.adapters import opentelemetry as adapter
from token_budget.adapters.opentelemetry import CONVENTIONS, observe
from token_budget.metering import Meter, Usage

USAGE = Usage(
    input_tokens=1000,
    output_tokens=200,
    cache_read_input_tokens=300,
    cache_creation_input_tokens=50,
    reasoning_output_tokens=80,
)


class Telemetry:
    """A meter provider of the SDK, and a reader of what was told to it."""

    def __init__(self) -> None:
        metrics = pytest.importorskip("opentelemetry.sdk.metrics")
        export = pytest.importorskip("opentelemetry.sdk.metrics.export")
        self.reader = export.InMemoryMetricReader()
        self.provider = metrics.MeterProvider([self.reader], shutdown_on_exit=False)

    def metrics(self) -> dict[str, Any]:
        """Return every metric by its name."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        assert {scope.scope.name for scope in scopes} <= {"token_budget"}
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Return the attributes and the value of each point of a metric; of a histogram, count and sum."""
        found = self.metrics().get(name)
        if found is None:
            return []
        return [
            (dict(point.attributes), point.value if hasattr(point, "value") else (point.count, point.sum))
            for point in found.data.data_points
        ]

    def gauge(self, name: str) -> dict[tuple[str, str], Any]:
        """Return the values of a gauge by pool and axis."""
        return {
            (attributes["token_budget.pool"], attributes["token_budget.axis"]): value
            for attributes, value in self.points(f"token_budget.{name}")
        }


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def spend(meter: Meter, *answers: Usage, model: str = "small") -> None:
    for usage in answers:
        with meter.call(model, input_tokens=2000, max_output_tokens=500) as call:
            call.settle(usage)


# ---------------------------------------------------------------- tokens


def test_each_answer_is_told_with_the_attributes_of_the_conventions(telemetry: Telemetry) -> None:
    meter = meter_of(BudgetPool(usd_cap=1))
    observe(meter, meter_provider=telemetry.provider)
    spend(meter, USAGE, USAGE)
    shared = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "unknown", "gen_ai.request.model": "small"}
    assert telemetry.points("gen_ai.client.token.usage") == [
        ({**shared, "gen_ai.token.type": "input"}, (2, 2000)),
        ({**shared, "gen_ai.token.type": "output"}, (2, 400)),
    ]
    metric = telemetry.metrics()["gen_ai.client.token.usage"]
    assert metric.unit == "{token}"
    assert list(metric.data.data_points[0].explicit_bounds)[:3] == [1, 4, 16]
    assert list(metric.data.data_points[0].explicit_bounds)[-1] == 67_108_864
    assert not [name for name in telemetry.metrics() if "inference" in name]


def test_the_names_of_the_conventions_in_development_can_be_chosen(telemetry: Telemetry) -> None:
    meter = meter_of(BudgetPool(usd_cap=1))
    observe(meter, meter_provider=telemetry.provider, conventions="development")
    spend(meter, USAGE, USAGE)
    assert "gen_ai.client.token.usage" not in telemetry.metrics()
    sums = {name: telemetry.points(name) for name in telemetry.metrics() if name.startswith("gen_ai")}
    start = "gen_ai.client.inference"
    assert {name.removeprefix(start): [value for _, value in points] for name, points in sums.items()} == {
        ".operation.input_tokens": [(2, 2000)],
        ".operation.output_tokens": [(2, 400)],
        ".usage.input_tokens": [2000],
        ".usage.output_tokens": [400],
        ".usage.cache_read.input_tokens": [600],
        ".usage.cache_write.input_tokens": [100],
        ".usage.reasoning.output_tokens": [160],
    }
    assert {points[0][0].get("gen_ai.token.modality") for name, points in sums.items() if ".usage." in name} == {
        "unknown"
    }


@pytest.mark.skipif(not LIBRARIES, reason="no HTTP client is installed")
def test_a_call_through_a_client_is_told_with_its_provider_and_operation(telemetry: Telemetry) -> None:
    door = Door(LIBRARIES[0], "wrap", is_async=False)
    observe(door.meter, meter_provider=telemetry.provider)
    door.send(answer(), url="https://api.mistral.ai/v1/chat/completions", json={"model": "m", "messages": []})
    door.send(Reply(status=500), url="https://api.mistral.ai/v1/chat/completions", json={"model": "m", "messages": []})
    assert door.statuses == ["settled", "released"]
    [(read, _), _] = telemetry.points("gen_ai.client.token.usage")
    assert (read["gen_ai.provider.name"], read["gen_ai.request.model"]) == ("mistral_ai", "m")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("openai", "openai"),
        ("google", "gcp.gen_ai"),
        ("aws", "aws.bedrock"),
        ("azure", "azure.ai.openai"),
        ("x-ai", "x_ai"),
        ("moonshotai", "moonshot_ai"),
        ("house", "house"),
        (None, "unknown"),
    ],
)
def test_providers_have_the_names_of_the_conventions(telemetry: Telemetry, ours: str | None, theirs: str) -> None:
    from dataclasses import replace

    meter = meter_of(BudgetPool(usd_cap=1))
    records: list[Any] = []
    meter.subscribe(records.append)
    observe(meter, meter_provider=telemetry.provider)
    spend(meter, USAGE)
    told = meter._terms.callbacks[1]
    told(replace(records[0], provider=ours, model=None))
    points = [attributes for attributes, _ in telemetry.points("gen_ai.client.token.usage")]
    assert points[-1] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": theirs,
        "gen_ai.token.type": "output",
    }


def test_what_the_provider_told_no_usage_of_is_counted_only_if_that_is_asked(telemetry: Telemetry) -> None:
    meter = meter_of(BudgetPool(usd_cap=0.01), timeout=0)
    observe(meter, meter_provider=telemetry.provider)
    with meter.call("small", input_tokens=1000, max_output_tokens=500):
        pass
    with pytest.raises(BudgetExceeded), meter.call("large", input_tokens=10**6, max_output_tokens=500):
        pass
    with meter.call("small", input_tokens=1000, max_output_tokens=500) as call:
        call.release()
    assert telemetry.points("gen_ai.client.token.usage") == []

    other = meter_of(BudgetPool(usd_cap=0.01), timeout=0)
    observe(other, meter_provider=telemetry.provider, estimates=True)
    with other.call("small", input_tokens=1000, max_output_tokens=500):
        pass
    with other.call("small", input_tokens=1000, max_output_tokens=500) as call:
        call.release()
    assert [
        (point["token_budget.status"], value) for point, value in telemetry.points("gen_ai.client.token.usage")
    ] == [
        ("charged", (1, 1000)),
        ("charged", (1, 500)),
    ]


def test_a_call_that_is_recorded_by_hand_is_told(telemetry: Telemetry) -> None:
    meter = meter_of(BudgetPool(usd_cap=1))
    observe(meter, meter_provider=telemetry.provider)
    meter.record("small", input_tokens=10, output_tokens=20)
    assert [value for _, value in telemetry.points("gen_ai.client.token.usage")] == [(1, 10), (1, 20)]


# ---------------------------------------------------------------- pools


def test_the_gauges_show_the_pool_of_the_meter(telemetry: Telemetry) -> None:
    meter = meter_of(BudgetPool(token_cap=10_000, usd_cap=1, name="day"))
    observe(meter, meter_provider=telemetry.provider)
    spend(meter, USAGE)
    with meter.call("small", input_tokens=2000, max_output_tokens=500) as call:
        assert telemetry.gauge("reserved") == {("day", "tokens"): 2500, ("day", "usd"): 0.004}
        call.release()
    assert telemetry.gauge("cap") == {("day", "tokens"): 10_000, ("day", "usd"): 1.0}
    used = meter.pool.snapshot()
    assert telemetry.gauge("used") == {("day", "tokens"): 1200, ("day", "usd"): used.usd_used}
    assert used.usd_used > 0
    assert telemetry.gauge("reserved") == {("day", "tokens"): 0, ("day", "usd"): 0.0}


def test_an_axis_without_a_cap_has_no_cap_to_show(telemetry: Telemetry) -> None:
    observe(meter_of(BudgetPool(usd_cap=1, name="day")), meter_provider=telemetry.provider)
    assert telemetry.gauge("cap") == {("day", "usd"): 1.0}
    assert set(telemetry.gauge("used")) == {("day", "usd"), ("day", "tokens")}


def test_the_gauges_show_other_pools_and_every_key_of_a_group_each_once(telemetry: Telemetry) -> None:
    total = BudgetPool(usd_cap=100, name="total")
    users = total.keyed(usd_cap=10, name="user")
    observe(meter_of(total), total, users, users, total.child(usd_cap=5), meter_provider=telemetry.provider)
    users["ann"].record(usd=1)
    users["bob"].record(usd=2)  # made after `observe`
    used = {pool: value for (pool, axis), value in telemetry.gauge("used").items() if axis == "usd"}
    assert used == {"total": 3.0, "user:ann": 1.0, "user:bob": 2.0, "unnamed": 0.0}


def test_two_pools_of_one_name_are_told_apart(telemetry: Telemetry) -> None:
    first, second = BudgetPool(usd_cap=1, name="day"), BudgetPool(usd_cap=2, name="day")
    observe(meter_of(first), meter_provider=telemetry.provider)
    observe(meter_of(second), meter_provider=telemetry.provider)
    assert telemetry.gauge("cap") == {("day", "usd"): 1.0, ("day #2", "usd"): 2.0}


def test_a_pool_that_cannot_answer_is_left_out_and_logged(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    class Far(BudgetPool):
        def snapshot(self, tree: bool = False) -> BudgetSnapshot:  # noqa: FBT002 - as the class has it
            raise ConnectionError("gone")

    observe(
        meter_of(), Far(usd_cap=1, name="far"), BudgetPool(usd_cap=2, name="near"), meter_provider=telemetry.provider
    )
    with caplog.at_level(logging.WARNING, "token_budget"):
        assert telemetry.gauge("cap") == {("near", "usd"): 2.0}
    assert "pool 'far' is not shown: gone" in caplog.text


def test_a_meter_without_a_pool_shows_none(telemetry: Telemetry) -> None:
    meter = meter_of()
    observe(meter, meter_provider=telemetry.provider)
    spend(meter, USAGE)
    assert telemetry.gauge("used") == {}
    assert len(telemetry.points("gen_ai.client.token.usage")) == 2


# ---------------------------------------------------------------- its life


def test_what_was_ended_tells_no_more(telemetry: Telemetry) -> None:
    first, second = meter_of(BudgetPool(usd_cap=1, name="one")), meter_of(BudgetPool(usd_cap=1, name="two"))
    stop = observe(first, meter_provider=telemetry.provider)
    observe(second, meter_provider=telemetry.provider)
    spend(first, USAGE)
    spend(second, USAGE)
    stop()
    stop()
    spend(first, USAGE)
    assert {pool for pool, _ in telemetry.gauge("used")} == {"two"}
    assert [value for _, value in telemetry.points("gen_ai.client.token.usage")] == [(2, 2000), (2, 400)]


def test_a_pool_that_is_shown_twice_stays_until_both_are_ended(telemetry: Telemetry) -> None:
    meter = meter_of(BudgetPool(usd_cap=1, name="day"))
    stops = [observe(meter, meter_provider=telemetry.provider) for _ in range(2)]
    assert telemetry.gauge("cap") == {("day", "usd"): 1.0}
    stops[0]()
    assert telemetry.gauge("cap") == {("day", "usd"): 1.0}
    stops[1]()
    assert telemetry.gauge("cap") == {}


def test_instruments_are_made_once_however_many_meters_there_are(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    for conventions in (*CONVENTIONS, *CONVENTIONS):
        observe(meter_of(BudgetPool(usd_cap=1)), meter_provider=telemetry.provider, conventions=conventions)  # type: ignore[arg-type]
    assert caplog.text == ""  # the SDK would warn


def test_a_meter_provider_that_is_gone_is_forgotten() -> None:
    telemetry = Telemetry()
    stop = observe(meter_of(BudgetPool(usd_cap=1)), meter_provider=telemetry.provider)
    stop()
    gone = weakref.ref(telemetry.provider)
    telemetry.provider.shutdown()
    del telemetry
    gc.collect()
    assert gone() is None


def test_without_a_provider_nothing_is_measured_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.metrics")
    monkeypatch.setattr(adapter, "_global", [])
    meter = meter_of(BudgetPool(usd_cap=1))
    stops = [observe(meter), observe(meter)]
    spend(meter, USAGE)
    for stop in stops:
        stop()
    assert len(adapter._global) == 1


def test_the_global_meter_provider_is_found_also_if_it_is_set_later() -> None:
    pytest.importorskip("opentelemetry.sdk.metrics")
    program = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from token_budget import BudgetPool
from token_budget.adapters.opentelemetry import observe
from token_budget.metering import Meter

meter = Meter(BudgetPool(usd_cap=1, name="early"), {"m": (1, 4)})
observe(meter)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader], shutdown_on_exit=False))
late = Meter(BudgetPool(usd_cap=1, name="late"), {"m": (1, 4)})
observe(late)
for one in (meter, late):
    one.record("m", input_tokens=10, output_tokens=20)
found = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
for metric in found:
    points = metric.data.data_points
    print(metric.name, *[p.attributes.get("token_budget.pool") or p.count for p in points])
"""
    lines = sorted(run_program(program).stdout.splitlines())
    assert lines == [
        "gen_ai.client.token.usage 2 2",
        "token_budget.cap early late",
        "token_budget.reserved early early late late",
        "token_budget.used early early late late",
    ]


# ---------------------------------------------------------------- what is refused


def test_without_the_api_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(ImportError, match=r"pip install 'token-budget-pool\[otel\]'"):
        observe(meter_of())


def test_what_is_no_meter_no_pool_and_no_convention_is_refused() -> None:
    thing: Any = object()
    with pytest.raises(TypeError, match="a Meter, not object"):
        observe(thing)
    with pytest.raises(TypeError, match="pools and groups of pools, not object"):
        observe(meter_of(), thing)
    with pytest.raises(ValueError, match=r"'1\.41\.0', 'development'"):
        observe(meter_of(), conventions=thing)


def test_importing_the_adapter_imports_no_telemetry() -> None:
    program = "import sys, token_budget.adapters.opentelemetry\nprint([n for n in sys.modules if n == 'opentelemetry'])"
    assert run_program(program).stdout.strip() == "[]"
