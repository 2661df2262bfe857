"""What a client is told where the gateway does not forward: statuses, shapes, texts; what is remembered of bodies."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from typing import Any

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("truststore")

from support import run_together
from token_budget import BudgetExceeded, BudgetPool, BudgetTimeout, PoolClosed
from token_budget._errors import PoolForked
from token_budget._money import UNBOUNDED
from token_budget.contract import BudgetUnavailable
from token_budget.gateway._messages import message_of
from token_budget.gateway._refusals import REMEMBERED, Answer, Refusals, dialect_of, gateway_error
from token_budget.gateway._upstreams import upstreams
from token_budget.metering import LoopDetected, Meter, ModelBlocked, RunStopped, UnknownModel, Unmetered

TABLE = upstreams({})
OPENAI, ANTHROPIC, GEMINI = TABLE["openai"], TABLE["anthropic"], TABLE["gemini"]
NOON = dt.datetime(2026, 11, 28, 12, 30, tzinfo=dt.timezone.utc)


def used_up(**numbers: Any) -> BudgetExceeded:
    """Return a refusal: $4.9 of $5 are spent, and the call asks for $0.25."""
    told: dict[str, Any] = {"requested": 0.25, "pool": "nightly", **numbers}
    return BudgetExceeded("usd", 5.15, 5, **told)


def told(answer: Answer) -> Any:
    return json.loads(answer.body)


def answered(error: Exception, refusals: Refusals | None = None, body: bytes = b"{}", agent: str = "") -> Answer:
    return (refusals or Refusals()).answer(error, OPENAI, agent=agent, body=body)


# ---------------------------------------------------------------- statuses

STATUSES = [
    (used_up(), 402, "budget_exceeded"),
    (BudgetTimeout("usd", 5.15, 5), 402, "budget_exceeded"),
    (LoopDetected("loop: more than 3 calls in a minute"), 402, "loop_detected"),
    (RunStopped("run 'job' was stopped: by hand"), 402, "run_stopped"),
    (PoolClosed("pool 'job' is closed"), 402, "run_stopped"),
    (PoolForked("pool 'job' is a copy"), 402, "run_stopped"),
    (Unmetered("POST /v1/batches cannot be bounded"), 403, "unmetered"),
    (UnknownModel("there is no price for model 'm'"), 400, "unknown_model"),
    (ModelBlocked("a policy denies model 'm' here"), 400, "model_blocked"),
]


@pytest.mark.parametrize(("error", "status", "code"), STATUSES, ids=lambda one: type(one).__name__)
def test_a_refusal_has_a_status_that_ends_clients_and_tells_them_not_to_try_again(
    error: Exception, status: int, code: str
) -> None:
    answer = answered(error)
    assert (answer.status, told(answer)["error"]["code"]) == (status, code)
    assert answer.headers == {"content-type": "application/json", "x-should-retry": "false"}


@pytest.mark.parametrize("error", [one[0] for one in STATUSES], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("agent", ["codex_exec/0.171.0 (Debian)", "codex_cli_rs/0.98", "Codex/1"])
def test_codex_is_answered_400_at_once(error: Exception, agent: str) -> None:
    assert answered(error, agent=agent).status == 400
    assert told(answered(error, agent=agent))["error"]["message"] == message_of(error)


def test_only_codex_is_taken_for_codex() -> None:
    assert answered(used_up(), agent="my-codex/1").status == 402


def test_a_store_out_of_reach_is_answered_503_which_clients_may_try_again_codex_too() -> None:
    refusals = Refusals()
    for agent in ("", "codex_exec", ""):
        answer = answered(BudgetUnavailable("redis://h does not answer"), refusals, agent=agent)
        assert (answer.status, answer.headers) == (503, {"content-type": "application/json"})
        assert told(answer)["error"]["code"] == "budget_unavailable"


def test_an_error_of_another_kind_is_answered_500_and_its_text_is_not_told() -> None:
    answer = answered(KeyError("sk-secret"))
    assert (answer.status, answer.headers["x-should-retry"]) == (500, "false")
    assert told(answer)["error"]["message"] == (
        "token-budget: the call could not be metered (KeyError). Nothing was sent."
    )


@pytest.mark.parametrize("error", [one[0] for one in STATUSES], ids=lambda one: type(one).__name__)
def test_no_refusal_asks_a_client_to_come_back_later(error: Exception) -> None:
    assert "retry-after" not in {name.lower() for name in answered(error).headers}


# ---------------------------------------------------------------- a body that was just refused


@pytest.mark.parametrize("error", [used_up(), Unmetered("no"), RunStopped("ended")], ids=lambda one: type(one).__name__)
def test_a_body_that_was_just_refused_is_answered_400_with_the_same_text(error: Exception) -> None:
    refusals = Refusals()
    first, second, third = (answered(error, refusals, b'{"a": 1}') for _ in range(3))
    assert first.status in {402, 403}
    assert (second.status, third.status) == (400, 400)
    assert told(first)["error"]["message"] == told(second)["error"]["message"]
    assert told(second)["error"]["type"] == "invalid_request_error"


def test_another_body_and_another_upstream_are_not_the_body_that_was_refused() -> None:
    refusals = Refusals()
    answered(used_up(), refusals, b"1")
    assert answered(used_up(), refusals, b"2").status == 402
    assert refusals.answer(used_up(), GEMINI, agent="", body=b"1").status == 402


def test_a_body_that_is_let_through_is_forgotten() -> None:
    refusals = Refusals()
    refusals.passed(OPENAI, b"1")
    answered(used_up(), refusals, b"1")
    refusals.passed(OPENAI, b"2")
    refusals.passed(GEMINI, b"1")
    assert answered(used_up(), refusals, b"1").status == 400
    refusals.passed(OPENAI, b"1")
    assert answered(used_up(), refusals, b"1").status == 402


def test_the_last_256_refused_bodies_are_remembered_and_no_more() -> None:
    refusals = Refusals()
    assert REMEMBERED == 256
    for number in range(256):
        answered(used_up(), refusals, b"%d" % number)
    assert answered(used_up(), refusals, b"0").status == 400  # and is now the latest
    answered(used_up(), refusals, b"new")  # the oldest, 1, goes
    assert answered(used_up(), refusals, b"0").status == 400
    assert answered(used_up(), refusals, b"1").status == 402
    assert len(refusals._refused) == 256


def test_a_refused_body_is_kept_as_a_hash_that_means_nothing_elsewhere() -> None:
    one, other = Refusals(), Refusals()
    for refusals in (one, other):
        answered(used_up(), refusals, b"a prompt with a secret")
    assert b"secret" not in pickle.dumps([dict(one._refused), one._key])
    assert [len(digest) for digest in one._refused] == [16]
    assert one._refused.keys() != other._refused.keys()
    assert "secret" not in repr(one)


def test_many_threads_may_refuse_at_once_and_one_alone_is_the_first() -> None:
    refusals = Refusals()
    statuses = [one.status for one in run_together(*[lambda: answered(used_up(), refusals, b"same") for _ in range(8)])]
    assert sorted(statuses) == [400] * 7 + [402]


# ---------------------------------------------------------------- shapes


def test_openais_shape() -> None:
    assert told(answered(used_up())) == {
        "error": {
            "message": message_of(used_up()),
            "type": "budget_exceeded",
            "param": None,
            "code": "budget_exceeded",
        }
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (502, "api_error"),
        (504, "timeout_error"),
    ],
)
def test_anthropics_shape(status: int, kind: str) -> None:
    assert told(gateway_error(status, "why", ANTHROPIC)) == {
        "type": "error",
        "error": {"type": kind, "message": "token-budget: why"},
        "request_id": None,
    }


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "INVALID_ARGUMENT"),
        (402, "FAILED_PRECONDITION"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (421, "FAILED_PRECONDITION"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_geminis_shape(status: int, name: str) -> None:
    answer = gateway_error(status, "why", GEMINI)
    assert answer.status == status
    assert told(answer) == {
        "error": {
            "code": status,
            "message": "token-budget: why",
            "status": name,
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "GATEWAY_ERROR",
                    "domain": "token-budget",
                }
            ],
        }
    }


@pytest.mark.parametrize(
    ("path", "name", "dialect"),
    [
        ("/v1/chat/completions", "openai", "openai"),
        ("/v1/messages", "openrouter", "anthropic"),
        ("/anthropic/v1/messages/count_tokens", "deepseek", "anthropic"),
        ("/v1/chat/completions", "anthropic", "openai"),
        ("/v1beta/openai/chat/completions", "gemini", "openai"),
        ("/v1beta/openai/embeddings", "gemini", "openai"),
        ("/v1beta/models/m:generateContent", "openai", "gemini"),
        ("/v1beta/models", "gemini", "gemini"),
        ("/v1/models/ft:m", "anthropic", "gemini"),
        ("/v1/models/m/x", "openai", "openai"),
        ("/v1/a:b", "openai", "openai"),
        ("", "anthropic", "anthropic"),
    ],
)
def test_the_shape_is_that_of_the_path_and_else_of_the_upstream(path: str, name: str, dialect: str) -> None:
    assert dialect_of(path, TABLE[name]) == dialect


def test_a_request_that_goes_nowhere_is_answered_in_openais_shape_or_its_paths() -> None:
    assert set(told(gateway_error(404, "why"))) == {"error"}
    assert told(gateway_error(404, "why", path="/x/v1/messages"))["type"] == "error"


# ---------------------------------------------------------------- the gateway's own


@pytest.mark.parametrize("status", [404, 413, 421, 426])
def test_an_answer_of_our_own_that_stays_so_says_not_to_try_again(status: int) -> None:
    assert gateway_error(status, "why", OPENAI).headers["x-should-retry"] == "false"


@pytest.mark.parametrize("status", [408, 502, 503, 504])
def test_an_answer_of_our_own_that_may_pass_leaves_the_tries_to_the_client(status: int) -> None:
    assert "x-should-retry" not in gateway_error(status, "why", OPENAI).headers


def test_a_websocket_is_told_to_use_http() -> None:
    headers = gateway_error(426, "why", OPENAI).headers
    assert (headers["upgrade"], headers["connection"]) == ("HTTP/1.1", "Upgrade")


# ---------------------------------------------------------------- texts

TEXTS = [
    (
        used_up(),
        "budget 'nightly' has not enough left: $4.9 of $5 spent, $0 held by calls in flight, and this call can cost up "
        "to $0.25. Nothing was sent. To go on, raise the cap.",
    ),
    (
        used_up(resets_at=NOON, retry_after=60),
        "budget 'nightly' has not enough left: $4.9 of $5 spent, $0 held by calls in flight, and this call can cost up "
        "to $0.25. Nothing was sent. To go on, wait until 2026-11-28 12:30 UTC, when it starts anew, or raise the cap.",
    ),
    (
        BudgetExceeded("tokens", 12_000, 10_000, requested=2_000),
        "the budget is used up: 10,000 of 10,000 tokens spent, 0 held by calls in flight, and this call "
        "can cost up to 2,000 tokens. Nothing was sent. To go on, raise the cap.",
    ),
    (
        BudgetExceeded("usd", 8, 5, requested=8, pool="nightly"),
        "this call can cost up to $8, more than all of budget 'nightly' ($5). Nothing was sent. Limit its output "
        "(max_tokens) or raise the cap.",
    ),
    (
        used_up(reserved=4.5),
        "budget 'nightly' has no room: $0.4 of $5 spent, $4.5 held by calls in flight, and this call can cost up to "
        "$0.25. Nothing was sent. Make fewer calls at once, limit their output, wait longer (--wait) or raise the cap.",
    ),
    (
        BudgetTimeout("tokens", 12, 10, requested=4, reserved=8),
        "the budget has no room in time: 0 of 10 tokens spent, 8 held by calls in flight, and this call "
        "can cost up to 4 tokens. Nothing was sent. Make fewer calls at once, limit their output, wait longer (--wait) "
        "or raise the cap.",
    ),
    (BudgetExceeded("a pool of one's own said no."), "a pool of one's own said no. Nothing was sent."),
    (
        Unmetered("POST /v1/batches cannot be bounded"),
        "POST /v1/batches cannot be bounded. Nothing was sent, since no cap would hold. --allow-unmetered lets such "
        "calls pass, uncounted.",
    ),
    (
        UnknownModel("the request names no model, so there is no price for it"),
        "the request names no model, so there is no price for it. Nothing was sent. Give it a price: --price "
        "MODEL=INPUT,OUTPUT, in dollars for a million tokens.",
    ),
    (PoolClosed("pool 'job' is closed"), "pool 'job' is closed. Nothing was sent: the run is ending."),
    (PoolForked("pool 'job' is a copy"), "pool 'job' is a copy. Nothing was sent: the run is ending."),
    (
        BudgetExceeded("usd", 6, 5, requested=5),
        "the budget has not enough left: $1 of $5 spent, $0 held by calls in flight, and this call can cost up to $5. "
        "Nothing was sent. To go on, raise the cap.",
    ),
    (RunStopped("run 'job' has ended"), "run 'job' has ended. Nothing was sent."),
    (
        BudgetUnavailable("redis://h does not answer"),
        "the store of the budget does not answer (redis://h does not answer). Nothing was sent.",
    ),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda one: type(one).__name__)
def test_a_text_names_the_budget_its_numbers_and_what_to_do(error: Exception, text: str) -> None:
    assert message_of(error) == f"token-budget: {text}"


def test_the_text_of_a_real_unknown_model_speaks_of_the_option_and_not_of_python() -> None:
    with pytest.raises(UnknownModel) as caught:
        Meter(BudgetPool(usd_cap=1), {"a": (1, 4)}).quote("nope", 1, 1)
    assert message_of(caught.value) == (
        "token-budget: there is no price for model 'nope'. Nothing was sent. Give it a price: --price "
        "MODEL=INPUT,OUTPUT, in dollars for a million tokens."
    )


def test_who_is_refused_because_others_wait_is_told_so_without_a_cap() -> None:
    error = BudgetExceeded._of("usd", 1_000_000_000, 1_000_000_000, 0, UNBOUNDED, "nightly")
    assert message_of(error) == (
        "token-budget: other calls wait for room in budget 'nightly', and they come first. Nothing was sent. Make "
        "fewer calls at once."
    )


@pytest.mark.parametrize("error", [one[0] for one in TEXTS], ids=lambda one: type(one).__name__)
def test_a_text_is_one_line_in_words_that_need_no_python(error: Exception) -> None:
    text = message_of(error)
    assert "\n" not in text
    assert "()" not in text
