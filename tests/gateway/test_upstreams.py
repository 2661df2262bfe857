"""The table of upstreams: what the user's environment and --upstream make of it, and what they may not say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("aiohttp")
pytest.importorskip("truststore")

from token_budget.gateway._environment import child_environment
from token_budget.gateway._families import FAMILIES, Family
from token_budget.gateway._upstreams import Upstream, _places, checked_url, upstreams

BASE = "http://127.0.0.1:4711/SECRET"
VARIABLES = [(family, variable) for family in FAMILIES for variable, _ in family.variables]

# parts of base URLs that people set: proxies with a prefix, versions, endings that clients write differently
PATHS = st.lists(
    st.sampled_from(
        [
            "v1",
            "v1beta",
            "v2",
            "api",
            "openai",
            "anthropic",
            "proxy",
            "inference",
            "messages",
            "beta",
            "a-b",
            "%2F",
            "",
            "v1x1",
        ]
    ),
    max_size=5,
).map(lambda parts: "".join(f"/{part}" for part in parts))
ORIGINS = st.sampled_from(
    ["http://localhost:8000", "https://gw.example.com", "http://[::1]:8080", "https://v1.example", "http://v1"]
)
URLS = st.builds(lambda origin, path, end: origin + path + end, ORIGINS, PATHS, st.sampled_from(["", "/"]))
TAILS = st.sampled_from(["chat/completions", "v1/messages", "v1beta/models/m:generateContent?alt=sse", "a%2Fb/c"])


def joined(base: str, tail: str) -> list[str]:
    """Return what clients make of a base URL and a path of theirs: they differ in what they do with slashes."""
    return [base + "/" + tail, base.rstrip("/") + "/" + tail, base + tail, base.removesuffix("/") + "/" + tail]


def forwarded(table: dict[str, Upstream], url: str) -> str:
    """Return where the gateway sends what a client asks it for."""
    name, _, rest = url.removeprefix(f"{BASE}/").partition("/")
    return f"{table[name].url}{'/' if rest or url.endswith('/') else ''}{rest}"


def child(environ: dict[str, str], *extra: str) -> tuple[dict[str, Upstream], dict[str, str]]:
    table = upstreams(environ, extra)
    return table, child_environment(environ, table, BASE, "SECRET")[0]


# ---------------------------------------------------------------- the round trip


@given(url=URLS, tail=TAILS, which=st.sampled_from(VARIABLES))
def test_a_base_url_of_the_user_is_asked_for_byte_for_byte(url: str, tail: str, which: tuple[Family, str]) -> None:
    variable = which[1]
    table, environment = child({variable: url})
    for without, through in zip(joined(url, tail), joined(environment[variable], tail), strict=True):
        if without.startswith(url.rstrip("/") + "/"):  # else the client writes its path into the last part of the URL
            assert forwarded(table, through) == without


@given(urls=st.lists(URLS, min_size=3, max_size=3), tail=TAILS, family=st.sampled_from(FAMILIES))
def test_each_variable_of_a_provider_leads_to_its_own_place_where_they_disagree(
    urls: list[str], tail: str, family: Family
) -> None:
    environ = {variable: url for (variable, _), url in zip(family.variables, urls, strict=False)}
    table, environment = child(environ)
    for variable, url in environ.items():
        assert forwarded(table, f"{environment[variable].rstrip('/')}/{tail}") == f"{url.rstrip('/')}/{tail}"


@pytest.mark.parametrize(
    ("family", "variable"), [one for one in VARIABLES if one[0].url], ids=lambda one: str(one)[:24]
)
def test_a_variable_that_the_user_does_not_set_leads_to_the_vendor(family: Family, variable: str) -> None:
    table, environment = child({})
    assert forwarded(table, environment[variable] + "/x") == f"{family.url}{dict(family.variables)[variable]}/x"
    assert table[family.name].provider is not None


@pytest.mark.parametrize(
    ("environ", "variable", "expected"),
    [
        ({"OPENAI_BASE_URL": "http://localhost:8000/v1"}, "OPENAI_API_BASE", "http://localhost:8000/v1/x"),
        ({"OPENAI_BASE_URL": "http://proxy/openai"}, "OPENAI_API_BASE", "http://proxy/openai/x"),
        ({"OPENAI_API_BASE": "http://proxy/v1/"}, "OPENAI_BASE_URL", "http://proxy/v1//x"),
        ({"ANTHROPIC_BASE_URL": "https://proxy/claude"}, "ANTHROPIC_API_BASE", "https://proxy/claude/x"),
        ({"GROQ_BASE_URL": "http://proxy/groq"}, "GROQ_API_BASE", "http://proxy/groq/openai/v1/x"),
        ({"GROQ_API_BASE": "http://proxy/groq/openai/v1"}, "GROQ_BASE_URL", "http://proxy/groq/x"),
        ({"GROQ_BASE_URL": "http://proxy/v1/team"}, "GROQ_API_BASE", "http://proxy/v1/team/openai/v1/x"),
        ({"GROQ_API_BASE": "http://proxy/other"}, "GROQ_BASE_URL", "http://proxy/other/x"),
        ({"GEMINI_API_BASE": "http://proxy/v1beta"}, "GOOGLE_GEMINI_BASE_URL", "http://proxy/x"),
        ({"GOOGLE_GEMINI_BASE_URL": "http://proxy/g/"}, "GEMINI_API_BASE", "http://proxy/g/v1beta/x"),
    ],
)
def test_a_providers_other_variables_follow_the_one_that_is_set(
    environ: dict[str, str], variable: str, expected: str
) -> None:
    table, environment = child(environ)
    assert forwarded(table, environment[variable] + "/x") == expected


def test_of_three_variables_the_one_that_is_not_set_follows_the_first() -> None:
    family = Family("lab", None, (), (("A", "/v1"), ("B", "/v1"), ("C", "/v1")))
    places = _places(family, {"A": "http://one/v2", "B": "http://two/v1"})
    assert places == {"http://one": [("A", "/v2"), ("C", "/v2")], "http://two": [("B", "/v1")]}


@pytest.mark.parametrize(
    ("url", "kept", "rest"),
    [
        ("http://h/v1/team/v1/messages", "http://h/v1/team", "/v1/messages"),
        ("http://h/team//v1", "http://h/team", "//v1"),
        ("http://v1/x/", "http://v1/x", "/"),
        ("http://h//", "http://h", "//"),
        ("http://h/v1x/v1.5", "http://h", "/v1x/v1.5"),
    ],
)
def test_the_gateway_keeps_what_is_before_the_last_version_without_slashes_at_its_end(
    url: str, kept: str, rest: str
) -> None:
    upstream = upstreams({"OPENAI_BASE_URL": url})["openai"]
    assert (upstream.url, upstream.variables[0]) == (kept, ("OPENAI_BASE_URL", rest))


def test_two_variables_with_one_address_make_one_upstream() -> None:
    table = upstreams({"OPENAI_BASE_URL": "http://h/v1", "OPENAI_API_BASE": "http://h"})
    assert table["openai"].variables == (("OPENAI_BASE_URL", "/v1"), ("OPENAI_API_BASE", ""))
    assert "openai-2" not in table


def test_two_variables_with_two_addresses_make_two_upstreams_with_the_same_keys() -> None:
    table = upstreams({"OPENAI_BASE_URL": "http://one/v1", "OPENAI_API_BASE": "http://two/v1"})
    assert (table["openai"].url, table["openai-2"].url) == ("http://one", "http://two")
    assert table["openai-2"].keys == table["openai"].keys == ("OPENAI_API_KEY",)


def test_a_number_that_the_user_has_taken_is_passed_over() -> None:
    environ = {"OPENAI_BASE_URL": "http://one/v1", "OPENAI_API_BASE": "http://two/v1"}
    table, environment = child(environ, "openai-2=http://three")
    assert table["openai-2"].url == "http://three"
    assert forwarded(table, environment["OPENAI_API_BASE"] + "/x") == "http://two/v1/x"


def test_an_empty_variable_counts_as_not_set_and_spaces_around_an_address_do_not_count() -> None:
    table = upstreams({"OPENAI_BASE_URL": " ", "GROQ_BASE_URL": " http://h/groq "})
    assert table["openai"].url == "https://api.openai.com"
    assert table["groq"].url == "http://h/groq"


@pytest.mark.parametrize(
    ("variable", "name"),
    [("AZURE_OPENAI_ENDPOINT", "azure"), ("HOSTED_VLLM_API_BASE", "vllm"), ("LITELLM_PROXY_API_BASE", "litellm-proxy")],
)
def test_a_provider_without_an_address_of_its_own_is_there_only_if_the_environment_says_where(
    variable: str, name: str
) -> None:
    assert name not in upstreams({})
    assert variable not in child({})[1]
    assert upstreams({variable: "http://h"})[name].url == "http://h"


# ---------------------------------------------------------------- who is paid, which shape


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("http://localhost:8000/v1", None),
        ("https://me.openai.azure.com/openai", "azure"),
    ],
)
def test_the_host_says_who_is_paid_whatever_the_variable_is_called(url: str, provider: str | None) -> None:
    assert upstreams({"OPENAI_BASE_URL": url})["openai"].provider == provider


def test_each_family_has_its_vendors_shape_of_errors() -> None:
    dialects = {name: one.dialect for name, one in upstreams({}).items() if one.dialect != "openai"}
    assert dialects == {"anthropic": "anthropic", "gemini": "gemini"}
    assert upstreams({"ANTHROPIC_BASE_URL": "http://h"})["anthropic"].dialect == "anthropic"


# ---------------------------------------------------------------- --upstream


def test_an_upstream_of_the_user_is_found_by_variables_of_its_name() -> None:
    table, environment = child({"MY_LAB_BASE_URL": "http://elsewhere"}, "my-lab=http://localhost:9000/prefix/")
    assert table["my-lab"] == Upstream(
        "my-lab", "http://localhost:9000/prefix", None, "openai", ("MY_LAB_API_KEY",), (("MY_LAB_BASE_URL", ""),)
    )
    assert environment["MY_LAB_BASE_URL"] == f"{BASE}/my-lab"


@pytest.mark.parametrize(
    ("url", "dialect"),
    [("https://api.anthropic.com", "anthropic"), ("https://generativelanguage.googleapis.com", "gemini")],
)
def test_an_upstream_of_the_user_at_a_vendors_host_has_the_vendors_shape_of_errors(url: str, dialect: str) -> None:
    assert upstreams({}, [f"mine={url}"])["mine"].dialect == dialect


@pytest.mark.parametrize("url", ["http://h/p", "http://h/p/", "http://h/p/v1", "http://h/p/v1/"])
def test_a_known_name_gets_the_users_place_before_the_environments_with_the_version_or_without(url: str) -> None:
    table, environment = child({"OPENAI_BASE_URL": "http://elsewhere/v1"}, f"openai={url}")
    assert forwarded(table, environment["OPENAI_BASE_URL"] + "/x") == "http://h/p/v1/x"
    assert forwarded(table, environment["OPENAI_API_BASE"] + "/x") == "http://h/p/v1/x"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "openai",
        "=http://h",
        "Name=http://h",
        "-=http://h",
        "_status=http://h",
        "a/b=http://h",
        "a b=http://h",
        "é=http://h",
        f"{'n' * 65}=http://h",
    ],
)
def test_what_is_no_name_and_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--upstream takes NAME=URL"):
        upstreams({}, [text])


def test_a_name_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'local' twice"):
        upstreams({}, ["local=http://one", "local=http://two"])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:8000", "begins with http"),
        ("ftp://h", "begins with http"),
        ("http://", "begins with http"),
        ("https:///v1", "begins with http"),
        ("http://h:0", "begins with http"),
        ("http://h:99999", "no URL"),
        ("http://[::1", "no URL"),
        ("http://me:hunter2@h/v1", "a user or a password"),
        ("http://@h/v1", "a user or a password"),
        ("http://h/v1?key=hunter2", "no query"),
        ("http://h/v1?", "no query"),
        ("http://h/v1#x", "no fragment"),
        ("http://h/a/../b", "no '..'"),
        ("http://h/a b", "no spaces"),
        ("http://h\\@evil", "no backslashes"),
        ("http://h\r\nx: y", "no spaces"),
        ("http://é", "outside of ASCII"),
    ],
)
def test_a_url_below_which_nothing_can_be_sent_is_refused_and_not_shown(url: str, why: str) -> None:
    cases: list[tuple[dict[str, str], list[str]]] = [({}, [f"local={url}"]), ({"GROQ_BASE_URL": url}, [])]
    for environ, extra in cases:
        with pytest.raises(ValueError, match=why) as caught:
            upstreams(environ, extra)
        assert "hunter2" not in str(caught.value)
        assert str(caught.value).startswith(("--upstream local: ", "GROQ_BASE_URL: "))
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_url_that_can_be_used_is_returned_as_it_is() -> None:
    assert checked_url("HTTPS://Example.com:8443/V1/", "x") == "HTTPS://Example.com:8443/V1/"
