"""The world outside, as a proxy that lets nobody through and writes down who was wanted."""

from __future__ import annotations

import socketserver
import threading
from typing import Any


class Outside:
    """A proxy for HTTPS. Leaving its block closes it.

    ``hosts`` are those that were wanted; ``url`` is where it listens.
    """

    def __init__(self) -> None:
        self.hosts: set[str] = set()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=True)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def _handler(self) -> type[socketserver.StreamRequestHandler]:
        hosts = self.hosts

        class Handler(socketserver.StreamRequestHandler):
            timeout = 10

            def handle(self) -> None:
                words: Any = self.rfile.readline(8192).decode(errors="replace").split()
                if len(words) > 1:
                    hosts.add(words[1].removesuffix(":443"))
                while self.rfile.readline(8192).strip():
                    pass
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        return Handler

    def __enter__(self) -> Outside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
