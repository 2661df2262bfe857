"""Through the gateway too, an answer that does not tell its output is charged for the output that was held."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from gateways import Asked, Connection, ask, chat, eventually, head, meter_of, raw, used, wired

HELD = 8 * 1_000 + 1_000 * 4_000  # nanodollars of the input that is told and the output that is held
WORDS = "word " * 500
TOLD = {"prompt_tokens": 8, "completion_tokens": 0}


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


FIRST = event({"choices": [], "usage": TOLD})
FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
STREAMS = {
    "an end": [FIRST, event(delta(WORDS)), FINISH, b"data: [DONE]\n\n"],
    "framed": [FIRST, event(delta(WORDS)), FINISH],
    "told at the end": [event(delta(WORDS)), FINISH, FIRST, b"data: [DONE]\n\n"],
}


@pytest.mark.parametrize("usage", [TOLD, {"prompt_tokens": 8}, {**TOLD, "completion_tokens": None}])
def test_an_answer_that_tells_its_input_alone_is_charged_for_the_output_that_was_held(usage: dict[str, Any]) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(json.dumps({"choices": [{"message": {"content": WORDS}}], "usage": usage}).encode())

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=chat()).status == 200
        assert used(meter) == (1_008, HELD, 0)


def test_an_answer_that_has_no_output_costs_its_input() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(json.dumps({"choices": [{"message": {"content": ""}}], "usage": TOLD}).encode())

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=chat()).status == 200
        assert used(meter) == (8, 8_000, 0)


@pytest.mark.parametrize("broken", ["full", "seen"])
@pytest.mark.parametrize("chunks", STREAMS.values(), ids=STREAMS)
def test_so_is_a_stream_that_does_not_tell_its_output_after_it(chunks: list[bytes], broken: Any) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        for chunk in chunks:
            connection.chunk(chunk)
        connection.end()

    meter = meter_of(broken=broken)
    body = chat(stream=True, stream_options={"include_usage": True})
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=body).body == b"".join(chunks)
        assert used(meter) == (1_008, HELD, 0)


def test_one_that_is_cut_is_charged_for_what_was_seen_where_the_provider_told_nothing_of_it() -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        connection.chunk(FIRST)
        connection.chunk(event(delta("word " * 100)))
        connection.close()

    meter = meter_of(broken="seen")
    records: list[Any] = []
    meter.subscribe(records.append)
    body = json.dumps(chat(stream=True)).encode()
    with wired(respond, meter) as (gateway, _):
        raw(gateway, head(gateway, "POST", "/v1/chat/completions", f"Content-Length: {len(body)}") + body)
        eventually(lambda: bool(records))
    assert (records[0].status, records[0].usage.output_tokens) == ("seen", 500 + 256)


def test_the_metadata_of_a_response_that_is_made_in_the_background_is_not_its_price() -> None:
    metadata = {"input_tokens": 1, "output_tokens": 1, "usage": {"input_tokens": 1, "output_tokens": 1}}

    def respond(connection: Connection, asked: Asked) -> None:
        queued = {"object": "response", "status": "queued", "usage": None, "metadata": metadata}
        connection.answer(json.dumps(queued).encode())

    meter = meter_of()
    body = {"model": "small", "input": "hi", "background": True, "max_output_tokens": 1_000, "metadata": metadata}
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, rest="/v1/responses", body=body).status == 200
        assert used(meter)[0] > 1_000
