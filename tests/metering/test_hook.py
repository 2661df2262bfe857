"""What a hooked `send()` does with what it holds, in each way of hooking, in both libraries, sync and async."""

from __future__ import annotations

import asyncio
import gc
import gzip
import importlib
import json
import zlib
from typing import Any

import pytest

from hooked import (
    ANSWER,
    CHAT,
    COST,
    EVENTS,
    LIBRARIES,
    URL,
    USAGE,
    Door,
    Hang,
    Reply,
    answer,
    maybe,
    stream_of,
    streamed,
)
from token_budget import BudgetExceeded, BudgetPool, PoolClosed
from token_budget.metering import (
    LoopDetected,
    Meter,
    ModelBlocked,
    RunStopped,
    UnknownModel,
    Unmetered,
    _send,
    budget_run,
)
from token_budget.metering._stream import apeek

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs httpx or httpx2")

WAYS = [
    pytest.param((library, hooking, is_async), id=f"{library}-{hooking}-{'async' if is_async else 'sync'}")
    for library in LIBRARIES or ["none"]
    for hooking in ("wrap", "run", "patch")
    for is_async in (False, True)
]
STAINLESS = {"x-stainless-os": "Linux", "content-type": "application/json"}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def door(way: Any) -> Door:
    library, hooking, is_async = way
    return Door(library, hooking, is_async=is_async)


# ---------------------------------------------------------------- answers


def test_an_answer_with_usage_commits_what_it_cost(door: Door) -> None:
    response = door.send(answer())
    assert response.json() == ANSWER
    assert door.spent == COST
    assert door.statuses == ["settled"]


def test_the_answer_s_model_and_tier_price_it_where_they_are_known(door: Door) -> None:
    door.send(answer({**ANSWER, "model": "dear"}))
    assert door.spent == COST * 10
    door.send(answer({**ANSWER, "model": "nobody's"}))
    assert door.spent == COST * 11


LIES: dict[str, Any] = {
    "no usage": {**ANSWER, "usage": {}},
    "null usage": {**ANSWER, "usage": None},
    "negative": {**ANSWER, "usage": {"prompt_tokens": -10, "completion_tokens": 5}},
    "huge": {**ANSWER, "usage": {"prompt_tokens": 10**30, "completion_tokens": 5}},
    "a float": {**ANSWER, "usage": {"prompt_tokens": 1.5, "completion_tokens": 5}},
    "text": {**ANSWER, "usage": "many"},
    "a list": [1, 2, 3],
    "a number": 17,
    "null": None,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_answer_without_usable_usage_is_charged_in_full(door: Door, lie: Any) -> None:
    response = door.send(answer(lie))
    assert response.json() == lie
    assert door.statuses == ["charged"]
    assert door.spent == door.worst


BODIES = {
    "html": b"<!doctype html><html><body>Bad gateway</body></html>",
    "empty": b"",
    "truncated": json.dumps(ANSWER).encode()[:-20],
    "no text": bytes(range(256)),
    "deep": b'{"a":' * 200_000,
    "large": b'{"choices": [{"message": {"content": "' + b"x" * 50_000_000 + b'"}}]}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_is_no_answer_is_charged_in_full_and_reaches_the_caller(door: Door, body: bytes) -> None:
    assert door.send(Reply(body=body)).content == body
    assert door.statuses == ["charged"]
    assert door.spent == door.worst


def test_an_answer_that_costs_more_than_was_held_reaches_its_caller_and_the_next_call_is_refused(way: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async, usd_cap=0.001)
    response = door.send(answer({**ANSWER, "usage": {"prompt_tokens": 10, "completion_tokens": 9_000}}))
    assert response.status_code == 200
    assert door.spent == 10 * 1000 + 9_000 * 4000
    with pytest.raises(BudgetExceeded):
        door.send()
    assert len(door.requests) == 1


@pytest.mark.parametrize("status", [300, 302, 304, 400, 401, 402, 404, 408, 409, 422, 429, 500, 502, 503, 529])
def test_an_error_status_gives_everything_back(door: Door, status: int) -> None:
    response = door.send(Reply(status, body=b'{"usage": {"prompt_tokens": 10, "completion_tokens": 5}}'))
    assert response.status_code == status
    assert response.json()["usage"]
    assert door.spent == 0
    assert door.statuses == ["released"]


@pytest.mark.parametrize("status", [400, 429, 500])
def test_so_does_the_error_of_a_stream_whether_it_is_read_or_not(door: Door, status: int) -> None:
    assert door.read(Reply(status, body=b"slow down")) == b"slow down"
    assert door.read(Reply(status, body=b"slow down"), chunks=0) == b""
    body = {**CHAT, "stream": True}
    assert door.send(Reply(status, body=b"slow down"), body=body).content == b"slow down"
    assert door.spent == 0
    assert door.statuses == ["released"] * 3


# ---------------------------------------------------------------- no answers


@pytest.mark.parametrize(
    "name", ["ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"]
)
def test_what_was_not_sent_gives_everything_back(door: Door, name: str) -> None:
    with pytest.raises(type(door.error(name))):
        door.send(Reply(error=door.error(name)))
    assert door.spent == 0
    assert door.statuses == ["released"]


@pytest.mark.parametrize("name", ["ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "RemoteProtocolError"])
def test_what_was_sent_and_not_answered_is_charged_in_full(door: Door, name: str) -> None:
    with pytest.raises(type(door.error(name))):
        door.send(Reply(error=door.error(name)))
    assert door.statuses == ["charged"]
    assert door.spent == door.worst


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, SystemExit, OSError, ValueError])
def test_whatever_else_ends_a_call_charges_it_in_full(door: Door, error: Any) -> None:
    with pytest.raises(error):
        door.send(Reply(error=error()))
    assert door.spent == door.worst


def test_an_answer_whose_body_breaks_is_charged_in_full(door: Door) -> None:
    with pytest.raises(door.library.ReadError):
        door.send(Reply(body=[b'{"usage": ', door.error("ReadError")]))
    assert door.spent == door.worst


def test_a_cancelled_task_is_charged_in_full(way: Any) -> None:
    library, hooking, _ = way
    door = Door(library, hooking, is_async=True)

    async def hang(_: Any, request: Any) -> Any:
        await asyncio.sleep(60)

    type(door.client._transport).handle_async_request = hang

    async def work() -> None:
        task = asyncio.ensure_future(door.asend())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    door.run(work)
    assert door.spent == door.worst


@pytest.mark.parametrize(("status", "ended"), [(429, "released"), (200, "charged")])
def test_a_hook_of_the_client_that_raises_by_the_status_is_no_answer(way: Any, status: int, ended: str) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async)

    def look(response: Any) -> None:
        if response.status_code == 200:
            raise door.library.HTTPStatusError("planned", request=response.request, response=response)
        response.raise_for_status()

    async def alook(response: Any) -> None:
        look(response)

    door.client.event_hooks = {"response": [alook if is_async else look]}
    with pytest.raises(door.library.HTTPStatusError):
        door.send(Reply(status, body=b"{}"))
    assert door.statuses == [ended]
    assert door.spent == (door.worst if ended == "charged" else 0)


def test_a_closed_client_says_so_and_nothing_is_charged(door: Door) -> None:
    door.run(lambda: maybe(door.client.aclose() if door.is_async else door.client.close()))
    with pytest.raises(RuntimeError, match="closed"):
        door.send()
    assert door.spent == 0
    assert door.statuses == []


# ---------------------------------------------------------------- refusals


def refusals(door: Door, *, stream: bool, **options: Any) -> list[BaseException]:
    """Send a request that is refused, as a user and as an SDK; return what is raised."""
    found: list[BaseException] = []
    with pytest.raises(Exception) as plain:
        door.send(stream=stream, **options)
    found.append(plain.value)
    if "json" not in options:
        options = {"json": options.pop("body", CHAT), **options}
    response = door.send(stream=stream, headers=STAINLESS, **options)
    assert response.status_code == 402
    assert response.headers["x-should-retry"] == "false"
    assert response.request.url.host == "127.0.0.1"
    assert isinstance(response, door.library.Response)
    with pytest.raises(Exception) as raised:
        response.raise_for_status()
    found.append(raised.value)
    with pytest.raises(type(raised.value)):
        response.is_success
    assert response.json()["error"] == {"type": type(raised.value).__name__, "message": str(raised.value)}
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_budget_exceeded_and_nothing_is_sent(way: Any, stream: bool) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async, usd_cap=0.0001)
    for error in refusals(door, stream=stream, body={**CHAT, "stream": stream}):
        assert type(error) is BudgetExceeded
    assert door.requests == []
    assert door.spent == 0
    assert door.statuses == ["refused"] * 2


def test_the_other_refusals_reach_the_caller_as_they_are(way: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async, policies=[({}, ["dear"])])
    for body, kind in (
        ({**CHAT, "model": "nobody's"}, UnknownModel),
        ({**CHAT, "model": "dear"}, ModelBlocked),
        ({**CHAT, "max_tokens": "many"}, Unmetered),
    ):
        for error in refusals(door, stream=False, body=body):
            assert type(error) is kind
    if hooking != "run":  # no run begins on a closed pool
        door.pool.close()
        for error in refusals(door, stream=False):
            assert type(error) is PoolClosed
    assert door.requests == []


def test_a_body_that_is_no_json_is_refused(door: Door) -> None:
    with pytest.raises(Unmetered):
        door.send(content=b"model=m", body=None)
    assert door.requests == []
    assert door.statuses == ["refused"]


def test_a_stopped_run_and_its_guards_refuse(way: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async)
    with budget_run("guarded", meter=door.meter, repeats=1) as run:
        door.send(answer())
        if hooking != "run":
            with pytest.raises(LoopDetected):
                door.send()
        run.stop("enough")
        with pytest.raises(RunStopped, match="enough"):
            door.send()
    assert len(door.requests) == 1


@pytest.mark.parametrize("path", ["batches", "videos", "images/generations", "audio/speech", "fine_tuning/jobs"])
def test_what_cannot_be_bounded_is_refused_unless_it_is_let_through(way: Any, path: str) -> None:
    library, hooking, is_async = way
    url = URL.replace("chat/completions", path)
    door = Door(library, hooking, is_async=is_async)
    for error in refusals(door, stream=False, url=url):
        assert type(error) is Unmetered
        assert path.partition("/")[0] in str(error)
    assert door.requests == []
    assert door.statuses == ["refused"] * 2
    door = Door(library, hooking, is_async=is_async, unmetered="allow")
    assert door.send(answer(), url=url, json={}).status_code == 200
    assert door.statuses == []


# ---------------------------------------------------------------- what passes untouched


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "chat/completions"),
        ("DELETE", "responses/1"),
        ("POST", "files"),
        ("POST", "nobody/knows"),
        ("POST", "moderations"),
    ],
)
def test_what_costs_nothing_or_is_not_known_passes_untouched(door: Door, method: str, path: str) -> None:
    url = URL.replace("chat/completions", path)
    response = door.send(answer(), body=None, method=method, url=url, content=b"anything")
    assert response.status_code == 200
    assert door.statuses == []
    assert door.requests[0].headers.get("accept-encoding") == response.request.headers.get("accept-encoding")


def test_a_path_that_others_have_too_passes_untouched_if_its_body_is_for_no_model(door: Door) -> None:
    door.send(answer(), url="http://127.0.0.1:1/v1/messages", json={"text": "hi"})
    assert door.statuses == []
    door.send(answer(), url="http://127.0.0.1:1/v1/messages", json=CHAT)
    assert door.statuses == ["settled"]


def test_a_call_block_counts_what_is_sent_in_it_once(door: Door) -> None:
    async def work() -> None:
        with door.meter.call("m", input_tokens=1000, max_output_tokens=10) as call:
            response = await door.asend()
            call.settle(response.json())
        await door.asend()

    door.script = [answer(), answer()]
    door.run(work)
    assert door.statuses == ["settled"] * 2
    assert door.spent == COST * 2


def test_a_request_that_others_mark_as_metered_is_not_counted(door: Door) -> None:
    door.send(answer(), json=CHAT, extensions={"token_budget": True})
    assert door.statuses == []


def test_a_request_that_is_sent_twice_is_counted_twice(door: Door) -> None:
    shared: dict[str, Any] = {}
    request = door.request(json=CHAT, extensions=shared)
    assert door.send(answer(), request=request).request is request
    assert door.send(answer(), request=request).status_code == 200
    assert door.statuses == ["settled"] * 2
    assert shared == {}
    assert "token_budget" not in request.extensions
    response = door.send(streamed(), request=door.request({**CHAT, "stream": True}))
    door.send(streamed(), request=response.request)
    assert door.statuses == ["settled"] * 4


def test_a_redirect_is_one_call_and_following_it_by_hand_another(door: Door) -> None:
    moved = Reply(307, headers={"location": URL.replace("v1", "v2")})
    door.client.follow_redirects = True
    door.send(moved, answer())
    assert door.statuses == ["settled"]
    door.client.follow_redirects = False
    response = door.send(moved)
    assert door.statuses == ["settled", "released"]
    door.send(answer(), request=response.next_request)
    assert door.statuses == ["settled", "released", "settled"]
    door.client.follow_redirects = True
    with pytest.raises(door.library.TooManyRedirects):
        door.send(*[moved] * 30)
    assert door.statuses[3:] == ["released"]


# ---------------------------------------------------------------- who pays


def test_a_wrapped_client_in_a_run_pays_to_both_once(way: Any) -> None:
    library, _, is_async = way
    door = Door(library, "wrap", is_async=is_async)
    other = BudgetPool(usd_cap=1)
    with budget_run("outer", pool=other, meter=Meter()) as outer, budget_run("inner", pool=door.pool) as inner:
        door.send(answer())
        door.read(streamed())
    assert [run.report()["usd_nanos"] for run in (outer, inner)] == [COST * 2] * 2
    assert door.spent == other.snapshot().usd_used_nanos == COST * 2


def test_a_patch_block_meters_all_threads_until_it_is_left(way: Any) -> None:
    from threading import Thread

    library, _, is_async = way
    door = Door(library, "none", is_async=is_async)
    door.send(answer())
    assert door.statuses == []
    with door.meter.patch() as meter:
        assert meter is door.meter
        thread = Thread(target=door.send, args=(answer(),))
        thread.start()
        thread.join()
        assert door.statuses == ["settled"]
    door.send(answer())
    assert door.statuses == ["settled"]
    with door.meter.patch(), budget_run("inside", usd_cap=1) as run:
        door.send(answer())
    assert run.report()["usd_nanos"] == COST
    assert door.spent == COST * 2


def test_a_call_counts_once_in_the_budget_of_each_meter_around_it(way: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async)
    outer, full = BudgetPool(usd_cap=1), Meter(BudgetPool(usd_cap=0), timeout=0)
    with Meter(outer).patch(), Meter(outer).patch(), Meter().patch(), door.meter.patch():
        door.send(answer())
        assert door.statuses == ["settled"]
        assert door.spent == outer.snapshot().usd_used_nanos == COST
    with full.patch(), door.meter.patch(), pytest.raises(BudgetExceeded):
        door.send()
    assert len(door.requests) == 1


def test_a_run_with_threads_takes_a_thread_and_others_do_not(way: Any) -> None:
    from threading import Thread

    library, _, is_async = way
    door = Door(library, "none", is_async=is_async)
    for threads, counted in ((False, 0), (True, 1)):
        with budget_run("job", meter=door.meter, threads=threads) as run:
            thread = Thread(target=door.send, args=(answer(),))
            thread.start()
            thread.join()
        assert run.report()["call_count"] == counted


# ---------------------------------------------------------------- what the hook changes


def test_a_call_that_is_no_stream_leaves_as_it_is(door: Door) -> None:
    request = door.request(json=CHAT, headers={"accept-encoding": "br"})
    response = door.send(answer(), request=request)
    assert door.requests == [request]
    assert response.request is request
    assert json.loads(request.content) == CHAT


def test_a_stream_is_asked_for_its_usage_and_in_a_coding_that_can_be_read(door: Door) -> None:
    body = {**CHAT, "stream": True, "seed": 7}
    request = door.request(json=body, headers={"accept-encoding": "gzip, br, zstd", "x-mine": "1"})
    before = dict(request.headers)
    door.send(streamed(), request=request)
    sent = door.requests[0]
    assert json.loads(sent.content) == {**body, "stream_options": {"include_usage": True}}
    assert sent.headers["accept-encoding"] == "gzip, deflate"
    assert sent.headers["content-length"] == str(len(sent.content))
    assert sent.headers["x-mine"] == "1"
    assert dict(request.headers) == before
    assert json.loads(request.content) == body


def test_a_stream_that_needs_no_change_leaves_as_it_is(door: Door) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    request = door.request(json=body, headers={"accept-encoding": "gzip"})
    assert b'"usage":{' in door.send(streamed(), request=request).content
    assert door.requests == [request]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_does_not_take_the_question_for_the_usage_is_not_asked_again(
    door: Door, stream: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_send, "_declining", {})
    body = {**CHAT, "stream": True}
    declined = Reply(status, body=b'{"error": "unknown field: stream_options"}')
    chunks = stream_of(door.request(body))
    if stream:
        assert door.read(declined, streamed()) == b"".join(chunks)
    else:
        assert door.send(declined, streamed(), body=body).content == b"".join(chunks)
    assert door.send(streamed(), body=body).content == b"".join(chunks)
    assert door.statuses == ["charged", "charged"]
    assert [json.loads(request.content) == body for request in door.requests] == [False, True, True]
    door.pool.reset()
    other = door.send(streamed(), body=body, url=URL.replace("127.0.0.1:1", "127.0.0.1:2"))
    assert b'"usage":{' not in other.content
    assert door.spent == COST
    assert door.send(Reply(status, body=b"no"), body=body, url=other.url).content == b"no"
    monkeypatch.setattr(_send, "_SERVERS", 1)
    assert door.send(declined, streamed(), body=body, url=other.url).status_code == 200
    assert list(_send._declining) == [b"127.0.0.1:2"]


def test_a_server_that_refuses_something_else_is_asked_the_next_time(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_send, "_declining", {})
    body = {**CHAT, "stream": True}
    shown = Reply(422, body=b'{"detail": {"top_p": 7, "stream_options": {"include_usage": true}}}')
    assert door.send(shown, shown, body=body).status_code == 422
    door.send(streamed(), body=body)
    assert door.statuses == ["released", "settled"]
    assert b"stream_options" in door.requests[2].content


DECLINES = b"unknown field: stream_options"
LONG = b"x" * (1 << 16)


@pytest.mark.parametrize(
    ("chunks", "declines"),
    [
        ([DECLINES], True),
        ([DECLINES[:20], DECLINES[20:], OSError()], True),
        ([DECLINES, LONG, Hang()], True),
        ([gzip.compress(DECLINES)], True),
        ([LONG, Hang()], False),
        ([LONG, DECLINES], False),
        ([gzip.compress(bytes(1 << 17) + DECLINES)], False),
        ([b"\x1f\x8b this is no gzip"], False),
    ],
)
def test_an_answer_that_may_decline_the_question_is_looked_at_and_no_further(
    way: Any, chunks: Any, declines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, hooking, is_async = way
    monkeypatch.setattr(_send, "_declining", {})
    door = Door(library, hooking, is_async=is_async)
    headers = {**EVENTS, "content-encoding": "gzip"} if chunks[0][:1] == b"\x1f" else EVENTS
    got = door.read(streamed(chunks, headers, status=400), streamed(), chunks=None if declines else 0)
    assert got == (b"".join(stream_of(door.request({**CHAT, "stream": True}))) if declines else b"")
    assert len(door.script) == (not declines)
    assert door.bodies[0].closed
    assert door.statuses == ["charged" if declines else "released"]


def test_an_error_that_is_looked_at_reaches_the_caller_as_it_is(door: Door) -> None:
    chunks: list[Any] = [LONG, b"such ", b"model"]
    body = {**CHAT, "stream": True}
    for loaded in (False, True):
        assert door.read(streamed(chunks, status=400, loaded=loaded)) == b"".join(chunks)
        response = door.send(streamed(chunks, status=400, loaded=loaded), body=body)
        assert response.content == b"".join(chunks)
        assert loaded or response.elapsed.total_seconds() >= 0
    broken = [b"no", door.error("ReadError")]
    response = door.send(streamed(broken, status=400), body=body, stream=True)
    assert response.status_code == 400
    for use in (door.send, door.read):
        with pytest.raises(door.library.ReadError):
            use(streamed(broken, status=400), body=body)
    assert set(door.statuses) == {"released"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_body_of_an_error_that_is_no_generator_is_looked_at_too(library: str) -> None:
    module = importlib.import_module(library)
    chunks = [b"a", b"b"]

    class Body(module.AsyncByteStream):  # type: ignore[name-defined, misc]
        def __aiter__(self) -> Any:
            return Chunks()

    class Chunks:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            if not chunks:
                raise StopAsyncIteration
            return chunks.pop(0)

    async def work() -> None:
        response = module.Response(400, stream=Body())
        assert await apeek(response) == b"ab"
        assert await response.aread() == b"ab"

    asyncio.run(work())


@pytest.mark.parametrize("cap_output", [True, "fit"])
def test_a_limit_is_written_into_a_request_that_has_none(way: Any, cap_output: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async, cap_output=cap_output, usd_cap=0.004)
    body = {"model": "m", "messages": CHAT["messages"]}
    if cap_output is True:
        with pytest.raises(BudgetExceeded):
            door.send(body=body)
        door.pool.set_caps(usd_cap=1)
    door.send(answer(), body=body)
    limit = json.loads(door.requests[0].content)["max_tokens"]
    assert limit == 4096 if cap_output is True else 256 < limit < 1000
    assert door.requests[0].headers["content-length"] == str(len(door.requests[0].content))


def test_a_signed_request_leaves_as_it_is(way: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async, cap_output=True)
    request = door.request(json={**CHAT, "stream": True}, headers={"authorization": "AWS4-HMAC-SHA256 Credential=x"})
    door.send(streamed(), request=request)
    assert door.requests == [request]
    assert door.statuses == ["charged"]


def test_where_no_limit_can_be_written_the_default_is_held(way: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async, cap_output="fit", usd_cap=0.01)
    body = {"model": "m", "messages": CHAT["messages"]}
    with pytest.raises(BudgetExceeded):
        door.send(json=body, headers={"authorization": "AWS4-HMAC-SHA256 Credential=x"})
    assert door.requests == []
    door.pool.set_caps(usd_cap=1)
    door.send(answer(), json=body, headers={"authorization": "AWS4-HMAC-SHA256 Credential=x"})
    assert json.loads(door.requests[0].content) == body
    assert door.spent == COST


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", ["chat/completions", "messages"])  # the second is one that others have too
def test_a_packed_body_is_read_and_leaves_as_it_is(way: Any, coding: str, path: str) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async, cap_output=True)
    url, plain = URL.replace("chat/completions", path), json.dumps({**CHAT, "stream": True}).encode()
    content = gzip.compress(plain) if coding == "gzip" else zlib.compress(plain)
    request = door.request(None, url=url, content=content, headers={"content-encoding": coding})
    door.send(streamed([b"data: {}\n\n"]), request=request)
    assert door.requests == [request]
    assert door.statuses == ["charged"]
    with pytest.raises(Unmetered):
        door.send(body=None, content=b"no gzip", headers={"content-encoding": coding})


@pytest.mark.parametrize("path", ["responses", "serving-endpoints/embeddings", "inference/completions/"])
def test_a_path_without_a_version_is_a_model_s_where_an_sdk_asks(way: Any, path: str) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async)
    url, body = f"http://127.0.0.1:1/{path}", {"model": "m", "input": "hi", "prompt": "hi", "max_tokens": 9}
    door.send(answer(), json=body, url=url, headers={"x-stainless-os": "Linux"})
    assert door.statuses == ["settled"]
    door.send(answer(), json=body, url=url)
    door.send(answer(), json=body, url="http://127.0.0.1:1/other/thing", headers=STAINLESS)
    assert door.statuses == ["settled"]
    response = door.send(json=body, url="http://127.0.0.1:1/videos", headers=STAINLESS)
    with pytest.raises(Unmetered):
        response.raise_for_status()


def test_a_form_with_a_recording_is_read_and_its_model_found(door: Door) -> None:
    usage = {"type": "tokens", "input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    door.send(
        answer({"text": "Hello.", "usage": usage}),
        body=None,
        url=URL.replace("chat/completions", "audio/transcriptions"),
        data={"model": "m"},
        files={"file": ("a.wav", b"RIFF" + bytes(2000))},
    )
    assert [record.model for record in door.records] == ["m"]
    assert door.spent == COST
    assert b"RIFF" in door.requests[0].content


def test_a_body_of_the_wrong_kind_is_the_library_s_own_error(way: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async)

    async def chunks() -> Any:
        yield json.dumps(CHAT).encode()

    content: Any = iter([json.dumps(CHAT).encode()]) if is_async else chunks()
    with pytest.raises(RuntimeError, match="sync"):
        door.send(body=None, content=content)
    assert door.statuses == []


def test_a_body_that_is_made_on_the_way_is_read(way: Any) -> None:
    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async)

    async def chunks() -> Any:
        yield json.dumps(CHAT).encode()

    content: Any = chunks() if is_async else iter([json.dumps(CHAT).encode()])
    door.send(answer(), body=None, content=content)
    assert door.spent == COST


# ---------------------------------------------------------------- what stays


def test_nothing_of_a_prompt_an_answer_or_a_key_is_logged(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0, logger="token_budget")
    secret = {**CHAT, "messages": [{"role": "user", "content": "SECRET"}]}
    key = {"authorization": "Bearer SECRET"}
    door.send(answer({**ANSWER, "choices": "SECRET"}), json=secret, headers=key)
    door.send(Reply(body=b"SECRET"), json=secret, headers=key)
    with pytest.raises(Unmetered) as refused:
        door.send(body=None, content=b'{"model": "m", "SECRET": SECRET', headers=key)
    assert "SECRET" not in caplog.text + str(refused.value) + repr(door.records) + repr(door.meter)


def test_a_client_that_is_dropped_is_collected(way: Any) -> None:
    import weakref

    library, hooking, is_async = way
    door = Door(library, hooking, is_async=is_async)
    door.send(answer())
    client = weakref.ref(door.client)
    del door.client
    gc.collect()
    assert client() is None


def test_a_usage_told_twice_is_never_counted_twice(door: Door) -> None:
    body = json.dumps(ANSWER)[:-1] + ', "usage": ' + json.dumps(USAGE) + "}"
    door.send(Reply(body=body.encode()))
    assert door.spent == COST


def test_a_transport_that_gives_the_body_read_is_metered_too(door: Door) -> None:
    door.send(answer(loaded=True))
    content = door.send(streamed(loaded=True), body={**CHAT, "stream": True}).content
    assert content == b"".join(stream_of(door.requests[1])).replace(stream_of(door.requests[1])[2], b"")
    assert door.read(streamed(loaded=True)) == content
    door.send(streamed([b"data: {}\n\n"], loaded=True))
    assert door.statuses == ["settled"] * 3 + ["charged"]
