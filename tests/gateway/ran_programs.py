"""Tools for the tests of a run's child: programs under a `Child` in a process of its own, their output, their ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil  # type: ignore[import-untyped]

LINUX = sys.platform == "linux"

# A shell ignores signals for what it starts in the background, and that is inherited. The programs need defaults.
DEFAULTS = """
import os, signal, sys
for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH"):
    if name not in os.environ.get("IGNORED", "").split():
        signal.signal(getattr(signal, name), signal.SIG_DFL)
"""

# Runs its arguments under a Child, as the command does.
UNDER = (
    DEFAULTS
    + """
from token_budget.cli._run_child import Child, exit_code_of, left_behind
child = Child(sys.argv[1:], os.environ)
try:
    child.start()
except OSError as error:
    sys.exit(exit_code_of(error))
code = child.wait()
if (line := left_behind(child.left)) is not None:
    print(line, file=sys.stderr)
sys.exit(child.finish(code))
"""
)

# Says its process id, then each signal that it gets, until it can read no more; then it exits with 9.
LISTENER = """
import os, signal, sys
def heard(number, frame):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())
for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT"):
    if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
        signal.signal(getattr(signal, name), heard)
os.write(1, f"ready {os.getpid()}\\n".encode())
while line := sys.stdin.readline():
    os.write(1, f"read {line}".encode())
sys.exit(9)
"""


def python(program: str, *arguments: str) -> list[str]:
    """Return the command of a Python program."""
    return [sys.executable, "-S", "-c", program, *arguments]


def under(*command: str) -> list[str]:
    """Return the command that runs a command under a Child."""
    return [sys.executable, "-c", UNDER, *command]


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command with pipes; kill it and all that it started if it still runs at the end."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **{**pipes, **options}) as process:
        me = psutil.Process(process.pid)
        try:
            yield process
        finally:
            if process.poll() is None:
                for one in [*me.children(recursive=True), me]:
                    one.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def outcome(*command: str, given: bytes = b"", **options: Any) -> tuple[int, str, str]:
    """Run a command under a Child until it ends; return the exit status, and what it wrote to both streams."""
    done = subprocess.run(under(*command), input=given, capture_output=True, check=False, timeout=60, **options)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def line_of(stream: IO[bytes] | None) -> str:
    """Read the next line."""
    assert stream is not None
    return stream.readline().decode().strip()


def ready(process: subprocess.Popen[bytes]) -> int:
    """Wait until a LISTENER is ready; return its process id."""
    word, pid = line_of(process.stdout).split()
    assert word == "ready"
    return int(pid)


def ended(process: subprocess.Popen[bytes], status: int = 9) -> str:
    """Let a LISTENER end; return what it wrote since, and check the exit status of the process."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    rest = process.stdout.read().decode()
    assert process.wait(60) == status
    return rest


def until(condition: Callable[[], object]) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


def state(pid: int) -> str:
    """Return the state of a process as psutil names it, `gone` if there is none."""
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return "gone"


def pids_in(folder: Path) -> list[int]:
    """Return the process ids that are the names of the files in a folder."""
    return sorted(int(path.name) for path in folder.iterdir())
