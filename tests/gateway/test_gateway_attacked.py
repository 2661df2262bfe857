"""What an attack on the gateway found: each test failed before its mend."""

from __future__ import annotations

import gzip
import json
import threading
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from gateways import (
    CHAT,
    SECONDS,
    Asked,
    Connection,
    Got,
    ask,
    asked,
    chat,
    completion,
    gateway_to,
    head,
    meter_of,
    raw,
    used,
    wired,
)
from token_budget import BudgetPool
from token_budget.gateway import Limits, _calls, _forward, upstreams
from token_budget.metering import Meter, Prices
from token_budget.metering._watch import Watch

LONG = b"x" * 3000  # what a model wrote into an answer that tells no usage
SAID = b'{"choices": [{"message": {"content": "%b"}}]}' % LONG


def in_full(meter: Meter) -> bool:
    """Whether one call was charged, at its worst case."""
    tokens, _, in_flight = used(meter)
    return tokens > 1000 and in_flight == 0


# ---------------------------------------------------------------- spending


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Content-Type: application/json", SAID),
        ("Content-Type: text/html", b"<html>" + LONG),
        ("Content-Encoding: br", LONG),
        ("Content-Type: text/event-stream", b'data: {"usage": {"prompt_tokens": -1}}\n\ndata: {}\n\n'),
    ],
    ids=["json", "page", "packed", "lie"],
)
def test_an_answer_whose_text_cannot_be_counted_is_charged_in_full_also_where_what_was_seen_counts(
    kind: str, body: bytes
) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(body, "200 OK", kind)

    meter = meter_of(broken="seen")
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=chat()).body == body
        assert in_full(meter)


@pytest.mark.parametrize("begun", [b"", SAID[:2000]], ids=["head", "half"])
def test_a_json_answer_that_is_cut_was_written_whole_and_is_charged_in_full(begun: bytes) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n" + begun)
        connection.close()

    meter = meter_of(broken="seen")
    with wired(respond, meter) as (gateway, _):
        body = json.dumps(chat()).encode()
        raw(gateway, head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body)
        assert in_full(meter)


def test_a_stream_of_which_nothing_came_is_charged_for_its_input_where_what_was_seen_counts() -> None:
    watch = Watch(content_type=b"text/event-stream", counting=True)
    assert watch.seen() == 0


@pytest.mark.parametrize("status", ["307 Temporary Redirect", "308 Permanent Redirect"])
@pytest.mark.parametrize(
    "where",
    ["https://elsewhere.example/v1", "//elsewhere.example", "\\\\elsewhere.example", "/\t/elsewhere", "https:a"],
)
def test_no_redirect_sends_a_call_past_the_gateway(status: str, where: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b"", status, f"Location: {where}")

    meter = meter_of()
    with wired(respond, meter) as (_, wire), gateway_to(wire.url + "/prefix", meter) as gateway:
        got = ask(gateway, body=chat())
        assert (got.status, got.header("location"), got.header("x-should-retry")) == (403, [], ["false"])
        assert "another address" in got.message
        assert used(meter) == (0, 0, 0)


@pytest.mark.parametrize(
    ("status", "where"), [("303 See Other", "https://elsewhere.example/"), ("307 Temporary Redirect", "/other/v1")]
)
def test_a_redirect_that_sends_no_call_past_the_gateway_reaches_the_client(status: str, where: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b"", status, f"Location: {where}")

    with wired(respond) as (_, wire), gateway_to(wire.url + "/prefix") as gateway:
        got = ask(gateway, body=chat())
        assert (f"{got.status}", got.header("location")) == (status[:3], [where])


@pytest.mark.parametrize(
    "more", [{"models": ["house-large"]}, {"fallbacks": [{"model": "house-large"}, 5]}, {"models": ["house-large", ""]}]
)
def test_a_call_is_held_at_the_price_of_the_dearest_model_that_may_answer_it(more: dict[str, Any]) -> None:
    held: list[int] = []

    def respond(connection: Connection, asked: Asked) -> None:
        held.append(meter.pool.snapshot().usd_reserved_nanos)
        connection.answer(completion())

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=chat("house-small", **more)).status == 200
        assert held[0] > 1000 * 15_000  # house-large's output


def test_a_call_that_a_model_without_a_price_may_answer_is_refused() -> None:
    with wired(lambda connection, _: connection.answer()) as (gateway, wire):
        got = ask(gateway, body=chat(models=["nobody-knows"]))
        assert got.status == 400
        assert "nobody-knows" in got.message
        assert not wire.seen


def test_a_model_that_is_denied_does_not_answer_in_place_of_another() -> None:
    prices = Prices({"small": (1, 4), "house-large": (3, 15)}, catalogue=False)
    meter = Meter(BudgetPool(usd_cap=1), prices, policies=[({}, ["house-large"])])
    with wired(lambda connection, _: connection.answer(), meter) as (gateway, wire):
        assert "house-large" in ask(gateway, body=chat(models=["house-large"])).message
        assert not wire.seen


@pytest.mark.parametrize("between", ["%3Fx", ";x", "%23", "%0d%0a"])
def test_a_path_that_some_servers_read_as_one_that_spends_is_not_free(between: str) -> None:
    with wired(lambda connection, _: connection.answer()) as (gateway, wire):
        assert ask(gateway, rest=f"{CHAT}{between}/v1/models", body=chat()).status == 403
        assert ask(gateway, rest="/v1/files", body=b"{}").status == 200
        assert len(wire.seen) == 1


def test_an_answer_that_tells_its_output_alone_is_charged_for_the_input_that_was_held() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b'{"usage": {"completion_tokens": 1}}')

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=chat()).status == 200
        tokens, nanos, _ = used(meter)
        assert tokens > 6  # the question is five words
        assert nanos == (tokens - 1) * 1_000 + 4_000


@pytest.mark.parametrize("rest", ["/..;/x", "/v1/.;a=1/x", "/..%3b/x", "/..%253Bx=1"])
def test_no_path_climbs_with_a_parameter(rest: str) -> None:
    with wired(lambda connection, _: connection.answer()) as (gateway, wire):
        assert ask(gateway, "GET", rest).status == 404
        assert ask(gateway, "GET", "/v1/a..;b/...;/x").status == 200
        assert len(wire.seen) == 1


# ---------------------------------------------------------------- answers and times


def test_no_line_of_a_header_is_lost_where_two_are_spelled_differently() -> None:
    with wired(lambda connection, _: connection.answer()) as (gateway, wire):
        lines = ("anthropic-beta: one", "X-Other: 1", "Anthropic-Beta: two", "anthropic-beta: three")
        raw(gateway, head(gateway, "GET", "/v1/models", *lines, "Connection: close"))
        assert wire.seen[0].header("anthropic-beta") == ["one", "two", "three"]
        assert wire.seen[0].header("x-other") == ["1"]


@pytest.mark.parametrize("headers", [["X-Long: " + "a" * 40_000], ["X-Many: a"] * 90], ids=["long", "many"])
def test_an_answer_with_much_of_a_head_arrives(headers: list[str]) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(completion(), "200 OK", *headers, *["X-More: a"] * 60)

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        body = json.dumps(chat()).encode()
        got = raw(gateway, head(gateway, "POST", CHAT, f"Content-Length: {len(body)}", "Connection: close") + body)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert got.endswith(completion())
        assert got.count(b"\r\nX-") == len(headers) + 60


def test_a_stream_whose_events_are_packed_one_by_one_is_read_and_handed_on_whole() -> None:
    plain = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    told = b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":20}}\n\n'
    events = [plain, plain, told, b"data: [DONE]\n\n"]
    packed = [gzip.compress(event) for event in events]
    for pieces in (packed, [b"".join(packed)], [packed[0][:9], packed[0][9:] + packed[1], *packed[2:], b"\0\0"]):
        watch = Watch(shape="openai-chat", content_type=b"text/event-stream", encoding=b"gzip", strip=True)
        assert b"".join([*map(watch.feed, pieces), watch.end()]) == plain * 2 + events[3]
        assert watch.ready is not None


def test_a_model_that_declines_the_question_for_usage_leaves_it_to_the_others() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        if b"stream_options" in asked.body and b"house-small" in asked.body:
            connection.answer(b'{"error": "stream_options"}', "400 Bad Request")
        else:
            connection.answer(completion())

    with wired(respond) as (gateway, wire):
        for model in ("house-small", "house-small", "small"):
            assert ask(gateway, body=chat(model, stream=True)).status == 200
        assert [b"stream_options" in one.body for one in wire.seen] == [True, False, False, True]


class AskedForItsRoom:
    """A pool whose snapshot takes as long as the test wants."""

    name, closed = "slow", False

    def __init__(self) -> None:
        self._inner = BudgetPool(usd_cap=1)
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def reserve(self, **amounts: Any) -> Any:
        raise AssertionError("the gateway never blocks its loop")

    async def areserve(self, **amounts: Any) -> Any:
        return await self._inner.areserve(**amounts)

    def snapshot(self) -> Any:
        self.asked.set()
        assert self.go_on.wait(SECONDS)
        return self._inner.snapshot()


def test_a_store_that_is_slow_to_tell_what_is_left_holds_up_no_other_request() -> None:
    store: Any = AskedForItsRoom()
    got: list[Got] = []
    body = chat()
    del body["max_tokens"]
    meter = meter_of(store, cap_output="fit")
    with wired(lambda connection, _: connection.answer(completion()), meter) as (gateway, _):
        thread = threading.Thread(target=lambda: got.append(ask(gateway, body=body)))
        thread.start()
        try:
            assert store.asked.wait(SECONDS)
            assert asked(gateway, "GET", f"/{gateway.secret}/_status").status == 200
        finally:
            store.go_on.set()
            thread.join()
        assert [one.status for one in got] == [200]


def test_a_long_body_holds_up_no_other_request_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go_on = threading.Event(), threading.Event()
    examine = _calls.examine

    def slowly(*arguments: Any, **named: Any) -> Any:
        reading.set()
        assert go_on.wait(SECONDS)
        return examine(*arguments, **named)

    monkeypatch.setattr(_forward, "examine", slowly)
    got: list[Got] = []
    body = {**chat(), "padding": "x" * (1 << 20)}
    with wired(lambda connection, _: connection.answer(completion()), meter_of()) as (gateway, _):
        thread = threading.Thread(target=lambda: got.append(ask(gateway, body=body)))
        thread.start()
        try:
            assert reading.wait(SECONDS)
            assert asked(gateway, "GET", f"/{gateway.secret}/_status").status == 200
        finally:
            go_on.set()
            thread.join()
        assert [one.status for one in got] == [200]


def test_a_proxy_that_opens_no_tunnel_is_a_502_and_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    def respond(connection: Connection, asked: Asked) -> None:
        connection.left()

    meter = meter_of()
    with wired(respond, meter) as (_, proxy):
        monkeypatch.setenv("https_proxy", proxy.url)
        with gateway_to("https://api.example", meter, limits=Limits(connect_seconds=0.5)) as gateway:
            assert ask(gateway, body=chat()).status == 502
        assert used(meter) == (0, 0, 0)
        assert [one.method for one in proxy.seen] == ["CONNECT"]


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..example"])
def test_a_host_that_cannot_be_looked_up_is_no_upstream(host: str) -> None:
    with pytest.raises(ValueError, match="this is no URL"):
        upstreams({}, [f"local=http://{host}"])
