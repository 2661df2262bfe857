"""What a client is told when the gateway does not forward its request, in the shape of its provider's own errors.

A refusal must end in one try and be read by a person. What real clients do decides the status (measured, 2026-11):

- 402 with ``x-should-retry: false`` for the budget: the SDKs of OpenAI, Anthropic, Google, Groq and Claude Code end in one
  try and show the message.
- 400 with the same text for a body that was just refused, and at once for Codex: some clients (aider's LiteLLM, Codex)
  take a 402 for an outage and go on trying; a 400 ends them. Codex's body differs each time, so it is known by its name.
- 403 for what the meter cannot bound, 400 for a model without a price and for one that a policy denies: no other try can
  help.
- 503 for a store that is out of reach. It is no refusal, nothing is spent, and it may pass: the client's own retries, each
  of which is asked for again, are right there.

No refusal has a ``retry-after``: a client that believes it would sleep until the budget's next day. The text says when.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from token_budget._errors import BudgetExceeded, BudgetTimeout, PoolClosed, PoolForked
from token_budget.contract import BudgetUnavailable
from token_budget.gateway._upstreams import Dialect, Upstream
from token_budget.metering._refusals import LoopDetected, ModelBlocked, RunStopped, Unmetered, UnknownModel

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
            path: the request's path; where it is one of Anthropic's or of Google's, its shape goes before the upstream's.
        """
        status, code, text = _decided(error)
        retry = status == 503
        if not retry:
            again = self._note(upstream.name, body)
            if again or agent.lower().startswith("codex"):
                status = 400
        dialect = dialect_of(path, upstream)
        return _answer(dialect, status, code, text, {} if retry else {"x-should-retry": "false"})

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

    A client may try again after 408, 502, 503 and 504, as it would with the provider; after the others it is told not to.
    """
    headers = {} if status in {408, 502, 503, 504} else {"x-should-retry": "false"}
    if status == 426:
        headers |= {"upgrade": "HTTP/1.1", "connection": "Upgrade"}
    return _answer(dialect_of(path, upstream), status, "gateway_error", text, headers)


def dialect_of(path: str, upstream: Upstream | None) -> Dialect:
    """Return which shape of error the client of a request reads."""
    tail = path.rsplit("/", 1)[-1]
    if path.endswith(("/messages", "/messages/count_tokens")):
        return "anthropic"
    if ":" in tail and "/models/" in path:
        return "gemini"
    return "openai" if upstream is None else upstream.dialect


def _decided(error: Exception) -> tuple[int, str, str]:
    """Return the status, the code and the text of a refusal."""
    text = str(error)
    if isinstance(error, BudgetExceeded):
        return 402, "budget_exceeded", f"token-budget: {text}"
    if isinstance(error, (RunStopped, LoopDetected, PoolClosed, PoolForked)):
        code = "loop_detected" if isinstance(error, LoopDetected) else "run_stopped"
        return 402, code, f"token-budget: {text}"
    if isinstance(error, Unmetered):
        return 403, "unmetered", f"token-budget: {text}; --allow-unmetered lets such requests pass, uncounted"
    if isinstance(error, UnknownModel):
        return (
            400,
            "unknown_model",
            f"token-budget: {text}; give it one: --price MODEL=INPUT,OUTPUT (USD for a million tokens)",
        )
    if isinstance(error, ModelBlocked):
        return 400, "model_blocked", f"token-budget: {text}"
    if isinstance(error, BudgetUnavailable):
        return 503, "budget_unavailable", f"token-budget: the budget cannot be asked, so nothing was sent: {text}"
    return (
        500,
        "not_metered",
        f"token-budget: the request could not be metered, so it was not sent ({type(error).__name__})",
    )


def _answer(dialect: Dialect, status: int, code: str, text: str, headers: dict[str, str]) -> Answer:
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
    body = json.dumps(content).encode()
    return Answer(status, {"content-type": "application/json", **headers}, body)
