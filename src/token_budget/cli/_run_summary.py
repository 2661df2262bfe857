"""What a run says when it has ended: one line for people, and the report that ``--report`` writes.

What always holds: the report is whole or not there. It is written beside its place and renamed, and a place that cannot
be written is found before the child is started.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from token_budget._money import to_usd, usd_text
from token_budget.cli._run_status import RunStatus
from token_budget.cli._run_text import amount, capped, counted, dollars, made, pure, seconds

_AGAIN = 0.01  # seconds
_pause = time.sleep
_DESCRIPTOR = re.compile(r"/dev/(?:(stdout)|(stderr)|fd/(\d{1,9}))")


def summary_line(status: RunStatus) -> str:
    """Return one line, without its end: what was spent, made, refused and held, the time, and a cap that is used up."""
    spent = capped(dollars(status.usd_nanos), status.usd_cap_nanos, dollars)
    tokens = capped(counted(status.tokens), status.token_cap, counted)
    parts = [f"{spent} and {tokens} spent", made(status.calls)]
    if status.refused:
        parts.append(f"{status.refused:,} refused")
    if status.held_usd_nanos or status.held_tokens:
        parts.append(f"{amount(status.held_usd_nanos, status.held_tokens)} still held")
    parts.append(seconds(status.seconds))
    reached = _reached(status)
    return f"token-budget: {', '.join(parts)}{f'; cap reached: {reached}' if reached else ''}"


def report(status: RunStatus, exit_code: int) -> dict[str, Any]:
    """Return what ``--report`` writes, ready for JSON. Dollars are floats, with the exact nanodollars beside them.

    The keys are ``spent`` and ``held`` (each with ``usd``, ``usd_nanos`` and ``tokens``), ``calls``, ``refused``,
    ``by_model``, ``seconds`` and ``exit_code``, all of this run, and ``pool``: the snapshot of the whole pool.
    """
    return {
        "spent": _amount(status.usd_nanos, status.tokens),
        "held": _amount(status.held_usd_nanos, status.held_tokens),
        "calls": status.calls,
        "refused": status.refused,
        "by_model": status.by_model,
        "seconds": status.seconds,
        "exit_code": exit_code,
        "pool": status.pool,
    }


def _amount(nanos: int, tokens: int) -> dict[str, Any]:
    return {"usd": to_usd(nanos), "usd_nanos": nanos, "tokens": tokens}


def _reached(status: RunStatus) -> str:
    """Return which cap is used up: the one that refused a call, or else the run's own."""
    if status.cap_reached is not None:
        return pure(status.cap_reached)
    caps = []
    if status.usd_cap_nanos is not None and status.usd_nanos >= status.usd_cap_nanos:
        caps.append(f"{usd_text(status.usd_cap_nanos)} USD")
    if status.token_cap is not None and status.tokens >= status.token_cap:
        caps.append(f"{status.token_cap:,} tokens")
    return " and ".join(caps)


class ReportFile:
    """The file of ``--report PATH``.

    A link is followed. What is no regular file (a pipe, a device) is written in place, and so is what this process has
    open: ``/dev/stdout``, ``/dev/fd/63`` as of ``>(jq)``. A new file has the rights that the umask gives.
    """

    def __init__(self, path: str) -> None:
        """Find out whether the report can be written there, and change nothing.

        Raises:
            OSError: it cannot.
        """
        self._descriptor = _descriptor_of(path)
        if self._descriptor is not None:
            os.write(self._descriptor, b"")  # raises where it is closed, or open for reading alone
            return
        place = Path(path)
        self._in_place = place.exists() and not place.is_file()
        self._path = place if self._in_place else Path(os.path.realpath(path))
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", path)
        if not self._in_place:
            descriptor, beside = self._beside()
            os.close(descriptor)
            beside.unlink()
        elif not os.access(self._path, os.W_OK):
            raise PermissionError(errno.EACCES, "it cannot be written", path)

    def write(self, report: Mapping[str, Any]) -> None:
        """Write it, as JSON.

        Raises:
            OSError: it cannot be written, any more. What was there before is still there.
        """
        text = f"{json.dumps(report, indent=2)}\n".encode()
        if self._descriptor is not None:
            _write_all(self._descriptor, text)
            return
        if self._in_place:
            with self._path.open("wb") as file:
                file.write(text)
            return
        descriptor, beside = self._beside()
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def _beside(self) -> tuple[int, Path]:
        """Make a file in the same folder, and return its descriptor and its path."""
        beside = self._path.with_name(f".token-budget-{secrets.token_hex(8)}.tmp")  # a long name has room in any case
        return os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), beside


def _write_all(descriptor: int, text: bytes) -> None:
    """Write it, and wait for room: a program may leave a stream behind that is full and does not wait by itself."""
    while text:
        try:
            text = text[os.write(descriptor, text) :]
        except BlockingIOError:  # noqa: PERF203 - full
            _pause(_AGAIN)


def _descriptor_of(path: str) -> int | None:
    """Return the descriptor that a path names, None if it names a file."""
    found = _DESCRIPTOR.fullmatch(path)
    if found is None or os.name == "nt":
        return None
    return 1 if found[1] else 2 if found[2] else int(found[3])
