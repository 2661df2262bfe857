"""Media: about how many tokens an image, a recording, a document or a reference in a request is.

What always holds: media are counted by their kind and size and never as text by their base64, but only where the
request says what they are (a data URL, a MIME type or a format) and their data looks like base64; anything else is
text. The figures for images are the vendors' own, by model, and the largest that one image can cost; all others are
estimates. A reference (an id, a URL) stands for what nobody can see from here: 3,000 tokens, 30,000 for a recording or
a film.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from token_budget.metering._images import CALL
from token_budget.metering._names import MAX_NAME

REFERENCE = 3_000
LONG_REFERENCE = 30_000
AUDIO_A_SECOND = 32  # tokens: Gemini's figure; OpenAI's is 10

# A model is known by the first of these that stands in its name: tokens of an image, and of one with `detail: low`.
_IMAGES = (
    ("gpt-4o-mini", 48_200, 2_900),
    ("gpt-4.1-mini", 2_500, 2_500),
    ("gpt-4.1-nano", 3_800, 3_800),
    ("gpt-5-mini", 2_500, 2_500),
    ("gpt-5-nano", 3_800, 3_800),
    ("o4-mini", 2_700, 2_700),
    ("gpt-5.", 3_000, 3_000),
    ("claude-2", 1_600, 1_600),
    ("claude-3", 1_600, 1_600),
    ("claude-haiku-4-5", 1_600, 1_600),
    ("claude-sonnet-4-0", 1_600, 1_600),
    ("claude-sonnet-4-2", 1_600, 1_600),  # claude-sonnet-4-20250514
    ("claude-sonnet-4-5", 1_600, 1_600),
    ("claude-sonnet-4-6", 1_600, 1_600),
    ("claude-opus-4-0", 1_600, 1_600),
    ("claude-opus-4-1", 1_600, 1_600),
    ("claude-opus-4-2", 1_600, 1_600),
    ("claude-opus-4-5", 1_600, 1_600),
    ("claude-opus-4-6", 1_600, 1_600),
    ("claude", 4_800, 4_800),
    ("gemini-3", 2_400, 2_400),
    ("grok", 1_800, 1_800),
    ("pixtral", 4_200, 4_200),
    ("mistral", 3_100, 3_100),
)
_IMAGE = 1_600

_KINDS = {
    "image": "image",
    "audio": "audio",
    "video": "video",
    "text": "text",
    "pdf": "pdf",
    **dict.fromkeys(("png", "jpeg", "jpg", "gif", "webp"), "image"),
    **dict.fromkeys(("wav", "mp3", "flac", "opus", "ogg", "m4a", "aac", "pcm", "pcm16", "webm"), "audio"),
    **dict.fromkeys(("mp4", "mov", "mkv", "mpeg", "mpg", "flv", "wmv", "three_gp"), "video"),
    **dict.fromkeys(("txt", "csv", "md", "html", "json", "xml"), "text"),
    **dict.fromkeys(("doc", "docx", "xls", "xlsx", "pptx", "msword"), "office"),
}

# The fewest bytes a second of speech that a format is used with; of any other, those of opus.
_BYTES_A_SECOND = {"wav": 8_000, "x-wav": 8_000, "wave": 8_000, "pcm": 16_000, "pcm16": 16_000, "flac": 8_000}
_BYTES_A_SECOND |= dict.fromkeys(("mp3", "mpeg", "mpga", "aac", "m4a", "mp4"), 4_000)
_OPUS = 1_500

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=\r\n"


@dataclass(slots=True)
class Media:
    """The media of one request, added up."""

    tokens: int = 0  # all of them
    audio: int = 0  # of these, what is billed as audio
    characters: int = 0  # of the body that are not text


def image_tokens(model: str | None, detail: object = None) -> int:
    """Return the most that one image costs a model, in tokens."""
    if detail == "original":
        return 12_000
    return _image_tokens((model or "")[:MAX_NAME], is_low=detail == "low")


@functools.lru_cache(maxsize=256)
def _image_tokens(model: str, *, is_low: bool) -> int:
    name = model.lower()
    for part, tokens, low in _IMAGES:
        if part in name:
            return low if is_low else tokens
    return _IMAGE


def audio_seconds(size: int, form: str) -> int:
    """Return the most seconds of speech that a file of ``size`` bytes holds, by its format (``mp3``, ``audio/wav``)."""
    return -(-size // _BYTES_A_SECOND.get(form.rpartition("/")[2].lower(), _OPUS))


def take(node: dict[str, Any], model: str | None, found: Media) -> list[Any]:
    """Add the media that an object of a request holds to ``found``; return its other values, which are text."""
    left = []
    for key, value in node.items():
        reader = _READERS.get(key)
        if reader is None or not reader(node, value, model, found):
            left.append(value)
    return left


def _kind(form: object) -> str | None:
    """Return the kind of a MIME type or format: image, audio, video, text, pdf, office; None if it is none of them."""
    if not isinstance(form, str):
        return None
    main, _, sub = form.lower().partition("/")
    if "officedocument" in sub or "ms-" in sub:
        return "office"
    return _KINDS.get(main) or _KINDS.get(sub)


def _is_base64(text: str) -> bool:
    return text.isascii() and not text.encode().translate(None, _BASE64)


def _add(found: Media, kind: str, form: str, size: int, model: str | None, detail: object = None) -> None:
    """Add one file of a kind, of so many bytes."""
    if kind == "audio":
        tokens = audio_seconds(size, form) * AUDIO_A_SECOND
        found.audio += tokens
    elif kind == "image":
        tokens = image_tokens(model, detail)
    elif kind == "text":
        tokens = -(-size * 7 // 10)
    elif kind == "office":
        tokens = max(REFERENCE, size // 4)
    else:  # a document of scans is large and of few tokens; a film has 300 tokens a second
        tokens = max(REFERENCE, size // (20 if kind == "pdf" else 40))
    found.tokens += tokens


def _refer(found: Media, kind: str | None, model: str | None, detail: object = None) -> None:
    """Add something that only a reference stands for."""
    if kind == "image":
        found.tokens += image_tokens(model, detail)
    elif kind in {"audio", "video"}:
        found.tokens += LONG_REFERENCE
        found.audio += LONG_REFERENCE if kind == "audio" else 0
    else:
        found.tokens += REFERENCE


def _is_address(text: str) -> bool:
    return text[:8].lower().startswith(("http://", "https://", "gs://", "s3://", "file-"))


def _data(value: str, form: object, model: str | None, found: Media, detail: object = None) -> bool:
    """Add a file in base64, as a data URL or beside its format; return False if it is text."""
    start = 0
    if value[:5] == "data:":
        head, comma, _ = value[:300].partition(",")
        if not comma or not head.endswith(";base64"):
            return False
        form, start = head[5:].split(";")[0], len(head) + 1
    kind = _kind(form)
    if (
        kind is None
        or len(value) == start
        or not _is_base64(value[start : start + 512] + value[max(start, len(value) - 512) :])
    ):
        return False
    _add(found, kind, str(form), (len(value) - start) * 3 // 4, model, detail)
    found.characters += len(value)
    return True


def _addressed(kind: str) -> Callable[[dict[str, Any], Any, str | None, Media], bool]:
    """Return the reader of a field that holds a URL or a data URL of a kind, alone or as ``{"url": ...}``."""

    def read(node: dict[str, Any], value: Any, model: str | None, found: Media) -> bool:
        detail = node.get("detail")
        if isinstance(value, dict):
            detail, value = value.get("detail", detail), value.get("url")
        if not isinstance(value, str):
            return False
        if _data(value, kind, model, found, detail):
            return True
        if _is_address(value):
            _refer(found, kind, model, detail)
            return True
        return False

    return read


def _labelled(node: dict[str, Any], value: Any, model: str | None, found: Media) -> bool:
    """Read ``data`` beside its MIME type or format."""
    if not isinstance(value, str) or node.get("type") == "text":
        return False
    for name in ("media_type", "mimeType", "mime_type", "format"):
        if name in node:
            return _data(value, node[name], model, found)
    return _data(value, None, model, found)


def _source(node: dict[str, Any], value: Any, model: str | None, found: Media) -> bool:
    """Read ``source``: Bedrock's bytes and places, Anthropic's URLs and ids of files."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("bytes"), str):
        return _data(value["bytes"], node.get("format"), model, found)
    if "s3Location" in value or value.get("type") in {"url", "file"}:
        _refer(found, _kind(node.get("type")) or _kind(node.get("format")), model)
        return True
    return False


def _reference(node: dict[str, Any], value: Any, model: str | None, found: Media) -> bool:
    """Read the id or the URI of a file, or a data URL in its place."""
    if not isinstance(value, str):
        return False
    if not _data(value, None, model, found):
        form = node.get("mimeType") or node.get("mime_type")
        kind = _kind(form) or ("image" if node.get("type") == "input_image" else None)
        _refer(found, "video" if "youtu" in value[:40] else kind, model, node.get("detail"))
    return True


def _remembered(_node: dict[str, Any], value: Any, model: str | None, found: Media) -> bool:
    """Read the id of what a model said before."""
    if not isinstance(value, dict) or "id" not in value:
        return False
    _refer(found, None, model)
    return True


def _file(_node: dict[str, Any], value: Any, model: str | None, found: Media) -> bool:
    """Read the content of a file: a data URL, else a PDF in base64."""
    return isinstance(value, str) and _data(value, "pdf", model, found)


def _images(_node: dict[str, Any], value: Any, model: str | None, found: Media) -> bool:
    """Read Ollama's images: a list of base64 and nothing else."""
    if not isinstance(value, list) or not all(isinstance(one, str) and len(one) > 64 for one in value):
        return False
    return all(_data(one, "image", model, found) for one in value)


def _drawn(node: dict[str, Any], value: Any, model: str | None, found: Media) -> bool:
    """Read an image that OpenAI's tool made before, and that comes back with the conversation: base64 alone."""
    return node.get("type") == CALL and isinstance(value, str) and _data(value, "image", model, found)


_READERS: dict[str, Callable[[dict[str, Any], Any, str | None, Media], bool]] = {
    "image_url": _addressed("image"),
    "audio_url": _addressed("audio"),
    "video_url": _addressed("video"),
    "document_url": _addressed("pdf"),
    "input_audio": _addressed("audio"),
    "audio": _remembered,
    "data": _labelled,
    "source": _source,
    "file_id": _reference,
    "file_url": _reference,
    "file_uri": _reference,
    "fileUri": _reference,
    "file_data": _file,
    "images": _images,
    "result": _drawn,
}
KEYS = frozenset(_READERS)
