"""The life of a gateway: it starts, it ends with every call settled, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from gateways import (
    CHAT,
    SECONDS,
    Asked,
    Connection,
    ask,
    asked,
    chat,
    completion,
    eventually,
    head,
    meter_of,
    received,
    used,
    wired,
)
from token_budget import BudgetPool
from token_budget.gateway import Gateway
from token_budget.gateway import _server as server_module
from token_budget.metering import Meter
from token_budget.metering._guards import Guards
from token_budget.metering._run import Run

EXACT = (108, 8 * 1000 + 100 * 4000, 0)


def whole(connection: Connection, _: Asked) -> None:
    connection.answer(completion(), "200 OK", "Content-Type: application/json")


def descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len([*folder.iterdir()]) if folder.exists() else 0


def run_of(meter: Meter, usd: float) -> Run:
    """Return what `budget_run` makes; that would load every SDK that is installed."""
    return Run("job", BudgetPool(usd_cap=usd), outer=None, meter=meter, guards=Guards())


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "token-budget-gateway"]


def test_it_tells_how_things_stand() -> None:
    with Gateway(meter_of(), {}, status=lambda: {"usd": 1}) as gateway:
        got = asked(gateway, "GET", f"/{gateway.secret}/_status")
        assert (got.status, got.body, got.header("content-type")) == (200, b'{"usd": 1}', ["application/json"])
        assert asked(gateway, "POST", f"/{gateway.secret}/_status").status == 404
        assert asked(gateway, "GET", f"/{gateway.secret}/_status/x").status == 404
    with Gateway(meter_of(), {}) as gateway:
        assert asked(gateway, "GET", f"/{gateway.secret}/_status").body == b"{}"


def test_an_error_of_ours_is_a_500_that_shows_nothing() -> None:
    def broken() -> dict[str, Any]:
        raise ValueError("sk-hidden")

    with Gateway(meter_of(), {}, status=broken) as gateway:
        got = asked(gateway, "GET", f"/{gateway.secret}/_status")
        assert got.status == 500
        assert b"hidden" not in got.body


def test_an_error_of_the_meter_is_a_refusal_that_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = meter_of()
    monkeypatch.setattr(meter, "_begin", lambda *_: 1 / 0)
    with wired(whole, meter) as (gateway, wire):
        got = ask(gateway, body=chat())
        assert (got.status, got.header("x-should-retry")) == (500, ["false"])
        assert wire.seen == []


def test_calls_belong_to_the_run() -> None:
    meter = meter_of()
    run = run_of(meter, 0.01)
    with wired(whole, meter, run=run) as (gateway, _):
        assert ask(gateway, body=chat()).status == 200
        assert run.report()["call_count"] == 1
        run.stop("enough")
        got = ask(gateway, body=chat())
        assert got.status == 402
        assert "enough" in got.message


def test_a_call_that_waits_ends_when_its_run_is_stopped() -> None:
    meter = meter_of(BudgetPool(usd_cap=1))
    go_on = threading.Event()

    def respond(connection: Connection, asked: Asked) -> None:
        go_on.wait(SECONDS)
        whole(connection, asked)

    run = run_of(meter, 0.006)
    with (
        wired(respond, meter, run=run) as (gateway, wire),
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(ask, gateway, body=chat())
        eventually(lambda: len(wire.seen) == 1)
        second = pool.submit(ask, gateway, body=chat())
        eventually(lambda: len(gateway._open) == 2)
        run.stop("enough")
        assert second.result().status in {402, 400}
        go_on.set()
        assert first.result().status == 200
        assert used(meter) == EXACT


# ---------------------------------------------------------------- its end


def test_it_is_started_once_and_closed_as_often_as_one_likes() -> None:
    gateway = Gateway(meter_of(), {})
    assert "not started" in repr(gateway)
    assert gateway.port == 0
    gateway.close()
    gateway = Gateway(meter_of(), {})
    gateway.start()
    with pytest.raises(RuntimeError, match="started once"):
        gateway.start()
    assert threads()
    gateway.close()
    gateway.close()
    assert not threads()
    assert "closed" in repr(gateway)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", gateway.port))


def test_a_gateway_without_an_event_loop_is_an_error_and_keeps_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise OSError(24, "Too many open files")

    gateway = Gateway(meter_of(BudgetPool(usd_cap=1)), {})
    monkeypatch.setattr(asyncio, "new_event_loop", none)
    with pytest.raises(OSError, match="Too many open files"):
        gateway.start()
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", gateway.port)):
        gateway.close()


def test_a_gateway_that_was_closed_is_not_started() -> None:
    gateway = Gateway(meter_of(), {})
    gateway.close()
    with pytest.raises(RuntimeError, match="started once"):
        gateway.start()


def test_what_keeps_it_from_listening_is_raised_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OSError("no port")

    gateway = Gateway(meter_of(), {})
    monkeypatch.setattr(socket, "create_server", fails)
    with pytest.raises(OSError, match="no port"):
        gateway.start()
    monkeypatch.undo()
    gateway = Gateway(meter_of(), {})
    monkeypatch.setattr(server_module, "Server", fails)
    with pytest.raises(OSError, match="no port"):
        gateway.start()
    assert not threads()
    gateway.close()


def test_closing_lets_an_open_call_come_to_its_end_and_refuses_new_ones() -> None:
    go_on = threading.Event()

    def respond(connection: Connection, asked: Asked) -> None:
        connection.begin()
        connection.chunk(b"data: {}\n\n")
        go_on.wait(SECONDS)
        connection.chunk(b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":100}}\n\n')
        connection.chunk(b"data: [DONE]\n\n")
        connection.end()

    meter = meter_of()
    with (
        wired(respond, meter) as (gateway, _),
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain,
    ):
        body = json.dumps(chat(stream=True)).encode()
        plain.sendall(head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body)
        received(plain, b"data: {}")
        closing = threading.Thread(target=gateway.close, args=(SECONDS,))
        closing.start()
        eventually(lambda: gateway._closing)
        refused = ask(gateway, body=chat())
        assert refused.status == 503
        assert refused.header("connection") == ["close"]
        go_on.set()
        assert received(plain, b"0\r\n\r\n").endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        closing.join(SECONDS)
        assert used(meter) == EXACT
        assert not threads()


@pytest.mark.parametrize("where", ["thinking", "streaming", "waiting"])
def test_closing_ends_what_does_not_end_by_itself_and_all_is_settled(where: str) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        if where == "streaming":
            connection.begin()
            connection.chunk(b"data: {}\n\n")
        connection.left()

    meter = meter_of(BudgetPool(usd_cap=0.006))
    with wired(respond, meter) as (gateway, wire):
        body = json.dumps(chat(stream=True)).encode()
        request = head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body
        with (
            socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain,
            socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as second,
        ):
            plain.sendall(request)
            eventually(lambda: len(wire.seen) == 1)
            if where == "waiting":
                second.sendall(request)
                eventually(lambda: len(gateway._open) == 2)
            gateway.close(0.01)
            assert not threads()
            tokens, _, flying = used(meter)
            assert flying == 0
            assert 1000 < tokens < 1200
            received(plain)
            assert received(second) == b""
        assert len(wire.seen) == 1


def test_closing_ends_connections_that_are_idle() -> None:
    with (
        wired(whole) as (gateway, _),
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain,
    ):
        plain.sendall(head(gateway, "GET", "/v1/models"))
        received(plain, b"}}")
        gateway.close()
        assert received(plain) == b""


def test_a_request_whose_body_is_on_its_way_does_not_hold_up_the_end() -> None:
    with (
        wired(whole) as (gateway, _),
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as plain,
    ):
        plain.sendall(head(gateway, "POST", CHAT, "Content-Length: 100"))
        eventually(lambda: bool(gateway._open))
        gateway.close(0.01)
        assert not threads()


def test_nothing_is_left_of_many_gateways() -> None:
    before = descriptors()
    for _ in range(5):
        with wired(whole) as (gateway, _):
            ask(gateway, body=chat())
    gc.collect()
    assert descriptors() <= before
    assert not threads()


# ---------------------------------------------------------------- forks and exits


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_lets_go_of_the_port_and_cannot_close_the_gateway() -> None:
    meter = meter_of()
    with wired(whole, meter) as (gateway, _):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                gateway.close()
                assert gateway._socket is not None
                code = 0 if gateway._socket.fileno() == -1 else 2
            finally:
                os.close(writer)
                os._exit(code)
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ask(gateway, body=chat()).status == 200
        assert used(meter) == EXACT


def test_closing_that_was_interrupted_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(meter_of(), {})
    gateway.start()
    with monkeypatch.context() as patch:

        def interrupted(coroutine: Any, _: Any) -> Any:
            coroutine.close()
            raise KeyboardInterrupt

        patch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gateway.close()
    assert threads()
    gateway.close()
    assert not threads()


def test_in_a_forked_child_closing_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with wired(whole) as (gateway, _):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            gateway.close()
        assert ask(gateway, body=chat()).status == 200


def test_the_port_is_let_go_of_by_what_is_called_in_a_forked_child() -> None:
    gateway = Gateway(meter_of(), {})
    server_module._listening.add(gateway)
    server_module._let_go()
    gateway._socket = socket.socket()
    server_module._let_go()
    assert gateway._socket.fileno() == -1
    server_module._listening.discard(gateway)


def test_a_process_that_ends_without_closing_its_gateway_ends_at_once_and_has_settled() -> None:
    program = """
import json, sys, threading
sys.path[:0] = [{tests!r}]
from gateways import *
from token_budget.cli._provider import Provider
provider = Provider()
provider.script("hang")
meter = meter_of()
meter.subscribe(lambda record: print(record.status, flush=True))
gateway = Gateway(meter, {{"openai": upstream(provider.url)}})
gateway.start()
body = json.dumps(chat()).encode()
request = head(gateway, "POST", CHAT, f"Content-Length: {{len(body)}}") + body
threading.Thread(target=raw, args=(gateway, request), daemon=True).start()
eventually(lambda: bool(provider.bills))
"""
    done = subprocess.run(
        [sys.executable, "-c", program.format(tests=str(Path(__file__).parent))],
        capture_output=True,
        text=True,
        timeout=SECONDS * 2,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert "charged" in done.stdout


def test_starting_loads_no_library_but_what_it_needs() -> None:
    program = "import sys, token_budget.gateway\nprint(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "aiohttp" in loaded
    assert not {"rich", "click", "psutil", "genai_prices", "truststore"} & set(loaded)


def test_it_runs_beside_an_event_loop_of_the_caller() -> None:
    async def program() -> int:
        with wired(whole) as (gateway, _):
            got = await asyncio.to_thread(ask, gateway, body=chat())
            return got.status

    assert asyncio.run(program()) == 200
