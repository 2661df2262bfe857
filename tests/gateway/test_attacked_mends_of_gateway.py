"""What an attack on the mends of the gateway and of `run` found: each test failed before its mend."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("psutil")
pytest.importorskip("truststore")

import psutil  # type: ignore[import-untyped]

from capped import Runner, clean_environment
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
    gateway_to,
    head,
    meter_of,
    raw,
    used,
    wired,
)
from token_budget import BudgetPool
from token_budget.cli import _parser, _run_notes, _run_summary, _run_terminal, run
from token_budget.cli._provider import Provider
from token_budget.cli._run_budget import open_budget
from token_budget.cli._run_child import NOT_EXECUTABLE
from token_budget.cli._run_notes import Notes
from token_budget.cli._run_options import NO_GATEWAY, checked
from token_budget.cli._run_summary import ReportFile
from token_budget.gateway import Gateway, _forward
from token_budget.gateway._calls import examine
from token_budget.gateway._client import UnusableProxyError, proxy_for
from token_budget.gateway._environment import child_environment
from token_budget.gateway._threads import DaemonThreads, _run
from token_budget.gateway._upstreams import upstreams
from token_budget.metering._guards import Guards
from token_budget.metering._run import Run

FAR = "https://elsewhere.example/v1"


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Runner]:
    clean_environment(monkeypatch, tmp_path)
    with Provider() as provider:
        yield Runner(provider, tmp_path, capfd)


# ---------------------------------------------------------------- spending past the gateway


@pytest.mark.parametrize("status", [300, 301, 302, 305, 306, 307, 308])
def test_no_redirect_upon_which_some_client_sends_its_call_again_leads_past_the_gateway(status: int) -> None:
    """`curl -L` keeps a POST at 300, 305 and 306, and where it is told to at 301 and 302."""

    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b"", f"{status} Moved", f"Location: {FAR}")

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        got = ask(gateway, body=chat())
        assert (got.status, got.header("location")) == (403, [])
        assert used(meter) == (0, 0, 0)


@pytest.mark.parametrize(
    "where",
    [
        f"\x01{FAR}",
        f"ht\x01tps{FAR[5:]}",
        "/\x0b/elsewhere.example",
        "https\x7f://elsewhere.example",
        "://elsewhere.example",
    ],
)
def test_a_redirect_is_judged_as_the_client_gets_it(where: str) -> None:
    """What may not be written is left out of a header, and what is left may be another address."""

    def respond(connection: Connection, asked: Asked) -> None:
        connection.answer(b"", "307 Temporary Redirect", f"Location: {where}")

    with wired(respond) as (_, wire), gateway_to(wire.url + "/prefix") as gateway:
        got = ask(gateway, body=chat())
        assert (got.status, got.header("location")) == (403, [])


def test_the_key_of_a_provider_that_is_no_upstream_is_kept_from_the_program_too() -> None:
    """A program may have Azure's address in its code, where no gateway can be put in its place."""
    environ = {"AZURE_OPENAI_API_KEY": "sk-1", "AZURE_API_KEY": "sk-2", "HOSTED_VLLM_API_KEY": "", "OTHER": "sk-3"}
    child, held = child_environment(environ, upstreams(environ), "http://127.0.0.1:1/S", "S", hold_keys=True)
    assert {name: child[name] for name in environ} == {
        "AZURE_OPENAI_API_KEY": "S",
        "AZURE_API_KEY": "S",
        "HOSTED_VLLM_API_KEY": "",
        "OTHER": "sk-3",
    }
    assert held == {}
    assert child_environment(environ, upstreams(environ), "http://127.0.0.1:1/S", "S")[0]["AZURE_API_KEY"] == "sk-2"


def test_a_model_without_a_price_that_may_answer_leaves_a_call_counted_where_all_may_pass() -> None:
    held: list[int] = []

    def respond(connection: Connection, asked: Asked) -> None:
        held.append(meter.pool.snapshot().usd_reserved_nanos)
        connection.answer(completion())

    meter = meter_of(unmetered="allow")
    with wired(respond, meter) as (gateway, _):
        assert ask(gateway, body=chat("house-small", models=["nobody-knows", "house-large"])).status == 200
        assert held[0] > 1000 * 15_000  # house-large's output
        assert used(meter)[0] == 108
        assert ask(gateway, body=chat("nobody-knows", models=["small"])).status == 200
        assert (gateway.metered, gateway.passed) == (1, 1)


# ---------------------------------------------------------------- answers that were paid for


@pytest.mark.parametrize(
    ("status", "header"),
    [
        (b"200 O\x01K\x7f", b"X-Other: a"),
        (b"200 OK", b"Content-Type: application/\xe9"),
        (b"200 OK", b"Content-Encoding: \xff"),
    ],
    ids=["reason", "type", "encoding"],
)
def test_a_head_with_what_may_not_be_written_costs_nobody_a_metered_answer(status: bytes, header: bytes) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        body = completion()
        connection.send(b"HTTP/1.1 %b\r\n%b\r\nContent-Length: %d\r\n\r\n%b" % (status, header, len(body), body))

    meter = meter_of()
    with wired(respond, meter) as (gateway, _):
        got = ask(gateway, body=chat())
        assert (got.status, got.body) == (200, completion())
        assert used(meter)[0] >= 108


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:no-port", ":8080", "http://user:s3cr3t@[::1"])
def test_a_proxy_that_is_no_url_is_told_and_costs_nothing(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UnusableProxyError):
        proxy_for("https://api.example")
    meter = meter_of()
    with gateway_to("https://api.example", meter) as gateway:
        got = ask(gateway, body=chat())
        assert got.status == 502
        assert got.message.endswith("UnusableProxyError")
        assert used(meter) == (0, 0, 0)


# ---------------------------------------------------------------- bodies that are read in a thread


class Reading:
    """The reading of a body, in the hands of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self.count = 0

        def slowly(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.thread is None:
                self.thread = threading.current_thread()
                self.begun.set()
                assert self.go_on.wait(SECONDS)
            return examine(*arguments, **named)

        monkeypatch.setattr(_forward, "examine", slowly)

    def end(self) -> None:
        self.go_on.set()
        assert self.thread is not None
        self.thread.join(SECONDS)


def answers(connection: Connection, _: Asked) -> None:
    connection.answer(completion())


def test_a_packed_body_holds_up_no_other_request_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes of it may be millions."""
    reading = Reading(monkeypatch)
    got: list[int] = []
    body, packed = gzip.compress(json.dumps(chat()).encode()), {"Content-Encoding": "gzip"}
    with wired(answers) as (gateway, _):
        client = threading.Thread(target=lambda: got.append(ask(gateway, body=body, headers=packed).status))
        client.start()
        try:
            assert reading.begun.wait(SECONDS)
            assert asked(gateway, "GET", f"/{gateway.secret}/_status").status == 200
        finally:
            reading.end()
            client.join()
        assert got == [200]


def test_long_bodies_are_read_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads that read would leave the event loop little time."""
    reading = Reading(monkeypatch)
    wanted: list[None] = []

    class Turn(asyncio.Lock):
        async def acquire(self) -> Literal[True]:
            wanted.append(None)
            return await super().acquire()

    body = {**chat(), "padding": "x" * (1 << 20)}
    with wired(answers) as (gateway, _), ThreadPoolExecutor(2) as clients:
        gateway._forward._turn = Turn()
        try:
            got = [clients.submit(ask, gateway, body=body) for _ in range(2)]
            eventually(lambda: len(wanted) == 2)
            assert reading.begun.wait(SECONDS)
            assert reading.count == 1
        finally:
            reading.go_on.set()
        assert [one.result().status for one in got] == [200, 200]
        assert reading.count == 2


@pytest.mark.parametrize("whole", [True, False])
def test_a_call_whose_client_leaves_while_its_body_is_read_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """It is not sent, so it is no sign of a loop."""
    reading = Reading(monkeypatch)
    meter = meter_of()
    run = Run("job", BudgetPool(usd_cap=1), outer=None, meter=meter, guards=Guards(calls_per_minute=1))
    body = json.dumps({**chat(), "padding": "x" * (1 << 20)}).encode()
    body = body if whole else b"x" * len(body)
    with wired(answers, meter, run=run) as (gateway, wire):
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            client.sendall(head(gateway, "POST", CHAT, f"Content-Length: {len(body)}") + body)
            assert reading.begun.wait(SECONDS)
        eventually(lambda: not gateway._open)
        reading.end()
        assert ask(gateway, body=chat()).status == 200
        assert len(wire.seen) == 1


# ---------------------------------------------------------------- strangers


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", b"404"), ("elsewhere.example", b"421")])
def test_who_does_not_show_the_secret_is_answered_once_for_each_connection(host: str, status: bytes) -> None:
    """Many requests at once would hold up all others, and answers that nobody reads would keep the connection open."""
    with wired(answers) as (gateway, _):
        got = raw(gateway, f"GET /nothing HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 3)
        assert got.count(b"HTTP/1.1 ") == got.count(b"HTTP/1.1 " + status) == 1
        assert b"connection: close" in got.lower()


# ---------------------------------------------------------------- ends that hang


def test_a_name_server_that_does_not_answer_holds_up_no_end() -> None:
    """Python waits, before a process ends, for the threads in which an event loop has names looked up."""
    program = f"""
import socket, sys, threading
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from gateways import *
asked = threading.Event()
def never(*_, **__):
    asked.set()
    threading.Event().wait()
socket.getaddrinfo = never
with gateway_to("http://slow.example") as gateway:
    body = json.dumps(chat()).encode()
    with socket.socket() as plain:
        plain.connect(("127.0.0.1", gateway.port))
        plain.sendall(head(gateway, "POST", CHAT, f"Content-Length: {{len(body)}}") + body)
        assert asked.wait(SECONDS)
        gateway.close(0.01)
print("closed")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=SECONDS, check=False)
    assert (done.stderr, done.stdout.split(), done.returncode) == (b"", [b"closed"], 0)


def test_what_is_done_in_a_daemons_thread_is_told_to_whoever_waits() -> None:
    threads = DaemonThreads()
    assert threads.submit(max, 1, 2).result(SECONDS) == 2
    assert isinstance(threads.submit(int, "one").exception(SECONDS), ValueError)
    cancelled: Future[Any] = Future()
    cancelled.cancel()
    _run(cancelled, lambda: pytest.fail("nobody waits for it"))
    threads.shutdown()


def _no_thread(monkeypatch: pytest.MonkeyPatch, wanted: Any) -> None:
    """Let the system have no thread for what is wanted."""
    start = threading.Thread.start

    def started(thread: Any) -> None:
        if wanted(thread):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)


def test_without_a_thread_to_look_at_the_store_a_run_still_comes_to_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options: Any = _parser("run").parse_args(["run", "--pool", f"sqlite:{tmp_path / 'b.db'}#team", "--usd", "5", "x"])
    with open_budget(checked(options)) as budget:
        with monkeypatch.context() as patch:
            _no_thread(patch, lambda thread: thread.name == "token-budget-pool")
            assert budget.whole() is None
        assert not budget._looking.locked()
        told = budget.look_at_last()
        assert told is not None
        assert told["usd_cap"] == 5


def test_without_a_thread_for_the_prices_the_program_is_not_left_alone(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_thread(monkeypatch, lambda thread: thread._target is run._load_prices)
    ran = runner.here("--usd", "1", program="print(call()[0])\nsys.exit(3)")
    assert (ran.code, ran.out, ran.report["calls"]) == (3, "200\n", 1)


@pytest.mark.parametrize(
    ("thread", "status", "told"),
    [
        ("token-budget-gateway", NO_GATEWAY, "the gateway cannot be started"),
        ("token-budget child", NOT_EXECUTABLE, Path(sys.executable).name),
    ],
)
def test_where_the_system_has_no_thread_a_run_says_so_and_leaves_nothing(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, thread: str, status: int, told: str
) -> None:
    made: list[Gateway] = []
    start = Gateway.start

    def started(gateway: Gateway) -> None:
        made.append(gateway)
        start(gateway)

    monkeypatch.setattr(Gateway, "start", started)
    _no_thread(monkeypatch, lambda one: one.name == thread)
    others = psutil.Process().children()  # of other tests
    ran = runner.here("--usd", "1", "--progress", "off", program="input()")
    assert ran.code == status
    assert f"{told}: can't start new thread\n" in ran.err
    assert "Traceback" not in ran.err
    (gateway,) = made
    assert gateway._socket is not None
    assert gateway._socket.fileno() == -1
    left = [one for one in psutil.Process().children() if one not in others]
    assert not [one for one in left if one.status() != psutil.STATUS_ZOMBIE]


def test_where_nobody_reads_one_note_is_waited_for_and_not_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    said: list[str] = []
    notes = Notes()
    notes.open()
    notes.hush()
    for number in range(_run_notes.KEPT + 5):
        logging.getLogger("token_budget").warning("note %d", number)
    monkeypatch.setattr(_run_terminal, "say", lambda _stream, text, _wait: said.append(text))  # not written
    notes.close()
    assert said == ["token-budget: warning: note 0"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows names no descriptors")
def test_a_report_waits_for_room_in_a_stream_that_the_program_left_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node and others let the stream that they share with us not wait by itself."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    got: list[bytes] = []
    with os.fdopen(reading, "rb", buffering=0) as stream, os.fdopen(writing, "wb", buffering=0) as full:
        while full.write(b"x" * 4096):
            pass
        monkeypatch.setattr(_run_summary, "_pause", lambda _: got.append(stream.read(1 << 20)))
        ReportFile(f"/dev/fd/{writing}").write({"calls": 1})
        got.append(stream.read(1 << 20))
    assert json.loads(b"".join(got).lstrip(b"x")) == {"calls": 1}
