"""Watch: finds the usage in an answer while its bytes pass by, event by event or as a whole.

What always holds: a watch raises nothing but `zlib.error`, and that only where it decodes for the caller; it changes no
byte but by leaving out the chunk that the hook asked for itself; it keeps the bytes of one event, or of one JSON body,
and none that it has read.

An event that tells a usage need not be the last word: some servers tell what was used so far with every chunk. So a
reading is `ready` when an event says that it is final, or when the answer has come to its own end.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from token_budget.metering import _shapes

LONGEST = 64 << 20  # bytes of one event or body; what is longer is not read

_OPENED = 0  # nothing has come yet
_LINES = 1  # server-sent events, or a JSON object on each line
_BODY = 2  # one JSON document
_OPAQUE = 3  # nothing to be found
_OVER = 4  # the usage is known

_MARKS = {"gemini": b'"usageMetadata"', "ollama": b'"eval_count"'}
_MARK = b'"usage"'
_NULL = b'"usage":null'
_ENDS = (".completed", ".incomplete", ".failed", ".done", "message_stop", "message-end")
_TEXTS = frozenset(
    {"content", "text", "delta", "arguments", "partial_json", "thinking", "reasoning", "reasoning_content"}
)


class Watch:
    """Looks at the bytes of one answer.

    Args:
        shape: How the request's body is read (`Route.shape`): tells what to look for.
        choices: How many answers were asked for; each of them ends by itself.
        content_type: Of the response.
        encoding: The content encoding of the response.
        strip: Leave out the chunk that tells the usage alone, and decode for the caller.
        framed: Whether the transport can tell a cut answer from a whole one.
        counting: Whether to count the text that passes by.
    """

    __slots__ = (
        "_choices",
        "_counting",
        "_framed",
        "_inflater",
        "_late",
        "_latest",
        "_mark",
        "_mode",
        "_rest",
        "_shape",
        "_size",
        "_sum",
        "_type",
        "ready",
        "strip",
        "text_bytes",
    )

    def __init__(
        self,
        *,
        shape: str = "",
        choices: int = 1,
        content_type: bytes = b"",
        encoding: bytes = b"",
        strip: bool = False,
        framed: bool = True,
        counting: bool = False,
    ) -> None:
        self._shape = shape
        self._choices = choices
        self._type = content_type
        self._framed = framed
        self._counting = counting
        self._mark = _MARKS.get(shape.partition("-")[0], _MARK)
        self._mode = _OPENED
        self._rest: list[bytes] = []
        self._size = 0  # of what is kept in `_rest`
        self._latest: _shapes.Reading | None = None
        self._late = b""  # a line with a usage that is not parsed yet: only the last of its kind counts
        self._sum = False  # whether the latest reading holds for all that has passed by
        self._inflater: Any = None
        self.strip = strip
        self.ready: _shapes.Reading | None = None  # to be settled
        self.text_bytes = 0
        if encoding not in {b"", b"identity"}:
            self._decode(encoding)

    def _decode(self, encoding: bytes) -> None:
        if encoding in {b"gzip", b"deflate"}:
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip and zlib, by their first bytes
        else:
            self._mode, self.strip = _OPAQUE, False

    @property
    def decodes(self) -> bool:
        """Whether the caller gets the bytes decoded."""
        return self.strip and self._inflater is not None

    def feed(self, raw: bytes) -> bytes:
        """Look at the next bytes; return those that the caller gets."""
        if self._mode >= _OPAQUE and not self.strip:
            return raw
        plain = raw if self._inflater is None else self._inflate(raw)
        kept = self._take(plain)
        return kept if self.strip else raw

    def end(self) -> bytes:
        """Take note that the answer has come to its own end; return what the caller still gets."""
        kept = b"".join(self._rest)
        self._rest.clear()
        if self._mode == _LINES:
            kept = self._look(kept)
            so_far = self.so_far() if self._framed else None
            if so_far is not None and self.ready is None:
                self._settle(so_far)
        elif self._mode == _BODY:
            self._read_body(kept)
            kept = b""  # the caller has it
        return kept if self.strip else b""

    def so_far(self) -> _shapes.Reading | None:
        """Return the usage of all that has passed by, if the provider told it; None if it did not."""
        late, self._late = self._late, b""
        for line in late.splitlines():
            if self._mark in line:
                self._read_event(line)
        return self._latest if self._sum else None

    def seen(self) -> int:
        """Return how many tokens of output passed by, at most: as many as the provider told, or as there are bytes."""
        so_far = self.so_far()
        return self.text_bytes if so_far is None else so_far.usage.output_tokens

    # ---------------------------------------------------------------- bytes

    def _inflate(self, raw: bytes) -> bytes:
        try:
            return self._inflater.decompress(raw)  # type: ignore[no-any-return]
        except zlib.error:
            if self._mode == _OPENED:  # deflate without its header, as some servers send it
                self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
                try:
                    return self._inflater.decompress(raw)  # type: ignore[no-any-return]
                except zlib.error:
                    pass
            if self.strip:
                raise
            self._mode = _OPAQUE
            return b""

    def _take(self, plain: bytes) -> bytes:
        """Look at decoded bytes; return those that are whole lines, less what is left out."""
        if self._mode == _OPENED:
            self._begin(plain)
        if self._mode != _LINES:
            if self._mode == _BODY:
                self._keep(plain)
            elif self._rest:  # the last lines were whole, and what followed them is not read any more
                plain = b"".join([*self._rest, plain])
                self._rest.clear()
            return plain
        end = plain.rfind(b"\n") + 1
        lines = plain
        if self._rest or end != len(plain):
            if not end:
                return self._keep(plain)
            lines = b"".join([*self._rest, plain[:end]])
            self._rest, self._size = [plain[end:]] if end != len(plain) else [], len(plain) - end
        if self._counting:
            self._count(lines)
        if self._mark in lines and (self._mark is not _MARK or lines.count(_MARK) != lines.count(_NULL)):
            return self._look(lines)
        if self._latest is not None and (b"[DONE]" in lines or b'"message_stop"' in lines):
            self._settle(self._latest)
        return lines

    def _begin(self, plain: bytes) -> None:
        """Tell by the first bytes what comes."""
        head = plain.lstrip()[:8]
        if not head:
            return
        if b"event-stream" in self._type or head.startswith((b"data:", b"event:", b"id:", b"retry:", b":")):
            self._mode = _LINES
        elif head[:1] in b"{[":
            by_line = b"ndjson" in self._type or b"jsonl" in self._type
            self._mode = _LINES if by_line and head[:1] == b"{" else _BODY
        else:
            self._mode = _OPAQUE

    def _keep(self, plain: bytes) -> bytes:
        """Keep bytes until the rest of them comes; return what need not wait."""
        self._rest.append(plain)
        self._size += len(plain)
        if self._size <= LONGEST:
            return b""
        kept = b"".join(self._rest) if self._mode == _LINES else b""
        self._mode = _OPAQUE
        self._rest.clear()
        return kept

    # ---------------------------------------------------------------- events

    def _look(self, lines: bytes) -> bytes:
        """Read the events in these lines that tell a usage; return the lines less the one that is left out."""
        if self._mark not in lines:
            return lines
        if self._shape == "gemini-generate" and b'"finishReason"' not in lines:
            self._late = lines  # every chunk tells the sum so far
            return lines
        kept, left_out = [], False
        for line in lines.splitlines(keepends=True):
            if left_out and not line.strip():  # the end of the event
                continue
            left_out = self._mark in line and self._mode == _LINES and self._read_event(line) and self.strip
            if not left_out:
                kept.append(line)
        return b"".join(kept) if self.strip else lines

    def _read_event(self, line: bytes) -> bool:
        """Read one line; return whether it tells the usage of a chat and nothing else."""
        if not line.lstrip().startswith((b"data:", b"{")):
            return False
        self._late = b""
        try:
            event = json.loads(line[line.find(b"{") :])
            latest = _shapes.read_event(event, self._latest)
            alone = event.get("choices") == [] and isinstance(event.get("usage"), dict)
            # Where the extra chunk is to be left out it is waited for, also after others that tell a usage.
            final = _is_final(event, 0 if self.strip else self._choices)
        except Exception:  # noqa: BLE001 - whatever a provider sends: it is charged in full, and the answer goes on
            self._latest, self._mode = None, _OPAQUE
            return False
        self._latest, self._sum = latest, not isinstance(event.get("type"), str)
        if final and latest is not None:
            self._settle(latest)
        return alone

    def _settle(self, reading: _shapes.Reading) -> None:
        self.ready, self._mode = reading, _OVER

    def _read_body(self, body: bytes) -> None:
        try:
            self.ready = _shapes.read(json.loads(body))
        except Exception:  # noqa: BLE001 - as in `_read_event`
            self._mode = _OPAQUE
        else:
            self._mode = _OVER

    def _count(self, lines: bytes) -> None:
        for line in lines.splitlines():
            start = line.find(b"{")
            if start >= 0:
                try:
                    self.text_bytes += _text_bytes(json.loads(line[start:]))
                except (ValueError, RecursionError):
                    self.text_bytes += len(line)


def _is_final(event: dict[str, Any], choices: int) -> bool:
    """Return whether no later event tells more."""
    kind = event.get("type")
    if isinstance(kind, str):
        if kind == "message_delta":
            return bool((event.get("delta") or {}).get("stop_reason"))
        return kind.endswith(_ENDS)
    if event.get("choices") == [] or event.get("done") is True:
        return True
    answers = event.get("choices") or event.get("candidates") or ()
    return choices == 1 and any(one.get("finish_reason") or one.get("finishReason") for one in answers)


def _text_bytes(value: Any) -> int:
    """Return how many bytes of text the model wrote into one event."""
    total = 0
    for key, inner in value.items() if isinstance(value, dict) else ():
        if isinstance(inner, str):
            total += len(inner.encode(errors="replace")) if key in _TEXTS else 0
        elif isinstance(inner, dict):
            total += _text_bytes(inner)
        elif isinstance(inner, list):
            total += sum(map(_text_bytes, inner))
    return total
