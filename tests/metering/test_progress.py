"""The progress displays show a pool as it stands, and nothing ends them."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from token_budget import BudgetPool, BudgetSnapshot
from token_budget.progress import rich_column, tqdm_bar


class Unreachable:
    """A store's pool that cannot answer."""

    name = "far"

    def snapshot(self) -> BudgetSnapshot:
        raise ConnectionError("gone")


def dollars(snapshot: BudgetSnapshot) -> str:
    return f"{snapshot.usd_used:.2f} USD"


def pool() -> BudgetPool:
    made = BudgetPool(usd_cap=1, name="batch")
    made.record(usd=0.25)
    return made


def drawn(column: Any, **fields: Any) -> str:
    """Return what rich draws of one task."""
    progress = pytest.importorskip("rich.progress")
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=200)
    with progress.Progress(column, console=console, auto_refresh=False) as shown:
        shown.add_task("work", total=2, **fields)
        with console.capture() as captured:
            console.print(shown.make_tasks_table(shown.tasks))
    return str(captured.get()).strip()


def test_a_column_of_rich_shows_the_pool() -> None:
    pytest.importorskip("rich")
    budget = pool()
    column = rich_column(budget)
    assert drawn(column) == "batch: usd 0.2500 / 1.0000 (25%) | 0 in flight"
    budget.record(usd=0.25)
    assert "0.5000 / 1.0000" in drawn(column)


def test_a_column_of_rich_shows_what_it_is_told_to_of_the_pool_of_its_task() -> None:
    pytest.importorskip("rich")
    column = rich_column(pool(), show=dollars, style="red")
    assert drawn(column) == "0.25 USD"
    assert drawn(column, pool=BudgetPool(usd_cap=3)) == "0.00 USD"
    progress = pytest.importorskip("rich.progress")
    with progress.Progress(column, disable=True) as shown:
        shown.add_task("work")
        assert str(column.render(shown.tasks[0]).style) == "red"


def test_a_pool_that_cannot_answer_does_not_end_the_display() -> None:
    pytest.importorskip("rich")
    far: Any = Unreachable()
    assert drawn(rich_column(far)) == "ConnectionError"
    assert drawn(rich_column(pool(), show=lambda snapshot: 1 / 0)) == "ZeroDivisionError"  # type: ignore[arg-type,return-value]


def test_a_bar_of_tqdm_shows_the_pool_whenever_it_is_drawn() -> None:
    pytest.importorskip("tqdm")
    budget, out = BudgetPool(usd_cap=1, name="batch"), io.StringIO()
    for _ in tqdm_bar(budget, range(3), desc="reading", file=out, mininterval=0, ascii=True, ncols=120):
        budget.record(usd=0.25)
    frames = out.getvalue().split("\r")
    assert "batch: usd 0.0000 / 1.0000" in frames[1]
    assert frames[-1].strip().startswith("reading: 100%|")
    assert "batch: usd 0.7500 / 1.0000 (75%) | 0 in flight" in frames[-1]


def test_a_bar_of_tqdm_that_is_moved_by_hand_keeps_its_own_postfix_and_class() -> None:
    own: Any = type("Own", (pytest.importorskip("tqdm").tqdm,), {})
    out = io.StringIO()
    with tqdm_bar(pool(), show=dollars, base=own, total=2, file=out, mininterval=0) as bar:
        bar.set_postfix_str("2 failed")
        bar.update(2)
    assert isinstance(bar, own)
    assert "2 failed, 0.25 USD" in out.getvalue()
    far: Any = Unreachable()
    with tqdm_bar(far, total=1, file=out) as bar:
        assert "ConnectionError" in str(bar)


@pytest.mark.parametrize(("make", "library"), [(rich_column, "rich"), (tqdm_bar, "tqdm")])
def test_without_the_library_the_error_says_what_to_install(
    make: Any, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [library, "rich.progress", "rich.text", "tqdm.auto"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"{library} is not installed: pip install {library}"):
        make(BudgetPool(usd_cap=1))
