"""Usage as a value, answers as objects, and random answers in every dialect against what was put into them."""

from __future__ import annotations

import collections
import copy
import dataclasses
import doctest
import json
import pickle
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_budget.metering import _usage
from token_budget.metering._shapes import Reading, UnknownUsage, read, read_event
from token_budget.metering._usage import Usage

CHAT = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
NAMES = [field.name for field in dataclasses.fields(Usage)]
MOST = 10**12
counts = st.integers(min_value=0, max_value=10**6)
usages = st.builds(Usage, **dict.fromkeys(NAMES, counts))

# ---------------------------------------------------------------- the value


def test_it_has_no_tokens_to_begin_with() -> None:
    assert Usage().to_dict() == dict.fromkeys(NAMES, 0)
    assert Usage().total_tokens == 0


def test_the_total_is_input_and_output_alone() -> None:
    usage = Usage(**{name: 10**place for place, name in enumerate(NAMES)})
    assert usage.total_tokens == 11


def test_the_example_of_the_docstring_is_true() -> None:
    tried = doctest.testmod(_usage)
    assert (tried.failed, tried.attempted) == (0, 3)


@given(usages, usages, usages)
def test_adding_is_associative_and_loses_nothing(a: Usage, b: Usage, c: Usage) -> None:
    assert (a + b) + c == a + (b + c) == sum([a, b, c])
    assert a + b == b + a
    assert a + Usage() == a
    for name in NAMES:
        assert getattr(a + b, name) == getattr(a, name) + getattr(b, name)


def test_a_sum_ends_at_the_most_that_a_usage_holds() -> None:
    most = Usage(input_tokens=10**18, output_tokens=1)
    assert most + most == Usage(**(most + most).to_dict()) == Usage(input_tokens=10**18, output_tokens=2)


@given(usages)
def test_its_dict_makes_it_again(usage: Usage) -> None:
    assert Usage(**usage.to_dict()) == usage
    assert json.loads(json.dumps(usage.to_dict())) == usage.to_dict()
    assert pickle.loads(pickle.dumps(usage + usage)) == usage + usage
    assert copy.deepcopy(usage) == usage
    assert hash(usage) == hash(Usage(**usage.to_dict()))


@given(usages)
def test_it_is_read_as_itself(usage: Usage) -> None:
    assert Usage.from_response(usage) is usage
    assert read(usage) == Reading(usage, None, None)


def test_it_cannot_be_changed() -> None:
    for usage in (Usage(input_tokens=1), Usage.from_response(CHAT)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            usage.input_tokens = 2  # type: ignore[misc]


@pytest.mark.parametrize("other", [1, 0.0, False, None, "", (), object()])
def test_it_adds_to_nothing_but_usage(other: Any) -> None:
    with pytest.raises(TypeError):
        other + Usage()
    with pytest.raises(TypeError):
        Usage() + other


@pytest.mark.parametrize("name", NAMES)
def test_a_count_is_a_plain_int_from_0(name: str) -> None:
    class Count(int):
        pass

    make: Any = Usage
    for other in (1.0, True, "1", None):
        with pytest.raises(TypeError, match=name):
            make(**{name: other})
    for outside in (-1, 10**18 + 1):
        with pytest.raises(ValueError, match=name):
            make(**{name: outside})
    assert type(getattr(Usage(**{name: Count(3)}), name)) is int


# ---------------------------------------------------------------- answers as objects


class Slots:
    __slots__ = ("choices", "model", "unset", "usage")

    def __init__(self, usage: object) -> None:
        self.usage, self.choices, self.model = usage, (), "gpt-4o"


class SlotsAndDict:
    __slots__ = ("__dict__", "__weakref__", "model")

    def __init__(self, usage: object) -> None:
        self.model, self.usage = "gpt-4o", usage


class OneSlot:
    __slots__ = "usage"  # noqa: PLC0205 - it is legal, and no iterable of names

    def __init__(self, usage: object) -> None:
        self.usage = usage


class Properties:
    def __init__(self, usage: object) -> None:
        self._private = usage

    @property
    def usage(self) -> object:
        return self._private

    @property
    def metadata(self) -> object:
        raise RuntimeError("it is closed")


class Extra:
    """Plays a pydantic model that was given a field which it does not declare."""

    def __init__(self, usage: object) -> None:
        self.__pydantic_extra__ = {"usage": usage}


NamedAnswer = collections.namedtuple("NamedAnswer", ["usage", "model"])  # noqa: PYI024
OBJECTS: dict[str, Any] = {
    "a namespace": lambda usage: SimpleNamespace(usage=usage),
    "slots": Slots,
    "slots and a dict": SlotsAndDict,
    "one slot": OneSlot,
    "properties": Properties,
    "a pydantic model's extra": Extra,
    "a named tuple": lambda usage: NamedAnswer(usage, "gpt-4o"),
    "a read-only mapping": lambda usage: MappingProxyType({"usage": usage}),
    "an ordered dict": lambda usage: collections.OrderedDict(usage=usage),
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("inner", [dict, MappingProxyType, lambda usage: SimpleNamespace(**usage)])
def test_an_object_is_read_by_its_attributes(kind: str, inner: Any) -> None:
    usage = {**CHAT, "prompt_tokens_details": inner({"cached_tokens": 8})}
    expected = Usage(input_tokens=20, output_tokens=5, cache_read_input_tokens=8)
    assert Usage.from_response(OBJECTS[kind](inner(usage))) == expected


def test_an_integer_of_a_kind_of_its_own_is_a_count() -> None:
    class Count(int):
        def __gt__(self, other: int) -> bool:
            raise AssertionError("no operator of a caller's class runs")

    usage = Usage.from_response({"usage": {"prompt_tokens": Count(3), "completion_tokens": 4}})
    assert usage == Usage(input_tokens=3, output_tokens=4)
    assert type(usage.input_tokens) is int


def test_a_name_of_a_model_is_plain_text_or_none() -> None:
    class Name(str):
        __slots__ = ()

    answer = {"model": Name("gpt-4o"), "service_tier": Name("flex"), "usage": CHAT}
    assert type(read(answer).model) is type(read(answer).service_tier) is str
    for nothing in (None, "", 7, ["gpt-4o"], {"name": "gpt-4o"}):
        assert read({"model": nothing, "service_tier": nothing, "usage": CHAT}) == Reading(
            Usage(input_tokens=20, output_tokens=5), None, None
        )


@pytest.mark.parametrize("answer", [object(), int, 7, "{}", b"{}", 1.5, {1, 2}, (), iter([]), Slots(None), NAMES])
def test_what_has_no_usage_is_never_zero(answer: object) -> None:
    with pytest.raises(UnknownUsage, match="no usage"):
        Usage.from_response(answer)


def test_the_keys_that_an_error_names_are_few_and_short() -> None:
    with pytest.raises(UnknownUsage) as caught:
        Usage.from_response(dict.fromkeys(["k" * 10**6, 7, *map(str, range(1000))]))
    assert len(caught.value.keys) == 20
    assert len(str(caught.value)) < 1000
    assert caught.value.keys[:3] == ("k" * 40, "int", "0")


def test_an_error_names_what_stands_in_the_usage_that_is_not_known() -> None:
    with pytest.raises(UnknownUsage, match=r"^no usage with a count in the keys id, usage; usage has tokens_in$"):
        Usage.from_response({"id": 1, "usage": {"tokens_in": 5}})
    with pytest.raises(UnknownUsage, match=r"^no usage in a list of 2; the last has the keys b$"):
        Usage.from_response([{"a": 1}, {"b": 1}])
    with pytest.raises(UnknownUsage, match=r"^'prompt_tokens' is no count of tokens, in a usage with the keys prompt"):
        Usage.from_response({"usage": {"prompt_tokens": -5}})


def test_of_two_usages_in_one_answer_the_larger_counts() -> None:
    small, large = {"prompt_tokens": 1, "completion_tokens": 1}, {"promptTokenCount": 5, "candidatesTokenCount": 6}
    expected = Usage(input_tokens=5, output_tokens=6)
    assert Usage.from_response({"usage": small, "usageMetadata": large}) == expected
    assert Usage.from_response({"usageMetadata": small, "usage": large}) == expected
    assert Usage.from_response({"usage": large, "x_groq": {"usage": small}}) == expected
    assert Usage.from_response({"usage": small, "x_groq": {"usage": large}}) == expected
    assert Usage.from_response({"usage": small, "x_groq": {"id": "req_1"}}) == Usage(input_tokens=1, output_tokens=1)
    assert Usage.from_response({"usage": None, "usageMetadata": large}) == expected


def test_a_bad_usage_beside_a_good_one_is_an_error() -> None:
    with pytest.raises(UnknownUsage):
        Usage.from_response({"usage": CHAT, "usageMetadata": {"promptTokenCount": -1}})


@pytest.mark.parametrize("count", [-1, MOST + 1, 10**100, 5.0, 1e300, float("nan"), True, False, "5", "", [], {}, [5]])
@pytest.mark.parametrize(
    "usage",
    [
        lambda count: {"prompt_tokens": count, "completion_tokens": 5},
        lambda count: {"prompt_tokens": 9, "completion_tokens": count},
        lambda count: {**CHAT, "total_tokens": count},
        lambda count: {**CHAT, "prompt_tokens_details": {"cached_tokens": count}},
        lambda count: {"input_tokens": 9, "output_tokens": 5, "cache_read_input_tokens": count},
        lambda count: {"input_tokens": 9, "output_tokens": 5, "server_tool_use": {"web_search_requests": count}},
        lambda count: {"inputTokens": 9, "outputTokens": count},
        lambda count: {"promptTokenCount": count, "candidatesTokenCount": 5},
        lambda count: {"prompt_eval_count": 9, "eval_count": count},
    ],
)
def test_what_is_no_count_is_an_error_in_an_answer_and_in_a_stream(usage: Any, count: Any) -> None:
    with pytest.raises(UnknownUsage) as caught:
        read({"usage": usage(count)})
    assert caught.value.keys
    with pytest.raises(UnknownUsage):
        read([{"usage": CHAT}, {"usage": usage(count)}])
    with pytest.raises(UnknownUsage):
        read_event({"usage": usage(count)}, None)


def test_the_largest_count_is_still_one() -> None:
    assert Usage.from_response({"prompt_tokens": MOST, "completion_tokens": 1}) == Usage(
        input_tokens=MOST, output_tokens=1
    )


# ---------------------------------------------------------------- streams


def test_an_event_without_usage_changes_nothing() -> None:
    so_far = read_event({"usage": CHAT}, None)
    events: list[object] = [{}, {"choices": []}, {"usage": None}, {"type": "ping"}, None, "[DONE]", [], 7]
    for event in events:
        assert read_event(event, None) is None
        assert read_event(event, so_far) is so_far


@pytest.mark.parametrize(
    ("told", "tier"),
    [
        ({"service_tier": "standard", "speed": "fast"}, "fast"),
        ({"service_tier": "standard", "speed": "standard", "inference_geo": "global"}, "standard"),
        ({"service_tier": "standard", "speed": "fast", "inference_geo": "us"}, "fast@us"),
        ({"service_tier": "priority", "inference_geo": "us"}, "priority@us"),
        ({"inference_geo": "us"}, "standard@us"),
    ],
)
def test_anthropic_tells_its_fast_mode_and_the_place_beside_the_tier(told: dict[str, str], tier: str) -> None:
    usage = {"input_tokens": 10, "output_tokens": 5, **told}
    assert read({"type": "message", "model": "m", "usage": usage}).service_tier == tier
    start = read_event({"type": "message_start", "message": {"model": "m", "usage": usage}}, None)
    end = read_event({"type": "message_delta", "usage": {"output_tokens": 9}}, start)
    assert end is not None
    assert end.service_tier == tier


def test_a_later_usage_takes_the_place_of_an_earlier_one_and_keeps_what_only_that_named() -> None:
    first = read_event({"model": "m", "service_tier": "flex", "usage": CHAT}, None)
    after = read_event({"usage": {"prompt_tokens": 20, "completion_tokens": 4}}, first)
    assert after == Reading(Usage(input_tokens=20, output_tokens=4), "m", "flex")


def test_the_delta_of_anthropic_alone_is_no_usage_unless_it_tells_the_input() -> None:
    assert read_event({"type": "message_delta", "usage": {"output_tokens": 15}}, None) is None
    whole = read_event({"type": "message_delta", "usage": {"input_tokens": 2, "output_tokens": 15}}, None)
    assert whole == Reading(Usage(input_tokens=2, output_tokens=15), None, None)


@given(data=st.data())
def test_the_delta_of_anthropic_lies_over_the_start(data: st.DataObject) -> None:
    """Whatever the delta tells, and only that, takes the place of the start's."""
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    start = data.draw(st.fixed_dictionaries(dict.fromkeys(names, st.integers(1, 1000))))
    told = data.draw(st.dictionaries(st.sampled_from(names), st.none() | st.integers(0, 2000)))
    merged = {**start, **{name: count for name, count in told.items() if count}}
    events = [
        {"type": "message_start", "message": {"model": "claude", "usage": start}},
        {"type": "message_delta", "usage": told},
    ]
    assert read(events) == read({"model": "claude", "usage": merged})


BEDROCK = {"output": {"message": {}}, "stopReason": "end_turn", "usage": {"inputTokens": 20, "outputTokens": 5}}
COHERE = {
    "id": "c",
    "finish_reason": "COMPLETE",
    "message": {"role": "assistant"},
    "usage": {"tokens": {"input_tokens": 20, "output_tokens": 5}},
}
OLLAMA = {"model": "l", "done": True, "prompt_eval_count": 20, "eval_count": 5}
GEMINI = {"candidates": [], "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 5}}


@pytest.mark.parametrize(
    "answers",
    [
        [BEDROCK, BEDROCK],
        [COHERE, COHERE],
        [{**OLLAMA, "done": False, "prompt_eval_count": None, "eval_count": None}, OLLAMA, OLLAMA],
        [{**GEMINI, "responseId": "a"}, {**GEMINI, "responseId": "a"}, {**GEMINI, "responseId": "b"}],
        [{"response_id": "a", "usage_metadata": GEMINI["usageMetadata"]}, {**GEMINI, "responseId": "b"}],
        [Usage(input_tokens=20, output_tokens=5), Usage(input_tokens=20, output_tokens=5).to_dict()],
    ],
)
def test_whole_answers_in_a_list_are_added(answers: list[Any]) -> None:
    usage = Usage.from_response(answers)
    assert (usage.input_tokens, usage.output_tokens) == (40, 10)


def test_a_model_of_its_own_server_that_tells_no_input_is_still_read() -> None:
    assert Usage.from_response([{"done": True, "eval_count": 5}]) == Usage(output_tokens=5)


@pytest.mark.parametrize("model", ["gemini-3-pro", "gemini-2.5-pro", None])
def test_searches_of_gemini_are_counted_wherever_a_stream_tells_them(model: str | None) -> None:
    queries = {"groundingMetadata": {"webSearchQueries": ["a", "b"]}}
    told = {**GEMINI, "candidates": [queries, {"grounding_metadata": {"web_search_queries": ["c"]}}, {}, None]}
    whole = {"modelVersion": model} if model else {}
    searches = 1 if model == "gemini-2.5-pro" else 3
    assert Usage.from_response({**told, **whole}).web_search_requests == searches
    assert Usage.from_response([{**told, **whole}, {**GEMINI, **whole}]).web_search_requests == searches
    assert Usage.from_response([{**GEMINI, **whole}, {**told, **whole}]).web_search_requests == searches
    assert Usage.from_response({**GEMINI, **whole}).web_search_requests == 0


def test_searches_of_xai_and_openrouter_are_counted() -> None:
    tools = {"web_search_calls": 3, "x_search_calls": 2}
    assert Usage.from_response({"usage": {**CHAT, "server_side_tool_usage_details": tools}}).web_search_requests == 5
    assert Usage.from_response({"usage": {**CHAT, "num_sources_used": 4}}).web_search_requests == 4
    details = {"web_search_requests": 2}
    assert Usage.from_response({"usage": {**CHAT, "server_tool_use_details": details}}).web_search_requests == 2


@pytest.mark.parametrize(
    ("details", "hour"),
    [
        ([{"ttl": "1h", "inputTokens": 60}, {"ttl": "5m", "inputTokens": 30}, {"ttl": "1h", "inputTokens": 10}], 70),
        ([{"ttl": "5m", "inputTokens": 100}, None], 0),
        ({"ttl": "1h"}, 0),
        (None, 0),
    ],
)
def test_bedrock_tells_in_a_list_what_is_kept_for_an_hour(details: Any, hour: int) -> None:
    counts = {"inputTokens": 10, "outputTokens": 5, "cacheWriteInputTokens": 100, "cacheDetails": details}
    assert Usage.from_response({"usage": counts}) == Usage(
        input_tokens=110, output_tokens=5, cache_creation_input_tokens=100, cache_creation_1h_input_tokens=hour
    )


def test_a_list_that_goes_on_after_a_cut_stream_is_cut() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}
    delta = {"type": "message_delta", "usage": {"output_tokens": 9}}
    assert Usage.from_response([start, {"type": "ping"}, delta, {"type": "message_stop"}]).output_tokens == 9
    for cut in ([start], [start, {"type": "ping"}], [{"usage": CHAT}, start]):
        with pytest.raises(UnknownUsage):
            Usage.from_response(cut)


# ---------------------------------------------------------------- random answers in every dialect


@dataclasses.dataclass
class Parts:
    """The tokens of an answer, each counted once."""

    fresh: int
    read: int
    write_5m: int
    write_1h: int
    spoken: int
    reasoning: int
    searches: int


parts = st.builds(
    Parts, *[st.integers(1, 10**6), counts, counts, counts, st.integers(1, 10**6), counts, st.integers(0, 50)]
)


def chat(p: Parts) -> tuple[dict[str, Any], Usage]:
    written = p.write_5m + p.write_1h
    usage = {
        "prompt_tokens": p.fresh + p.read + written,
        "completion_tokens": p.spoken + p.reasoning,
        "total_tokens": p.fresh + p.read + written + p.spoken + p.reasoning,
        "prompt_tokens_details": {"cached_tokens": p.read, "cache_write_tokens": written, "audio_tokens": None},
        "completion_tokens_details": {"reasoning_tokens": p.reasoning},
    }
    return usage, expected(p, write_1h=0, searches=0)


def xai(p: Parts) -> tuple[dict[str, Any], Usage]:
    usage, whole = chat(p)
    return {**usage, "completion_tokens": p.spoken}, whole


def responses(p: Parts) -> tuple[dict[str, Any], Usage]:
    usage, whole = chat(p)
    return {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
        "input_tokens_details": usage["prompt_tokens_details"],
        "output_tokens_details": usage["completion_tokens_details"],
    }, whole


def anthropic(p: Parts) -> tuple[dict[str, Any], Usage]:
    return {
        "input_tokens": p.fresh,
        "cache_read_input_tokens": p.read,
        "cache_creation_input_tokens": p.write_5m + p.write_1h,
        "cache_creation": {"ephemeral_5m_input_tokens": p.write_5m, "ephemeral_1h_input_tokens": p.write_1h},
        "output_tokens": p.spoken + p.reasoning,
        "server_tool_use": {"web_search_requests": p.searches, "web_fetch_requests": 1},
    }, expected(p, reasoning=0)


def litellm(p: Parts) -> tuple[dict[str, Any], Usage]:
    usage, _ = chat(p)
    told, whole = anthropic(p)
    del told["input_tokens"], told["output_tokens"], told["cache_creation"]
    details = {
        "cached_tokens": p.read,
        "cache_creation_tokens": p.write_5m + p.write_1h,
        "cache_creation_token_details": anthropic(p)[0]["cache_creation"],
    }
    return {
        **usage,
        **told,
        "prompt_tokens_details": details,
        "completion_tokens_details": None,
    }, whole


def gemini(p: Parts) -> tuple[dict[str, Any], Usage]:
    prompt = p.fresh + p.read
    return {
        "promptTokenCount": prompt,
        "toolUsePromptTokenCount": p.write_5m,
        "cachedContentTokenCount": p.read,
        "candidatesTokenCount": p.spoken,
        "thoughtsTokenCount": p.reasoning,
        "totalTokenCount": prompt + p.write_5m + p.spoken + p.reasoning,
    }, Usage(
        input_tokens=prompt + p.write_5m,
        output_tokens=p.spoken + p.reasoning,
        cache_read_input_tokens=p.read,
        reasoning_output_tokens=p.reasoning,
    )


def bedrock(p: Parts) -> tuple[dict[str, Any], Usage]:
    written = p.write_5m + p.write_1h
    return {
        "inputTokens": p.fresh,
        "outputTokens": p.spoken + p.reasoning,
        "totalTokens": p.fresh + p.read + written + p.spoken + p.reasoning,
        "cacheReadInputTokens": p.read,
        "cacheWriteInputTokens": written,
    }, expected(p, write_1h=0, reasoning=0, searches=0)


def langchain(p: Parts) -> tuple[dict[str, Any], Usage]:
    usage, _ = chat(p)
    return {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
        "input_token_details": {"cache_read": p.read, "cache_creation": 0, **anthropic(p)[0]["cache_creation"]},
        "output_token_details": {"reasoning": p.reasoning},
    }, expected(p, searches=0)


def pydantic_ai(p: Parts) -> tuple[dict[str, Any], Usage]:
    usage, _ = chat(p)
    return {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "cache_read_tokens": p.read,
        "cache_write_tokens": p.write_5m + p.write_1h,
        "cache_write_1h_tokens": p.write_1h,
        "details": {"reasoning_tokens": p.reasoning, "web_search_requests": p.searches, "input_tokens": p.fresh},
    }, expected(p)


def ours(p: Parts) -> tuple[dict[str, Any], Usage]:
    return expected(p).to_dict(), expected(p)


def expected(p: Parts, **less: int) -> Usage:
    """Return the usage of the parts; ``less`` names what the dialect cannot tell."""
    whole = {
        "write_1h": p.write_1h,
        "reasoning": p.reasoning,
        "searches": p.searches,
        **less,
    }
    return Usage(
        input_tokens=p.fresh + p.read + p.write_5m + p.write_1h,
        output_tokens=p.spoken + p.reasoning,
        cache_read_input_tokens=p.read,
        cache_creation_input_tokens=p.write_5m + p.write_1h,
        cache_creation_1h_input_tokens=whole["write_1h"],
        reasoning_output_tokens=whole["reasoning"],
        web_search_requests=whole["searches"],
    )


DIALECTS = [chat, xai, responses, anthropic, litellm, gemini, bedrock, langchain, pydantic_ai, ours]
PLACES = ["usage", "usageMetadata", "usage_metadata", "token_usage", "tokenUsage"]
AROUND = ["message", "response", "metadata", "result", "body", "data", "delta", "context_wrapper", "_state"]
strangers: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(["id", "created", "cost", "choices", "error", "zz", "prompt_time", "is_byok", "index"]),
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([]) | st.just({"prompt_tokens": 7}),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[Any, Usage]:
    """Draw an answer: a dialect's usage among strangers and nulls, in wrappers, as objects or mappings."""
    dialect = draw(st.sampled_from(DIALECTS))
    usage, whole = dialect(draw(parts))
    # A count of 0 may be null or not stand there at all. Our own dict tells all.
    usage = {key: draw(st.sampled_from([None, 0])) if value == 0 else value for key, value in usage.items()}
    absent = st.booleans() if dialect is not ours else st.just(False)
    usage = {key: value for key, value in usage.items() if value is not None or not draw(absent)}
    answer: Any = draw_object(draw, {**draw(strangers), **usage})
    if draw(st.booleans()):
        place = draw(st.sampled_from(PLACES))
        others = dict.fromkeys(draw(st.sets(st.sampled_from(PLACES))) - {place})
        answer = draw_object(draw, {**draw(strangers), **others, place: answer})
        for name in draw(st.lists(st.sampled_from(AROUND), max_size=4)):
            answer = draw_object(draw, {**draw(strangers), "usage": None, name: answer})
    if draw(st.booleans()):
        answer = [*draw(st.lists(strangers, max_size=2)), answer, *draw(st.lists(strangers, max_size=2))]
    return answer, whole


def draw_object(draw: st.DrawFn, values: dict[str, Any]) -> Any:
    return draw(st.sampled_from([dict, dict, MappingProxyType, lambda values: SimpleNamespace(**values)]))(values)


@given(answers())
def test_a_random_answer_is_read_as_what_was_put_into_it(drawn: tuple[Any, Usage]) -> None:
    answer, whole = drawn
    assert Usage.from_response(answer) == whole


@given(answers(), answers())
def test_two_answers_in_a_list_that_are_whole_are_added(one: tuple[Any, Usage], other: tuple[Any, Usage]) -> None:
    pair = [{"object": "chat.completion", "response": answer} for answer, _ in (one, other)]
    assert Usage.from_response(pair) == one[1] + other[1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*PLACES, *AROUND, *CHAT, "x_groq", "generations", "output", "type", "message_delta", "q"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


@given(json_values)
def test_any_json_gives_a_usage_above_zero_or_the_error(value: Any) -> None:
    """Nothing else is raised, nothing hangs, and zero is never the answer."""
    try:
        usage = Usage.from_response(value)
    except UnknownUsage:
        return
    assert usage.total_tokens > 0
    assert all(type(count) is int and count >= 0 for count in usage.to_dict().values())
