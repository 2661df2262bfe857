"""A provider on loopback that keeps its own books: what it generated is billed, whether it could tell it or not.

A word in brackets in the prompt says what goes wrong: ``[429]`` once, ``[500]``, ``[hang]``, ``[reset]``, ``[cut]``,
``[nousage]``, ``[nullusage]``; ``[gzip]`` packs the answer.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("[429]", "[500]", "[hang]", "[reset]", "[cut]", "[nousage]", "[nullusage]", "[gzip]")
WORDS = ["Hel", "lo", ", ", "you", "."]


class Provider:
    """The provider: ``with Provider() as provider``."""

    def __init__(self) -> None:
        self.requests: list[str] = []  # the path of each request
        self.bills: list[tuple[int, int]] = []  # input and output tokens of each answer
        self.closed = threading.Event()
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.provider = self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def billed(self) -> tuple[int, int]:
        """All input tokens, all output tokens."""
        with self._lock:
            return sum(bill[0] for bill in self.bills), sum(bill[1] for bill in self.bills)

    def bill(self, tokens: tuple[int, int]) -> None:
        with self._lock:
            self.bills.append(tokens)

    def busy(self, key: str) -> bool:
        """Return whether a request is turned away: every second one."""
        with self._lock:
            if key in self._busy:
                self._busy.remove(key)
                return False
            self._busy.add(key)
            return True

    def __enter__(self) -> Provider:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    provider: Provider

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients leave early on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.server.provider.requests.append(self.path)
        self._json({"object": "list", "data": [], "models": []})

    def do_POST(self) -> None:
        provider = self.server.provider
        provider.requests.append(self.path)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("transfer-encoding") == "chunked":
            body = self._chunked()
        asked = json.loads(body)
        text = body.decode()
        self.faults = {fault for fault in FAULTS if fault in text}
        path = self.path.partition("?")[0]
        speaks = next((make for end, make in _ANSWERS.items() if path.endswith(end)), None)
        if speaks is None or "count" in path or "moderations" in path:
            self._json({"input_tokens": 3, "totalTokens": 3, "id": "1", "model": "m", "results": []})
            return
        if "[429]" in self.faults and provider.busy(text):
            self._json({"error": {"message": "slow down"}}, 429, {"retry-after-ms": "1"})
            return
        if "[500]" in self.faults:
            self._json({"error": {"message": "planned"}}, 500, {"retry-after-ms": "1"})
            return
        tokens = (3 + len(text) % 20, 2 + len(text) % 5)
        provider.bill(tokens)
        if "[hang]" in self.faults:
            provider.closed.wait(1.5)
            self.close_connection = True
        elif "[reset]" in self.faults:
            self._reset()
        else:
            self._answer(speaks(self, asked, *tokens))

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, answer: Any) -> None:
        if isinstance(answer, list):
            self._stream(answer)
        else:
            self._json(answer)

    def _json(self, answer: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        headers = {"content-type": "application/json", **(headers or {})}
        if "[gzip]" in getattr(self, "faults", ()) and "gzip" in self.headers.get("accept-encoding", ""):
            body, headers["content-encoding"] = gzip.compress(body), "gzip"
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: list[bytes]) -> None:
        packer: Any = None
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        if "[gzip]" in self.faults and "gzip" in self.headers.get("accept-encoding", ""):
            self.send_header("content-encoding", "gzip")
            import zlib

            packer = zlib.compressobj(wbits=31)
        self.end_headers()
        for number, event in enumerate(events):
            if "[cut]" in self.faults and number == 2:
                self.close_connection = True
                self.wfile.flush()
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = event if packer is None else packer.compress(event) + packer.flush(2)
            self._chunk(data)
        if packer is not None:
            self._chunk(packer.flush())
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.rfile.close()


# ---------------------------------------------------------------- who speaks how


def _event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def _told(handler: _Handler, usage: Any, key: str = "usage") -> dict[str, Any]:
    if "[nousage]" in handler.faults:
        return {}
    return {key: None if "[nullusage]" in handler.faults else usage}


def _chat(handler: _Handler, asked: Any, given: int, made: int) -> Any:
    usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    base = {"id": "1", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": message, "text": "hello"}
        return {**base, "object": "chat.completion", "choices": [choice], **_told(handler, usage)}
    base["object"] = "chat.completion.chunk"
    asking = (asked.get("stream_options") or {}).get("include_usage")
    null = {"usage": None} if asking else {}
    chunks = [
        {**base, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}], **null} for word in WORDS
    ]
    end = {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], **null}
    if "/openai/" in handler.path:
        end["x_groq"] = {"id": "1", **_told(handler, usage)}
    if "mistral" in handler.headers.get("user-agent", ""):
        end.update(_told(handler, usage))
    told = [{**base, "choices": [], **_told(handler, usage)}] if asking and "[nousage]" not in handler.faults else []
    return [*map(_event, [*chunks, end, *told]), _event(b"[DONE]")]


def _responses(handler: _Handler, asked: Any, given: int, made: int) -> Any:
    usage: dict[str, Any] = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    part = {"type": "output_text", "text": "".join(WORDS), "annotations": []}
    item = {"id": "i", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    whole = {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": asked["model"],
        "status": "completed",
        "error": None,
    }
    whole |= {
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": 1,
        "top_p": 1,
    }
    whole |= {"instructions": None, "metadata": {}, "incomplete_details": None}
    if not asked.get("stream"):
        return {**whole, **_told(handler, usage)}
    at = {"item_id": "i", "output_index": 0, "content_index": 0}
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    empty = {**part, "text": ""}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **at, "part": empty},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in WORDS),
        {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {**whole, **_told(handler, usage)}},
    ]
    return [_event({**event, "sequence_number": n}, event["type"]) for n, event in enumerate(events)]


def _embeddings(handler: _Handler, asked: Any, given: int, _: int) -> Any:
    provider = handler.server.provider
    provider.bills[-1] = (given, 0)
    usage = {"prompt_tokens": given, "total_tokens": given, "completion_tokens": 0}
    vector: Any = [0.5, 0.25]
    if asked.get("encoding_format") == "base64":
        vector = "AAAAPwAAgD4="
    item = {"object": "embedding", "index": 0, "embedding": vector}
    return {"id": "1", "object": "list", "model": asked["model"], "data": [item], **_told(handler, usage)}


def _messages(handler: _Handler, asked: Any, given: int, made: int) -> Any:
    message = {"id": "1", "type": "message", "role": "assistant", "model": asked["model"], "stop_sequence": None}
    if not asked.get("stream"):
        told = _told(handler, {"input_tokens": given, "output_tokens": made})
        return {**message, "content": [{"type": "text", "text": "".join(WORDS)}], "stop_reason": "end_turn", **told}
    begun = {**message, "content": [], "stop_reason": None, "usage": {"input_tokens": given, "output_tokens": 1}}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in WORDS),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": end, "usage": {"output_tokens": made}},
        {"type": "message_stop"},
    ]
    return [_event(event, event["type"]) for event in events]


def _gemini(handler: _Handler, asked: Any, given: int, made: int) -> Any:
    def part(text: str, count: int, **end: Any) -> dict[str, Any]:
        usage = {"promptTokenCount": given, "candidatesTokenCount": count, "totalTokenCount": given + count}
        content = {"role": "model", "parts": [{"text": text}]}
        told = _told(handler, usage, "usageMetadata")
        return {"candidates": [{"content": content, "index": 0, **end}], "modelVersion": "m", **told}

    if "stream" not in handler.path:
        return part("".join(WORDS), made, finishReason="STOP")
    return [_event(part(word, 1)) for word in WORDS] + [_event(part("", made, finishReason="STOP"))]


def _gemini_embeddings(handler: _Handler, _asked: Any, given: int, _made: int) -> Any:
    handler.server.provider.bills[-1] = (given, 0)
    return {"embeddings": [{"values": [0.5]}], "embedding": {"values": [0.5]}}


_ANSWERS = {
    "/completions": _chat,
    "/responses": _responses,
    "/embeddings": _embeddings,
    "/messages": _messages,
    "count_tokens": _messages,
    ":generateContent": _gemini,
    ":streamGenerateContent": _gemini,
    "mbedContents": _gemini_embeddings,
    "mbedContent": _gemini_embeddings,
}
