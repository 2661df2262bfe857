"""`cli._workload`: calls from a seed, calls from a trace, and traces that cannot be used."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from token_budget.cli._workload import (
    Call,
    Fate,
    Prices,
    Sizes,
    TraceError,
    estimated_sizes,
    plan,
    read_trace,
    simulated_sizes,
    total,
)

PRICES = Prices(3.0, 15.0)
CSV = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
)


def trace(folder: Path, text: str) -> str:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return str(path)


def make_call(fate: Fate) -> Call:
    return Call(0, 150, 0.0015, 120, 0.0012, connect_seconds=0.1, answer_seconds=0.2, fate=fate)


# ---------------------------------------------------------------------- simulated


def test_the_same_seed_gives_the_same_calls() -> None:
    def draw(seed: int) -> object:
        random = Random(seed)
        return [list(calls) for calls in plan(simulated_sizes(50, random), 50, PRICES, random)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_simulated_answers_are_shorter_and_longer_than_reserved() -> None:
    sizes = list(simulated_sizes(500, Random(1)))
    assert len(sizes) == 500
    longer = sum(size.output_tokens > size.reserved_output_tokens for size in sizes)
    assert 100 < longer < 250
    assert all(size.input_tokens >= 0 and size.output_tokens >= 0 for size in sizes)


def test_every_fate_is_drawn_and_only_tasks_are_cancelled() -> None:
    workload = plan([Sizes(100, 50, 20)] * 2000, 2000, PRICES, Random(1))
    assert len(workload) == 2000
    assert {call.fate for call in workload.in_threads} == {Fate.ANSWERED, Fate.UNSENT, Fate.TIMED_OUT}
    assert {call.fate for call in workload.in_tasks} == set(Fate)
    assert [call.number for call in [*workload.in_threads, *workload.in_tasks]] == list(range(2000))


@pytest.mark.parametrize("count", [4, 5, 8, 40])
def test_from_four_calls_on_at_least_one_task_is_cancelled(count: int) -> None:
    for seed in range(20):
        workload = plan([Sizes(100, 50, 20)] * count, count, PRICES, Random(seed))
        assert any(call.fate is Fate.CANCELLED for call in workload.in_tasks)


def test_durations_vary_and_grow_with_the_answer_up_to_a_limit() -> None:
    def mean(output_tokens: int) -> float:
        calls = plan([Sizes(100, 50, output_tokens)] * 200, 200, PRICES, Random(1)).in_threads
        assert len({call.connect_seconds for call in calls}) == len(calls)
        return sum(call.answer_seconds for call in calls) / len(calls)

    assert mean(10) < mean(1000) < mean(100_000) == 3.0


def test_a_price_is_per_million_tokens() -> None:
    assert PRICES.usd(1_000_000, 0) == 3.0
    assert PRICES.usd(0, 2_000_000) == 30.0


@pytest.mark.parametrize(
    ("fate", "bill"),
    [
        (Fate.ANSWERED, (120, 0.0012)),
        (Fate.TIMED_OUT, (150, 0.0015)),
        (Fate.UNSENT, (0, 0.0)),
        (Fate.CANCELLED, (0, 0.0)),
    ],
)
def test_what_a_call_adds_to_the_spend_depends_on_its_fate(fate: Fate, bill: tuple[int, float]) -> None:
    assert make_call(fate).bill == bill


def test_calls_raise_what_a_client_library_raises() -> None:
    make_call(Fate.ANSWERED).connect()
    assert make_call(Fate.ANSWERED).answer() == (120, 0.0012)
    with pytest.raises(ConnectionRefusedError):
        make_call(Fate.UNSENT).connect()
    with pytest.raises(TimeoutError):
        make_call(Fate.TIMED_OUT).answer()


def test_the_total_is_the_sum_of_what_the_calls_cost() -> None:
    assert total([]) == (0, 0)
    workload = plan([Sizes(100, 50, 20)] * 3, 3, PRICES, Random(2))
    calls = [*workload.in_threads, *workload.in_tasks]
    bills = [call.bill for call in calls]
    assert total(calls) == (sum(tokens for tokens, _ in bills), sum(usd for _, usd in bills))


def test_planned_calls_keep_the_sizes_and_prices_in_their_order() -> None:
    sizes = [Sizes(100, 50, 20), Sizes(0, 0, 0), Sizes(10**8, 10**8, 10**8)]
    threads, tasks = plan(sizes, 3, PRICES, Random(1))
    assert [len(threads), len(tasks)] == [1, 2]
    assert [(call.number, call.reserved_tokens, call.tokens) for call in [*threads, *tasks]] == [
        (0, 150, 120),
        (1, 0, 0),
        (2, 2 * 10**8, 2 * 10**8),
    ]
    assert [call.reserved_usd for call in threads] == [PRICES.usd(100, 50)]
    assert [call.usd for call in threads] == [PRICES.usd(100, 20)]
    assert list(tasks) == list(tasks) == [tasks[0], tasks[1]]


# ---------------------------------------------------------------------- from a trace


def test_an_estimate_forgets_answers_older_than_the_last_thousand() -> None:
    trace = [(1, 500)] * 1000 + [(1, 7)] * 1000 + [(1, 9)]
    assert list(estimated_sizes(trace))[-1].reserved_output_tokens == 7
    assert list(estimated_sizes(trace[:1500]))[-1].reserved_output_tokens == 500


def test_the_reservation_for_a_trace_is_estimated_from_earlier_answers() -> None:
    sizes = list(estimated_sizes([(10, 5), (20, 100), (30, 1), (40, 9)]))
    assert [size.input_tokens for size in sizes] == [10, 20, 30, 40]
    assert [size.output_tokens for size in sizes] == [5, 100, 1, 9]
    assert [size.reserved_output_tokens for size in sizes] == [256, 5, 100, 100]


def test_other_columns_of_a_csv_are_ignored(tmp_path: Path) -> None:
    assert read_trace(trace(tmp_path, CSV)) == [(4808, 10), (3180, 8)]


@pytest.mark.parametrize(
    "text",
    [
        "input_tokens,output_tokens\n1,2\n3,4\n",
        "\ufeffPROMPT_TOKENS , Completion_Tokens\n1, 2\n\n3,4",
        '\n\nid,output_tokens,input_tokens\n"a\nb",2,1\r\n"c,d","4","3"\r\n\n',
        '{"input_tokens": 1, "output_tokens": 2}\n{"output_tokens": "4", "model": "m", "input_tokens": "3"}\n',
        '\n {"ContextTokens": 1, "GeneratedTokens": 2}\n\n{"contexttokens": 3, "GENERATEDTOKENS": 4}',
    ],
)
def test_columns_are_found_in_csv_and_json_lines(tmp_path: Path, text: str) -> None:
    assert read_trace(trace(tmp_path, text)) == [(1, 2), (3, 4)]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = trace(tmp_path, "In,Out,input_tokens,output_tokens\n1,2,8,9\n")
    assert read_trace(path, input_column="in", output_column="OUT") == [(1, 2)]
    assert read_trace(path, input_column="in") == [(1, 9)]


def test_a_limit_leaves_the_rest_unread(tmp_path: Path) -> None:
    path = trace(tmp_path, f"{CSV}not,a\n")
    assert read_trace(path, limit=1) == [(4808, 10)]
    assert read_trace(path, limit=0) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it contains no call"),
        ("\n \n", "it contains no call"),
        ("input_tokens,output_tokens\n", "it contains no call"),
        ("a,output_tokens\n1,2\n", "line 1: no column of input tokens (looked for ContextTokens, input_tokens, prompt"),
        ("input_tokens,b\n1,2\n", "name it with --output-column"),
        ("input_tokens,output_tokens\n1,2\n3\n", "line 3: 1 fields, but the header has 2"),
        (
            "input_tokens,output_tokens\n1,x\n",
            "line 2: output tokens must be a whole number from 0 to 100,000,000, not",
        ),
        ("input_tokens,output_tokens\n-1,1\n", "line 2: input tokens must be"),
        ("input_tokens,output_tokens\n1.5,1\n", "not '1.5'"),
        ("input_tokens,output_tokens\n,1\n", "not ''"),
        ("input_tokens,output_tokens\n٣,1\n", "line 2: input tokens must be"),
        ("input_tokens,output_tokens\n1,100000001\n", "line 2: output tokens must be"),
        (f"input_tokens,output_tokens\n1,{'9' * 5000}\n", "line 2: output tokens must be"),
        (f"input_tokens,output_tokens\n1,{'9' * 200_000}\n", "line 2: field larger than field limit"),
        ('{"input_tokens": 1, "output_tokens": 2}\n{"input_tokens": 1}\n', "line 2: no column of output tokens"),
        ('{"input_tokens": 1, "output_tokens": 2\n', "line 1: not JSON: "),
        ('{"input_tokens": 1, "output_tokens": 2}\n[1, 2]\n', "line 2: not a JSON object"),
        ('{"input_tokens": true, "output_tokens": 2}\n', "line 1: input tokens must be"),
        ('{"input_tokens": 1.0, "output_tokens": 2}\n', "not 1.0"),
        ('{"input_tokens": -1, "output_tokens": 2}\n', "not -1"),
        ('{"input_tokens": 1, "output_tokens": null}\n', "not None"),
        (f'{{"a": {"[" * 200_000}\n', "line 1: "),
    ],
)
def test_a_trace_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = trace(tmp_path, text)
    with pytest.raises(TraceError) as raised:
        read_trace(path)
    shown = str(raised.value)
    assert shown.startswith(f"{path}: ")
    assert message in shown
    assert "\n" not in shown
    assert len(shown) < len(path) + 200


def test_a_trace_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"missing: No such file"):
        read_trace(str(tmp_path / "missing"))
    binary = tmp_path / "binary"
    binary.write_bytes(b"input_tokens,output_tokens\n\xff\xfe\n")
    with pytest.raises(TraceError, match=r"the text is not UTF-8"):
        read_trace(str(binary))
