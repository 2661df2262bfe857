"""The fake provider: what it answers is what it bills, it goes wrong as it is told to, and closing it never hangs."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from support import run_together
from token_budget.cli import _provider
from token_budget.cli._provider import FAULTS, OTHERS, RATES, Bill, Provider
from token_budget.cli._provider_shapes import WORDS, Answer, count
from token_budget.metering import UnknownUsage, Usage
from token_budget.metering._requests import read as read_request
from token_budget.metering._routes import route as metered_route

CHAT = "/v1/chat/completions"
LONG = "the quick brown fox jumps over the lazy dog " * 40  # long enough for a cache
ASKED: dict[str, Any] = {"model": "house-small", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
STREAMED: dict[str, Any] = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(pace=0.001) as made:
        yield made
        made.close()
        assert made.errors == []


class Connection(http.client.HTTPConnection):
    """A connection to a provider that is kept alive."""

    def __init__(self, provider: Provider, timeout: float = 10) -> None:
        where = urlsplit(provider.url)
        super().__init__(str(where.hostname), where.port, timeout=timeout)

    def ask(self, path: str, body: Any, **headers: str) -> Any:
        self.request("POST", path, json.dumps(body), {name.replace("_", "-"): value for name, value in headers.items()})
        return self.getresponse()


def ask(provider: Provider, path: str = CHAT, body: Any = ASKED, **headers: str) -> tuple[int, bytes, Any]:
    """Make a request; return the status, the body and the headers."""
    connection = Connection(provider)
    try:
        response = connection.ask(path, body, **headers)
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def events(body: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]


def waits(until: Any) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---------------------------------------------------------------- what it answers is what it bills

GEMINI = {"contents": [{"role": "user", "parts": [{"text": LONG}]}], "generationConfig": {"maxOutputTokens": 9}}
MESSAGES = {"model": "house-large", "max_tokens": 50, "messages": [{"role": "user", "content": LONG}]}
RESPONSES = {"model": "house-large", "max_output_tokens": 50, "input": LONG}
PROMPT = {"model": "house-small", "prompt": "hello", "max_tokens": 50}
SHAPES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, ASKED),
    (CHAT, {**ASKED, "messages": [{"role": "user", "content": [{"type": "text", "text": LONG}]}]}),
    (CHAT, STREAMED),
    ("/v1/responses", RESPONSES),
    ("/v1/responses", {**RESPONSES, "stream": True}),
    ("/v1/completions", PROMPT),
    ("/v1/completions", {**PROMPT, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/embeddings", {"model": "house-embed", "input": LONG}),
    ("/v1/messages", MESSAGES),
    ("/v1/messages", {**MESSAGES, "stream": True}),
    ("/openai/v1/chat/completions", {**ASKED, "stream": True}),
    ("/v1beta/models/house-large:generateContent", GEMINI),
    ("/v1beta/models/house-large:streamGenerateContent", GEMINI),
    ("/v1beta/models/house-large:streamGenerateContent?alt=sse", GEMINI),
]


@pytest.mark.parametrize(("path", "body"), SHAPES)
def test_the_usage_that_it_tells_is_the_one_that_it_bills(provider: Provider, path: str, body: dict[str, Any]) -> None:
    status, answer, headers = ask(provider, path, body)
    assert status == 200
    told = Usage.from_response(events(answer) if "event-stream" in headers["content-type"] else json.loads(answer))
    (bill,) = provider.bills
    assert (told.input_tokens, told.output_tokens) == (bill.input_tokens, bill.output_tokens) == provider.billed
    assert told.cache_read_input_tokens == bill.cached_tokens
    if "completions" not in path and "embed" not in path:
        assert bill.cached_tokens == bill.input_tokens // 2
    assert provider.requests == [path]
    assert bill.model in {"house-small", "house-large", "house-embed"}
    assert bill.nanos == provider.billed_nanos > 0
    assert bill.usd == bill.nanos / 10**9
    rate = RATES[bill.model]
    fresh = bill.input_tokens - bill.cached_tokens
    assert bill.nanos == fresh * rate.input + bill.cached_tokens * rate.cached + bill.output_tokens * rate.output


@pytest.mark.parametrize(("path", "body"), SHAPES)
def test_a_request_costs_the_same_each_time_and_less_than_a_meter_holds(
    provider: Provider, path: str, body: dict[str, Any]
) -> None:
    ask(provider, path, body)
    ask(provider, path, body)
    first, second = provider.bills
    assert first == second
    where = metered_route("POST", "127.0.0.1", path.partition("?")[0])
    read = read_request(where, {}, json.dumps(body).encode())
    assert read is not None
    held = read.worst
    assert held.input_tokens >= first.input_tokens
    assert held.output_tokens >= first.output_tokens


FUNCTION = {"name": "weather", "description": "The weather of a city.", "parameters": {"type": "object"}}
CALLED = {"role": "user", "content": "[call-tool] the weather?"}
GIVEN = {"role": "tool", "tool_call_id": "call_1", "content": "fine"}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "fine"}]}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "fine"}
PARTS = [{"role": "user", "parts": [{"text": "[call-tool] the weather?"}]}]
PART = {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"it": "fine"}}}]}
# path, body, where the messages are, the result of the tool, the name and the arguments in the whole answer
TOOLS: list[tuple[str, dict[str, Any], str, dict[str, Any], str]] = [
    (
        CHAT,
        {**ASKED, "messages": [CALLED], "tools": [{"type": "function", "function": FUNCTION}]},
        "messages",
        GIVEN,
        r'"name": "weather", "arguments": "{\"city\": \"Paris\"}"',
    ),
    (
        "/v1/responses",
        {"model": "house-large", "input": [CALLED], "tools": [{"type": "function", **FUNCTION}]},
        "input",
        OUTPUT,
        r'"name": "weather", "arguments": "{\"city\": \"Paris\"}"',
    ),
    (
        "/v1/messages",
        {**MESSAGES, "messages": [CALLED], "tools": [{"name": "weather", "input_schema": {"type": "object"}}]},
        "messages",
        RESULT,
        '"name": "weather", "input": {"city": "Paris"}',
    ),
    (
        "/v1beta/models/house-large:generateContent",
        {"contents": PARTS, "tools": [{"functionDeclarations": [FUNCTION]}]},
        "contents",
        PART,
        '"functionCall": {"name": "weather", "args": {"city": "Paris"}}',
    ),
]


@pytest.mark.parametrize(("path", "body", "where", "result", "call"), TOOLS)
def test_a_tool_is_called_until_its_result_is_there_and_only_where_it_is_asked_for(
    provider: Provider, path: str, body: dict[str, Any], where: str, result: dict[str, Any], call: str
) -> None:
    assert call in ask(provider, path, body)[1].decode()
    for other in (
        {**body, where: [*body[where], result]},
        {name: value for name, value in body.items() if name != "tools"},
        {**body, "tools": []},
        {**body, "tools": [{"type": "web_search"}]},
        json.loads(json.dumps(body).replace("[call-tool] ", "")),
    ):
        answer = ask(provider, path, other)[1].decode()
        assert "Paris" not in answer
        assert "blue" in answer


def test_a_streamed_call_of_a_tool_is_the_whole_one_in_pieces(provider: Provider) -> None:
    chat, responses, messages, _ = TOOLS
    _, body, _ = ask(provider, CHAT, {**chat[1], "stream": True})
    choices = [event["choices"][0] for event in events(body)]
    assert choices[-1]["finish_reason"] == "tool_calls"
    calls = [choice["delta"]["tool_calls"][0] for choice in choices[:-1]]
    assert calls[0]["function"]["name"] == "weather"
    assert json.loads("".join(each["function"]["arguments"] for each in calls)) == {"city": "Paris"}
    assert {each["index"] for each in calls} == {0}
    _, body, _ = ask(provider, "/v1/responses", {**responses[1], "stream": True})
    told = events(body)
    pieces = [event["delta"] for event in told if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == told[-1]["response"]["output"][0]["arguments"] == '{"city": "Paris"}'
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    _, body, _ = ask(provider, "/v1/messages", {**messages[1], "stream": True})
    told = events(body)
    pieces = [event["delta"]["partial_json"] for event in told if event["type"] == "content_block_delta"]
    assert json.loads("".join(pieces)) == {"city": "Paris"}
    assert told[1]["content_block"]["input"] == {}
    assert told[-2]["delta"]["stop_reason"] == "tool_use"
    path = "/v1beta/models/house-large:streamGenerateContent?alt=sse"
    _, body, _ = ask(provider, path, TOOLS[3][1])
    assert [part for event in events(body) for part in event["candidates"][0]["content"]["parts"]] == [
        {"functionCall": {"name": "weather", "args": {"city": "Paris"}}},
        {"text": ""},
    ]


def test_groq_says_its_service_tier_and_others_do_not(provider: Provider) -> None:
    for path, tier in (("/openai/v1/chat/completions", "on_demand"), (CHAT, None)):
        assert json.loads(ask(provider, path)[1]).get("service_tier") == tier
        assert {event.get("service_tier") for event in events(ask(provider, path, STREAMED)[1])} == {tier}


def test_output_keeps_to_the_limit_and_has_none_without_one() -> None:
    assert count({**ASKED, "max_tokens": 1}, made=True).output_tokens == 1
    assert count({"prompt": "hello"}, made=True).output_tokens >= 2
    assert count({"generationConfig": None, "input": [1, 2]}, made=True).input_tokens == 4
    assert {count({"prompt": str(n)}, made=True).output_tokens for n in range(200)} == set(range(2, 14))


def test_models_that_the_table_does_not_name_have_a_price_too(provider: Provider) -> None:
    ask(provider, body={**ASKED, "model": "m"})
    (bill,) = provider.bills
    assert bill.nanos == bill.input_tokens * OTHERS.input + bill.output_tokens * OTHERS.output
    assert isinstance(bill, Bill)


def test_a_stream_of_a_chat_tells_usage_only_if_asked(provider: Provider) -> None:
    _, quiet, headers = ask(provider, body={**ASKED, "stream": True})
    assert headers["content-type"] == "text/event-stream"
    assert quiet.endswith(b"data: [DONE]\n\n")
    assert b"usage" not in quiet
    _, told, _ = ask(provider, body=STREAMED)
    chunks = events(told)
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(WORDS) + 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == provider.bills[-1].output_tokens
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]) == "".join(WORDS)
    _, quiet, _ = ask(provider, "/v1/completions", {**PROMPT, "stream": True})
    assert b"usage" not in quiet


def test_groq_and_mistral_tell_it_in_the_last_chunk(provider: Provider) -> None:
    _, answer, _ = ask(provider, "/openai/v1/chat/completions", {**ASKED, "stream": True})
    assert events(answer)[-1]["x_groq"]["usage"]["prompt_tokens"] == provider.bills[-1].input_tokens
    _, answer, _ = ask(provider, body={**ASKED, "stream": True}, user_agent="mistral-client-python/1")
    assert events(answer)[-1]["usage"]["prompt_tokens"] == provider.bills[-1].input_tokens


def test_the_events_of_anthropic_and_of_responses_are_named_and_in_order(provider: Provider) -> None:
    _, answer, _ = ask(provider, "/v1/messages", {**MESSAGES, "stream": True})
    names = [event["type"] for event in events(answer)]
    assert [line[7:].decode() for line in answer.splitlines() if line.startswith(b"event: ")] == names
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    _, answer, _ = ask(provider, "/v1/responses", {**RESPONSES, "stream": True})
    whole = events(answer)
    assert (whole[0]["type"], whole[-1]["type"]) == ("response.created", "response.completed")
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))


def test_gemini_streams_an_array_or_events(provider: Provider) -> None:
    path = "/v1beta/models/house-large:streamGenerateContent"
    _, array, headers = ask(provider, path, GEMINI)
    assert headers["content-type"] == "application/json"
    _, stream, _ = ask(provider, f"{path}?alt=sse", GEMINI)
    assert json.loads(array) == events(stream)
    assert len(events(stream)) == len(WORDS) + 1


def test_embeddings_come_as_lists_or_in_base64(provider: Provider) -> None:
    _, answer, _ = ask(provider, "/v1/embeddings", {"model": "e", "input": ["one", "two"]})
    assert [item["embedding"] for item in json.loads(answer)["data"]] == [[0.5, 0.25]] * 2
    packed = {"model": "e", "input": [1, 2, 3], "encoding_format": "base64"}
    _, answer, _ = ask(provider, "/v1/embeddings", packed)
    (item,) = json.loads(answer)["data"]
    assert struct.unpack("<2f", base64.b64decode(item["embedding"])) == (0.5, 0.25)
    _, answer, _ = ask(provider, "/v1/embeddings", {"model": "e", "inputs": "one"}, user_agent="mistral")
    assert json.loads(answer)["usage"]["completion_tokens"] == 0
    _, answer, _ = ask(provider, "/v1beta/models/e:embedContent", {"content": {"parts": [{"text": "one"}]}})
    assert json.loads(answer)["embedding"]["values"] == [0.5, 0.25]
    several = {"requests": [{"content": {"parts": [{"text": "one"}]}}] * 3}
    _, answer, _ = ask(provider, "/v1beta/models/e:batchEmbedContents", several)
    assert len(json.loads(answer)["embeddings"]) == 3
    assert [bill.output_tokens for bill in provider.bills] == [0] * 5


def test_what_costs_nothing_is_not_billed_and_has_no_faults(provider: Provider) -> None:
    expected = count(ASKED, made=False).input_tokens
    for path in ("/v1/messages/count_tokens", "/v1/responses/input_tokens"):
        _, answer, _ = ask(provider, path, ASKED, x_fault="500")
        assert json.loads(answer)["input_tokens"] == expected
    _, answer, _ = ask(provider, "/v1beta/models/e:countTokens", ASKED)
    assert json.loads(answer) == {"totalTokens": expected}
    _, answer, _ = ask(provider, "/v1/moderations", {"input": "hello"})
    assert json.loads(answer)["results"] == []
    connection = Connection(provider)
    connection.request("GET", "/v1/models")
    listed = json.loads(connection.getresponse().read())
    assert [one["id"] for one in listed["data"]] == list(RATES)
    connection.request("GET", "/v1/nothing")
    assert connection.getresponse().status == 404
    connection.close()
    assert provider.bills == []
    assert len(provider.requests) == 6


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/nothing", ASKED, 404),
        (CHAT, [1], 400),
        (CHAT, {"messages": []}, 400),
        ("/v1beta/models/a/b:generateContent", {"contents": []}, 400),
    ],
)
def test_what_it_does_not_know_it_turns_away(provider: Provider, path: str, body: Any, status: int) -> None:
    got, answer, _ = ask(provider, path, body)
    assert got == status
    assert json.loads(answer)["error"]["code"] == status
    assert provider.bills == []


def test_a_body_that_is_no_json_is_turned_away(provider: Provider) -> None:
    connection = Connection(provider)
    connection.request("POST", CHAT, b"\xff{")
    assert connection.getresponse().status == 400
    connection.close()


def test_connections_are_kept_alive_and_bodies_may_be_chunked(provider: Provider) -> None:
    connection = Connection(provider)
    for _ in range(2):
        pieces = [json.dumps(ASKED).encode()[:10], json.dumps(ASKED).encode()[10:]]
        connection.request("POST", CHAT, iter(pieces), encode_chunked=True, headers={"transfer-encoding": "chunked"})
        assert connection.getresponse().read()
        assert connection.ask(CHAT, STREAMED).read()
        assert len(provider._connections) == 1
    connection.close()
    assert len(provider.bills) == 4


def test_two_hundred_requests_at_once() -> None:
    with Provider(latency=0.5) as provider:
        answers = run_together(*[lambda n=n: ask(provider, body={**ASKED, "user": str(n)}) for n in range(200)])
    assert {status for status, _, _ in answers} == {200}
    assert len(provider.bills) == len(provider.requests) == 200
    assert provider.most_at_once > 100


# ---------------------------------------------------------------- what goes wrong


def test_statuses_are_turned_away_and_not_billed(provider: Provider) -> None:
    status, answer, headers = ask(provider, x_fault="429")
    assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "1", "1")
    assert json.loads(answer)["error"]["message"] == "planned"
    assert ask(provider, body={**ASKED, "user": "[503]"})[0] == 503
    assert provider.bills == []
    assert ask(provider)[0] == 200


def test_a_fault_may_strike_every_second_time(provider: Provider) -> None:
    assert [ask(provider, x_fault="429-once")[0] for _ in range(4)] == [429, 200, 429, 200]
    other = {**ASKED, "user": "[500-once]"}
    assert [ask(provider, body=other)[0] for _ in range(2)] == [500, 200]


def test_a_script_says_what_goes_wrong_with_the_next_requests(provider: Provider) -> None:
    provider.script("429", None, "html", "500-once")
    assert ask(provider)[0] == 429
    ask(provider, "/v1/moderations", {"input": "hello"})  # costs nothing, and takes nothing of the script
    assert json.loads(ask(provider)[1])["usage"]
    assert ask(provider)[1].startswith(b"<!doctype html>")
    assert [ask(provider)[0] for _ in range(2)] == [500, 200]
    with pytest.raises(ValueError, match="'bogus' is no fault"):
        provider.script("bogus")


def test_an_unknown_fault_is_turned_away_and_other_words_in_brackets_are_none(provider: Provider) -> None:
    status, answer, _ = ask(provider, x_fault="bogus, 429")
    assert (status, json.loads(answer)["error"]["message"]) == (400, "there is no fault bogus")
    assert ask(provider, body={**ASKED, "user": "[bogus] [666]"})[0] == 200


@pytest.mark.parametrize("body", [ASKED, STREAMED])
def test_an_answer_hangs_until_it_is_released(provider: Provider, body: Any) -> None:
    for fault in ("hang", "stall"):
        threads = [threading.Thread(target=ask, args=(provider, CHAT, body), kwargs={"x_fault": fault}) for _ in "ab"]
        for thread in threads:
            thread.start()
        waits(lambda: provider._at_once == 2)
        time.sleep(0.06)
        assert all(thread.is_alive() for thread in threads)
        provider.release()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert len(provider.bills) == 4


@pytest.mark.parametrize("fault", ["hang", "stall"])
def test_a_client_may_leave_an_answer_that_hangs(provider: Provider, fault: str) -> None:
    connection = Connection(provider)
    connection.request("POST", CHAT, json.dumps(ASKED), {"x-fault": fault})
    waits(lambda: provider.bills)
    connection.close()
    waits(lambda: not provider._connections)


def test_a_client_may_break_an_answer_that_hangs(provider: Provider) -> None:
    connection = Connection(provider)
    connection.request("POST", CHAT, json.dumps(ASKED), {"x-fault": "hang"})
    waits(lambda: provider.bills)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _provider._LINGER)
    connection.close()
    waits(lambda: not provider._connections)


def test_a_client_may_break_an_answer_that_comes() -> None:
    with Provider(pace=0.05) as provider:
        connection = Connection(provider)
        response = connection.ask(CHAT, STREAMED, x_fault="slow")
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _provider._LINGER)
        response.close()
        connection.close()
        waits(lambda: not provider._connections)
    assert provider.errors == []


def test_the_next_request_may_come_while_an_answer_hangs(provider: Provider) -> None:
    connection = Connection(provider)
    body = json.dumps(ASKED).encode()
    head = f"POST {CHAT} HTTP/1.1\r\ncontent-length: {len(body)}\r\n"
    connection.connect()
    connection.sock.sendall(f"{head}x-fault: hang\r\n\r\n".encode() + body)
    waits(lambda: provider.bills)
    connection.sock.sendall(f"{head}connection: close\r\n\r\n".encode() + body)
    time.sleep(0.15)
    assert len(provider.bills) == 1
    provider.release()
    got = b""
    while data := connection.sock.recv(65536):
        got += data
    connection.close()
    assert got.count(b"HTTP/1.1 200") == len(provider.bills) == 2


@pytest.mark.parametrize("body", [ASKED, STREAMED])
@pytest.mark.parametrize("fault", ["reset", "reset-mid", "cut"])
def test_an_answer_breaks_off_and_is_billed(provider: Provider, fault: str, body: Any) -> None:
    expected = http.client.IncompleteRead if fault == "cut" else ConnectionResetError
    with pytest.raises(expected):
        ask(provider, body=body, x_fault=fault)
    (bill,) = provider.bills
    assert bill.faults == {fault}
    assert ask(provider, body=body)[0] == 200
    assert provider.bills[1].nanos == bill.nanos


def test_a_cut_stream_has_come_halfway(provider: Provider) -> None:
    with pytest.raises(http.client.IncompleteRead) as error:
        ask(provider, body=STREAMED, x_fault="cut")
    assert len(events(error.value.partial)) == 2


@pytest.mark.parametrize("body", [ASKED, STREAMED])
def test_a_slow_answer_is_whole(provider: Provider, body: Any) -> None:
    assert ask(provider, body=body, x_fault="slow")[1] == ask(provider, body=body)[1]


@pytest.mark.parametrize("body", [ASKED, STREAMED])
def test_an_answer_is_packed_if_the_client_takes_that(provider: Provider, body: Any) -> None:
    _, plain, headers = ask(provider, body=body, x_fault="gzip")
    assert headers["content-encoding"] is None
    _, packed, headers = ask(provider, body=body, x_fault="gzip, slow", accept_encoding="gzip, deflate")
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == plain


@pytest.mark.parametrize(("path", "body"), SHAPES)
@pytest.mark.parametrize("fault", ["no-usage", "null-usage", "negative", "huge"])
def test_usage_that_is_missing_or_a_lie_is_read_by_nobody(
    provider: Provider, path: str, body: dict[str, Any], fault: str
) -> None:
    _, answer, headers = ask(provider, path, body, x_fault=fault)
    stream = "event-stream" in headers["content-type"]
    with pytest.raises(UnknownUsage):
        Usage.from_response(events(answer) if stream else json.loads(answer))
    assert provider.bills[0].input_tokens > 0


@pytest.mark.parametrize("body", [ASKED, STREAMED])
def test_an_answer_may_be_a_page_or_no_json(provider: Provider, body: Any) -> None:
    _, answer, headers = ask(provider, body=body, x_fault="html")
    assert headers["content-type"] == "text/html"
    assert answer.startswith(b"<!doctype html>")
    _, answer, _ = ask(provider, body=body, x_fault="truncated")
    last = answer.rpartition(b"data: ")[2]
    with pytest.raises(ValueError, match="."):
        json.loads(last)
    assert len(provider.bills) == 2


def test_every_fault_is_known_by_its_name() -> None:
    assert all(_provider.is_fault(name) and _provider.is_fault(f"{name}-once") for name in [*FAULTS, "400", "599"])
    assert not any(_provider.is_fault(name) for name in ["", "-once", "200", "600", "4290", "bogus"])


# ---------------------------------------------------------------- closing it


def test_closing_never_hangs_and_may_come_twice() -> None:
    with Provider(pace=60, latency=0) as provider:
        connections = [Connection(provider) for _ in range(4)]
        for connection, fault in zip(connections, ["hang", "stall", "slow", ""], strict=True):
            connection.request("POST", CHAT, json.dumps(STREAMED), {"x-fault": fault})
        waits(lambda: len(provider.bills) == 4)
        idle = Connection(provider)
        idle.connect()
        waits(lambda: len(provider._connections) == 5)
        provider.close()
        assert not provider._connections
    for connection in [*connections, idle]:
        connection.close()
    with pytest.raises(OSError, match="."):
        ask(provider)
    assert provider.errors == []


def test_an_error_of_its_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(*_: Any) -> tuple[list[bytes], str]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(_provider, "_spoilt", spoilt)
    with Provider() as provider, pytest.raises(http.client.RemoteDisconnected):
        ask(provider)
    assert [repr(error) for error in provider.errors] == ["RuntimeError('a bug')"]
    assert Answer([b""]).streamed is False
