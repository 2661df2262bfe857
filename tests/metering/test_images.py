"""Images that a tool makes: what is held for one, what an answer tells of them, and what they cost.

The figures are OpenAI's; the module of metering that has them says where they stand.
"""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest

from hooked import EVENTS, LIBRARIES, Door, Hang, Reply, event
from token_budget import BudgetPool
from token_budget.metering import CallRecord, LoopDetected, Meter, Prices, UnknownUsage, Usage, budget_run
from token_budget.metering._ask import Ask
from token_budget.metering._images import Images, _output_tokens, held, output_tokens
from token_budget.metering._rates import Dearest, Free, Rates, Timed, Unpriced
from token_budget.metering._refusals import UnknownModel
from token_budget.metering._requests import read as read_request
from token_budget.metering._routes import Route, route
from token_budget.metering._shapes import Reading, read, read_event
from token_budget.metering._table import STANDARD, Line, line
from token_budget.metering._watch import UNTOLD, Watch

RESPONSES = route("POST", "api.openai.com", "/v1/responses")
NOW = dt.datetime.now(dt.timezone.utc)
TABLE = {"m": (1, 4), "free-one": "free"}  # USD for a million tokens: 1,000 and 4,000 nanodollars a token
TOOL = {"type": "image_generation"}
USAGE = {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
TEXT = 100 * 1_000 + 50 * 4_000  # nanodollars of it
GEN = {  # an edit, as it was seen
    "input_tokens": 7_918,
    "input_tokens_details": {"image_tokens": 7_620, "text_tokens": 298},
    "output_tokens": 186,
    "output_tokens_details": {"image_tokens": 186, "text_tokens": 0},
    "total_tokens": 8_104,
}
NOTHING = {"image_gen": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, "web_search": {"num_requests": 0}}
IMAGE = {
    "type": "image_generation_call",
    "status": "completed",
    "quality": "high",
    "size": "1024x1024",
    "result": "aGk=",
}
HELD = 8_000 + 8_232  # tokens of an image of which nothing is said
HELD_NANOS = 8_000 * 8_000 + 8_232 * 30_000


def prices(table: Any = None) -> Prices:
    return Prices({**TABLE, **(table or {})}, catalogue=False)


def answer(**more: Any) -> dict[str, Any]:
    return {"object": "response", "model": "m", "output": [], "usage": USAGE, **more}


def gen(model: str | None = None, used: Any = GEN, **more: Any) -> dict[str, Any]:
    """Return an answer whose tool tells its usage."""
    tools = [{"type": "function"}, {**TOOL, "model": model}]
    return answer(tools=tools, tool_usage={"image_gen": used}, **more)


def ask(tool: Any = None, *, model: str = "m", where: Route = RESPONSES, **more: Any) -> Ask:
    fields = {"model": model, "input": "Draw.", "max_output_tokens": 1_000, **more}
    if tool is not None:
        fields["tools"] = [{"type": "function", "name": "f"}, tool]
    found = read_request(where, {}, json.dumps(fields).encode())
    assert found is not None
    return found


def settled(said: dict[str, Any], asked: Ask | None = None, table: Any = None, **settings: Any) -> CallRecord:
    """Return the record of a call that got that answer."""
    meter = Meter(BudgetPool(), prices(table), **settings)
    records: list[CallRecord] = []
    meter.subscribe(records.append)
    pending = meter._begin(ask(TOOL) if asked is None else asked, None)
    pending.hold()
    pending.settle(read(said))
    return records[0]


# ---------------------------------------------------------------- what an answer tells


def test_what_the_tool_used_is_a_part_of_the_usage_and_shown_apart() -> None:
    usage = Usage.from_response(gen())
    assert (usage.input_tokens, usage.output_tokens) == (100 + 7_918, 50 + 186)
    assert (usage.image_generation_input_tokens, usage.image_generation_output_tokens) == (7_918, 186)
    assert Usage.from_response(usage.to_dict()) == Usage(**usage.to_dict()) == usage != Usage.from_response(answer())
    assert (usage + usage).image_generation_output_tokens == 2 * 186
    assert (usage + usage).image_generation_input_tokens == 2 * 7_918


@pytest.mark.parametrize(
    ("model", "text", "image", "made"),
    [
        ("gpt-image-1", 5_000, 10_000, 40_000),
        ("gpt-image-1-mini", 2_000, 2_500, 8_000),
        ("gpt-image-1.5-2025-12-16", 5_000, 8_000, 32_000),
        ("chatgpt-image-latest", 5_000, 8_000, 32_000),
        ("gpt-image-2", 5_000, 8_000, 30_000),
        ("gpt-image-2-codex", 5_000, 8_000, 30_000),
        ("openai/GPT-Image-2.5-flare-2026-09-08", 5_000, 8_000, 30_000),
        ("gpt-image-2.6-sunburst", 5_000, 8_000, 30_000),
        (None, 5_000, 8_000, 30_000),  # OpenAI's default
        ("gpt-image-9", 5_000, 10_000, 40_000),  # unknown: the dearest that is known
        ("gpt-image-2x", 5_000, 10_000, 40_000),
        ("gpt-image-2-" + "x" * 1_000, 5_000, 10_000, 40_000),
    ],
)
def test_each_token_costs_what_the_image_model_asks_for_its_kind(
    model: str | None, text: int, image: int, made: int
) -> None:
    record = settled(gen(model))
    assert record.usd_nanos == TEXT + 298 * text + 7_620 * image + 186 * made
    assert (record.model, record.usage.image_generation_output_tokens) == ("m", 186)


@pytest.mark.parametrize(
    ("more", "saved"),
    [
        ({"cached_tokens": 200}, 200 * 3_750),  # of text, which saves less
        ({"cached_tokens": 400}, 298 * 3_750 + 102 * 6_000),
        (
            {"cached_tokens": 400, "cached_tokens_details": {"cached_text_tokens": 0, "cached_image_tokens": 400}},
            2_400_000,
        ),
        ({"cached_tokens_details": {"cached_text_tokens": 100, "cached_image_tokens": 50}}, 675_000),
        ({"cached_tokens": 99_999}, 298 * 3_750 + 7_620 * 6_000),
        ({"cached_tokens_details": {"cached_image_tokens": 99_999}}, 298 * 3_750 + 7_620 * 6_000),
    ],
)
def test_what_a_cache_gave_costs_what_the_image_model_asks_for_it(more: dict[str, Any], saved: int) -> None:
    record = settled(gen("gpt-image-2", {**GEN, **more}))
    assert record.usd_nanos == settled(gen("gpt-image-2")).usd_nanos - saved
    assert record.usage.cache_read_input_tokens == 0


@pytest.mark.parametrize(
    ("used", "images"),
    [
        ({"input_tokens": 10, "output_tokens": 20}, Images(None, image_input=10, image_output=20)),
        ({"total_tokens": 30}, Images(None, image_output=30)),
        ({"input_tokens": 10, "total_tokens": 30}, Images(None, image_input=10, image_output=20)),
        ({"input_tokens": 10, "input_tokens_details": {"text_tokens": 10}}, Images(None, text_input=10)),
        ({"input_tokens_details": {"text_tokens": 9, "image_tokens": 4}}, Images(None, text_input=9, image_input=4)),
        (
            {"output_tokens": 9, "output_tokens_details": {"text_tokens": 4, "image_tokens": None}},
            Images(None, text_output=4, image_output=5),
        ),
        ({"output_tokens_details": {"text_tokens": 4, "image_tokens": 6}}, Images(None, text_output=4, image_output=6)),
    ],
)
def test_what_is_left_open_is_read_as_the_dearest_that_it_can_be(used: dict[str, Any], images: Images) -> None:
    assert read(gen(None, used)).images == (images,)


def test_text_that_an_image_model_writes_has_its_own_price() -> None:
    used = {"output_tokens": 100, "output_tokens_details": {"text_tokens": 40, "image_tokens": 60}}
    assert settled(gen("gpt-image-1.5", used)).usd_nanos == TEXT + 40 * 10_000 + 60 * 32_000


@pytest.mark.parametrize("bad", [{"input_tokens": -1}, {"output_tokens_details": {"image_tokens": "many"}}])
def test_a_count_that_is_none_is_refused_and_the_call_charged_in_full(bad: dict[str, Any]) -> None:
    with pytest.raises(UnknownUsage, match="no count of tokens"):
        read(gen(None, bad))


def test_several_answers_keep_the_model_of_each() -> None:
    reading = read([gen("gpt-image-1"), gen("gpt-image-2"), answer()])
    assert [one.model for one in reading.images] == ["gpt-image-1", "gpt-image-2"]
    assert reading.usage.image_generation_output_tokens == 2 * 186


def test_the_images_and_the_searches_of_a_stream_are_kept_apart() -> None:
    first = {"response": answer(output=[{"type": "web_search_call"}] * 3)}
    last = {"response": gen("gpt-image-1")}
    reading = read_event(last, read_event(first, None))
    assert reading is not None
    assert reading == read([first, last])
    assert [one.model for one in reading.images] == ["gpt-image-1"]
    assert (reading.usage.image_generation_output_tokens, reading.usage.web_search_requests) == (186, 3)


def test_searches_that_the_usage_tells_are_beside_those_of_the_tools() -> None:
    usage = {**USAGE, "num_search_queries": 2}
    assert (
        Usage.from_response(answer(usage=usage, tool_usage={"web_search": {"num_requests": 1}})).web_search_requests
        == 3
    )


# ---------------------------------------------------------------- answers that tell the images alone


@pytest.mark.parametrize(
    ("model", "quality", "size", "tokens"),
    [
        ("gpt-image-1", "low", "1024x1024", 272),
        ("gpt-image-1", "medium", "1024x1536", 1_584),
        ("gpt-image-1.5", "high", "1536x1024", 6_208),
        ("gpt-image-1-mini", "low", None, 750),
        ("gpt-image-1-mini", None, "1024x1024", 4_500),
        ("chatgpt-image-latest", None, None, 6_240),
        ("gpt-image-2", "low", "1024x1024", 196),
        ("gpt-image-2", "low", "1536x1024", 158),
        ("gpt-image-2", "medium", "1024x1024", 1_756),
        ("gpt-image-2-2026-04-21", "high", "1024x1024", 7_024),
        ("gpt-image-2", "high", "1536x1024", 5_488),
        ("gpt-image-2", "high", "1024x640", 3_824),
        ("gpt-image-2", "high", "3072x1024", 3_952),
        ("gpt-image-2", "high", "3840x1280", 5_311),
        ("gpt-image-2", "high", "3840x2160", 13_342),
        ("gpt-image-2", "high", "2048x2048", 14_272),
        ("gpt-image-2.5-flare", "medium", "1024x1024", 439),
        ("openai/gpt-image-2.5-sunburst", "high", "1024x1536", 1_372),
        ("gpt-image-2.5-sunburst", "xhigh", "1024x1024", 3_122),
        ("gpt-image-2.5-sunburst", "max", "1024x1024", 7_024),
        ("gpt-image-2.6-flare", "low", "1024x1024", 988),
        ("gpt-image-2.6-flare", "medium", "1024x1024", 1_756),
        ("gpt-image-2", "high", "99999x99999", 23_719),  # no larger image is made
        ("gpt-image-2", None, None, 23_719),
        ("gpt-image-2", "new", "0x0", 23_719),
        (None, "low", "1024x1024", 988),  # the most of all models
        (None, "medium", "1024x1024", 1_756),
        ("gpt-image-2.9", "high", "1024x1536", 6_240),
        (None, ["high"], {"size": 1}, 23_719),
        ("gpt-image-2", "high" * 99, "1024x1024" * 99, 23_719),
    ],
)
def test_an_image_has_the_tokens_of_its_model_quality_and_size(
    model: str | None, quality: Any, size: Any, tokens: int
) -> None:
    assert output_tokens(model, quality, size) == tokens


@pytest.mark.parametrize("size", ["16x4096", "4096x8"])
def test_an_image_that_is_very_narrow_has_tokens_all_the_same(size: str) -> None:
    assert output_tokens("gpt-image-2", "low", size) > 0


def test_of_what_an_answer_calls_a_quality_and_a_size_little_is_kept() -> None:
    _output_tokens.cache_clear()
    for end in ("a", "b"):
        output_tokens("gpt-image-2", "q" * 64 + end, "s" * 64 + end)
    assert _output_tokens.cache_info().currsize == 1


def test_an_image_whose_usage_is_not_told_is_charged_by_quality_and_size() -> None:
    tools = [{**TOOL, "model": "gpt-image-2"}]
    low = {**IMAGE, "quality": "low"}
    record = settled(answer(tools=tools, output=[{"type": "message"}, IMAGE, low, "text"]))
    assert record.usage.image_generation_output_tokens == 7_024 + 196
    assert record.usd_nanos == TEXT + 2 * 1_000 * 5_000 + (7_024 + 196) * 30_000


@pytest.mark.parametrize(
    "told", [{}, NOTHING, {"image_gen": None}, {"image_gen": {"input_tokens": 9, "output_tokens": 0}}]
)
def test_an_image_of_which_the_usage_tells_no_output_is_charged_all_the_same(told: Any) -> None:
    usage = Usage.from_response(answer(output=[IMAGE], tool_usage=told))
    assert usage.image_generation_output_tokens == 7_024


def test_an_image_is_counted_once_where_its_usage_is_told() -> None:
    assert settled(gen("gpt-image-2", output=[IMAGE])).usd_nanos == settled(gen("gpt-image-2")).usd_nanos


@pytest.mark.parametrize(
    ("item", "made"),
    [
        ({**IMAGE, "result": None}, True),
        ({**IMAGE, "status": "generating"}, True),  # some servers never say that it is completed
        ({**IMAGE, "status": "generating", "result": None}, False),
        ({**IMAGE, "status": "in_progress", "result": ""}, False),
        ({**IMAGE, "status": "failed"}, False),
        ({**IMAGE, "type": "function_call"}, False),
        ({"type": "web_search_call", "status": "completed"}, False),
    ],
)
def test_an_image_that_was_not_made_costs_nothing(item: dict[str, Any], made: bool) -> None:
    usage = Usage.from_response(answer(output=[item]))
    assert bool(usage.image_generation_output_tokens) == made
    assert usage.web_search_requests == (item["type"] == "web_search_call")


def test_an_edit_takes_an_image_and_partial_images_have_tokens_too() -> None:
    tools = [{**TOOL, "model": "gpt-image-2", "partial_images": 2}]
    images = read(answer(tools=tools, output=[IMAGE, {**IMAGE, "action": "edit"}])).images
    assert images == (Images("gpt-image-2", text_input=2_000, image_input=8_000, image_output=2 * (7_024 + 200)),)


def test_a_film_is_the_most_that_an_image_can_be() -> None:
    usage = Usage.from_response(answer(output=[{**IMAGE, "output_format": "gif"}]))
    assert usage.image_generation_output_tokens == 23_719


# ---------------------------------------------------------------- prices


@pytest.mark.parametrize(
    ("row", "text", "image", "made"),
    [
        ((5, 30), 5_000, 5_000, 30_000),
        ({"input": 5, "image_input": 9, "output": 10, "image_output": 50}, 5_000, 9_000, 50_000),
        ("free", 0, 0, 0),
    ],
)
@pytest.mark.parametrize("name", ["gpt-image-2", "gpt-image-*", "openai/gpt-image-2"])
def test_a_line_of_the_table_prices_images_as_any_model(name: str, row: Any, text: int, image: int, made: int) -> None:
    record = settled(gen("openai/gpt-image-2"), table={name: row})
    assert record.usd_nanos == TEXT + 298 * text + 7_620 * image + 186 * made


def test_a_pattern_that_does_not_speak_of_images_does_not_price_them() -> None:
    assert (
        settled(gen("gpt-image-2"), table={"gpt-*": (1, 1), "*": (1, 1)}).usd_nanos
        == settled(gen("gpt-image-2")).usd_nanos
    )


def test_an_alias_may_stand_for_an_image_model() -> None:
    known = Prices(TABLE, aliases={"pictures": "gpt-image-1-mini"}, catalogue=False)
    assert known._image_rates("pictures").images(Images("pictures", image_output=1)) == 8_000


def test_a_read_from_a_cache_costs_the_image_s_rate_unless_it_has_its_own() -> None:
    used = Images("m", image_input=10, image_read=10)
    for row, rate in (
        ((5, 30), 5),
        ((5, 30, 1), 1),
        ({"input": 5, "output": 30, "cache_read": 1, "image_input": 8}, 8),
        ({"input": 5, "output": 30, "cache_read": 1, "image_input": 8, "image_cache_read": 2}, 2),
    ):
        assert Prices({"m": row}, catalogue=False)._image_rates("m").images(used) == 10 * rate * 1_000


def test_a_model_that_is_not_known_here_has_the_price_of_the_list() -> None:
    pytest.importorskip("genai_prices")
    assert Prices()._image_rates("gpt-5-image").images(Images(None, image_output=1)) == 10_000


def test_the_tier_of_the_call_is_none_of_the_image_s() -> None:
    dear, plain = settled(gen("gpt-image-2", service_tier="priority")), settled(answer(service_tier="priority"))
    assert plain.usd_nanos == 2 * TEXT
    assert dear.usd_nanos - plain.usd_nanos == settled(gen("gpt-image-2")).usd_nanos - TEXT


def test_a_call_that_is_free_by_the_table_has_free_images() -> None:
    assert settled(gen("gpt-image-2"), ask(TOOL, model="free-one"), {"m": "free"}).usd_nanos == 0
    assert Meter(BudgetPool(), prices())._begin(ask(TOOL, model="free-one"), None).nanos == 0


def test_a_usage_that_does_not_tell_the_image_model_is_priced_at_the_dearest() -> None:
    usage = Usage.from_response(gen("gpt-image-1-mini"))
    dearest = TEXT + 7_918 * 10_000 + 186 * 40_000
    assert prices().nanos("m", usage) == dearest
    assert prices().cost("m", usage) * 10**9 == prices().cost("m", usage, at=NOW) * 10**9 == dearest
    taken = Usage(input_tokens=7, image_generation_input_tokens=7)
    assert prices().nanos("m", taken) == prices().cost("m", taken, at=NOW) * 10**9 == 70_000
    with pytest.raises(UnknownModel):
        prices().nanos("unknown", usage)


def test_a_usage_whose_images_are_more_than_the_whole_is_never_negative() -> None:
    assert prices().nanos("m", Usage(image_generation_output_tokens=2)) == 80_000


def test_every_kind_of_price_prices_images() -> None:
    used = Images(None, text_input=1, image_output=3)
    row = line((2, 5), "m")
    assert isinstance(row, Line)
    rates = row.priced(STANDARD, None)
    assert isinstance(rates, Rates)
    assert rates.images(used) == 17_000
    assert (
        Dearest((rates, rates)).images(used) == Timed(lambda now: (now + 1, rates), lambda: 0.0).images(used) == 17_000
    )
    assert Free().images(used) == 0
    with pytest.raises(UnknownModel, match="why"):
        Unpriced("why").images(used)


def test_a_cost_of_images_is_rounded_once_and_upwards() -> None:
    known = Prices({"m": {"input": "0.0001", "output": "0.0001"}}, catalogue=False)._image_rates("m")
    assert known.images(Images(None, text_input=5, image_input=5, image_output=1)) == 2


def test_what_is_recorded_by_hand_has_the_image_model_s_price() -> None:
    meter = Meter(BudgetPool(), prices())
    meter.record("m", gen("gpt-image-1-mini"))
    cost = TEXT + 298 * 2_000 + 7_620 * 2_500 + 186 * 8_000
    assert meter.pool is not None
    assert meter.pool.snapshot().usd_used_nanos == cost


# ---------------------------------------------------------------- what is held


@pytest.mark.parametrize(
    ("tool", "model", "output"),
    [
        ({}, None, 8_232),
        ({"size": "auto", "quality": "auto"}, None, 8_232),
        ({"partial_images": 2}, None, 8_432),
        ({"partial_images": 99}, None, 8_532),
        ({"partial_images": -1}, None, 8_232),
        ({"partial_images": "2"}, None, 8_232),
        ({"model": "gpt-image-2", "quality": "low", "size": "1024x1024"}, "gpt-image-2", 196),
        ({"model": "gpt-image-2", "size": "3840x2160"}, "gpt-image-2", 13_342),
        ({"model": "gpt-image-1", "quality": "medium"}, "gpt-image-1", 1_584),
        ({"size": "large"}, None, 23_719),
        ({"size": [1]}, None, 8_232),
        ({"output_format": "gif"}, None, 23_719),
        ({"model": 7}, None, 8_232),
    ],
)
def test_one_image_is_held_as_the_tool_asks_for_it(tool: dict[str, Any], model: str | None, output: int) -> None:
    plain, found = ask(), ask({**TOOL, **tool})
    assert found.image_model == model
    assert found.worst.image_generation_input_tokens == 8_000
    assert found.worst.image_generation_output_tokens == output
    assert found.worst.output_tokens - plain.worst.output_tokens == output
    assert found.worst.input_tokens - plain.worst.input_tokens >= 8_000


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": None},
        {"tools": "image_generation"},
        {"tools": [{"type": "function", "name": "image_generation"}, None, "x"]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"tools": [TOOL], "max_tool_calls": 0},
    ],
)
def test_nothing_is_held_where_no_image_can_be_made(fields: dict[str, Any]) -> None:
    assert held(fields).output == ask(**fields).worst.image_generation_output_tokens == 0


@pytest.mark.parametrize("more", [{"tool_choice": TOOL}, {"max_tool_calls": 5}, {"tool_choice": "required"}])
def test_one_image_is_held_however_many_may_be_made(more: dict[str, Any]) -> None:
    assert ask(TOOL, **more).worst.image_generation_output_tokens == 8_232


def test_a_tool_of_that_name_elsewhere_is_not_openai_s() -> None:
    where = route("POST", "api.mistral.ai", "/v1/conversations")
    assert ask(TOOL, where=where).worst.image_generation_output_tokens == 0


def test_the_hold_is_priced_by_the_image_model_and_given_back_where_no_image_is_made() -> None:
    pool = BudgetPool(usd_cap=1)
    meter = Meter(pool, prices())
    plain = meter._begin(ask(), None)
    tool = plain.nanos + 500 * 1_000 + 20 * 1_000  # what stands around tools, and their own text
    pending = meter._begin(ask(TOOL), None)
    assert HELD_NANOS < pending.nanos - plain.nanos < HELD_NANOS + tool
    assert pending.tokens - plain.tokens > HELD
    pending.hold()
    pending.settle(read(answer(tool_usage=NOTHING)))
    assert (pool.snapshot().usd_used_nanos, pending.status, pending.overrun) == (TEXT, "settled", None)


def test_the_hold_costs_what_the_model_asks_that_the_tool_names() -> None:
    meter, tool = Meter(BudgetPool(), prices()), {"quality": "high", "size": "1024x1024"}
    mini, dear = (
        meter._begin(ask({**TOOL, **tool, "model": name}), None) for name in ("gpt-image-1-mini", "gpt-image-1")
    )
    text = mini.nanos - 8_000 * 2_500 - 4_500 * 8_000
    assert 0 < dear.nanos - 8_000 * 10_000 - 4_160 * 40_000 - text + 5_000 < 10_000  # their names are text
    other = meter._begin(ask({**TOOL, **tool, "model": "gpt-image-1"}, models=["m"]), None)
    assert other.nanos - dear.nanos < 50_000


def test_the_hold_of_an_image_hides_no_growth_of_the_input() -> None:
    with budget_run("loop", meter=Meter(BudgetPool(), prices()), growth=(0.5, 2)) as run:
        run._admit(ask(TOOL, input="word " * 1_000))
        run._admit(ask(TOOL, input="word " * 1_001))
        with pytest.raises(LoopDetected):
            run._admit(ask(TOOL, input="word " * 2_000))


def test_an_answer_that_tells_the_output_alone_is_not_charged_for_the_image_s_input() -> None:
    asked = ask(TOOL)
    record = settled({"usage": {"output_tokens": 5}}, asked)
    assert record.usage.input_tokens == asked.worst.input_tokens - 8_000
    assert record.usd_nanos == record.usage.input_tokens * 1_000 + 5 * 4_000


def test_more_images_than_one_are_an_overrun_that_is_recorded() -> None:
    pool = BudgetPool(usd_cap=0.4)
    meter = Meter(pool, prices())
    pending = meter._begin(ask(TOOL), None)
    pending.hold()
    pending.settle(read(answer(output=[IMAGE] * 3)))
    assert pending.overrun is not None
    assert pool.snapshot().usd_used_nanos == TEXT + 3 * (1_000 * 5_000 + 7_024 * 30_000)


@pytest.mark.parametrize(
    ("asked", "told", "made"), [("gpt-image-1", "gpt-image-2", 40_000), (None, "gpt-image-1", 40_000)]
)
def test_the_model_that_was_asked_for_prices_the_image_else_the_one_that_is_told(
    asked: str | None, told: str, made: int
) -> None:
    used = {"output_tokens": 10}
    assert settled(gen(told, used), ask({**TOOL, "model": asked})).usd_nanos == TEXT + 10 * made


def test_a_limit_of_the_output_leaves_room_for_the_image() -> None:
    fields = {"model": "m", "input": "Draw.", "tools": [TOOL]}
    found = read_request(RESPONSES, {}, json.dumps(fields).encode())
    assert found is not None
    pool = BudgetPool(usd_cap=0.32)
    pending = Meter(pool, prices(), cap_output="fit")._begin(found, None)
    assert pending.output_limit is not None
    assert 256 < pending.output_limit < 4_096
    assert pending.ask.worst.output_tokens == pending.output_limit + 8_232
    assert HELD_NANOS < pending.nanos <= 320_000_000


# ---------------------------------------------------------------- streams

CREATED = event({"type": "response.created", "response": {**answer(tools=[TOOL]), "usage": None}})
DELTA = event({"type": "response.output_text.delta", "delta": 'I call "type": "image_generation_call".'})
ADDED = event({"type": "response.output_item.added", "item": {**IMAGE, "status": "in_progress", "result": None}})
PARTIAL = event({"type": "response.image_generation_call.partial_image", "partial_image_b64": "aGk="})
ITEM = event({"type": "response.output_item.done", "item": {**IMAGE, "status": "generating"}})
OTHER = event({"type": "response.output_item.done", "item": {"type": "message", "content": []}})


def completed(**more: Any) -> bytes:
    return event({"type": "response.completed", "response": answer(**more)})


def watched(*events: bytes) -> Watch:
    watch = Watch(shape="openai-responses", content_type=b"text/event-stream", counting=True)
    for one in events:
        watch.feed(one)
    return watch


def ready(*events: bytes) -> Usage:
    reading = watched(*events).ready
    assert isinstance(reading, Reading)
    return reading.usage


def test_the_last_event_of_a_stream_tells_the_images() -> None:
    last = event({"type": "response.incomplete", "response": gen("gpt-image-2", output=[IMAGE])})
    assert ready(CREATED, ADDED, ITEM, last).image_generation_output_tokens == 186


def test_an_image_that_only_an_earlier_event_shows_is_counted() -> None:
    assert ready(CREATED, ADDED, PARTIAL, ITEM, OTHER, ITEM, completed()).image_generation_output_tokens == 2 * 7_024
    assert ready(ITEM, completed(tool_usage=NOTHING)).image_generation_output_tokens == 7_024
    assert ready(ITEM + completed(output=[IMAGE])).image_generation_output_tokens == 7_024
    assert ready(ITEM, completed(output=[IMAGE, IMAGE])).image_generation_output_tokens == 2 * 7_024
    assert ready(ITEM, completed(tool_usage={"image_gen": GEN})).image_generation_output_tokens == 186
    assert ready(ITEM, event({"type": "limits", "usage": {}}), completed()).image_generation_output_tokens == 7_024


def test_an_image_that_is_announced_and_not_made_costs_nothing() -> None:
    assert ready(CREATED, ADDED, PARTIAL, OTHER, completed()) == Usage(input_tokens=100, output_tokens=50)
    failed = event({"type": "response.output_item.done", "item": {**IMAGE, "status": "failed"}})
    assert ready(ADDED, failed, completed()).image_generation_output_tokens == 0


@pytest.mark.parametrize("line", [b'"item":7', b'"item":', b'"other":1'])
def test_an_event_of_an_image_that_cannot_be_read_lets_nothing_be_told(line: bytes) -> None:
    bad = b'data: {"type": "response.output_item.done", "call": {"type": "image_generation_call"}, ' + line + b"}\n\n"
    watch = watched(bad, completed())
    watch.end()
    assert watch.ready is watch.told is None


def test_what_is_kept_of_the_images_of_a_stream_is_bounded() -> None:
    large = event(
        {"type": "response.output_item.done", "item": {**IMAGE, "size": "1024x1024" * 10_000, "quality": [1]}}
    )
    watch = watched(large)
    assert watch._images == [
        {"type": "image_generation_call", "status": "completed", "quality": "", "size": ("1024x1024" * 8)[:64]}
        | {"action": "", "output_format": ""}
    ]
    assert ready(*[ITEM] * 1_000, completed()).image_generation_output_tokens == 1_000 * 7_024
    assert watched(*[ITEM] * 1_001, completed()).ready is None  # who made that many is charged in full


@pytest.mark.parametrize(("shown", "seen"), [([ADDED], UNTOLD), ([PARTIAL], UNTOLD), ([ITEM], UNTOLD), ([], 39)])
def test_a_broken_stream_that_showed_an_image_is_charged_in_full(shown: list[bytes], seen: int) -> None:
    watch = watched(CREATED, DELTA, *shown)
    assert watch.seen() == seen
    meter = Meter(BudgetPool(), prices(), broken="seen")
    pending = meter._begin(ask(TOOL), None)
    pending.hold()
    pending.seen(watch.seen())
    assert pending.status == ("charged" if shown else "seen")
    assert meter.pool is not None
    assert (meter.pool.snapshot().usd_used_nanos > HELD_NANOS) == bool(shown)


def test_what_a_broken_stream_is_charged_for_without_an_image_has_none() -> None:
    asked = ask(TOOL)
    records: list[CallRecord] = []
    meter = Meter(BudgetPool(), prices(), broken="seen")
    meter.subscribe(records.append)
    pending = meter._begin(asked, None)
    pending.hold()
    pending.seen(44)
    assert records[0].usage == Usage(input_tokens=asked.worst.input_tokens - 8_000, output_tokens=300)
    assert records[0].usd_nanos == records[0].usage.input_tokens * 1_000 + 300 * 4_000


@pytest.mark.skipif(not LIBRARIES, reason="needs httpx or httpx2")
@pytest.mark.parametrize("broken", ["full", "seen"])
def test_a_stream_that_breaks_at_an_image_is_charged_what_is_held_end_to_end(broken: str) -> None:
    door = Door(LIBRARIES[0], "wrap", is_async=False, broken=broken)
    request = {"model": "m", "input": "Draw.", "max_output_tokens": 1_000, "stream": True, "tools": [TOOL]}
    url = "http://127.0.0.1:1/v1/responses"
    door.read(Reply(body=[CREATED, ITEM, completed()], headers=EVENTS), body=request, url=url)
    assert door.spent == TEXT + 1_000 * 5_000 + 7_024 * 30_000
    with pytest.raises(Hang):
        door.read(Reply(body=[CREATED, ADDED, Hang()], headers=EVENTS), body=request, url=url)
    assert door.statuses == ["settled", "charged"]
    assert door.records[1].usage.image_generation_output_tokens == 8_232
    assert door.records[1].usd_nanos > HELD_NANOS
