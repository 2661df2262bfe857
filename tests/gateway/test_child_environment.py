"""What the child gets: addresses that lead to the gateway, no proxy before it, and with --hold-keys no key."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("truststore")

from token_budget.gateway._address import SECRET_HEADER
from token_budget.gateway._codex import SECRET_VARIABLE
from token_budget.gateway._environment import child_command, child_environment
from token_budget.gateway._keys import with_real_key
from token_budget.gateway._upstreams import upstreams

SECRET = "sEcReT_-42"
BASE = f"http://127.0.0.1:4711/{SECRET}"


def child(environ: dict[str, str], *extra: str, hold_keys: bool = False) -> dict[str, str]:
    return child_environment(environ, upstreams(environ, extra), BASE, SECRET, hold_keys=hold_keys)[0]


def held(environ: dict[str, str]) -> dict[str, tuple[str, str]]:
    return child_environment(environ, upstreams(environ), BASE, SECRET, hold_keys=True)[1]


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("variable", "rest"),
    [
        ("OPENAI_BASE_URL", "/openai/v1"),
        ("OPENAI_API_BASE", "/openai/v1"),
        ("ANTHROPIC_BASE_URL", "/anthropic"),
        ("ANTHROPIC_API_BASE", "/anthropic"),
        ("GOOGLE_GEMINI_BASE_URL", "/gemini"),
        ("GEMINI_API_BASE", "/gemini/v1beta"),
        ("GROQ_BASE_URL", "/groq"),
        ("GROQ_API_BASE", "/groq/openai/v1"),
        ("MISTRAL_API_BASE", "/mistral/v1"),
        ("DEEPSEEK_API_BASE", "/deepseek/beta"),
        ("OPENROUTER_API_BASE", "/openrouter/api/v1"),
        ("XAI_API_BASE", "/xai/v1"),
        ("TOKEN_BUDGET_GATEWAY", ""),
    ],
)
def test_each_client_finds_the_gateway_in_its_own_variable_and_form(variable: str, rest: str) -> None:
    assert child({})[variable] == BASE + rest


def test_all_other_variables_stay_as_they_are_and_the_users_environment_is_not_changed() -> None:
    environ = {"PATH": "/bin", "HTTPS_PROXY": "http://proxy:3128", "OPENAI_API_KEY": "sk-1"}
    before = dict(environ)
    environment = child(environ)
    assert {name: environment[name] for name in environ} == environ == before


def test_a_run_inside_of_a_run_has_the_outer_gateway_as_its_upstream() -> None:
    outer = child({"OPENAI_API_KEY": "sk-1"}, hold_keys=True)
    table = upstreams(outer)
    inner, keys = child_environment(outer, table, "http://127.0.0.1:99/INNER", "INNER", hold_keys=True)
    assert table["openai"].url == f"{BASE}/openai"
    assert inner["OPENAI_BASE_URL"] == "http://127.0.0.1:99/INNER/openai/v1"
    assert inner["NO_PROXY"] == outer["NO_PROXY"]
    assert keys["openai"] == ("INNER", SECRET)
    assert SECRET not in "".join(inner.values())


# ---------------------------------------------------------------- proxies


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ("127.0.0.1,localhost", "127.0.0.1,localhost")),
        ({"NO_PROXY": "corp"}, ("corp,127.0.0.1,localhost", "corp,127.0.0.1,localhost")),
        ({"no_proxy": "corp"}, ("corp,127.0.0.1,localhost", "corp,127.0.0.1,localhost")),
        ({"NO_PROXY": "a", "no_proxy": " b , c,"}, ("a,127.0.0.1,localhost", "b,c,127.0.0.1,localhost")),
        ({"NO_PROXY": "localhost", "no_proxy": ""}, ("localhost,127.0.0.1", "localhost,127.0.0.1")),
        ({"NO_PROXY": "127.0.0.1,localhost"}, ("127.0.0.1,localhost", "127.0.0.1,localhost")),
        ({"NO_PROXY": "*"}, ("*", "*")),
        ({"no_proxy": "corp,*"}, ("corp,*", "corp,*")),
    ],
)
def test_the_loopback_is_past_every_proxy_and_stands_there_once(
    environ: dict[str, str], expected: tuple[str, str]
) -> None:
    environment = child(environ)
    assert (environment["NO_PROXY"], environment["no_proxy"]) == expected
    again = child(environment)
    assert (again["NO_PROXY"], again["no_proxy"]) == expected


@pytest.mark.parametrize("environ", [{}, {"NO_PROXY": "corp.example"}, {"no_proxy": "*"}])
def test_pythons_own_client_does_not_send_what_is_for_the_gateway_to_a_proxy(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in child({"HTTP_PROXY": "http://proxy:3128", "http_proxy": "http://proxy:3128", **environ}).items():
        monkeypatch.setenv(name, value)
    proxies, bypasses = urllib.request.getproxies(), urllib.request.proxy_bypass
    assert proxies["http"] == "http://proxy:3128"
    assert bypasses("127.0.0.1:4711")
    if environ.get("NO_PROXY"):
        assert bypasses("corp.example")


# ---------------------------------------------------------------- keys


def test_without_hold_keys_the_keys_stay_and_the_gateway_gets_none() -> None:
    environ = {"OPENAI_API_KEY": "sk-1"}
    assert child_environment(environ, upstreams(environ), BASE, SECRET)[1] == {}


def test_with_hold_keys_each_key_that_is_set_is_replaced_by_the_secret_and_none_is_made() -> None:
    environ = {"OPENAI_API_KEY": "sk-1", "ANTHROPIC_AUTH_TOKEN": "sk-2", "GEMINI_API_KEY": "", "MY_KEY": "sk-3"}
    environment = child(environ, hold_keys=True)
    assert {name: environment.get(name) for name in (*environ, "GROQ_API_KEY", "ANTHROPIC_API_KEY")} == {
        "OPENAI_API_KEY": SECRET,
        "ANTHROPIC_AUTH_TOKEN": SECRET,
        "GEMINI_API_KEY": "",
        "MY_KEY": "sk-3",
        "GROQ_API_KEY": None,
        "ANTHROPIC_API_KEY": None,
    }
    assert held(environ) == {"openai": (SECRET, "sk-1"), "anthropic": (SECRET, "sk-2")}


def test_two_upstreams_of_one_provider_hold_the_same_key() -> None:
    environ = {"OPENAI_BASE_URL": "http://one/v1", "OPENAI_API_BASE": "http://two/v1", "OPENAI_API_KEY": "sk-1"}
    assert held(environ) == {"openai": (SECRET, "sk-1"), "openai-2": (SECRET, "sk-1")}


def test_the_key_of_an_upstream_of_the_user_is_held_by_its_name() -> None:
    environ = {"MY_LAB_API_KEY": "sk-9"}
    table = upstreams(environ, ["my-lab=http://localhost:1"])
    environment, keys = child_environment(environ, table, BASE, SECRET, hold_keys=True)
    assert (environment["MY_LAB_API_KEY"], keys) == (SECRET, {"my-lab": (SECRET, "sk-9")})


def test_a_subscriptions_login_is_no_key_and_stays() -> None:
    assert child({"CLAUDE_CODE_OAUTH_TOKEN": "login"}, hold_keys=True)["CLAUDE_CODE_OAUTH_TOKEN"] == "login"


def test_two_variables_with_the_same_key_are_both_held() -> None:
    environ = {"GEMINI_API_KEY": "sk-1", "GOOGLE_API_KEY": "sk-1"}
    environment = child(environ, hold_keys=True)
    assert (environment["GEMINI_API_KEY"], environment["GOOGLE_API_KEY"]) == (SECRET, SECRET)


def test_two_variables_of_one_provider_with_different_keys_are_refused_and_neither_is_shown() -> None:
    with pytest.raises(ValueError, match="GEMINI_API_KEY and GOOGLE_API_KEY differ") as caught:
        child({"GEMINI_API_KEY": "sk-1", "GOOGLE_API_KEY": "sk-2"}, hold_keys=True)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"Authorization", b"Bearer TB", b"Bearer real"),
        (b"authorization", b" bearer  TB ", b"bearer real"),
        (b"AUTHORIZATION", b"TB", b"real"),
        (b"X-Api-Key", b"TB", b"real"),
        (b"x-goog-api-key", b" TB", b"real"),
        (b"api-key", b"TB", b"real"),
        (b"authorization", b"Bearer TBx", b"Bearer TBx"),
        (b"authorization", b"Bearer own", b"Bearer own"),
        (b"authorization", b"own", b"own"),
        (b"x-api-key", b" own ", b" own "),
        (b"x-api-key", b"TBx", b"TBx"),
        (b"x-other", b"TB", b"TB"),
        (b"authorization", b"", b""),
    ],
)
def test_the_real_key_stands_in_a_header_where_the_placeholder_is_the_whole_key(
    name: bytes, value: bytes, expected: bytes
) -> None:
    assert with_real_key([(b"a", b"1"), (name, value)], "", "TB", "real") == ([(b"a", b"1"), (name, expected)], "")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("key=TB", "key=re%26al"),
        ("?alt=sse&key=TB&x=%20+", "?alt=sse&key=re%26al&x=%20+"),
        ("k%65y=T%42", "k%65y=re%26al"),
        ("?key=TB", "?key=re%26al"),
        ("other=TB", "other=TB"),
        ("key=TBx&TB", "key=TBx&TB"),
        ("key", "key"),
        ("?a=%zz&key=own", "?a=%zz&key=own"),
        ("", ""),
    ],
)
def test_the_real_key_stands_in_the_query_where_the_placeholder_is_the_key(query: str, expected: str) -> None:
    assert with_real_key([], query, "TB", "re&al") == ([], expected)


def test_headers_keep_their_order_their_spelling_and_their_doubles() -> None:
    headers = [(b"B", b"1"), (b"a", b"2"), (b"B", b"3"), (b"a", b"2")]
    assert with_real_key(headers, "q=%2F", "TB", "real") == (headers, "q=%2F")


# ---------------------------------------------------------------- Codex

CODEX = [
    (["codex"], 1),
    (["codex", "exec", "hi"], 1),
    (["/usr/local/bin/codex", "exec"], 1),
    (["C:\\npm\\Codex.CMD", "exec"], 1),
    (["npx", "codex", "exec"], 2),
    (["npx", "-y", "@openai/codex@latest", "exec"], 3),
    (["/usr/bin/bunx", "--bun", "@openai/codex", "exec"], 3),
]
OTHERS: list[list[str]] = [
    [],
    ["claude", "codex"],
    ["codex-helper"],
    ["my/codexes"],
    ["npx"],
    ["npx", "-y"],
    ["npx", "-p", "@openai/codex", "codex"],
    ["npx", "other", "codex"],
    ["codex/run.sh"],
]


@pytest.mark.parametrize(("argv", "place"), CODEX)
def test_codex_gets_its_options_before_its_own_arguments_and_the_secret_in_no_argument(
    argv: list[str], place: int
) -> None:
    command, more = child_command(argv, BASE, SECRET, child({"OPENAI_API_KEY": "sk-1"}))
    options = command[place : len(command) - len(argv) + place]
    assert command[:place] + command[place + len(options) :] == argv
    assert options[::2] == ["-c"] * (len(options) // 2)
    assert not [part for part in command if SECRET in part]
    assert more == {SECRET_VARIABLE: SECRET}


@pytest.mark.parametrize("argv", OTHERS)
def test_every_other_command_is_started_as_it_is(argv: list[str]) -> None:
    assert child_command(argv, BASE, SECRET, {}) == (argv, {})
    assert child_command(argv, BASE, SECRET, {})[0] is not argv


@pytest.mark.parametrize(
    ("environ", "key"),
    [({"OPENAI_API_KEY": "sk-1"}, {"env_key": "OPENAI_API_KEY"}), ({}, {"requires_openai_auth": True})],
)
def test_codexs_options_are_toml_that_names_the_gateway_the_header_and_the_key(
    environ: dict[str, str], key: dict[str, object]
) -> None:
    tomllib = pytest.importorskip("tomllib")
    command, _ = child_command(["codex"], BASE, SECRET, child(environ))
    settings = tomllib.loads("\n".join(command[2::2]))
    assert settings == {
        "model_provider": "token-budget",
        "model_providers": {
            "token-budget": {
                "name": "token-budget",
                "base_url": "http://127.0.0.1:4711/-/openai/v1",
                "wire_api": "responses",
                "env_http_headers": {SECRET_HEADER: SECRET_VARIABLE},
                **key,
            }
        },
    }


def test_codex_follows_the_openai_of_the_users_environment() -> None:
    environment = child({"OPENAI_BASE_URL": "http://localhost:8000/api/v2/"})
    command, _ = child_command(["codex"], BASE, SECRET, environment)
    assert 'base_url="http://127.0.0.1:4711/-/openai/v2/"' in command[6]


def test_codex_with_an_environment_that_names_no_gateway_gets_the_usual_path() -> None:
    command, _ = child_command(["codex"], BASE, SECRET, {"OPENAI_BASE_URL": "http://elsewhere/v1"})
    assert 'base_url="http://127.0.0.1:4711/-/openai/v1"' in command[6]


def test_a_real_child_sees_the_environment_as_it_was_made() -> None:
    environment = child({**os.environ, "OPENAI_API_KEY": "sk-1"}, hold_keys=True)
    program = "import os; print(os.environ['OPENAI_API_KEY'], os.environ['OPENAI_BASE_URL'], os.environ['no_proxy'])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == [SECRET, environment["OPENAI_BASE_URL"]]
