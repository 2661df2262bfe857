"""What the tests of a run's display share: a status, a stream that is a terminal, and what plays a gateway."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from token_budget.cli._run_status import RunStatus

SECRET = "s3cr3t-S3CR3T_s3cr3t-S3CR3T"


def a_status(**changes: Any) -> RunStatus:
    """Return a status; what is not said is that of a run that has just begun."""
    values: dict[str, Any] = {
        "command": "claude",
        "pid": 4712,
        "seconds": 41.25,
        "usd_nanos": 0,
        "tokens": 0,
        "held_usd_nanos": 0,
        "held_tokens": 0,
        "in_flight": 0,
        "calls": 0,
        "refused": 0,
        "usd_cap_nanos": 5 * 10**9,
        "token_cap": None,
    }
    return RunStatus(**{**values, **changes})


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and has no descriptor."""

    def isatty(self) -> bool:
        return True


class Answering:
    """Stands for a gateway: answers each request in the same way, and keeps the paths."""

    def __init__(self) -> None:
        self.status = 200
        self.body = json.dumps(a_status().to_dict()).encode()
        self.paths: list[str] = []
        self.url = ""

    def answers(self, status: RunStatus) -> None:
        self.body = json.dumps(status.to_dict()).encode()


@contextmanager
def answering() -> Iterator[Answering]:
    """Serve on the loopback interface while the block is open."""
    told = Answering()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.paths.append(self.path)
            self.send_response(told.status)
            self.send_header("content-length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        told.url = f"http://127.0.0.1:{server.server_port}/{SECRET}"
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
