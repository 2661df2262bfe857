"""The stress program runs, finds interpreters, and reports what it did."""

from __future__ import annotations

import pytest

import stress


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("race", stress.RACES, ids=lambda race: race.__name__)
def test_a_race_holds(race: object) -> None:
    race()  # type: ignore[operator]


def test_it_says_clearly_when_there_is_no_free_threaded_interpreter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stress, "free_threaded", list)
    assert stress.main(["--seconds", "0"]) == 0
    assert capsys.readouterr().out == "no free-threaded CPython was found on this machine: nothing was stressed\n"
