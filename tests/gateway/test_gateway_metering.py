"""What the gateway holds, forwards and settles: the provider's books and the pool's agree, whatever happens."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from gateways import (
    CHAT,
    SECONDS,
    Asked,
    Connection,
    ask,
    chat,
    completion,
    eventually,
    gateway_to,
    head,
    meter_of,
    raw,
    received,
    upstream,
    used,
    wired,
)
from token_budget import BudgetPool
from token_budget.cli._provider import Provider
from token_budget.gateway import Limits
from token_budget.metering import CallRecord

WORST_OUTPUT = 1000  # of `chat`
EXACT = (108, 8 * 1000 + 100 * 4000, 0)  # what `completion` costs


def whole(connection: Connection, _: Asked) -> None:
    connection.answer(completion(), "200 OK", "Content-Type: application/json")


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider
        assert not provider.errors


def in_full(meter: Any) -> bool:
    """Return whether one call is charged for all that it can cost."""
    tokens, _, flying = used(meter)
    return flying == 0 and tokens > WORST_OUTPUT


# ---------------------------------------------------------------- what is counted


def test_a_json_answer_reaches_the_client_byte_for_byte_and_is_settled_by_its_usage() -> None:
    meter = meter_of()
    with wired(whole, meter) as (gateway, wire):
        got = ask(gateway, body=chat())
        assert (got.status, got.body) == (200, completion())
        assert got.header("content-length") == [str(len(completion()))]
        assert wire.seen[0].body == json.dumps(chat()).encode()
        assert used(meter) == EXACT
        assert (gateway.metered, gateway.passed) == (1, 0)


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/v1/embeddings"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_books_of_the_provider_and_the_pool_agree(provider: Provider, path: str, *, stream: bool) -> None:
    if "embeddings" in path:
        body: dict[str, Any] = {"model": "house-embed", "input": "hello"}
    elif "responses" in path:
        body = {"model": "house-small", "input": "hello", "max_output_tokens": 50, "stream": stream}
    else:
        body = chat("house-small", stream=stream)
    meter = meter_of()
    with gateway_to(provider.url, meter) as gateway:
        got = ask(gateway, rest=path, body=body)
        assert got.status == 200
        assert provider.billed_nanos > 0
        assert used(meter) == (sum(provider.billed), provider.billed_nanos, 0)


@pytest.mark.parametrize("verb", ["generateContent", "streamGenerateContent?alt=sse", "streamGenerateContent"])
def test_gemini_is_metered_in_all_its_forms(provider: Provider, verb: str) -> None:
    meter = meter_of()
    body = {"contents": [{"parts": [{"text": "hello"}]}], "generationConfig": {"maxOutputTokens": 100}}
    with gateway_to(provider.url, meter, upstreams={"gemini": upstream(provider.url, "gemini")}) as gateway:
        got = ask(gateway, rest=f"/v1beta/models/house-small:{verb}", body=body, name="gemini")
        assert got.status == 200
        assert provider.billed_nanos == used(meter)[1] > 0


def test_the_usage_of_a_chat_stream_is_asked_for_and_its_event_is_left_out_again(provider: Provider) -> None:
    meter = meter_of()
    with gateway_to(provider.url, meter) as gateway:
        got = ask(gateway, body=chat("house-small", stream=True), headers={"accept-encoding": "gzip, br"})
    direct = Provider()
    with direct, gateway_to(direct.url, meter_of()) as gateway:
        plain = ask(gateway, body=chat("house-small", stream=True, stream_options={"include_usage": True}))
    assert b'"choices": []' not in got.body
    assert b'"choices": []' in plain.body
    assert got.body.endswith(b"data: [DONE]\n\n")
    assert got.header("content-length") == []
    assert used(meter) == (sum(provider.billed), provider.billed_nanos, 0)


def test_an_answer_that_is_rewritten_is_asked_for_unpacked_and_has_no_length() -> None:
    event = b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":100}}\n\n'
    text = b'data: {"choices":[{"delta":{"content":"B"}}]}\n\n'

    def respond(connection: Connection, asked: Asked) -> None:
        body = text + event + b"data: [DONE]\n\n"
        connection.answer(body, "200 OK", "Content-Type: text/event-stream")

    meter = meter_of()
    with wired(respond, meter) as (gateway, wire):
        got = ask(gateway, body=chat(stream=True), headers={"Accept-Encoding": "gzip"})
        assert wire.seen[0].header("accept-encoding") == ["identity"]
        assert json.loads(wire.seen[0].body)["stream_options"] == {"include_usage": True}
        assert got.body == text + b"data: [DONE]\n\n"
        assert got.header("content-length") == []
        assert used(meter) == EXACT


def test_a_rewritten_answer_that_is_packed_all_the_same_reaches_the_client_unpacked() -> None:
    event = b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":100}}\n\n'

    def respond(connection: Connection, asked: Asked) -> None:
        body = gzip.compress(b"data: {}\n\n" + event + b"data: [DONE]\n\n")
        connection.answer(body, "200 OK", "Content-Type: text/event-stream", "Content-Encoding: gzip")

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        got = ask(gateway, body=chat(stream=True))
        assert got.body == b"data: {}\n\ndata: [DONE]\n\n"
        assert got.header("content-encoding") == []
        assert used(meter) == EXACT


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Content"])
def test_a_server_that_declines_the_question_gets_the_request_without_it_and_is_not_asked_again(status: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        if b"stream_options" in asked.body:
            connection.answer(b'{"error": "unknown field stream_options"}', status)
        else:
            connection.answer(completion(), "200 OK", "Content-Type: application/json")

    meter = meter_of()
    with wired(respond, meter) as (gateway, wire):
        for _ in range(2):
            assert ask(gateway, body=chat(stream=True)).status == 200
        assert ["stream_options" in asked.body.decode() for asked in wire.seen] == [True, False, False]
        assert wire.seen[1].body == json.dumps(chat(stream=True)).encode()
        assert used(meter) == (216, 816_000, 0)
        assert gateway.metered == 2


def test_an_error_that_is_about_something_else_reaches_the_client_whole_and_costs_nothing() -> None:
    text = json.dumps({"error": {"message": "no such model" + "!" * 200_000}}).encode()

    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(text, "400 Bad Request")

    meter = meter_of()
    with wired(respond, meter) as (gateway, wire):
        got = ask(gateway, body=chat(stream=True))
        assert (got.status, got.body) == (400, text)
        assert len(wire.seen) == 1
        assert used(meter) == (0, 0, 0)


def test_a_server_that_refuses_the_second_request_too_is_asked_again_the_next_time() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b'{"error": "stream_options or something else"}', "400 Bad Request")

    with wired(respond) as (gateway, wire):
        for _ in range(2):
            assert ask(gateway, body=chat(stream=True)).status == 400
        assert [b"stream_options" in asked.body for asked in wire.seen] == [True, False, True, False]


# ---------------------------------------------------------------- what is charged, and what is given back


@pytest.mark.parametrize("status", ["429 Too Many Requests", "500 Oops", "302 Found", "404 Not Found"])
def test_any_status_but_2xx_costs_nothing_and_reaches_the_client_as_it_is(status: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b'{"error": "later"}', status, "Retry-After: 7")

    meter = meter_of()
    with wired(respond, meter) as (gateway, wire):
        got = ask(gateway, body=chat())
        assert (got.status, got.body, got.header("retry-after")) == (int(status[:3]), b'{"error": "later"}', ["7"])
        assert used(meter) == (0, 0, 0)
        assert len(wire.seen) == 1


@pytest.mark.parametrize("body", [b'{"id": 1}', b"<html>", b'{"usage": {"prompt_tokens": -1, "completion_tokens": 2}}'])
def test_an_answer_without_a_usage_that_can_be_read_is_charged_in_full(body: bytes) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(body)

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=chat()).body == body
        assert in_full(meter)


def test_a_provider_that_cannot_be_reached_is_a_502_that_may_be_tried_again_and_costs_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meter = meter_of()
    with gateway_to(f"http://127.0.0.1:{port}", meter) as gateway:
        got = ask(gateway, body=chat())
        assert got.status == 502
        assert got.header("x-should-retry") == []
        assert used(meter) == (0, 0, 0)
        assert ask(gateway, "GET", "/v1/models").status == 502


def test_a_provider_whose_certificate_is_not_known_gets_nothing_and_costs_nothing() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        raise AssertionError("never")

    meter = meter_of()
    with wired(respond, meter) as (_, wire):
        with gateway_to(wire.url.replace("http:", "https:"), meter) as gateway:
            threading.Timer(0, lambda: None).start()
            got = ask_over_tls(gateway, wire)
        assert got.status == 502
        assert wire.seen == []
        assert used(meter) == (0, 0, 0)


def ask_over_tls(gateway: Any, wire: Any) -> Any:
    """Ask a provider that speaks no TLS: it says so in the middle of the greeting."""
    wire._read = lambda plain, file: plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    return ask(gateway, body=chat())


@pytest.mark.parametrize("fault", ["close", "reset"])
def test_a_connection_that_ends_before_the_answer_is_a_502_and_charged_in_full(fault: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        getattr(connection, fault)()

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        got = ask(gateway, body=chat())
        assert got.status == 502
        assert got.header("x-should-retry") == []
        assert in_full(meter)


def test_a_provider_that_does_not_answer_in_time_is_a_504_and_charged_in_full() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.left()

    meter = meter_of()
    with wired(respond, meter, limits=Limits(read_seconds=0.2)) as (gateway, _):
        assert ask(gateway, body=chat()).status == 504
        assert in_full(meter)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["close", "reset", "stall"])
def test_an_answer_that_is_cut_is_cut_for_the_client_too_and_charged_in_full(fault: str, *, stream: bool) -> None:
    go_on = threading.Event()

    def respond(connection: Connection, asked: Asked) -> None:
        if stream:
            connection.begin()
            connection.chunk(b"data: {}\n\n")
        else:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ndata: {}\n\n")
        go_on.wait(SECONDS)
        connection.left() if fault == "stall" else getattr(connection, fault)()

    meter = meter_of()
    with wired(respond, meter, limits=Limits(read_seconds=0.5)) as (gateway, _):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain:
            body = json.dumps(chat(stream=stream)).encode()
            plain.sendall(head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body)
            got = received(plain, b"data: {}")
            assert b"data: {}" in got
            go_on.set()
            got += received(plain)
        assert not got.endswith(b"0\r\n\r\n")
        assert in_full(meter)


def test_a_stream_that_was_cut_after_its_usage_is_settled_by_it() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        connection.chunk(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
        connection.chunk(b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":100}}\n\n')
        connection.reset()

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        with pytest.raises(Exception, match=r"IncompleteRead|reset"):
            ask(gateway, body=chat(stream=True, stream_options={"include_usage": True}))
        assert used(meter) == EXACT


def test_a_stream_that_was_cut_is_charged_for_what_was_seen_where_the_meter_says_so() -> None:
    seen = threading.Event()

    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        connection.chunk(b'data: {"choices":[{"delta":{"content":"four"}}]}\n\n')
        seen.wait(SECONDS)
        connection.close()

    meter = meter_of(broken="seen")
    with wired(respond, meter) as (gateway, _):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain:
            body = json.dumps(chat(stream=True)).encode()
            plain.sendall(head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body)
            received(plain, b"four")
            seen.set()
            received(plain)
        tokens, _, flying = used(meter)
        assert flying == 0
        assert 260 < tokens < WORST_OUTPUT


def test_a_stream_that_is_damaged_on_its_way_is_cut_and_charged_in_full() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        packed = zlib.compress(b"data: {}\n\n" * 100)
        body = packed[:10] + b"\0" * 40
        connection.answer(body, "200 OK", "Content-Type: text/event-stream", "Content-Encoding: gzip")

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        body = json.dumps(chat(stream=True)).encode()
        got = raw(gateway, head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body)
        assert not got.endswith(b"0\r\n\r\n")
        assert in_full(meter)


def test_an_overrun_is_booked_and_the_client_gets_its_answer() -> None:
    meter = meter_of(BudgetPool(usd_cap=0.01))

    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(completion(8, 50_000))

    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=chat()).body == completion(8, 50_000)
        assert used(meter) == (50_008, 200_008_000, 0)
        refused = ask(gateway, body=chat())
        assert (refused.status, refused.header("x-should-retry")) == (402, ["false"])
        assert gateway.metered == 1


def test_a_json_answer_that_is_longer_than_the_meter_keeps_is_charged_in_full_and_arrives_whole() -> None:
    body = completion() + b" " * 200_000

    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(body, "200 OK", "Content-Type: application/json")

    meter = meter_of()
    with wired(respond, meter, limits=Limits(copy=100_000)) as (gateway, _):
        assert ask(gateway, body=chat()).body == body
        assert in_full(meter)
    meter = meter_of()
    with wired(respond, meter, limits=Limits(copy=300_000)) as (gateway, _):
        assert ask(gateway, body=chat()).body == body
        assert used(meter) == EXACT


# ---------------------------------------------------------------- what is refused


def never(connection: Connection, asked: Asked) -> None:
    raise AssertionError("nothing may reach the provider")


@pytest.mark.parametrize(
    ("method", "rest", "body", "status"),
    [
        ("POST", "/v1/images/generations", {"model": "small", "prompt": "x"}, 403),
        ("POST", "/v1/batches", {"input_file_id": "x"}, 403),
        ("POST", "/v1/something/new", {"model": "small"}, 403),
        ("POST", "/", {"model": "small"}, 403),
        ("POST", "", {"model": "small"}, 403),
        ("PUT", "/v1/something", b"x", 403),
        ("PATCH", "/v1/something", b"x", 403),
        ("TRACE", CHAT, None, 403),
        ("PURGE", CHAT, None, 403),
        ("POST", CHAT, b"no json", 403),
        ("POST", CHAT, b"", 403),
        ("POST", CHAT, b'"a text"', 403),
        ("POST", "/v1/embeddings", b"no json", 403),  # a path that other services have too
        ("POST", "/v1/completions", {"x": 1}, 400),
        ("POST", "/v1/messages", {"text": "hello"}, 400),
        ("POST", CHAT, chat(max_tokens="many"), 403),
        ("POST", CHAT, chat("no-such-model"), 400),
        ("PUT", CHAT, chat(), 403),
        ("POST", "/v1/" + "x" * 600, chat(), 403),
        ("POST", "/V1/Chat/Completions", chat(), 403),
    ],
)
def test_what_the_meter_does_not_know_is_refused(method: str, rest: str, body: Any, status: int) -> None:
    meter = meter_of()
    refused: list[CallRecord] = []
    meter.subscribe(refused.append)
    with wired(never, meter) as (gateway, wire):
        got = ask(gateway, method, rest, body)
        assert got.status == status
        assert got.header("x-should-retry") == ["false"]
        assert wire.seen == []
        assert used(meter) == (0, 0, 0)
        assert (gateway.metered, gateway.passed) == (0, 0)
        assert [record.status for record in refused] == ["refused"]


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        ("/v1/images/generations", {"model": "small"}),
        ("/v1/something/new", {}),
        (CHAT, b"no json"),
        (CHAT, chat("no-such-model")),
        ("/v1/embeddings", b"no json"),
    ],
)
def test_what_the_meter_does_not_know_passes_uncounted_where_it_is_told_so(rest: str, body: Any) -> None:
    meter = meter_of(unmetered="allow")
    refused: list[CallRecord] = []
    meter.subscribe(refused.append)
    with wired(whole, meter) as (gateway, _):
        assert ask(gateway, rest=rest, body=body).status == 200
        assert used(meter) == (0, 0, 0)
        assert (gateway.metered, gateway.passed) == (0, 1)
        assert refused == []
        assert ask(gateway, body=chat()).status == 200
        assert used(meter) == EXACT


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        ("GET", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("DELETE", "/v1/files/1"),
        ("OPTIONS", CHAT),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/files"),
    ],
)
def test_what_costs_nothing_passes_uncounted(method: str, rest: str) -> None:
    meter = meter_of(BudgetPool(usd_cap=0))
    with wired(whole, meter) as (gateway, wire):
        got = ask(gateway, method, rest, b"x=1" if method == "POST" else None)
        assert got.status == 200
        assert (wire.seen[0].method, wire.seen[0].target) == (method, rest)
        assert (gateway.metered, gateway.passed) == (0, 1)
        assert used(meter) == (0, 0, 0)


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_a_get_that_says_it_is_a_post_is_a_get_for_the_provider_too(header: str) -> None:
    with wired(whole) as (gateway, wire):
        ask(gateway, "GET", CHAT, headers={header: "POST"})
        assert wire.seen[0].header(header) == []


def test_an_upstream_of_another_host_is_read_as_the_provider_that_it_stands_for() -> None:
    meter = meter_of()
    with wired(whole, meter) as (plain, wire):
        table = {"corp": upstream(wire.url + "/anthropic-proxy", "corp", provider="anthropic", dialect="anthropic")}
        records: list[CallRecord] = []
        meter.subscribe(records.append)
        with gateway_to("", meter, upstreams=table) as gateway:
            assert ask(gateway, rest="/v1/messages", body=chat(), name="corp").status == 200
            refused = ask(gateway, rest="/v1/sessions", body={}, name="corp")
            assert refused.status == 403
            assert json.loads(refused.body)["type"] == "error"
        assert wire.seen[0].target == "/anthropic-proxy/v1/messages"
        assert [record.provider for record in records] == ["anthropic", "anthropic"]
        assert plain.metered == 0


def test_a_body_that_was_just_refused_is_a_400() -> None:
    meter = meter_of(BudgetPool(usd_cap=0))
    with wired(never, meter) as (gateway, _):
        assert [ask(gateway, body=chat()).status for _ in range(2)] == [402, 400]
        assert ask(gateway, body=chat(temperature=1), headers={"User-Agent": "codex_cli_rs/0.1"}).status == 400


# ---------------------------------------------------------------- bodies that are changed


def test_the_limit_of_the_meter_is_written_into_the_request() -> None:
    meter = meter_of(cap_output=True, default_output=77)
    with wired(whole, meter) as (gateway, wire):
        ask(gateway, body={"model": "small", "messages": []})
        assert json.loads(wire.seen[0].body)["max_tokens"] == 77
        assert wire.seen[0].header("content-length") == [str(len(wire.seen[0].body))]


def test_a_limit_that_cannot_be_written_is_refused_once_and_holds_nothing() -> None:
    meter = meter_of(cap_output=True)
    refused: list[CallRecord] = []
    meter.subscribe(refused.append)
    with wired(never, meter) as (gateway, _):
        body = b'{"model": "small", "messages": [], "x": 1e999, "max_tokens": null}'
        assert ask(gateway, body=body).status == 403
        assert used(meter) == (0, 0, 0)
        assert len(refused) == 1


def test_a_packed_body_is_unpacked_to_be_read_and_forwarded_as_it_is() -> None:
    packed = gzip.compress(json.dumps({"model": "small", "stream": True, "messages": []}).encode())
    meter = meter_of(cap_output=True)  # nothing is written into it all the same
    with wired(whole, meter) as (gateway, wire):
        assert ask(gateway, body=packed, headers={"Content-Encoding": "gzip"}).status == 200
        assert wire.seen[0].body == packed
        assert wire.seen[0].header("content-encoding") == ["gzip"]
        assert used(meter) == EXACT


def test_a_packed_body_that_would_be_too_long_is_refused() -> None:
    packed = gzip.compress(json.dumps(chat(x="a" * 100_000)).encode())
    with wired(never, limits=Limits(body=50_000)) as (gateway, _):
        assert ask(gateway, body=packed, headers={"Content-Encoding": "gzip"}).status == 403


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("gzip, deflate, br, zstd", ["gzip, deflate"]),
        ("br;q=1.0, gzip;q=0.8", ["gzip;q=0.8"]),
        ("br", ["identity"]),
        ("gzip", ["gzip"]),
        (None, []),
    ],
)
def test_only_encodings_that_the_meter_can_read_are_asked_for(asked: str | None, sent: list[str]) -> None:
    with wired(whole) as (gateway, wire):
        body = json.dumps(chat()).encode()
        lines = [f"Content-Length: {len(body)}", "Connection: close"]
        lines += [] if asked is None else [f"Accept-Encoding: {asked}"]
        raw(gateway, head(gateway, "POST", CHAT, *lines) + body)
        assert wire.seen[0].header("accept-encoding") == sent


@pytest.mark.parametrize("stream", [False, True])
def test_a_packed_answer_reaches_the_client_packed_and_is_read(provider: Provider, *, stream: bool) -> None:
    meter = meter_of()
    body = chat("house-small", stream=stream, stream_options={"include_usage": True})
    with gateway_to(provider.url, meter) as gateway:
        got = ask(gateway, body=body, headers={"Accept-Encoding": "gzip", "x-fault": "gzip"})
        assert got.header("content-encoding") == ["gzip"]
        assert b'"usage"' in gzip.decompress(got.body)
        assert used(meter) == (sum(provider.billed), provider.billed_nanos, 0)


# ---------------------------------------------------------------- many at once


def test_32_calls_at_once_on_a_cap_for_10_never_pass_it_and_the_books_agree(provider: Provider) -> None:
    body = chat("house-small", max_tokens=100)
    provider.latency = 0.01
    one = meter_of()
    with gateway_to(provider.url, one) as gateway:
        held: list[int] = []
        ask(gateway, body=body)
        held.append(one.pool.snapshot().usd_used_nanos)
    provider.bills.clear()
    cap = BudgetPool(usd_cap=10 * held[0] / 10**9)
    meter = meter_of(cap)
    with gateway_to(provider.url, meter) as gateway, ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(lambda number: ask(gateway, body={**body, "seed": number}).status, range(32)))
    assert set(statuses) <= {200, 402}
    assert statuses.count(200) == len(provider.bills) == gateway.metered <= 10
    assert used(meter) == (sum(provider.billed), provider.billed_nanos, 0)
    assert provider.billed_nanos <= 10 * held[0]


def test_a_call_waits_for_room_that_another_one_gives_back() -> None:
    go_on = threading.Event()

    def respond(connection: Connection, asked: Asked) -> None:
        go_on.wait(SECONDS)
        connection.answer(completion())

    meter = meter_of(BudgetPool(usd_cap=0.006))
    with wired(respond, meter) as (gateway, wire), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, gateway, body=chat())
        eventually(lambda: len(wire.seen) == 1)
        second = pool.submit(ask, gateway, body=chat())
        eventually(lambda: len(gateway._open) == 2)
        assert len(wire.seen) == 1
        go_on.set()
        assert (first.result().status, second.result().status) == (200, 200)
        assert used(meter) == (216, 816_000, 0)


# ---------------------------------------------------------------- stores, which take their time


class SlowHold:
    """What a slow store holds: it is settled when it is let."""

    def __init__(self, inner: Any, store: SlowStore) -> None:
        self._inner = inner
        self._store = store

    @property
    def completed(self) -> bool:
        return bool(self._inner.completed)

    async def acommit(self, **amounts: Any) -> None:
        await self._store.wait()
        self._inner.commit(**amounts)

    async def arelease(self) -> None:
        await self._store.wait()
        self._inner.release()


class SlowStore:
    """A pool whose settling takes as long as the test wants."""

    name = "slow"

    def __init__(self, inner: BudgetPool) -> None:
        self.inner = inner
        self.settling = threading.Event()
        self.go_on = threading.Event()

    def reserve(self, **amounts: Any) -> Any:
        raise AssertionError("the gateway never blocks its loop")

    async def areserve(self, **amounts: Any) -> SlowHold:
        return SlowHold(await self.inner.areserve(**amounts), self)

    async def wait(self) -> None:
        self.settling.set()
        while not self.go_on.is_set():  # noqa: ASYNC110 - a test's thread sets it
            await asyncio.sleep(0.001)

    def snapshot(self) -> Any:
        return self.inner.snapshot()


@pytest.mark.parametrize(("status", "after"), [("200 OK", EXACT), ("500 Oops", (0, 0, 0))])
def test_a_slow_store_is_told_also_where_the_client_has_left_meanwhile(status: str, after: Any) -> None:
    store = SlowStore(BudgetPool(usd_cap=1))

    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(completion(), status)

    meter = meter_of(store)
    with wired(respond, meter) as (gateway, _):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain:
            body = json.dumps(chat()).encode()
            plain.sendall(head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body)
            assert store.settling.wait(SECONDS)
        eventually(lambda: not gateway._open)
        assert store.snapshot().in_flight == 1
        store.go_on.set()
        gateway.close()
        assert used(meter) == after


@pytest.mark.parametrize("broken", ["full", "seen"])
def test_a_slow_store_is_told_of_a_cut_stream_too(broken: Any) -> None:
    store = SlowStore(BudgetPool(usd_cap=1))
    store.go_on.set()

    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        connection.chunk(b"data: {}\n\n")
        connection.close()

    meter = meter_of(store, broken=broken)
    with wired(respond, meter) as (gateway, _):
        body = json.dumps(chat(stream=True)).encode()
        raw(gateway, head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body)
        eventually(lambda: used(meter)[2] == 0)
        assert (used(meter)[0] > WORST_OUTPUT) is (broken == "full")


def test_a_slow_store_is_told_of_a_connection_that_ended_before_the_answer() -> None:
    store = SlowStore(BudgetPool(usd_cap=1))
    store.go_on.set()
    meter = meter_of(store)
    with wired(lambda connection, _: connection.close(), meter) as (gateway, _):
        assert ask(gateway, body=chat()).status == 502
        assert in_full(meter)
