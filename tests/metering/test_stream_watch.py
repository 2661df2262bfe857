"""The watch on an answer's bytes, by itself: wherever they are cut, and whatever they are."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooked import TOLD, delta, event
from token_budget.metering import _watch
from token_budget.metering._watch import Watch

PLAIN = [event(delta("Hel")), event(delta("lo."))]


def feed(watch: Watch, data: bytes, cuts: list[int]) -> bytes:
    """Feed the data in pieces; return what the caller gets."""
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    got = b"".join(watch.feed(data[start:end]) for start, end in pairwise(bounds))
    return got + watch.end()


ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@given(cuts=CUTS, end=ENDS, spaced=st.booleans(), strip=st.booleans(), told=st.booleans())
@settings(max_examples=300)
def test_wherever_a_stream_is_cut_the_same_is_read_and_handed_on(
    cuts: list[int], end: bytes, spaced: bool, strip: bool, told: bool
) -> None:
    separators = None if spaced else (",", ":")
    events = [delta("a", usage=None), delta('"usage":{"prompt_tokens":1}', usage=None), *([TOLD] if told else [])]
    texts = [b"data: " + json.dumps(one, separators=separators).encode() + end * 2 for one in events] + [
        b"data: [DONE]" + end * 2
    ]
    watch = Watch(shape="openai-chat", content_type=b"text/event-stream", strip=strip)
    got = feed(watch, b": hello" + end * 2 + b"".join(texts), cuts)
    expected = b": hello" + end * 2 + b"".join(text for text in texts if not (strip and told and text == texts[2]))
    assert got == expected
    assert (watch.ready is not None) == told
    if watch.ready is not None:
        assert (watch.ready.usage.input_tokens, watch.ready.usage.output_tokens) == (10, 5)


@given(
    data=st.binary(max_size=400),
    cuts=CUTS,
    strip=st.booleans(),
    counting=st.booleans(),
    encoding=st.sampled_from([b"", b"br"]),
)
@settings(max_examples=300)
def test_whatever_bytes_come_they_are_handed_on(
    data: bytes, cuts: list[int], strip: bool, counting: bool, encoding: bytes
) -> None:
    for head in (b"", b"data: ", b"{", b'data: {"usage":', b"\n\n"):
        watch = Watch(strip=strip, counting=counting, encoding=encoding)
        assert feed(watch, head + data, cuts) == head + data
        assert watch.ready is None
        assert watch.seen() >= 0


def test_what_is_too_long_to_be_kept_is_handed_on_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "LONGEST", 100)
    for strip in (False, True):
        watch = Watch(strip=strip)
        assert feed(watch, b"data: {" + b"x" * 300 + event(TOLD), [7, 50, 120, 200]) == b"data: {" + b"x" * 300 + event(
            TOLD
        )
        assert watch.ready is None
    watch = Watch()
    feed(watch, b"[" + b" " * 300 + json.dumps(TOLD).encode() + b"]", [50, 120, 200])
    assert watch.ready is None


def test_the_last_event_counts_also_without_an_end_of_line() -> None:
    watch = Watch(strip=True, shape="openai-chat")
    assert feed(watch, PLAIN[0] + event(TOLD).rstrip(), [300]) == PLAIN[0]
    assert watch.ready is not None


def test_events_of_other_kinds_that_speak_of_usage_change_nothing() -> None:
    watch = Watch(shape="openai-chat")
    data = b'event: "usage"\n: "usage"\nid: {"usage":1}\n\n' + event({"type": "noted", "text": {"usage": "see below"}})
    assert feed(watch, data + event(TOLD), []) == data + event(TOLD)
    assert watch.ready is not None


FIELDS = st.lists(st.sampled_from([b"id: 7", b"event: chunk", b"retry: 9", b"id"]), max_size=3)


@given(cuts=CUTS, end=st.sampled_from([b"\n", b"\r\n"]), before=FIELDS, after=FIELDS, finish=st.booleans())
@settings(max_examples=300)
def test_the_event_that_is_left_out_is_left_out_whole(
    cuts: list[int], end: bytes, before: list[bytes], after: list[bytes], finish: bool
) -> None:
    def whole(data: bytes) -> bytes:
        return b"".join(line + end for line in [*(one for one in before if one != b"id"), data, *after, b""])

    ending = [{**delta(""), "choices": [{"delta": {}, "finish_reason": "stop"}]}] if finish else []
    events = [whole(b"data: " + json.dumps(one).encode()) for one in (delta("a"), *ending, TOLD)]
    done = whole(b"data: [DONE]")
    watch = Watch(shape="openai-chat", content_type=b"text/event-stream", strip=True)
    assert feed(watch, b"".join([*events, done]), cuts) == b"".join([*events[:-1], done])
    assert watch.ready is not None
    watch = Watch(shape="openai-chat", content_type=b"text/event-stream", strip=True)
    assert feed(watch, b"".join(events), cuts) == b"".join(events[:-1])
    assert watch.ready is not None


def test_data_waits_for_nothing_while_an_event_may_be_left_out() -> None:
    watch = Watch(shape="openai-chat", content_type=b"text/event-stream", strip=True)
    assert watch.feed(b"id: 1\n") == b""
    assert watch.feed(b"data: {}\n") == b"id: 1\ndata: {}\n"
    assert watch.feed(b"data: {}\nid: 2\nev") == b"data: {}\n"
    assert watch.feed(b"ent: x\n") == b""
    assert watch.feed(b": ping\n") == b""
    assert watch.feed(b"\n") == b"id: 2\nevent: x\n: ping\n\n"
    assert watch.feed(b": ping\n") == b": ping\n"
    assert watch.feed(b"id: 3\n" * 1000) == b"id: 3\n" * 1000  # too many to wait
    assert watch.feed(b": a\nid: 4\n: b\n") == b": a\n"
    assert watch.feed(b": c\n" + event(TOLD) + PLAIN[0]) == b": b\n: c\n" + PLAIN[0]
    assert watch.feed(b"".join(event(TOLD).splitlines(keepends=True)[:1]) + PLAIN[0]) == PLAIN[0]


def test_a_line_of_json_among_events_is_not_left_out() -> None:
    watch = Watch(shape="openai-chat", content_type=b"text/event-stream", strip=True)
    line = json.dumps(TOLD).encode() + b"\n"
    assert feed(watch, PLAIN[0] + line, [3]) == PLAIN[0] + line
    assert watch.ready is not None


def test_the_rest_of_an_event_that_is_left_out_may_be_too_long_to_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watch, "LONGEST", 100)
    watch = Watch(shape="openai-chat", strip=True)
    assert watch.feed(event(TOLD)[:-1]) == b""
    assert watch.feed(b"x" * 300) == b""
    assert watch.told is None
    assert watch.feed(b"y") == b"y"
