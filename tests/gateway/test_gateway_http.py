"""HTTP's edges: what a client sends reaches the provider as it was, and what the provider says reaches the client."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
from contextlib import ExitStack, closing
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from aiohttp import ClientTimeout

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
from token_budget.gateway import Limits
from token_budget.gateway._relay import cut

EXACT = (108, 8 * 1000 + 100 * 4000, 0)
MEBIBYTE = 1 << 20


def whole(connection: Connection, _: Asked) -> None:
    connection.answer(completion(), "200 OK", "Content-Type: application/json")


def never(connection: Connection, _: Asked) -> None:
    connection.answer(b"nothing may reach the provider")


def sized(body: bytes, *headers: str) -> tuple[str, ...]:
    return (f"Content-Length: {len(body)}", *headers)


# ---------------------------------------------------------------- requests


def test_the_path_and_the_query_reach_the_provider_byte_for_byte() -> None:
    rest = "/v1/files/a%2Fb%20c/%7Ex//y;z=1?q=%2F%20+&empty&b=%41"
    with wired(whole) as (gateway, wire):
        assert ask(gateway, "GET", rest).status == 200
        assert wire.seen[0].target == rest


def test_headers_reach_the_provider_in_their_order_and_spelling_and_nothing_is_added() -> None:
    lines = ("X-One: 1", "aCCept: text/*", "X-Two: a", "X-Two: b", "Cookie: c=1", "Content-Type: application/json; x")
    body = json.dumps(chat()).encode()
    with wired(whole) as (gateway, wire):
        raw(gateway, head(gateway, "POST", CHAT, *lines, *sized(body, "Connection: close")) + body)
        kept = [(name, value) for name, value in wire.seen[0].headers if name not in {"Host", "Content-Length"}]
        assert kept == [tuple(line.split(": ")) for line in lines]
        assert wire.seen[0].header("host") == [wire.url.removeprefix("http://")]


def test_headers_of_one_connection_alone_stay_on_its_side() -> None:
    lines = (
        "Connection: close, X-Mine",
        "X-Mine: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authorization: Basic eA==",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Trailer: X-Sum",
    )
    body = json.dumps(chat()).encode()
    with wired(whole) as (gateway, wire):
        raw(gateway, head(gateway, "POST", CHAT, *lines, *sized(body)) + body)
        assert [name for name, _ in wire.seen[0].headers] == ["Host", "Content-Length"]


def test_a_chunked_request_is_read_and_leaves_with_its_length() -> None:
    body = json.dumps(chat()).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, bytes([one])) for one in body) + b"0\r\n\r\n"
    meter = meter_of()
    with wired(whole, meter) as (gateway, wire):
        got = raw(gateway, head(gateway, "POST", CHAT, "Transfer-Encoding: chunked", "Connection: close") + chunks)
        assert got.startswith(b"HTTP/1.1 200")
        assert wire.seen[0].body == body
        assert wire.seen[0].header("content-length") == [str(len(body))]
        assert wire.seen[0].header("transfer-encoding") == []
        assert used(meter) == EXACT


def test_a_client_that_expects_100_continue_is_told_to_go_on() -> None:
    body = json.dumps(chat()).encode()
    with (
        wired(whole) as (gateway, wire),
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain,
    ):
        plain.sendall(head(gateway, "POST", CHAT, *sized(body, "Expect: 100-continue", "Connection: close")))
        assert received(plain, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        plain.sendall(body)
        assert received(plain).startswith(b"HTTP/1.1 200 OK")
        assert wire.seen[0].header("expect") == []


def test_a_client_of_http_1_0_is_not_told_to_go_on() -> None:
    body = json.dumps(chat()).encode()
    with wired(whole) as (gateway, _):
        start = head(gateway, "POST", CHAT, *sized(body, "Expect: 100-continue")).replace(b"HTTP/1.1", b"HTTP/1.0")
        assert raw(gateway, start + body).startswith(b"HTTP/1.0 200")


def test_what_else_is_expected_is_a_417() -> None:
    with wired(whole) as (gateway, _):
        got = raw(gateway, head(gateway, "POST", CHAT, "Expect: a wonder", "Connection: close", "Content-Length: 0"))
        assert got.startswith(b"HTTP/1.1 417")


def test_a_client_that_expects_100_continue_is_told_of_a_413_before_it_sends() -> None:
    with wired(whole, limits=Limits(body=1000)) as (gateway, _):
        got = raw(gateway, head(gateway, "POST", CHAT, "Content-Length: 1001", "Expect: 100-continue"), until=b"}}")
        assert got.startswith(b"HTTP/1.1 413")


def test_a_request_of_16_megabytes_reaches_the_provider_whole() -> None:
    content = "sky " * (4 * MEBIBYTE)
    body = json.dumps(chat(messages=[{"role": "user", "content": content}])).encode()
    meter = meter_of(BudgetPool(usd_cap=100))
    with wired(whole, meter) as (gateway, wire):
        assert ask(gateway, body=body).status == 200
        assert wire.seen[0].body == body
        assert used(meter) == EXACT


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("anthropic", "error"), ("openai", None), ("gemini", None)])
def test_a_body_over_the_limit_is_a_413_in_the_words_of_the_provider_and_no_reset(
    name: Any, kind: str | None, *, chunked: bool
) -> None:
    body = b"x" * (32 * MEBIBYTE)  # more than lies between the two: who does not read it on resets the connection
    table = {name: upstream("http://127.0.0.1:9", name, dialect=name)}
    limits = Limits(body=MEBIBYTE)
    with (
        gateway_to("", upstreams=table, limits=limits) as gateway,
        closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=SECONDS)) as connection,
    ):
        content: Any = iter([body[:MEBIBYTE]] * 32) if chunked else body
        connection.request("POST", f"/{gateway.secret}/{name}/v1/x", content, encode_chunked=chunked)
        answer = connection.getresponse()
        assert answer.status == 413
        told = json.loads(answer.read())
        assert told.get("type") == kind
        assert "1,048,576" in told["error"]["message"]


def test_a_body_of_the_very_limit_passes() -> None:
    body = json.dumps(chat()).encode()
    with wired(whole, limits=Limits(body=len(body))) as (gateway, _):
        assert ask(gateway, body=body).status == 200


def test_a_body_that_does_not_come_is_a_408() -> None:
    with wired(whole, limits=Limits(body_seconds=0.1)) as (gateway, wire):
        got = raw(gateway, head(gateway, "POST", CHAT, "Content-Length: 100") + b'{"model"')
        assert got.startswith(b"HTTP/1.1 408")
        assert b"\r\nConnection: close\r\n" in got
        assert wire.seen == []


def test_a_body_that_is_not_whole_reaches_nobody() -> None:
    meter = meter_of()
    with wired(whole, meter) as (gateway, wire):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain:
            plain.sendall(head(gateway, "POST", CHAT, "Content-Length: 100") + b'{"model"')
            eventually(lambda: bool(gateway._open))
        eventually(lambda: not gateway._open)
        assert wire.seen == []
        assert used(meter) == (0, 0, 0)


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: -5",),
        ("X-Long: " + "a" * (64 << 10),),
        tuple(f"X-{number}: 1" for number in range(300)),
        ("X y: 1",),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_or_has_too_much_of_a_head_is_a_400(lines: tuple[str, ...]) -> None:
    with wired(whole) as (gateway, wire):
        got = raw(gateway, head(gateway, "POST", CHAT, *lines) + b"0\r\n\r\n")
        assert got.split(b" ")[1] == b"400"
        assert wire.seen == []


def test_three_hundred_headers_are_too_many() -> None:
    with wired(never) as (gateway, _):
        got = raw(gateway, head(gateway, "GET", "/v1/models", *(f"X-{number}: 1" for number in range(300))))
        assert got.split(b" ")[1] == b"400"


def test_two_hundred_headers_pass() -> None:
    with wired(whole) as (gateway, wire):
        assert ask(gateway, "GET", "/v1/models", headers={f"X-{number}": "1" for number in range(200)}).status == 200
        assert len(wire.seen[0].headers) > 200


def test_a_header_of_15_kilobytes_passes() -> None:
    with wired(whole) as (gateway, wire):
        assert ask(gateway, "GET", "/v1/models", headers={"X-Long": "a" * 15_000}).status == 200
        assert len(wire.seen[0].header("x-long")[0]) == 15_000


def test_several_requests_on_one_connection_are_answered_in_their_order() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(asked.target.encode())

    with wired(respond) as (gateway, wire):
        got = raw(
            gateway,
            head(gateway, "GET", "/v1/models/1")
            + head(gateway, "GET", "/v1/models/2")
            + head(gateway, "GET", "/v1/models/3", "Connection: close"),
        )
        assert [part[:12] for part in got.split(b"/v1/models/")[1:]] == [b"1HTTP/1.1 20", b"2HTTP/1.1 20", b"3"]
        assert wire.connections == 1


# ---------------------------------------------------------------- answers


def test_the_headers_of_an_answer_reach_the_client_each_line_of_its_own() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(
            completion(),
            "299 Fine By Me",
            "Set-Cookie: a=1",
            "Set-Cookie: b=2",
            "x-request-id: 7",
            "Date: yesterday",
            "Server: theirs",
            "Connection: X-Hop",
            "X-Hop: 1",
            'Alt-Svc: h3=":443"',
        )

    with wired(respond) as (gateway, _):
        body = json.dumps(chat()).encode()
        got = raw(gateway, head(gateway, "POST", CHAT, *sized(body, "Connection: close")) + body)
        lines = got.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 299 Fine By Me"
        assert {"Set-Cookie: a=1", "Set-Cookie: b=2", "x-request-id: 7", "Date: yesterday", "Server: theirs"} < {*lines}
        assert not [line for line in lines if line.lower().startswith(("x-hop", "alt-svc"))]


def test_a_header_that_is_no_utf_8_does_no_harm() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nX-Name: caf\xe9\r\nContent-Length: 2\r\n\r\n{}")

    with wired(respond) as (gateway, wire):
        got = raw(gateway, head(gateway, "GET", "/v1/models", "Connection: close", "X-Mine: caf\udce9"[:-1] + "e"))
        assert got.startswith(b"HTTP/1.1 200 OK")
        assert got.endswith(b"{}")
        assert wire.seen


def test_a_header_with_what_may_not_be_written_costs_nobody_the_answer() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nX-Odd: a\x01b\tc\x7f\r\nContent-Length: 2\r\n\r\n{}")

    with wired(respond) as (gateway, _):
        got = ask(gateway, "GET", "/v1/models")
        assert (got.status, got.body) == (200, b"{}")
        assert got.header("x-odd") == ["ab\tc"]


def test_no_redirect_is_followed() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b"moved", "307 Temporary Redirect", "Location: http://127.0.0.1:9/elsewhere")

    with wired(respond) as (gateway, wire):
        got = ask(gateway, "GET", "/v1/files/1/content")
        assert (got.status, got.header("location")) == (307, ["http://127.0.0.1:9/elsewhere"])
        assert len(wire.seen) == 1


@pytest.mark.parametrize("absolute", [False, True])
def test_a_redirect_within_its_upstream_leads_through_the_gateway_again(*, absolute: bool) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        where = (wire.url if absolute else "") + "/prefix/v1/there?x=1"
        connection.answer(b"moved", "308 Permanent Redirect", f"Location: {where}")

    with wired(respond) as (_, wire), gateway_to(wire.url + "/prefix") as gateway:
        got = ask(gateway, body=chat())
        assert got.header("location") == [f"/{gateway.secret}/openai/v1/there?x=1"]


@pytest.mark.parametrize("where", ["//elsewhere/v1", "/other/v1", "there", "http://elsewhere/prefix/v1"])
def test_any_other_redirect_leads_where_it_says(where: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b"moved", "308 Permanent Redirect", f"Location: {where}")

    with wired(respond) as (_, wire), gateway_to(wire.url + "/prefix") as gateway:
        assert ask(gateway, "GET", "/v1/files/1/content").header("location") == [where]


def test_head_keeps_the_length_of_the_answer() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b"x" * 1234)

    with wired(respond) as (gateway, _):
        got = ask(gateway, "HEAD", "/v1/models")
        assert (got.status, got.header("content-length"), got.body) == (200, ["1234"], b"")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_without_a_body_has_none_and_no_chunks(status: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.send(f"HTTP/1.1 {status}\r\nX-Is: 1\r\n\r\n".encode())

    with wired(respond) as (gateway, _):
        got = raw(gateway, head(gateway, "GET", "/v1/models", "Connection: close"))
        assert got.startswith(f"HTTP/1.1 {status}".encode())
        assert got.endswith(b"\r\n\r\n")
        assert b"hunked" not in got
        assert b"X-Is: 1" in got


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_answer_that_ends_with_its_connection_arrives_whole(version: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + completion())
        connection.close()

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        body = json.dumps(chat()).encode()
        start = head(gateway, "POST", CHAT, *sized(body)).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
        if version == "1.0":
            got = raw(gateway, start.replace(b"Content-Length", b"Connection: keep-alive\r\nContent-Length") + body)
            assert got.endswith(completion())
        else:
            got = raw(gateway, start + body, until=b"0\r\n\r\n")
            assert completion() in got
        assert used(meter) == EXACT


def test_an_answer_of_20_megabytes_reaches_a_slow_reader_whole_and_is_not_kept_in_memory() -> None:
    piece = b"data: " + b"x" * 65_528 + b"\n\n"
    sent = 0

    def respond(connection: Connection, asked: Asked) -> None:
        nonlocal sent
        connection.begin()
        for _ in range(320):
            connection.chunk(piece)
            sent += 1
        connection.end()

    meter = meter_of()
    with wired(respond, meter) as (gateway, _), closing(socket.socket()) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        plain.settimeout(SECONDS)
        plain.connect(("127.0.0.1", gateway.port))
        body = json.dumps(chat(stream=True, stream_options={"include_usage": True})).encode()
        plain.sendall(head(gateway, "POST", CHAT, *sized(body, "Connection: close")) + body)
        before = -1
        while sent != before:  # until the provider is held up, because nobody reads
            before = sent
            time.sleep(0.2)
        assert before < 200
        got = received(plain)
        assert got.count(b"data: ") == 320
        assert got.endswith(b"0\r\n\r\n")


def test_a_stream_reaches_the_client_chunk_by_chunk() -> None:
    chunks = [b"data: %d\n\n" % number for number in range(5)]
    steps = [threading.Event() for _ in chunks]

    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        for chunk, step in zip(chunks, steps, strict=True):
            connection.chunk(chunk)
            step.wait(SECONDS)
        connection.end()

    rewritten: dict[str, Any] = {}
    for more in (rewritten, {"stream_options": {"include_usage": True}}):  # rewritten, and as it is
        for step in steps:
            step.clear()
        with (
            wired(respond) as (gateway, _),
            socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain,
        ):
            body = json.dumps(chat(stream=True, **more)).encode()
            plain.sendall(head(gateway, "POST", CHAT, *sized(body)) + body)
            for chunk, step in zip(chunks, steps, strict=True):
                assert chunk in received(plain, chunk)  # the next one is sent when this one has come
                step.set()
            received(plain, b"0\r\n\r\n")


def test_the_head_of_an_answer_reaches_the_client_before_its_body() -> None:
    go_on = threading.Event()

    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        go_on.wait(SECONDS)
        connection.end()

    with (
        wired(respond) as (gateway, _),
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain,
    ):
        body = json.dumps(chat(stream=True)).encode()
        plain.sendall(head(gateway, "POST", CHAT, *sized(body)) + body)
        assert b"text/event-stream" in received(plain, b"\r\n\r\n")
        go_on.set()
        received(plain, b"0\r\n\r\n")


def test_gzip_is_passed_on_as_it_is_where_nothing_is_metered() -> None:
    packed = gzip.compress(b"models")

    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(packed, "200 OK", "Content-Encoding: gzip")

    with wired(respond) as (gateway, wire):
        got = ask(gateway, "GET", "/v1/models", headers={"Accept-Encoding": "br, gzip"})
        assert (got.body, got.header("content-encoding")) == (packed, ["gzip"])
        assert wire.seen[0].header("accept-encoding") == ["br, gzip"]


def test_cookies_of_one_client_reach_no_other() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(completion(), "200 OK", "Set-Cookie: who=first; Path=/")

    with wired(respond) as (_, wire), gateway_to(wire.url.replace("127.0.0.1", "localhost")) as gateway:
        for _ in range(2):
            assert ask(gateway, body=chat()).header("set-cookie") == ["who=first; Path=/"]
        assert [asked.header("cookie") for asked in wire.seen] == [[], []]


def test_no_stream_is_cut_for_its_length_in_time() -> None:
    with wired(whole) as (gateway, _):
        client = gateway._forward._client
        assert client is not None
        assert client._session.timeout == ClientTimeout(total=None, connect=60, sock_connect=30, sock_read=900)


def test_more_calls_than_a_hundred_reach_a_provider_at_once() -> None:
    calls = 105
    all_there = threading.Barrier(calls)

    def respond(connection: Connection, asked: Asked) -> None:
        all_there.wait(SECONDS)
        connection.answer()

    with wired(respond) as (gateway, _), ExitStack() as stack:
        plain = [
            stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS))
            for _ in range(calls)
        ]
        for one in plain:
            one.sendall(head(gateway, "GET", "/v1/models"))
        assert {received(one, b"{}")[:15] for one in plain} == {b"HTTP/1.1 200 OK"}


# ---------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("when", ["while the model thinks", "in the middle of the stream"])
def test_a_client_that_leaves_ends_the_call_to_the_provider_and_is_charged_in_full(when: str) -> None:
    left: list[bool] = []

    def respond(connection: Connection, asked: Asked) -> None:
        if when == "in the middle of the stream":
            connection.begin()
            connection.chunk(b"data: {}\n\n")
        left.append(connection.left())

    meter = meter_of()
    with wired(respond, meter) as (gateway, wire):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain:
            body = json.dumps(chat(stream=True)).encode()
            plain.sendall(head(gateway, "POST", CHAT, *sized(body)) + body)
            eventually(lambda: len(wire.seen) == 1)
            if when == "in the middle of the stream":
                received(plain, b"data: {}")
        eventually(lambda: left == [True])
        eventually(lambda: used(meter)[2] == 0)
        assert used(meter)[0] > 1000


def test_a_client_that_leaves_after_the_end_of_the_text_pays_what_it_cost() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        connection.chunk(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n')
        connection.chunk(b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":100}}\n\n')
        connection.chunk(b"data: [DONE]\n\n")
        connection.left()

    meter = meter_of()
    with (
        wired(respond, meter) as (gateway, _),
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain,
    ):
        body = json.dumps(chat(stream=True)).encode()
        plain.sendall(head(gateway, "POST", CHAT, *sized(body)) + body)
        received(plain, b"[DONE]")
        assert used(meter) == EXACT  # before the provider ends its answer


def test_a_client_that_leaves_while_it_waits_for_room_leaves_the_line() -> None:
    go_on = threading.Event()

    def respond(connection: Connection, asked: Asked) -> None:
        go_on.wait(SECONDS)
        connection.answer(completion())

    meter = meter_of(BudgetPool(usd_cap=0.006))
    with wired(respond, meter) as (gateway, wire):
        body = json.dumps(chat()).encode()
        request = head(gateway, "POST", CHAT, *sized(body, "Connection: close")) + body
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as first:
            first.sendall(request)
            eventually(lambda: len(wire.seen) == 1)
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as second:
                second.sendall(request)
                eventually(lambda: len(gateway._open) == 2)
            eventually(lambda: len(gateway._open) == 1)
            go_on.set()
            assert received(first).startswith(b"HTTP/1.1 200")
        assert len(wire.seen) == 1
        assert used(meter) == EXACT


def test_a_call_whose_client_leaves_before_anything_was_sent_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from token_budget.gateway._client import Client

    entered = threading.Event()

    async def never(*_: Any) -> None:
        entered.set()
        await asyncio.sleep(SECONDS)

    monkeypatch.setattr(Client, "send", never)
    meter = meter_of()
    with wired(whole, meter) as (gateway, _):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain:
            body = json.dumps(chat()).encode()
            plain.sendall(head(gateway, "POST", CHAT, *sized(body)) + body)
            assert entered.wait(SECONDS)
        eventually(lambda: not gateway._open)
        assert used(meter) == (0, 0, 0)


def test_a_client_that_has_left_already_cannot_be_cut_off() -> None:
    class Left:
        transport = None

    request: Any = Left()
    cut(request)
