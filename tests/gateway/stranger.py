"""Another user of the machine, who looks at what they can see of a run. The tests start it as root; it lets go of that.

``python stranger.py USER PID PORT``: it becomes USER (a number), and prints a line of JSON: what it found in the
environment and the command line of process PID, and the statuses of some requests to the port without the secret.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from pathlib import Path


def seen(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError as error:
        return type(error).__name__


def asked(port: int, path: str, header: str | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        headers = {} if header is None else {"x-token-budget-secret": header}
        connection.request("POST", path, b'{"model": "m"}', {"content-type": "application/json", **headers})
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> None:
    user, pid, port = map(int, sys.argv[1:])
    asked(port, "/")  # what is imported late is read now: the other user may not read the interpreter's files
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    paths = ["/", "/_status", "/-/_status", "/openai/v1/chat/completions", "/-/openai/v1/chat/completions"]
    statuses = [asked(port, path) for path in paths] + [
        asked(port, paths[-1], "guess"),
        asked(port, f"/guess{paths[-2]}"),
    ]
    process = Path("/proc") / str(pid)
    print(json.dumps([seen(process / "environ"), seen(process / "cmdline"), statuses]))


if __name__ == "__main__":
    main()
