"""Each recipe runs, against the fake provider; what it counted is what the provider billed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

import token_budget
from token_budget.cli._provider import Provider, Rate

HERE = Path(__file__).parent
SOURCE = Path(token_budget.__file__).parent.parent
RATES = {"gpt-5-mini": Rate(250, 2_000, 25), "claude-haiku-4-5": Rate(1_000, 5_000, 100)}

# The recipe -> what it needs, and what it prints.
RECIPES: dict[str, tuple[list[str], str]] = {
    "ask_first": (
        [],
        r"ann, free: model_blocked\n"
        r"ann, paid: \['0\.0051', 'budget_exceeded run:run-1', 'budget_exceeded run:run-1'\]\n"
        r"bob, paid: 0\.0010\n"
        r"block: allowed=False \(unreachable\)\nallow: allowed=True \(unreachable\)\n",
    ),
    "run_block": (
        ["openai"],
        r"loop: the same request, 6 times \(repeats=5\)\n"
        r"run 'auth-refactor': 5 calls in \d\.\d{3}s, \$0\.000\d+ of \$2\.00, 1 refused\n5 gpt-5-mini\n",
    ),
    "threads_openai": (
        ["openai"],
        r"\d\d of 100: batch: tokens \d,\d{3} \| usd 0\.001\d / 0\.0020 \(\d\d%\) \| 0 in flight\n",
    ),
    "gather_anthropic": (
        ["anthropic"],
        r"\d\d answered, \d\d refused: prompts: tokens \d+ \| usd 0\.001\d / 0\.0020 \(\d\d%\) \| 0 in flight\n",
    ),
    "langchain_agent": (
        ["langchain", "langchain_openai"],
        r"refused by weather\nrun 'weather': \d+ calls in \d+\.\d{3}s, \$0\.00\d+ of \$0\.0020, 1 refused\n",
    ),
    "litellm_batch": (
        ["litellm"],
        r"(\d+) answered, (\d+) refused\nrun 'batch': \1 calls in \d+\.\d{3}s, \$0\.000\d+ of \$0\.0004, \2 refused\n",
    ),
    "pydantic_agents": (
        ["pydantic_ai", "openai"],
        r"0 of 10 without budget\nrun 'research': 10 calls in \d+\.\d{3}s, \$0\.000\d+ of \$0\.0005\n",
    ),
    "openai_agents": (
        ["agents"],
        r"refused by poems\nrun 'poems': \d+ calls in \d+\.\d{3}s, \$0\.000\d+ of \$0\.0010, 1 refused\n",
    ),
}

# Runs a recipe, and says after it how its pool stands.
RUN = """
import runpy, sys
pool = runpy.run_path(sys.argv[1], run_name="__main__")["pool"].snapshot()
print("used", pool.usd_used_nanos, "reserved", pool.usd_reserved_nanos + pool.tokens_reserved + pool.in_flight)
"""


def is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # what it would be a part of is not
        return False


def need(modules: list[str]) -> None:
    missing = [name for name in modules if not is_installed(name)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(program: str, *arguments: str, **environment: str) -> str:
    """Run a program with the fake provider's address where the SDKs look for it, and return what it prints."""
    command = [sys.executable, "-c", program, *arguments]
    known = {"PYTHONPATH": str(SOURCE), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=110, env=os.environ | known | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def addresses(provider: Provider) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": f"{provider.url}/v1",
        "OPENAI_API_KEY": "test",
        "ANTHROPIC_BASE_URL": provider.url,
        "ANTHROPIC_API_KEY": "test",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_and_counts_what_is_billed(name: str) -> None:
    modules, printed = RECIPES[name]
    need(modules)
    with Provider(RATES) as provider:
        output = run(RUN, str(HERE / f"{name}.py"), **addresses(provider))
        billed = provider.billed_nanos
        assert provider.errors == []
    assert re.fullmatch(rf"{printed}used \d+ reserved 0\n", output)
    if modules:  # else it asks no provider
        assert int(output.split()[-3]) == billed > 0


def test_every_recipe_is_tested() -> None:
    programs = {path.stem for path in HERE.glob("*.py")} - {Path(__file__).stem}
    assert programs == {*RECIPES, "web"}


# ---------------------------------------------------------------- the README of the metering

README = (Path(token_budget.__file__).parent / "metering" / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

# Its own programs, in their order: what they need, and what they print.
EXAMPLES: list[tuple[list[str], str]] = [
    (
        ["openai"],
        r"budget exceeded on usd: attempted 0\.01\d+ > cap 0\.01 .*; used up: .*\n"
        r"tokens [\d,]+ \| usd 0\.00\d\d / 0\.0100 \(\d\d%\) \| 0 in flight\n",
    ),
    (["anthropic"], r"run 'greeting': 1 call in \d\.\d{3}s, \$0\.0000\d+ of \$2\.00\n"),
    ([], r"0\.003 \| tokens 6,100 \| usd 0\.0100 / 1\.0000 \(1%\) \| 0 in flight\n"),
    ([], r"1000 600 500 0\.005575\n0\.75\n.*gpt-6.*\n"),
    (["openai"], r"8 False \['gpt-5-mini'\] 8\n"),
    (
        ["opentelemetry.sdk"],
        r"gen_ai\.client\.token\.usage chat unknown gpt-5-mini input\n"
        r"gen_ai\.client\.token\.usage chat unknown gpt-5-mini output\n"
        r"token_budget\.cap day usd\n"
        r"token_budget\.reserved day tokens\ntoken_budget\.reserved day usd\n"
        r"token_budget\.used day tokens\ntoken_budget\.used day usd\n",
    ),
    (["rich", "tqdm"], r"answers batch: usd 0\.4000 / 1\.0000 \(40%\) \| 0 in flight\s*"),
]


def test_the_readme_has_every_recipe_as_it_is() -> None:
    recipes = {path.stem: path.read_text(encoding="utf-8") for path in HERE.glob("*.py") if path != Path(__file__)}
    assert PROGRAMS[len(EXAMPLES) :] == [recipes[name] for name in ["ask_first", "web", *list(RECIPES)[1:]]]


@pytest.mark.parametrize(("number", "modules", "printed"), [(i, *example) for i, example in enumerate(EXAMPLES)])
def test_a_program_of_the_readme_runs_as_written(number: int, modules: list[str], printed: str) -> None:
    need(modules)
    with Provider(RATES) as provider:
        assert re.fullmatch(printed, run(PROGRAMS[number], **addresses(provider)))


def test_the_readme_names_everything_public() -> None:
    import token_budget.metering

    words = set(re.findall(r"\w+", README))
    assert not {name for name in token_budget.metering.__all__ if name not in words}


# ---------------------------------------------------------------- the web handler, with a real server

# Serves the recipe on loopback and asks it as a browser would; prints what it answered.
SERVE = """
import json, os, runpy, sys, threading, time
from token_budget.cli._provider import Provider, Rate

with Provider({"gpt-5-mini": Rate(250, 2_000, 25)}) as provider:
    os.environ["OPENAI_BASE_URL"] = provider.url + "/v1"
    import httpx, uvicorn

    recipe = runpy.run_path(sys.argv[1])
    server = uvicorn.Server(uvicorn.Config(recipe["app"], port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def ask(user, project, question="Why is the sky blue?"):
        answer = client.post("/ask", params={"question": question}, headers={"x-user": user, "x-project": project})
        return [answer.status_code, answer.headers.get("retry-after"), answer.json()]

    found = {"missing": client.post("/ask", params={"question": "?"}).status_code}
    hung = []
    waiter = threading.Thread(target=lambda: hung.append(ask("ann", "atlas", "[hang]")))
    waiter.start()
    while not provider.bills:
        time.sleep(0.01)
    found["busy"] = ask("ann", "atlas")
    found["meanwhile"] = ask("bob", "atlas")
    provider.release()
    waiter.join()
    found["hung"] = hung[0]
    found["user"] = [ask("ann", "atlas") for _ in range(12)]
    found["project"] = [ask(f"user-{number}", "atlas") for number in range(40)]
    found["all"] = [ask(f"user-{number}", f"project-{number}") for number in range(80)]
    server.should_exit = True
    thread.join()
    pool = recipe["pool"].snapshot(tree=True)
    found["books"] = [pool.usd_used_nanos, provider.billed_nanos, pool.in_flight, len(provider.requests)]
    found["errors"] = [repr(error) for error in provider.errors]
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def served() -> Any:
    need(["fastapi", "uvicorn", "openai", "httpx"])
    end = (datetime.now(timezone.utc).hour + 12) % 24  # of the day, so that it does not fall into the test
    environment = {
        "OPENAI_API_KEY": "test",
        "APP_NAME": "all",
        "APP_USD_CAP": "0.0012",
        "APP_WINDOW": f"daily UTC at {end:02}:00",
        "APP_USER_USD": "0.0003",
        "APP_PROJECT_USD": "0.0007",
        "APP_PRICES": json.dumps({"gpt-5-mini": [0.25, 2, 0.025]}),
    }
    return json.loads(run(SERVE, str(HERE / "web.py"), **environment))


def test_the_web_handler_answers_and_counts_what_is_billed(served: Any) -> None:
    assert served["missing"] == 422
    assert served["hung"][0] == 200
    assert served["meanwhile"] == [200, None, {"answer": "The sky is blue."}]
    used, billed, in_flight, requests = served["books"]
    assert used == billed > 0
    assert in_flight == 0
    answered = sum(served[name][0] == 200 for name in ("hung", "meanwhile", "busy"))
    answered += sum(one[0] == 200 for name in ("user", "project", "all") for one in served[name])
    assert requests == answered  # nothing was sent of what was refused
    assert served["errors"] == []


def test_a_user_whose_budget_others_hold_is_told_to_come_back(served: Any) -> None:
    assert served["busy"] == [429, "1", {"scope": "user:ann"}]


@pytest.mark.parametrize(("limit", "scope"), [("user", "user:ann"), ("project", "project:atlas"), ("all", "all")])
def test_what_is_spent_for_the_day_is_402_until_its_end(served: Any, limit: str, scope: str) -> None:
    statuses = [one[0] for one in served[limit]]
    first = statuses.index(402)
    assert statuses == [200] * first + [402] * (len(statuses) - first)
    assert first > 0
    for _, retry_after, body in served[limit][first:]:
        assert body == {"scope": scope}
        assert 0 < int(retry_after) <= 86_400
