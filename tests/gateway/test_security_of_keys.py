"""--hold-keys: the child has no key, the gateway has it; another user of the machine gets neither key nor gateway."""

from __future__ import annotations

import http.client
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("truststore")

from answering import Answering, Request
from token_budget import BudgetPool
from token_budget.gateway import Gateway, upstreams
from token_budget.gateway._environment import child_command, child_environment
from token_budget.gateway._refusals import Answer
from token_budget.metering import Meter

KEYS = {
    "OPENAI_API_KEY": "sk-real-openai",
    "ANTHROPIC_API_KEY": "sk-real-anthropic",
    "GEMINI_API_KEY": "sk-real-gemini",
}
CHAT = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}).encode()
GENERATE = json.dumps({"contents": [{"parts": [{"text": "hello"}]}]}).encode()
LINUX_ROOT = sys.platform.startswith("linux") and os.geteuid() == 0
NOBODY, SOMEBODY = 65_534, 12_345


def answer(request: Request) -> Answer:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "input_tokens": 1, "output_tokens": 1}
    return Answer(200, {"content-type": "application/json"}, json.dumps({"model": "m", "usage": usage}).encode())


class Running:
    """A gateway in front of a provider that notes what it gets, and the environment that a child of it would have."""

    def __init__(self, provider: Answering, gateway: Gateway, environ: dict[str, str]) -> None:
        self.provider = provider
        self.gateway = gateway
        self.environment, keys = child_environment(
            environ, upstreams(environ), gateway.base, gateway.secret, hold_keys=True
        )
        gateway.keys = keys

    def ask(self, path: str, headers: dict[str, str], body: bytes = CHAT) -> Request:
        """Ask as a client would, and return what came to the provider."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=30)
        try:
            target = f"/{self.gateway.secret}{path}"
            connection.request("POST", target, body, {"content-type": "application/json", **headers})
            response = connection.getresponse()
            assert (response.status, response.read() != b"") == (200, True)
        finally:
            connection.close()
        return self.provider.requests[-1]


@contextmanager
def running() -> Iterator[Running]:
    with Answering(answer) as provider:
        bases = ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "GROQ_BASE_URL")
        environ = {"PATH": os.environ["PATH"], **KEYS, **dict.fromkeys(bases, provider.url)}
        meter = Meter(BudgetPool(usd_cap=1), {"*": (1, 1)})
        with Gateway(meter, upstreams(environ)) as gateway:
            yield Running(provider, gateway, environ)


@pytest.fixture
def run() -> Iterator[Running]:
    with running() as one:
        yield one


def shown(request: Request) -> str:
    return repr(request)


# ---------------------------------------------------------------- the child


def test_a_child_has_no_real_key_in_its_environment(run: Running) -> None:
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=run.environment, capture_output=True, text=True, check=True
    )
    environment = json.loads(done.stdout)
    assert {environment[name] for name in KEYS} == {run.gateway.secret}
    assert "sk-real" not in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")
def test_the_kernel_shows_no_real_key_of_a_child(run: Running) -> None:
    told = ["/bin/sh", "-c", "echo started; read line"]  # before it says so, the kernel may have nothing to show
    with subprocess.Popen(told, env=run.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"started\n"
        environment = Path(f"/proc/{child.pid}/environ").read_bytes()
        child.kill()
    assert run.gateway.secret.encode() in environment
    assert b"sk-real" not in environment


# ---------------------------------------------------------------- the provider


@pytest.mark.parametrize(
    ("path", "header", "scheme", "real"),
    [
        ("/openai/v1/chat/completions", "authorization", "Bearer ", "sk-real-openai"),
        ("/anthropic/v1/messages", "x-api-key", "", "sk-real-anthropic"),
        ("/anthropic/v1/messages", "authorization", "Bearer ", "sk-real-anthropic"),
        ("/gemini/v1beta/models/m:generateContent", "x-goog-api-key", "", "sk-real-gemini"),
    ],
)
def test_the_provider_gets_the_real_key_where_the_child_sends_the_placeholder(
    run: Running, path: str, header: str, scheme: str, real: str
) -> None:
    body = GENERATE if "gemini" in path else CHAT
    request = run.ask(path, {header: scheme + run.gateway.secret}, body)
    assert request.headers[header] == scheme + real
    assert run.gateway.secret not in shown(request)
    assert run.gateway.metered == 1


def test_the_provider_gets_the_real_key_in_the_query(run: Running) -> None:
    path = "/gemini/v1beta/models/m:generateContent"
    request = run.ask(f"{path}?alt=json&key={run.gateway.secret}", {}, GENERATE)
    assert request.target.partition("?")[2] == "alt=json&key=sk-real-gemini"
    assert run.gateway.secret not in shown(request)


def test_a_key_of_one_provider_goes_to_no_other(run: Running) -> None:
    request = run.ask("/groq/openai/v1/chat/completions", {"authorization": f"Bearer {run.gateway.secret}"})
    assert "sk-real" not in shown(request)
    assert run.gateway.secret not in shown(request)
    request = run.ask("/openai/v1/chat/completions", {"authorization": f"Bearer {run.gateway.secret}"})
    assert "sk-real-openai" in shown(request)
    assert not [real for name, real in KEYS.items() if name != "OPENAI_API_KEY" and real in shown(request)]


def test_a_key_that_the_child_brings_itself_stays_and_the_real_one_is_not_added(run: Running) -> None:
    request = run.ask("/openai/v1/chat/completions", {"authorization": "Bearer its-own"})
    assert request.headers["authorization"] == "Bearer its-own"
    assert "sk-real" not in shown(request)


def test_no_request_without_a_key_is_given_one(run: Running) -> None:
    assert "sk-real" not in shown(run.ask("/openai/v1/chat/completions", {}))


def test_neither_logs_nor_reprs_nor_the_answers_of_the_gateway_have_a_key_or_the_secret(
    run: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    run.ask("/openai/v1/chat/completions", {"authorization": f"Bearer {run.gateway.secret}"})
    connection = http.client.HTTPConnection("127.0.0.1", run.gateway.port, timeout=30)
    told = []
    headers = {"authorization": f"Bearer {run.gateway.secret}", "content-type": "application/json"}
    for path, body in (
        (f"/{run.gateway.secret}/nowhere", CHAT),
        (f"/{run.gateway.secret}/openai/v1/batches", CHAT),
        (f"/{run.gateway.secret}/openai/v1/chat/completions", b"no JSON"),
    ):
        connection.request("POST", path, body, headers)
        told.append(connection.getresponse().read().decode())
    connection.close()
    text = caplog.text + repr(run.gateway) + str(run.gateway) + "".join(told)
    assert len(told) == 3
    assert "sk-real" not in text
    assert run.gateway.secret not in text


# ---------------------------------------------------------------- another user of the machine


def stranger(pid: int, port: int) -> tuple[str, str, list[int]]:
    program = [sys.executable, str(Path(__file__).with_name("stranger.py")), str(NOBODY), str(pid), str(port)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    environment, command, statuses = json.loads(done.stdout)
    return environment, command, statuses


@pytest.mark.skipif(not LINUX_ROOT, reason="only root can be two other users")
def test_another_user_can_neither_read_a_childs_environment_nor_use_the_gateway_without_the_secret(
    run: Running,
) -> None:
    with subprocess.Popen(
        ["sleep", "60"], env=run.environment, user=SOMEBODY, group=SOMEBODY, extra_groups=[]
    ) as child:
        try:
            environment, _, statuses = stranger(child.pid, run.gateway.port)
        finally:
            child.kill()
    assert environment == "PermissionError"
    assert statuses == [404] * len(statuses)
    assert len(statuses) == 7
    assert run.provider.requests == []


@pytest.mark.skipif(not LINUX_ROOT, reason="only root can be another user")
def test_another_user_sees_the_command_line_of_codex_and_no_secret_in_it(run: Running, tmp_path: Path) -> None:
    program = tmp_path / "codex"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    command, more = child_command([str(program), "exec"], run.gateway.base, run.gateway.secret, run.environment)
    with subprocess.Popen(command, env=run.environment | more, stdin=subprocess.PIPE) as child:
        try:
            environment, line, _ = stranger(child.pid, run.gateway.port)
        finally:
            child.kill()
    assert environment == "PermissionError"
    assert f"127.0.0.1:{run.gateway.port}/-/openai" in line
    assert run.gateway.secret not in line
    assert "sk-real" not in line


def test_codexs_header_and_path_reach_the_provider_and_no_other_secret_does(run: Running) -> None:
    target = "/-/openai/v1/chat/completions"
    for secret, status in ((run.gateway.secret, 200), (run.gateway.secret + "x", 404), ("", 404), ("-", 404)):
        connection = http.client.HTTPConnection("127.0.0.1", run.gateway.port, timeout=30)
        headers = {"x-token-budget-secret": secret, "content-type": "application/json"}
        connection.request("POST", target, CHAT, headers)
        assert connection.getresponse().status == status
        connection.close()
    assert len(run.provider.requests) == 1
    assert "x-token-budget-secret" not in run.provider.requests[0].headers
