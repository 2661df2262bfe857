"""Watch: finds the usage in an answer while its bytes pass by, event by event or as a whole.

What always holds: a watch raises nothing but `zlib.error`, and that only where it decodes for the caller; it changes no
byte but by leaving out the event that the hook asked for itself, whole; it keeps the bytes of one event, or of one JSON
body, and none that it has read. Of an image that a tool made it keeps the size and the like.

An event that tells a usage need not be the last word: some servers tell what was used so far with every chunk, or at
first that nothing was. So a reading is `ready` when an event says that it is final, or when the answer has come to its
own end. Where the caller leaves before that, the latest is taken if it came with the end of the text, and nothing since
(`told`). One that counts no output, or none of what was written since, is `untold`, if anything was written.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

from token_budget.metering import _shapes
from token_budget.metering._images import CALL, brief, is_made
from token_budget.metering._written import text_bytes, wrote, wrote_in

LONGEST = 64 << 20  # bytes of one event or body; what is longer is not read
UNTOLD = 10**12  # tokens, which no model writes: what was seen is not known, and is charged in full

_OPENED = 0  # nothing has come yet
_LINES = 1  # server-sent events, or a JSON object on each line
_BODY = 2  # one JSON document
_OPAQUE = 3  # nothing to be found
_OVER = 4  # the usage is known

_MARKS = {"gemini": b'"usageMetadata"', "ollama": b'"eval_count"'}
_MARK = b'"usage"'
_NULL = b'"usage":null'
_GZIP = b"\x1f"
_ENDS = (".completed", ".incomplete", ".failed", ".done", "message_stop", "message-end")
_CALL = CALL.encode()
_IMAGE = re.compile(rb'"type":\s*"(?:response\.)?image_generation_call[."]')  # and no text that speaks of one
_MOST_IMAGES = 1_000  # of one answer
_FINISHED = (b'"finish_reason":"', b'"finish_reason": "')
_DONE = re.compile(rb'^data:\s*\[DONE\]|"message_stop"', re.MULTILINE)
_FIELDS = (b"event:", b"id:", b"retry:")  # of an event, beside its data
_LONGEST_FIELDS = 4096  # bytes of them that wait for their data


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
        longest: Bytes of one event or body that are kept to be read; what is longer is not read. None: `LONGEST`.
    """

    __slots__ = (
        "_choices",
        "_counting",
        "_finished",
        "_framed",
        "_gap",
        "_has_images",
        "_images",
        "_inflater",
        "_late",
        "_latest",
        "_longest",
        "_mark",
        "_mode",
        "_rest",
        "_shape",
        "_since",
        "_size",
        "_sum",
        "_told",
        "_type",
        "_wrote",
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
        longest: int | None = None,
    ) -> None:
        self._longest = LONGEST if longest is None else longest
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
        self._told: _shapes.Reading | None = None
        self._wrote = False  # whether the model wrote anything until the latest usage
        self._since = False  # or since, so that no usage counts it
        self._has_images = False  # whether an image is in the making, or made
        self._images: list[dict[str, Any]] = []  # those that were made
        self._finished = 0  # how many answers have ended, of those that were asked for
        self._gap = False  # whether the rest of an event is left out
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
        if self._mode == _LINES or self._gap:
            kept = self._look(kept)
        if self._mode == _LINES:
            so_far = self.so_far() if self._framed else None
            if so_far is not None and self.ready is None:
                self._settle(so_far)
        elif self._mode == _BODY:
            self._read_body(kept)
            kept = b""  # the caller has it
        return kept if self.strip else b""

    @property
    def told(self) -> _shapes.Reading | None:
        """The usage that came with the end of the text, if nothing but the end of the answer can follow."""
        told = self._told
        return None if told is None or self._is_untold(told) or any(b"{" in part for part in self._rest) else told

    def so_far(self) -> _shapes.Reading | None:
        """Return the usage of all that has passed by, if the provider told it; None if it did not."""
        late, self._late = self._late, b""
        since = self._since  # what came after that
        for line in late.splitlines():
            if self._mark in line:
                self._read_event(line)
            else:
                self._pass(line)
        self._since = self._since or since
        return self._latest if self._sum else None

    def seen(self) -> int:
        """Return how many tokens of output passed by, at most: as many as the provider told, or as there are bytes.

        Nobody can tell of what is not read as events, a JSON body or a page, and it was written as a whole: `UNTOLD`.
        So it is where an image is on its way, for only the end tells what that costs.
        """
        if self._has_images or (self._mode != _LINES and not (self._mode == _OPENED and b"event-stream" in self._type)):
            return UNTOLD
        so_far = self.so_far()
        if so_far is None:
            return self.text_bytes
        told = so_far.usage.output_tokens
        return told + self.text_bytes if self._is_untold(so_far) else told

    # ---------------------------------------------------------------- bytes

    def _inflate(self, raw: bytes) -> bytes:
        try:
            return self._members(raw)
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

    def _members(self, raw: bytes) -> bytes:
        """Unpack bytes, also where the packed data ends and begins anew: some servers pack each event by itself."""
        if not self._inflater.eof:
            plain: bytes = self._inflater.decompress(raw)
            if not self._inflater.eof:
                return plain
            parts, raw = [plain], self._inflater.unused_data
        else:
            parts = []
        while raw.startswith(_GZIP):
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
            parts.append(self._inflater.decompress(raw))
            raw = self._inflater.unused_data
        return b"".join(parts)

    def _take(self, plain: bytes) -> bytes:
        """Look at decoded bytes; return those that are whole lines, less what is left out."""
        if self._mode == _OPENED:
            self._begin(plain)
        if self._mode != _LINES and not self._gap:
            return self._hand_on(plain)
        if self._rest or plain[-2:] != b"\n\n":  # else whole events, as most come
            plain = self._whole_lines(plain)
        if self._counting:
            self._count(plain)
        kept = plain
        if self._gap or (self._mark in plain and (self._mark is not _MARK or plain.count(_MARK) != plain.count(_NULL))):
            kept = self._look(plain)
        elif self._mode == _LINES:
            self._pass(plain)
        if self._latest is not None and self._mode == _LINES and _DONE.search(plain):
            self._settle(self._latest)
        return kept

    def _hand_on(self, plain: bytes) -> bytes:
        """Return bytes that are not read as lines."""
        if self._mode == _BODY:
            self._keep(plain)
        elif self._rest:  # the last lines were whole, and what followed them is not read any more
            plain = b"".join([*self._rest, plain])
            self._rest.clear()
        return plain

    def _whole_lines(self, plain: bytes) -> bytes:
        """Return the lines that are whole by now, and keep the rest."""
        end = plain.rfind(b"\n") + 1
        if not end:
            return self._keep(plain) if plain else b""
        lines = b"".join([*self._rest, plain])
        end += len(lines) - len(plain)
        if self.strip:
            end = _before_fields(lines, end)
        self._rest, self._size = [lines[end:]] if end != len(lines) else [], len(lines) - end
        return lines[:end]

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
        if self._size <= self._longest:
            return b""
        kept = b"".join(self._rest) if self._mode == _LINES and not self._gap else b""
        self._mode, self._told, self._gap = _OPAQUE, None, False
        self._rest.clear()
        return kept

    # ---------------------------------------------------------------- events

    def _look(self, lines: bytes) -> bytes:
        """Read the events in these lines that tell a usage; return the lines less the event that is left out."""
        if self._shape == "gemini-generate" and self._mark in lines and b'"finishReason"' not in lines:
            self._wrote = self._wrote or self._since or wrote_in(lines)
            self._late, self._told, self._since = lines, None, False  # every chunk tells the sum so far
            return lines
        kept: list[bytes] = []
        for line in lines.splitlines(keepends=True):
            if self._gap:
                self._gap = bool(line.strip()) and not line.startswith(b"data:")
                if not line.startswith(b"data:"):
                    continue
            alone = False
            if self._mark in line and self._mode == _LINES:
                alone = self._read_event(line)
            else:
                self._pass(line)
            if alone and self.strip and line.startswith(b"data:"):
                self._gap = True
                _leave_out_fields(kept)
            else:
                kept.append(line)
        return b"".join(kept) if self.strip else lines

    def _pass(self, lines: bytes) -> None:
        """Note what passes by that tells no usage."""
        if self._told is not None and b"{" in lines:
            self._told = None
        if not self._since:
            self._since = wrote_in(lines)
        if self._shape == "openai-responses" and lines.find(_CALL) >= 0 and _IMAGE.search(lines):
            self._note_images(lines)
        self._finished += _finishes(lines)

    def _note_images(self, lines: bytes) -> None:
        """Note the images that pass by: some servers leave them out of the last event, and do not tell their usage."""
        self._has_images = True
        for line in lines.splitlines():
            if _CALL in line and b".output_item.done" in line:
                try:
                    item = json.loads(line[line.find(b"{") :])["item"]
                    self._images += [brief(item)] if is_made(item) else []
                    self._mode = self._mode if len(self._images) <= _MOST_IMAGES else _OPAQUE
                except Exception:  # noqa: BLE001 - as in `_read_event`
                    self._mode = _OPAQUE

    def _read_event(self, line: bytes) -> bool:
        """Read one line; return whether it tells the usage of a chat and nothing else."""
        if not line.lstrip().startswith((b"data:", b"{")):
            return False
        self._late, before = b"", self._latest
        try:
            event = json.loads(line[line.find(b"{") :])
            response = event.get("response")
            if self._images and isinstance(response, dict) and not response.get("output"):
                response["output"] = self._images
            latest = _shapes.read_event(event, before)
            alone = event.get("choices") == [] and isinstance(event.get("usage"), dict)
            final = _is_final(event, finished=self._finished >= self._choices)
            ends = _may_be_final(event, self._choices)
            self._note(event, tells=latest is not before and _tells_output(event))
        except Exception:  # noqa: BLE001 - whatever a provider sends: it is charged in full, and the answer goes on
            self._latest, self._told, self._mode = None, None, _OPAQUE
            return False
        self._latest, self._sum = latest, not isinstance(event.get("type"), str)
        self._told = latest if ends and latest is not before else None
        self._finished += _finishes(line)
        if final and latest is not None:
            self._settle(latest)
        return alone

    def _note(self, event: dict[str, Any], *, tells: bool) -> None:
        """Note what the model wrote into an event. ``tells``: its usage counts what was written until then."""
        self._wrote = self._wrote or self._since or wrote(event)
        self._since = not tells and (self._since or wrote(event))

    def _is_untold(self, reading: _shapes.Reading) -> bool:
        return self._since or (self._wrote and _shapes.is_silent(reading.usage))

    def _settle(self, reading: _shapes.Reading) -> None:
        self.ready, self._mode = reading._replace(untold=self._is_untold(reading)), _OVER

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
                    self.text_bytes += text_bytes(json.loads(line[start:]))
                except (ValueError, RecursionError):
                    self.text_bytes += len(line)


def _finishes(lines: bytes) -> int:
    """Return how many answers end in these lines."""
    if lines.find(_FINISHED[0]) < 0 and lines.find(_FINISHED[1]) < 0:
        return 0
    return lines.count(_FINISHED[0]) + lines.count(_FINISHED[1])  # `in` takes three times as long


def _before_fields(lines: bytes, end: int) -> int:
    """Return where an event begins at the end of these lines whose data has not come; ``end`` if none does."""
    first = before = end
    while before and end - before < _LONGEST_FIELDS:
        start = lines.rfind(b"\n", 0, before - 1) + 1
        if lines.startswith(_FIELDS, start):
            first = start
        elif not lines.startswith(b":", start):  # a comment may stand between
            return first
        before = start
    return end if before else first


def _leave_out_fields(lines: list[bytes]) -> None:
    """Remove the fields at the end of these lines; comments between them stay."""
    first = len(lines)
    while first and lines[first - 1].startswith((*_FIELDS, b":")):
        first -= 1
    lines[first:] = [line for line in lines[first:] if line.startswith(b":")]


def _is_final(event: dict[str, Any], *, finished: bool) -> bool:
    """Return whether no later event tells more. ``finished``: an earlier one has ended an answer."""
    kind = event.get("type")
    if isinstance(kind, str):
        if kind == "message_delta":
            return bool((event.get("delta") or {}).get("stop_reason"))
        return kind.endswith(_ENDS)
    return event.get("done") is True or (event.get("choices") == [] and finished)


def _tells_output(event: dict[str, Any]) -> bool:
    """Return whether the usage of an event is the output until then. Anthropic's later ones need not tell any."""
    return event.get("type") != "message_delta" or bool((event.get("usage") or {}).get("output_tokens"))


def _may_be_final(event: dict[str, Any], choices: int) -> bool:
    """Return whether a later event need not tell more: the event ends the one answer, or tells the usage alone."""
    if event.get("choices") == []:
        return True
    answers = event.get("choices") or event.get("candidates") or ()
    return choices == 1 and any(one.get("finish_reason") or one.get("finishReason") for one in answers)
