"""What programs of the tests call models with: `http.client`, and the base URL of the environment. Standard library."""

from __future__ import annotations

import http.client
import json
import os
import threading
from typing import Any
from urllib.parse import urlsplit


def opened(
    prompt: str = "Why?",
    *,
    stream: bool = False,
    fault: str = "",
    tokens: int | None = 13,
    timeout: float = 30,
    model: str = "house-small",
    path: str = "/chat/completions",
    variable: str = "OPENAI_BASE_URL",
    **more: Any,
) -> http.client.HTTPResponse:
    """Send a request, and return the response when its head is there."""
    url = urlsplit(os.environ[variable])
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout)
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}], **more}
    if tokens is not None:
        body["max_tokens"] = tokens
    if stream:
        body["stream"] = True
    headers = {"content-type": "application/json", "authorization": "Bearer sk-test", "user-agent": "caller"}
    connection.request("POST", url.path + path, json.dumps(body), {**headers, **({"x-fault": fault} if fault else {})})
    return connection.getresponse()


def call(*words: str, **options: Any) -> tuple[int, str]:
    """Make a call, and return its status and its body; (0, the error's type) if there was no whole answer."""
    try:
        response = opened(*words, **options)
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, type(error).__name__


def at_once(number: int, **options: Any) -> list[int]:
    """Make that many calls at once, and return their statuses, sorted."""
    start, found = threading.Barrier(number), []

    def work() -> None:
        start.wait(60)
        found.append(call(**options)[0])

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found)


def got(path: str) -> Any:
    """Return what the gateway itself answers to a GET, as JSON."""
    url = urlsplit(os.environ["TOKEN_BUDGET_GATEWAY"])
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
    connection.request("GET", url.path + path)
    return json.loads(connection.getresponse().read())
