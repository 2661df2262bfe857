"""Faults that an attack on the mends of two others found; each test constructs one of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any

import pytest

from token_budget.metering import Meter, RunStopped, Unmetered, budget_run

URL = "https://api.openai.com/v1/chat/completions"
BODY = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "x"}]}
USAGE = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
ANSWER = {"id": "x", "model": "m", "choices": [{"index": 0, "message": {"content": "hi"}}], "usage": USAGE}
PRICES = {"m": (1000, 1000)}  # one answer costs 0.02 USD


@pytest.fixture(params=["httpx", "httpx2"])
def http(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def answering(http: Any, before: Callable[[], object] = lambda: None) -> Any:
    def handle(_request: Any) -> Any:
        before()
        return http.Response(200, json=ANSWER)

    return http.MockTransport(handle)


def test_one_request_that_is_sent_by_many_threads_at_once_is_counted_each_time(http: Any) -> None:
    barrier = threading.Barrier(4)  # all are in flight at one moment
    client = http.Client(transport=answering(http, barrier.wait))
    request = client.build_request("POST", URL, json=BODY)
    answers: list[Any] = []

    def ask() -> None:
        answers.append(client.send(request))

    with budget_run("hedged", usd_cap=10, meter=Meter(prices=PRICES)) as run:
        threads = [threading.Thread(target=run.bind(ask)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert run.report()["call_count"] == 4
    assert [answer.request for answer in answers] == [request] * 4
    assert "token_budget" not in request.extensions


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/v1/chat/completions", "/inference/responses"])
def test_a_body_of_an_sdk_that_is_packed_in_an_unknown_way_is_refused(http: Any, path: str) -> None:
    client = http.Client(transport=answering(http))
    headers = {"content-encoding": "zstd", "x-stainless-lang": "python"}
    with budget_run("packed", usd_cap=10, meter=Meter(prices=PRICES)) as run:
        response = client.post(f"http://my-llm.internal{path}", content=b"\x28\xb5\x2f\xfd", headers=headers)
        with pytest.raises(Unmetered):
            response.raise_for_status()
    assert run.report()["refused"] == 1


def helper(client: Any, request: Any, options: dict[str, Any]) -> Any:
    return client.send(request, **options)


def test_a_client_whose_own_send_also_goes_other_ways_is_metered_as_a_whole(http: Any) -> None:
    spare = http.Client(transport=answering(http))

    class ByRequest(http.Client):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            try:
                return super().send(request, **options)
            except http.ConnectError:
                return spare.request("POST", URL, json=BODY)

    class ByHelper(http.Client):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            try:
                return super().send(request, **options)
            except http.ConnectError:
                return helper(spare, request, options)

    def fails(_request: Any) -> Any:
        raise http.ConnectError("planned")

    for kind in (ByRequest, ByHelper):
        meter = Meter(prices=PRICES)
        seen: list[Any] = []
        meter.subscribe(seen.append)
        client = meter.wrap(kind(transport=http.MockTransport(fails)))
        assert client.post(URL, json=BODY).json() == ANSWER
        assert [(record.status, record.usd_nanos) for record in seen] == [("settled", 20_000_000)]


def test_a_run_inside_of_one_that_a_generator_ends_is_refused_and_not_let_loose(http: Any) -> None:
    meter = Meter(prices=PRICES)
    client = http.Client(transport=answering(http))

    def generator() -> Generator[None, None, None]:
        with budget_run("outer", meter=meter):
            yield

    opened = generator()
    next(opened)
    with budget_run("inner", usd_cap=0.2, meter=meter) as run:
        client.post(URL, json=BODY)
        opened.close()
        with pytest.raises(RunStopped, match="'outer' has ended"):
            client.post(URL, json=BODY)
    assert run.report()["call_count"] == 1
    client.post(URL, json=BODY)  # no run is left here


def lines(*events: Any) -> Iterable[bytes]:
    return [b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in events]


def test_a_usage_that_is_told_after_each_of_two_answers_counts_with_the_last(http: Any) -> None:
    def chunk(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
        return {"model": "m", "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]}

    def usage(output: int) -> dict[str, Any]:
        told = {"prompt_tokens": 5, "completion_tokens": output, "total_tokens": 5 + output}
        return {"model": "m", "choices": [], "usage": told}

    def handle(_request: Any) -> Any:
        first = [chunk(0, "a"), chunk(0, "", "stop"), usage(10)]
        second = [chunk(1, "b"), chunk(1, "", "stop"), usage(1010), b"[DONE]"]
        headers = {"content-type": "text/event-stream"}
        return http.Response(200, headers=headers, content=iter(lines(*first, *second)))

    client = http.Client(transport=http.MockTransport(handle))
    with budget_run("two", usd_cap=100, meter=Meter(prices=PRICES)) as run:
        response = client.post(URL, json={**BODY, "n": 2, "stream": True, "max_tokens": 2000})
    assert run.report()["usd_nanos"] == 1_015_000_000
    assert '"choices": []' not in response.text
