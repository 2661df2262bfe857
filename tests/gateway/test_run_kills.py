"""Processes that are killed in the middle of a call: what it can have cost is charged, and nothing stays held."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capped import CALL, HELD, Runner, clean_environment, outcome, settles
from token_budget.cli._provider import Provider
from token_budget.stores import StorePool, open_pool

for _library in ("aiohttp", "psutil", "truststore"):
    pytest.importorskip(_library)
if sys.platform == "win32":
    pytest.skip("Windows has no signals", allow_module_level=True)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment(monkeypatch, tmp_path)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider
        assert provider.errors == []


@pytest.fixture
def runner(provider: Provider, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Runner:
    return Runner(provider, tmp_path, capfd)


def kill_when(wanted: Callable[[], object], pid_file: Path) -> threading.Thread:
    """Kill the process that the file names as soon as it is true."""

    def wait_and_kill() -> None:
        settles(wanted)
        os.kill(int(pid_file.read_text()), signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


@pytest.mark.parametrize("fault", ["hang", "stall"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_program_that_is_killed_in_the_middle_of_a_call_is_charged_for_it(
    runner: Runner, provider: Provider, fault: str, stream: bool
) -> None:
    program = f"import os\nopen('pid', 'w').write(str(os.getpid()))\ncall(fault={fault!r}, stream={stream})"
    killer = kill_when(lambda: provider.bills, runner.folder / "pid")
    ran = runner.here("--usd", "1", program=program)
    killer.join()
    assert ran.code == ran.report["exit_code"] == 137
    assert ran.report["calls"] == len(provider.bills) == 1
    assert HELD <= ran.report["spent"]["usd_nanos"] < 1.2 * HELD
    assert ran.report["held"] == {"usd": 0.0, "usd_nanos": 0, "tokens": 0}
    assert ran.report["pool"]["in_flight"] == 0


CLIENT_IN_MID_STREAM = """
import os, signal, subprocess
program = f"import sys\\nsys.path.insert(0, {sys.path[0]!r})\\nfrom caller import opened\\n" + (
    "kept = opened(stream=True, fault='stall')\\nprint(kept.read1()[:5], flush=True)\\nsys.stdin.read()"
)
client = subprocess.Popen([sys.executable, "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(client.stdout.readline().decode().strip(), got("/_status")["in_flight"])
client.kill()
client.wait()
while (told := got("/_status"))["in_flight"]:
    pass
print(told["usd_nanos"], call()[0])
"""


def test_a_client_that_is_killed_in_mid_stream_is_charged_at_once_and_the_run_goes_on(
    runner: Runner, provider: Provider
) -> None:
    ran = runner.here("--usd", "1", program=CLIENT_IN_MID_STREAM)
    first, second = ran.out.splitlines()
    assert first == "b'data:' 1"
    charged, status = map(int, second.split())
    assert HELD <= charged < 1.2 * HELD
    assert status == 200
    assert ran.report["spent"]["usd_nanos"] == charged + CALL
    assert (ran.code, ran.report["held"]["usd_nanos"]) == (0, 0)
    assert len(provider.bills) == 2


def test_a_run_that_is_told_to_end_while_the_provider_hangs_settles_first(runner: Runner, provider: Provider) -> None:
    store = f"sqlite:{runner.folder / 'b.db'}#team"
    path, process = runner.apart("--pool", store, "--usd", "1", program="call(fault='hang')")
    settles(lambda: provider.bills)
    process.terminate()
    ran = outcome(path, process)
    assert ran.code == ran.report["exit_code"] == 143
    assert ran.report["spent"]["usd_nanos"] == HELD
    with open_pool(store) as pool:
        assert (pool.snapshot().usd_used_nanos, pool.snapshot().in_flight) == (HELD, 0)
        assert isinstance(pool, StorePool)
        assert pool.expired() == []


def test_a_run_that_is_killed_leaves_its_call_charged_in_the_pool_and_its_program_without_a_gateway(
    runner: Runner, provider: Provider
) -> None:
    store = f"sqlite:{runner.folder / 'b.db'}#team"
    program = "print(call()[0])\nprint(call(fault='hang')[0])\nprint(*call('Who?'))"
    path, process = runner.apart("--pool", store, "--usd", "1", program=program)
    settles(lambda: len(provider.bills) == 2)
    process.kill()
    ran = outcome(path, process)  # the program goes on, and its output is read to its end
    assert ran.code == -signal.SIGKILL
    assert re.fullmatch(r"200\n0\n0 Connection(Refused|Reset)Error\n", ran.out)
    assert len(provider.bills) == 2
    with open_pool(store) as pool:
        assert (pool.snapshot().usd_used_nanos, pool.snapshot().in_flight) == (CALL + HELD, 0)
        assert isinstance(pool, StorePool)
        (one,) = pool.expired()
        assert one.usd_nanos == HELD
    again = runner.here("--pool", store, program="print(call()[0])")
    assert again.out == "200\n"
    assert again.report["pool"]["usd_used_nanos"] == 2 * CALL + HELD
    assert again.report["spent"]["usd_nanos"] == CALL
