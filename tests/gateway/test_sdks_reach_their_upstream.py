"""Real SDKs read the child's environment: they reach the address that they would reach without us, and end in one try.

Each SDK runs in a process of its own, with the environment that a child would have. The server here plays the gateway
for what begins with the secret, and a provider for the rest. It refuses everything, as `Refusals` says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("truststore")

from answering import Answering, Request
from token_budget import BudgetPool
from token_budget._errors import BudgetExceeded
from token_budget.gateway._environment import child_environment
from token_budget.gateway._refusals import Answer, Refusals
from token_budget.gateway._upstreams import upstreams

SECRET = "not-a-real-secret"
KEYS = {
    "OPENAI_API_KEY": "k",
    "ANTHROPIC_API_KEY": "k",
    "GEMINI_API_KEY": "k",
    "GROQ_API_KEY": "k",
    "MISTRAL_API_KEY": "k",
    "DEEPSEEK_API_KEY": "k",
    "OPENROUTER_API_KEY": "k",
    "XAI_API_KEY": "k",
    "TOGETHERAI_API_KEY": "k",
    "FIREWORKS_API_KEY": "k",
    "CEREBRAS_API_KEY": "k",
    "PERPLEXITYAI_API_KEY": "k",
    "MOONSHOT_API_KEY": "k",
    "HOSTED_VLLM_API_KEY": "k",
    "LITELLM_PROXY_API_KEY": "k",
}
MODULES = {"genai": "google.genai", "mistral": "mistralai"}
TEXT = "token-budget: budget 'job' is used up: $1 of $1 spent, $0 held by calls in flight, and this call can cost"

# the SDK, its call, the variable that it reads, what stands in it after a provider's origin
VARIABLES = [
    ("openai", "chat", "OPENAI_BASE_URL", "/v1"),
    ("openai", "stream", "OPENAI_BASE_URL", "/proxy/v1/"),
    ("openai", "responses", "OPENAI_BASE_URL", "/proxy/openai"),
    ("openai", "embeddings", "OPENAI_BASE_URL", "/api/v1"),
    ("anthropic", "messages", "ANTHROPIC_BASE_URL", ""),
    ("anthropic", "stream", "ANTHROPIC_BASE_URL", "/proxy/v1"),
    ("genai", "generate", "GOOGLE_GEMINI_BASE_URL", ""),
    ("genai", "stream", "GOOGLE_GEMINI_BASE_URL", "/proxy/"),
    ("groq", "chat", "GROQ_BASE_URL", ""),
    ("groq", "chat", "GROQ_BASE_URL", "/proxy/v1"),
    ("litellm", "openai/m", "OPENAI_API_BASE", "/v1"),
    ("litellm", "openai/m", "OPENAI_BASE_URL", "/proxy/openai/v1/"),
    ("litellm", "anthropic/m", "ANTHROPIC_API_BASE", "/proxy/v1"),
    ("litellm", "anthropic/m", "ANTHROPIC_BASE_URL", "/v1/messages"),
    ("litellm", "gemini/m", "GEMINI_API_BASE", "/v1beta"),
    ("litellm", "groq/m", "GROQ_API_BASE", "/openai/v1"),
    ("litellm", "mistral/m", "MISTRAL_AZURE_API_BASE", "/v1"),
    ("litellm", "deepseek/m", "DEEPSEEK_API_BASE", "/beta"),
    ("litellm", "openrouter/m", "OPENROUTER_API_BASE", "/api/v1"),
    ("litellm", "xai/m", "XAI_API_BASE", "/v1"),
    ("litellm", "together_ai/m", "TOGETHER_AI_API_BASE", "/v1"),
    ("litellm", "fireworks_ai/m", "FIREWORKS_API_BASE", "/inference/v1"),
    ("litellm", "cerebras/m", "CEREBRAS_API_BASE", "/v1"),
    ("litellm", "perplexity/m", "PERPLEXITY_API_BASE", ""),
    ("litellm", "moonshot/m", "MOONSHOT_API_BASE", "/v1"),
    ("litellm", "hosted_vllm/m", "HOSTED_VLLM_API_BASE", "/v1"),
    ("litellm", "litellm_proxy/m", "LITELLM_PROXY_API_BASE", ""),
]
# what each asks for if the user's environment sets no address
USUAL = [
    ("openai", "chat", "https://api.openai.com/v1/chat/completions"),
    ("openai", "responses", "https://api.openai.com/v1/responses"),
    ("anthropic", "messages", "https://api.anthropic.com/v1/messages"),
    ("genai", "generate", "https://generativelanguage.googleapis.com/v1/models/m:generateContent"),
    ("groq", "chat", "https://api.groq.com/openai/v1/chat/completions"),
    ("litellm", "openai/m", "https://api.openai.com/v1/chat/completions"),
    ("litellm", "gemini/m", "https://generativelanguage.googleapis.com/v1beta/models/m:generateContent"),
    ("litellm", "mistral/m", "https://api.mistral.ai/v1/chat/completions"),
    ("litellm", "deepseek/m", "https://api.deepseek.com/beta/chat/completions"),
]


def used_up() -> BudgetExceeded:
    pool = BudgetPool(usd_cap=1, name="job")
    pool.record(usd=1)
    with pytest.raises(BudgetExceeded) as caught:
        pool.reserve(usd=0.5)
    return caught.value


def refuse(request: Request) -> Answer:
    """Refuse as the gateway would: the upstream is the one that the path names; a provider's own path names none."""
    parts = request.target.split("/")
    table = upstreams({**os.environ, "HOSTED_VLLM_API_BASE": "http://h/v1", "LITELLM_PROXY_API_BASE": "http://h"})
    upstream = table[parts[2] if parts[1] == SECRET else "openai"]
    path = request.target.partition("?")[0]
    return Refusals().answer(used_up(), upstream, agent=request.headers["user-agent"], body=request.body, path=path)


def bare(home: str) -> dict[str, str]:
    """Return the environment that the SDKs start from: no address, no proxy, and keys that are none."""
    kept = {"PATH", "SYSTEMROOT", "TEMP", "TMP", "LD_LIBRARY_PATH", "PYTHONPATH"}
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": home}
    return {name: value for name, value in os.environ.items() if name in kept} | KEYS | quiet


def ask(sdk: str, asked: list[tuple[dict[str, str], str]]) -> list[tuple[str, list[str], str]]:
    program = [sys.executable, str(Path(__file__).with_name("sdk_child.py")), sdk]
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            program, input=json.dumps(asked), env=bare(home), capture_output=True, text=True, timeout=100, check=False
        )
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(said) == len(asked), done.stderr
    return said


@cache
def meetings(sdk: str) -> tuple[str, list[str], list[tuple[str, list[str], str]]]:
    """Let one SDK make all its calls: each once without us and once with us, and last those of `USUAL`.

    Return the server's URL, the targets that it was asked for, and what the SDK said of each call.
    """
    pytest.importorskip(MODULES.get(sdk, sdk))
    with Answering(refuse) as server:
        base = f"{server.url}/{SECRET}"
        asked = []
        for _, call, variable, rest in (one for one in VARIABLES if one[0] == sdk):
            user = {variable: server.url + rest}
            child, _ = child_environment(user, upstreams(user), base, SECRET)
            asked += [(user, call), (child, call)]
        child, _ = child_environment({}, upstreams({}), base, SECRET)
        asked += [(child, call) for _, call, _ in (one for one in USUAL if one[0] == sdk)]
        said = ask(sdk, asked)
        return server.url, [request.target for request in server.requests], said


def forwarded(target: str, user: dict[str, str]) -> str:
    """Return what the gateway would ask for: ``/SECRET/NAME/rest`` goes to ``URL/rest``."""
    _, secret, name, rest = target.split("/", 3)
    assert secret == SECRET
    return f"{upstreams(user)[name].url}/{rest}"


SDKS = ["openai", "anthropic", "genai", "groq", "litellm"]


@pytest.mark.parametrize("sdk", SDKS)
def test_an_sdk_makes_one_request_for_each_refused_call(sdk: str) -> None:
    _, targets, said = meetings(sdk)
    assert len(targets) == len(said)


@pytest.mark.parametrize("sdk", SDKS)
def test_an_sdk_asks_through_the_gateway_for_the_very_url_that_it_asks_for_without_it(sdk: str) -> None:
    url, targets, _ = meetings(sdk)
    for place, (_, _, variable, rest) in enumerate(one for one in VARIABLES if one[0] == sdk):
        without, through = targets[2 * place : 2 * place + 2]
        assert forwarded(through, {variable: url + rest}) == url + without


@pytest.mark.parametrize("sdk", SDKS)
def test_an_sdk_without_an_address_in_the_users_environment_asks_its_vendor(sdk: str) -> None:
    _, targets, _ = meetings(sdk)
    usual = [url for name, _, url in USUAL if name == sdk]
    assert [forwarded(target, {}) for target in targets[-len(usual) :]] == usual


@pytest.mark.parametrize("sdk", SDKS)
def test_an_sdk_raises_its_own_error_of_a_status_with_the_text_of_the_refusal(sdk: str) -> None:
    _, _, said = meetings(sdk)
    for name, bases, text in said:
        assert {"openai": "APIStatusError", "litellm": "APIError"}.get(sdk, bases[0]) in bases, name
        assert "Connection" not in name
        assert TEXT in text


def test_mistrals_own_sdk_which_no_variable_moves_raises_its_error_after_one_request() -> None:
    pytest.importorskip("mistralai")
    with Answering(refuse) as server:
        said = ask("mistral", [({"MISTRAL_URL": f"{server.url}/{SECRET}/mistral"}, "chat")])
        assert [request.target for request in server.requests] == [f"/{SECRET}/mistral/v1/chat/completions"]
    assert said[0][0] == "SDKError"
    assert TEXT in said[0][2]
