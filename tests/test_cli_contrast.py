"""`cli._contrast`: what the same calls cost with a check before each call and no reservations."""

from __future__ import annotations

from random import Random

import pytest

from token_budget.cli._audit import Caps
from token_budget.cli._contrast import CheckThenSpend, _duration
from token_budget.cli._workload import Call, Fate, Prices, plan, simulated_sizes


def make_call(number: int, *, seconds: float = 1.0, fate: Fate = Fate.ANSWERED) -> Call:
    """Make a call that reserves and costs 100 tokens and one dollar."""
    return Call(number, 100, 1.0, 100, 1.0, connect_seconds=0.5, answer_seconds=seconds, fate=fate)


def spend(caps: Caps, workers: int, threads: list[Call], tasks: list[Call] | None = None) -> tuple[int, float]:
    contrast = CheckThenSpend(caps, workers)
    contrast.spend(threads)
    contrast.spend(tasks or [])
    return contrast.tokens, contrast.usd


def test_calls_that_run_at_once_all_pass_the_check_and_overspend() -> None:
    calls = [make_call(number) for number in range(10)]
    assert spend(Caps(100, None), 10, calls) == (1000, 10.0)
    assert spend(Caps(None, 1.0), 10, calls) == (1000, 10.0)
    assert spend(Caps(100, None), 3, calls) == (300, 3.0)


def test_one_call_at_a_time_never_overspends() -> None:
    calls = [make_call(number) for number in range(10)]
    assert spend(Caps(350, None), 1, calls) == (300, 3.0)
    assert spend(Caps(None, 3.5), 1, calls) == (300, 3.0)
    assert spend(Caps(None, None), 1, calls) == (1000, 10.0)


def test_a_worker_takes_its_next_call_when_its_last_one_ends() -> None:
    # The second worker's calls end at 1, 2 and 3 seconds, while the first call takes 5. The check at 3 seconds sees
    # 300 tokens and refuses the call. The first call has not been added yet.
    calls = [make_call(0, seconds=4.5), *(make_call(number, seconds=0.5) for number in range(1, 6))]
    assert spend(Caps(399, None), 2, calls) == (400, 4.0)
    assert spend(Caps(300, None), 2, calls) == (400, 4.0)
    assert spend(Caps(299, None), 2, calls) == (300, 3.0)


def test_the_tasks_begin_after_the_last_thread_has_ended() -> None:
    threads = [make_call(number) for number in range(2)]
    tasks = [make_call(number) for number in range(2, 4)]
    assert spend(Caps(200, None), 4, threads, tasks) == (200, 2.0)
    assert spend(Caps(200, None), 4, [*threads, *tasks]) == (400, 4.0)


@pytest.mark.parametrize(
    ("fate", "cost", "seconds"),
    [
        (Fate.ANSWERED, (100, 1.0), 1.5),
        (Fate.TIMED_OUT, (100, 1.0), 1.5),
        (Fate.UNSENT, (0, 0.0), 0.5),
        (Fate.CANCELLED, (0, 0.0), 0.25),
    ],
)
def test_a_call_costs_and_lasts_as_long_as_its_fate_says(fate: Fate, cost: tuple[int, float], seconds: float) -> None:
    assert spend(Caps(None, None), 1, [make_call(0, fate=fate)]) == cost
    assert _duration(make_call(0, fate=fate)) == seconds


def test_a_seed_gives_the_same_contrast_each_time() -> None:
    def run(seed: int) -> tuple[int, float]:
        random = Random(seed)
        workload = plan(simulated_sizes(200, random), 200, Prices(3.0, 15.0), random)
        contrast = CheckThenSpend(Caps(400_000, 2.0), 16)
        for calls in workload:
            contrast.spend(calls)
        return contrast.tokens, contrast.usd

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1)[1] > 2.0
