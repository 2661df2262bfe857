"""Media in requests: counted by kind and size, never by their base64; what only looks like media is text."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_budget.metering import _media
from token_budget.metering._media import Media, audio_seconds, image_tokens, take
from token_budget.metering._refusals import Unmetered
from token_budget.metering._requests import read
from token_budget.metering._routes import route

CHAT = route("POST", "api.openai.com", "/v1/chat/completions")
SPEECH = route("POST", "api.openai.com", "/v1/audio/transcriptions")
BLOB = base64.b64encode(bytes(range(256)) * 400).decode()  # 102,400 bytes
SIZE = 102_400
PNG, PDF, WAV, CSV = (
    f"data:{kind};base64,{BLOB}" for kind in ("image/png", "application/pdf", "audio/wav", "text/csv")
)
DOCX = f"data:application/vnd.openxmlformats-officedocument.wordprocessingml.document;base64,{BLOB}"


LONG = "abcdEFGH1234" * 10_000  # text in which nothing looks like text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool_use", "name": "save", "input": {"format": "png", "data": LONG}},
        {"type": "tool_use", "name": "save", "input": {"images": [LONG]}},
        {"type": "tool_use", "name": "save", "input": {"deep": [{"name": "x", "input": {"file_data": LONG}}]}},
        {"toolUse": {"name": "save", "input": {"image": {"format": "png", "source": {"bytes": LONG}}}}},
        {"toolResult": {"toolUseId": "t", "content": [{"json": {"format": "png", "data": LONG}}]}},
        {"functionCall": {"name": "save", "args": {"mimeType": "image/png", "data": LONG}}},
        {"functionResponse": {"name": "shot", "response": {"mimeType": "image/png", "data": LONG}}},
        {"functionResponse": {"name": "shot", "response": {"audio": {"id": 1, "text": LONG}}}},
    ],
)
def test_arguments_and_results_of_tools_are_text_whatever_they_look_like(part: Any) -> None:
    assert tokens(part)[0] > len(LONG) * 0.7
    body = json.dumps({"model": "m", "messages": [{"content": [part]}]}).encode()
    found = read(CHAT, {}, body, estimate="bytes")
    assert found is not None
    assert found.worst.input_tokens >= len(body)


def test_images_beside_the_text_of_a_tool_s_result_are_media() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BLOB}}
    for part in ({"type": "tool_result", "content": [image]}, {"name": "x", "input": "text", "parts": [image]}):
        assert 1600 <= tokens(part)[0] < 1700


def tokens(part: Any, model: str = "gpt-4o") -> tuple[int, int]:
    """Return the tokens that a part of a message adds to an empty message, and how many are audio."""

    def count(content: Any) -> Any:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]})
        found = read(CHAT, {}, body.encode())
        assert found is not None
        return found.worst

    found, empty = count([part]), count([])
    return found.input_tokens - empty.input_tokens, found.audio_input_tokens


@pytest.mark.parametrize(
    ("part", "least"),
    [
        ({"type": "image_url", "image_url": {"url": PNG}}, 1600),
        ({"type": "image_url", "image_url": PNG}, 1600),
        ({"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}, 1600),
        ({"type": "input_image", "image_url": PNG, "detail": "auto"}, 1600),
        ({"type": "input_image", "file_id": "file-1"}, 1600),
        ({"type": "input_image", "file_id": PNG}, 1600),
        ({"type": "input_image", "image_url": "file-1"}, 1600),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BLOB}}, 1600),
        ({"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}}, 1600),
        ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, 1600),
        ({"inlineData": {"mimeType": "image/png", "data": BLOB}}, 1600),
        ({"inline_data": {"mime_type": "image/jpeg", "data": BLOB}}, 1600),
        ({"fileData": {"mimeType": "image/png", "fileUri": "gs://b/x.png"}}, 1600),
        ({"image": {"format": "png", "source": {"bytes": BLOB}}}, 1600),
        ({"image": {"format": "png", "source": {"s3Location": {"uri": "s3://b/x.png"}}}}, 1600),
        ({"images": [BLOB, BLOB]}, 3200),
        ({"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": BLOB}, 1600),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}}, 5120),
        ({"type": "input_file", "file_data": BLOB}, 5120),
        ({"type": "input_file", "file_data": DOCX}, SIZE // 4),
        ({"type": "file", "file": {"file_id": "file-1"}}, 3000),
        ({"type": "input_file", "file_url": "https://example.org/a.pdf"}, 3000),
        ({"type": "document_url", "document_url": "https://example.org/a.pdf"}, 3000),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": BLOB}}, 5120),
        ({"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}}, 3000),
        ({"document": {"format": "pdf", "name": "a", "source": {"bytes": BLOB}}}, 5120),
        ({"document": {"format": "csv", "name": "a", "source": {"bytes": BLOB}}}, SIZE * 7 // 10),
        ({"type": "file", "file": {"file_data": CSV}}, SIZE * 7 // 10),
        ({"video": {"format": "mp4", "source": {"bytes": BLOB}}}, 3000),
        ({"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}, 30_000),
        ({"fileData": {"fileUri": "https://www.youtube.com/watch?v=1"}}, 30_000),
        ({"fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/x"}}, 30_000),
        ({"role": "assistant", "audio": {"id": "audio_1"}}, 3000),
    ],
)
def test_media_are_counted_by_their_kind(part: dict[str, Any], least: int) -> None:
    found, audio = tokens(part)
    assert least <= found < least + 130
    assert audio == 0


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "input_audio", "input_audio": {"data": BLOB, "format": "wav"}}, 13 * 32),
        ({"type": "input_audio", "input_audio": {"data": BLOB, "format": "mp3"}}, 26 * 32),
        ({"type": "input_audio", "input_audio": BLOB}, 69 * 32),
        ({"type": "audio_url", "audio_url": {"url": WAV}}, 13 * 32),
        ({"type": "input_audio", "input_audio": "https://example.org/a.mp3"}, 30_000),
        ({"inlineData": {"mimeType": "audio/ogg", "data": BLOB}}, 69 * 32),
        ({"fileData": {"mimeType": "audio/mpeg", "fileUri": "gs://b/x"}}, 30_000),
    ],
)
def test_recordings_are_counted_by_their_seconds_and_billed_as_audio(part: dict[str, Any], expected: int) -> None:
    found, audio = tokens(part)
    assert audio == expected
    assert expected <= found < expected + 60


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": PNG},
        PNG,
        {"type": "text", "media_type": "text/plain", "data": BLOB},
        {"data": BLOB},
        {"data": BLOB, "format": "zip"},
        {"data": BLOB, "format": 7},
        {"data": "not base64! " * 5000, "format": "png"},
        {"data": BLOB[:5000] + "é" * 30_000, "format": "png"},
        {"image_url": "plain words " * 5000},
        {"image_url": {"url": ["plain words " * 5000]}},
        {"image_url": "data:text/plain," + "plain " * 9000},
        {"image_url": "data:" + "plain " * 9000},
        {"file_data": "plain words " * 5000},
        {"file_data": ["plain words " * 5000]},
        {"source": "plain words " * 5000},
        {"source": {"type": "text", "data": "plain words " * 5000}},
        {"source": {"bytes": ["plain words " * 5000]}},
        {"format": "zip", "source": {"bytes": BLOB}},
        {"images": ["plain words " * 5000]},
        {"images": "plain words " * 5000},
        {"type": "image_generation_call", "result": "plain words " * 5000},
        {"type": "image_generation_call", "result": ["plain words " * 5000]},
        {"type": "function_call_output", "result": BLOB},
        {"images": [7, "plain words " * 5000]},
        {"audio": {"voice": "plain words " * 5000}},
        {"audio": "plain words " * 5000},
        {"file_id": ["plain words " * 5000]},
    ],
)
def test_what_is_not_surely_media_is_text(part: Any) -> None:
    assert tokens(part)[0] > 15_000


@pytest.mark.parametrize(
    ("model", "detail", "expected"),
    [
        ("gpt-4o", None, 1600),
        ("gpt-4o-mini-2024-07-18", None, 48_200),
        ("gpt-4o-mini", "low", 2900),
        ("openai/GPT-4.1-nano", "high", 3800),
        ("gpt-5.4", None, 3000),
        ("gpt-5.4", "original", 12_000),
        ("claude-3-5-sonnet-latest", None, 1600),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", None, 1600),
        ("claude-opus-4-7", None, 4800),
        ("claude-next", None, 4800),
        ("gemini-2.5-pro", None, 1600),
        ("gemini-3-pro", None, 2400),
        (None, None, 1600),
    ],
)
def test_an_image_costs_the_most_that_the_model_makes_of_one(model: str | None, detail: Any, expected: int) -> None:
    assert image_tokens(model, detail) == expected


def test_a_detail_that_is_no_text_is_no_detail() -> None:
    part = {"type": "image_url", "image_url": {"url": PNG, "detail": ["low"]}}
    assert 48_200 <= tokens(part, "gpt-4o-mini")[0] < 48_400
    low = {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}
    assert 2900 <= tokens(low, "gpt-4o-mini")[0] < 3000


def test_seconds_are_by_format_and_rounded_up() -> None:
    assert audio_seconds(8001, "wav") == 2
    assert audio_seconds(8001, "audio/x-wav") == 2
    assert audio_seconds(8001, "mp3") == 3
    assert audio_seconds(8001, "who knows") == 6
    assert audio_seconds(0, "mp3") == 0


@given(node=st.dictionaries(st.sampled_from(sorted(_media.KEYS)) | st.text(max_size=5), st.text() | st.integers()))
def test_all_that_is_not_media_is_given_back(node: dict[str, Any]) -> None:
    found = Media()
    left = take(node, None, found)
    assert len(left) <= len(node)
    assert found != Media() or left == list(node.values())


# ---------------------------------------------------------------- more pieces than anybody sends


@pytest.mark.parametrize("kind", ["list", "keys", "objects"])
def test_a_body_of_very_many_pieces_is_counted_whole(kind: str) -> None:
    many = {"list": [1] * 300_000, "keys": {str(key): 1 for key in range(300_000)}, "objects": [{"a": [1]}] * 150_000}[
        kind
    ]
    for mark in ({}, {"cache_control": {"ttl": "1h"}}):
        raw = json.dumps({"messages": many, "system": [{"text": "x", **mark}], "image_url": PNG}).encode()
        found = read(CHAT, {}, raw)
        assert found is not None
        assert found.worst.input_tokens > 300_000
        assert found.worst.cache_creation_1h_input_tokens == (found.worst.input_tokens if mark else 0)


# ---------------------------------------------------------------- forms


def form(*parts: tuple[str, str | None, bytes]) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a form: its fields, and its files by their names."""
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"\r\nContent-Type: audio/mpeg' if filename else ""
        body += f'--b0und\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return {"content-type": "multipart/form-data; boundary=b0und"}, body + b"--b0und--\r\n"


def test_a_form_names_its_model_and_its_recording_is_bounded_by_size() -> None:
    headers, body = form(
        ("model", None, b"gpt-4o-transcribe"), ("stream", None, b"true"), ("file", "a.mp3", b"x" * 400_000)
    )
    found = read(SPEECH, headers, body)
    assert found is not None
    assert (found.operation, found.model, found.stream, found.limited) == (
        "transcription",
        "gpt-4o-transcribe",
        True,
        True,
    )
    assert found.worst.audio_input_tokens == 100 * 32
    assert 3200 <= found.worst.input_tokens < 3250
    assert found.worst.output_tokens == 200 + 100 * 8
    assert found.body is body


def test_a_file_whose_format_is_not_known_is_held_as_the_longest() -> None:
    for name in ("a", "a.xyz", "a.ogg"):
        headers, body = form(("file", name, b"x" * 150_000), ("model", None, b"whisper-1"))
        found = read(SPEECH, headers, body)
        assert found is not None
        assert found.worst.audio_input_tokens == 100 * 32


def test_several_files_and_a_prompt_add_up() -> None:
    headers, body = form(
        ("file", "a.wav", b"x" * 8000), ("file", "b.mp3", b"x" * 4000), ("prompt", None, b"word " * 100)
    )
    found = read(SPEECH, headers, body)
    assert found is not None
    assert found.worst.audio_input_tokens == 2 * 32
    assert found.worst.input_tokens > 2 * 32 + 150
    assert (found.model, found.stream) == (None, False)


def test_a_model_named_inside_of_a_recording_is_not_the_model() -> None:
    headers, body = form(("file", "a.mp3", b'x name="model"\r\n\r\nfake\r\n'), ("model", None, b"real"))
    found = read(SPEECH, headers, body)
    assert found is not None
    assert found.model == "real"


def test_a_deployment_of_azure_is_the_model() -> None:
    where = route("POST", "x.openai.azure.com", "/openai/deployments/mine/audio/transcriptions")
    headers, body = form(("file", "a.mp3", b"x"), ("model", None, b"other"))
    found = read(where, {**headers, "x-stainless-retry-count": "1"}, body)
    assert found is not None
    assert (found.model, found.retried) == ("mine", True)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("", b"x"),
        ("application/json", b"{}"),
        ("multipart/form-data", b"--b0und--"),
        ("multipart/form-data; boundary=", b"--b0und--"),
        ("multipart/form-data; boundary=other", b"--b0und--"),
    ],
)
def test_a_form_that_cannot_be_read_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(Unmetered, match="no form"):
        read(SPEECH, {"content-type": content_type}, body)


def test_a_quoted_boundary_is_read() -> None:
    _, body = form(("model", None, b"m"))
    found = read(SPEECH, {"content-type": 'multipart/form-data; boundary="b0und"; charset=utf-8'}, body)
    assert found is not None
    assert found.model == "m"


@given(body=st.binary(max_size=200))
def test_any_form_is_read_or_refused(body: bytes) -> None:
    for raw in (body, b"--b0und" + body + b"--b0und--"):
        try:
            found = read(SPEECH, {"content-type": "multipart/form-data; boundary=b0und"}, raw)
        except Unmetered:
            continue
        assert found is not None
