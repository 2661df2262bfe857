"""Progress displays that show a pool: a column for rich, and a bar of tqdm.

What always holds: a display reads snapshots, and holds and counts nothing. A pool that cannot answer (a store that is
out of reach) shows the kind of its error, and does not end the display.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from token_budget._snapshot import BudgetSnapshot
from token_budget.contract import Spendable

Show = Callable[[BudgetSnapshot], str]


def rich_column(pool: Spendable, *, show: Show = str, style: str = "") -> Any:
    """Return a column for `rich.progress.Progress` that shows the pool at every frame.

    A task that has a pool of its own (``progress.add_task("ann", pool=users["ann"])``) shows that one.

    Args:
        pool: what is shown.
        show: makes the text of a snapshot.
        style: rich's style of the text, such as ``"cyan"``.

    Raises:
        ImportError: rich is not installed; the error has the line that installs it.

    Example::

        with rich.progress.Progress(*rich.progress.Progress.get_default_columns(), rich_column(pool)) as progress:
            ...
    """
    progress = _library("rich.progress")
    text = _library("rich.text")

    def render(_column: Any, task: Any) -> Any:
        return text.Text(_shown(task.fields.get("pool", pool), show), style=style)

    return type("BudgetColumn", (progress.ProgressColumn,), {"render": render})()


def tqdm_bar(
    pool: Spendable, iterable: Iterable[Any] | None = None, *, show: Show = str, base: Any = None, **options: Any
) -> Any:
    """Return a bar of tqdm that shows the pool behind its numbers, whenever it is drawn.

    Args:
        pool: what is shown.
        iterable: what the bar goes through, if it is not moved by hand.
        show: makes the text of a snapshot.
        base: the class of the bar; ``tqdm.auto.tqdm`` if left out.
        **options: what the class takes: ``total``, ``desc`` and so on. A postfix of your own stands first.

    Raises:
        ImportError: tqdm is not installed; the error has the line that installs it.

    Example::

        for document in tqdm_bar(pool, documents, desc="reading"):
            ask(document)
    """
    kind = _library("tqdm.auto").tqdm if base is None else base

    def format_dict(bar: Any) -> dict[str, Any]:
        numbers: dict[str, Any] = dict(super(made, bar).format_dict)
        numbers["postfix"] = ", ".join(filter(None, [numbers.get("postfix"), _shown(pool, show)]))
        return numbers

    made: Any = type(kind.__name__, (kind,), {"format_dict": property(format_dict)})
    return made(iterable, **options)


def _shown(pool: Spendable, show: Show) -> str:
    try:
        return show(pool.snapshot())
    except Exception as error:  # noqa: BLE001 - it would end the thread that draws
        return type(error).__name__


def _library(name: str) -> Any:
    from importlib import import_module

    package = name.partition(".")[0]
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{package} is not installed: pip install {package}") from error
