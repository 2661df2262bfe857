"""LiteLLM gives refusals back as themselves: its functions played by doubles, and the real ones in a process apart."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import token_budget
from token_budget import BudgetExceeded, BudgetPool
from token_budget.adapters.litellm import FUNCTIONS, install
from token_budget.metering import RunStopped, refusal


class ProviderError(Exception):
    """What LiteLLM makes of any error."""


def refused() -> BudgetExceeded:
    with pytest.raises(BudgetExceeded) as caught:
        BudgetPool(usd_cap=1).reserve(usd=2)
    return caught.value


class Stream:
    """A stream of LiteLLM's, whose request leaves at its first piece."""

    __module__ = "litellm.streams"

    def __init__(self, outcome: Callable[[], Any]) -> None:
        self.outcome = outcome
        self.pieces = iter("ab")

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        self.outcome()
        return next(self.pieces)


class AsyncStream(Stream):
    __module__ = "litellm.streams"

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        self.outcome()
        for piece in self.pieces:
            return piece
        raise StopAsyncIteration


class OnlyAsync:
    __module__ = "litellm.responses"

    def __init__(self) -> None:
        self.inner = AsyncStream(fail)

    def __aiter__(self) -> OnlyAsync:
        return self

    async def __anext__(self) -> Any:
        return await self.inner.__anext__()


def fine() -> None:
    """Raise nothing."""


def fail(inner: BaseException | None = None) -> None:
    """Raise an error of LiteLLM's, with a refusal inside."""
    try:
        raise refused() if inner is None else inner
    except Exception as error:
        raise ProviderError("500") from error


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A double of the module. What its functions do is what they are given as their first argument."""
    module: Any = ModuleType("litellm")

    def call(outcome: Callable[[], Any]) -> Any:
        return outcome()

    async def acall(outcome: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return outcome()

    for name in FUNCTIONS:
        setattr(module, name, acall if name.startswith("a") else call)
    monkeypatch.setitem(sys.modules, "litellm", module)
    with contextlib.ExitStack() as stack:
        stack.callback(install())
        yield module


def ask(module: Any, name: str, outcome: Callable[[], Any]) -> Any:
    answer = getattr(module, name)(outcome)
    return asyncio.run(answer) if name.startswith("a") else answer


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_refusal_comes_back_as_itself(litellm: Any, name: str) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        ask(litellm, name, fail)
    assert caught.value.__context__ is None  # not LiteLLM's error, in whose chain it stands
    with pytest.raises(RunStopped, match="enough"):
        ask(litellm, name, lambda: fail(RunStopped("enough")))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_errors_and_answers_stay_as_they_are(litellm: Any, name: str) -> None:
    other = ProviderError("429")
    with pytest.raises(ProviderError) as caught:
        ask(litellm, name, lambda: fail(ValueError()))
    assert isinstance(caught.value.__cause__, ValueError)

    def raise_other() -> None:
        raise other

    with pytest.raises(ProviderError) as caught:
        ask(litellm, name, raise_other)
    assert caught.value is other
    answer = object()
    assert ask(litellm, name, lambda: answer) is answer


@pytest.mark.parametrize("name", ["completion", "acompletion"])
def test_a_refusal_that_comes_as_itself_keeps_its_context(litellm: Any, name: str) -> None:
    error = refused()

    def raise_it() -> None:
        try:
            raise KeyError("first")
        except KeyError:
            raise error  # noqa: B904 - the context is what is tested

    with pytest.raises(BudgetExceeded) as caught:
        ask(litellm, name, raise_it)
    assert caught.value is error
    assert isinstance(error.__context__, KeyError)


@pytest.mark.parametrize("name", ["completion", "acompletion"])
def test_an_error_of_a_call_that_is_made_while_a_refusal_is_handled_stays_itself(litellm: Any, name: str) -> None:
    first = refused()

    async def main() -> Any:
        try:
            raise first
        except BudgetExceeded:
            answer = getattr(litellm, name)(lambda: fail(ValueError()))
            return await answer if name.startswith("a") else answer

    with pytest.raises(ProviderError) as caught:
        asyncio.run(main())
    assert refusal(caught.value) is first  # it stands in the chain, as Python has it

    async def again() -> Any:
        try:
            raise first
        except BudgetExceeded:
            answer = getattr(litellm, name)(fail)
            return await answer if name.startswith("a") else answer

    with pytest.raises(BudgetExceeded) as second:
        asyncio.run(again())
    assert second.value is not first


def test_a_stream_raises_refusals_as_themselves(litellm: Any) -> None:
    stream = litellm.completion(lambda: Stream(fine))
    assert list(stream) == ["a", "b"]
    assert isinstance(stream, Stream)
    assert type(stream).__name__ == "Stream"
    assert type(stream) is type(litellm.completion(lambda: Stream(fine)))
    kind = type(stream)
    assert type(litellm.completion(lambda: stream)) is kind  # one that is handed on is not wrapped twice
    with pytest.raises(BudgetExceeded):
        next(litellm.completion(lambda: Stream(fail)))
    with pytest.raises(ProviderError):
        next(litellm.completion(lambda: Stream(lambda: fail(ValueError()))))


def test_an_async_stream_raises_refusals_as_themselves(litellm: Any) -> None:
    async def read(stream: Any) -> list[Any]:
        return [piece async for piece in await litellm.acompletion(lambda: stream)]

    assert asyncio.run(read(AsyncStream(fine))) == ["a", "b"]
    for stream in (AsyncStream(fail), OnlyAsync()):
        with pytest.raises(BudgetExceeded):
            asyncio.run(read(stream))
    both = litellm.completion(lambda: AsyncStream(fine))
    assert next(both) == "a"


def test_streams_of_others_are_left_alone(litellm: Any) -> None:
    generator = (piece for piece in "ab")
    assert litellm.completion(lambda: generator) is generator


def test_every_function_that_calls_a_model_is_covered() -> None:
    kinds = ("completion", "text_completion", "embedding", "responses")
    assert sorted(FUNCTIONS) == sorted([*kinds, *(f"a{name}" for name in kinds)])


def test_installing_twice_does_nothing_and_undoing_gives_the_originals_back(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("litellm")
    originals = {name: lambda name=name: name for name in FUNCTIONS}
    for name, function in originals.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "litellm", module)
    undo = install()
    put = {name: getattr(module, name) for name in FUNCTIONS}
    assert all(put[name] is not originals[name] for name in FUNCTIONS)
    again = install()
    assert {name: getattr(module, name) for name in FUNCTIONS} == put
    again()
    assert {name: getattr(module, name) for name in FUNCTIONS} == put
    module.completion = above = lambda: "put over it by somebody"
    undo()
    undo()
    assert module.completion is above
    assert all(getattr(module, name) is originals[name] for name in FUNCTIONS if name != "completion")


def test_without_litellm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(ImportError, match="pip install litellm"):
        install()


# ---------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def rows() -> Any:
    if importlib.util.find_spec("litellm") is None:
        pytest.skip("litellm is not installed")
    program = Path(__file__).parent / "litellm_rows.py"
    environment = os.environ | {"PYTHONPATH": str(Path(token_budget.__file__).parent.parent)}
    command = [sys.executable, "-W", "ignore", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[done.stdout.index('{"plain"') :])


def test_of_the_real_litellm_every_refusal_is_itself_and_nothing_is_sent(rows: Any) -> None:
    refusals = {name: row for name, row in rows["installed"].items() if name.endswith("refused")}
    assert len(refusals) == 20
    assert {name: row["outcome"] for name, row in refusals.items()} == dict.fromkeys(refusals, "BudgetExceeded")
    assert {row["requests"] for row in refusals.values()} == {0}
    assert rows["errors"] == []


def test_of_the_real_litellm_every_answer_arrives_and_is_counted_as_billed(rows: Any) -> None:
    answers = {name: row for name, row in rows["installed"].items() if name.endswith("answered")}
    assert len(answers) == 18
    assert {name: row["outcome"] for name, row in answers.items()} == dict.fromkeys(answers, "answered")
    assert {name: row["counted"] for name, row in answers.items()} == {
        name: row["billed"] for name, row in answers.items()
    }
    assert {row["reserved"] for row in answers.values()} == {0}


def test_of_the_real_litellm_without_install_a_refusal_is_an_error_of_its_own(rows: Any) -> None:
    assert {row["outcome"] for row in rows["plain"].values()} == {"InternalServerError (refusal inside)"}


def test_of_the_real_litellm_an_error_after_a_refusal_that_was_handled_is_the_providers(rows: Any) -> None:
    assert rows["handled"] == "BadRequestError (refusal inside)"
