"""What a client is told when the gateway does not forward its request, in the shape of its provider's own errors.

A refusal must end in one try and be read by a person. What real clients do decides the status (measured, 2026-11):

- 402 with ``x-should-retry: false`` for the budget and for a run that was stopped. The SDKs of OpenAI, Anthropic,
  Google and Groq, LiteLLM and Claude Code end in one try and show the message. It is the same for a budget that is only
  busy: the gateway has waited for room already, and each of a client's own tries would wait again.
- 400 with the same text for a body that was just refused, and at once for Codex. Some clients (Codex, aider with its
  LiteLLM) take a 402 for an outage and go on; a 400 ends them. Codex's body differs each time, so its name tells.
- 403 for what the meter cannot bound, 400 for a model without a price and for one that a policy denies.
- 503 for a store that is out of reach. Nothing was sent, so the money is safe, and it may pass: the client's own tries,
  each of which is asked for again, are right there.

No refusal has a ``retry-after``: a client that believes it would sleep until the next day. The text says when.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from token_budget._errors import BudgetExceeded, PoolClosed, PoolForked
from token_budget.contract import BudgetUnavailable
from token_budget.gateway._families import Dialect
from token_budget.gateway._messages import message_of
from token_budget.gateway._upstreams import Upstream
from token_budget.metering._refusals import LoopDetected, ModelBlocked, RunStopped, UnknownModel, Unmetered

REMEMBERED = 256

_ANTHROPIC = {
    400: "invalid_request_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    504: "timeout_error",
}
_GOOGLE = {
    400: "INVALID_ARGUMENT",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass(frozen=True)
class Answer:
    """An answer of the gateway's own: its status, its headers and its body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Refusals:
    """Makes the answers to refused requests, and remembers which bodies it refused last.

    It remembers 256 of them, by keyed hashes that mean nothing outside of this object; it keeps no body. It may be used
    from several threads.
    """

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._lock = threading.Lock()
        self._refused: OrderedDict[bytes, None] = OrderedDict()

    def answer(self, error: Exception, upstream: Upstream, *, agent: str, body: bytes, path: str = "") -> Answer:
        """Return what a client is told about a request that is not forwarded. It does not block.

        Args:
            error: why: a refusal of the meter or of a pool, or BudgetUnavailable.
            upstream: where the request was to go.
            agent: the request's ``User-Agent``.
            body: the request's body.
            path: the request's path. Anthropic's and Google's have their own shape of error at every upstream.
        """
        decided = ((status, code) for kind, status, code in _DECIDED if isinstance(error, kind))
        status, code = next(decided, _OTHER)
        if status in {402, 403}:
            again = self._note(upstream.name, body)
            if again or agent.lower().startswith("codex"):
                status = 400
        return _answer(dialect_of(path, upstream), status, code, message_of(error))

    def passed(self, upstream: Upstream, body: bytes) -> None:
        """Forget that a body was refused: it was let through."""
        if self._refused:
            digest = self._digest(upstream.name, body)
            with self._lock:
                self._refused.pop(digest, None)

    def _note(self, name: str, body: bytes) -> bool:
        """Remember that a body was refused; return whether it was refused before."""
        digest = self._digest(name, body)
        with self._lock:
            known = digest in self._refused
            self._refused[digest] = None
            self._refused.move_to_end(digest)
            if len(self._refused) > REMEMBERED:
                self._refused.popitem(last=False)
        return known

    def _digest(self, name: str, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=16, key=self._key, person=name.encode()[:16]).digest()


def gateway_error(status: int, text: str, upstream: Upstream | None = None, *, path: str = "") -> Answer:
    """Return an answer of the gateway's own that is no refusal of the budget: 404, 408, 413, 421, 426, 502, 503, 504.

    A client may try again after 408, 502, 503 and 504, as it would with the provider; the others have
    ``x-should-retry: false``.

    Args:
        status: the HTTP status.
        text: what a person is told.
        upstream: where the request was to go; None if it was to go nowhere.
        path: the request's path, as for `Refusals.answer`.
    """
    answer = _answer(dialect_of(path, upstream), status, "gateway_error", f"token-budget: {text}")
    if status == 426:
        answer.headers.update({"upgrade": "HTTP/1.1", "connection": "Upgrade"})
    return answer


def dialect_of(path: str, upstream: Upstream | None) -> Dialect:
    """Return which shape of error the client of a request reads."""
    if path.endswith(("/chat/completions", "/responses", "/embeddings")):
        return "openai"
    if path.endswith(("/messages", "/messages/count_tokens")):
        return "anthropic"
    if "/models/" in path and ":" in path.rsplit("/", 1)[-1]:
        return "gemini"
    return "openai" if upstream is None else upstream.dialect


_DECIDED: tuple[tuple[type[Exception], int, str], ...] = (  # the error, the status, the code
    (BudgetExceeded, 402, "budget_exceeded"),
    (LoopDetected, 402, "loop_detected"),
    (RunStopped, 402, "run_stopped"),
    (PoolClosed, 402, "run_stopped"),
    (PoolForked, 402, "run_stopped"),
    (Unmetered, 403, "unmetered"),
    (UnknownModel, 400, "unknown_model"),
    (ModelBlocked, 400, "model_blocked"),
    (BudgetUnavailable, 503, "budget_unavailable"),
)
_OTHER = (500, "not_metered")  # an error of ours: it was not sent, and no other try can help
_PASSING = frozenset({408, 502, 503, 504})  # a client may try again, as it would with the provider itself


def _answer(dialect: Dialect, status: int, code: str, text: str) -> Answer:
    """Return an answer in one provider's shape."""
    content: dict[str, Any]
    if dialect == "anthropic":
        kind = _ANTHROPIC.get(status, "api_error" if status >= 500 else "invalid_request_error")
        content = {"type": "error", "error": {"type": kind, "message": text}, "request_id": None}
    elif dialect == "gemini":
        reason = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": code.upper(), "domain": "token-budget"}
        name = _GOOGLE.get(status, "FAILED_PRECONDITION")
        content = {"error": {"code": status, "message": text, "status": name, "details": [reason]}}
    else:
        kind = "invalid_request_error" if status in {400, 403, 404, 413} else code
        content = {"error": {"message": text, "type": kind, "param": None, "code": code}}
    headers = {"content-type": "application/json"}
    if status not in _PASSING:
        headers["x-should-retry"] = "false"
    return Answer(status, headers, json.dumps(content).encode())
