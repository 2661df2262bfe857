"""``token-budget scopes``: what it prints, and that its check can fail."""

from __future__ import annotations

import pytest

from token_budget.cli import main, scopes


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_prints_the_budgets_of_users_and_projects_and_agrees(capsys: pytest.CaptureFixture[str], seed: int) -> None:
    assert main(["scopes", "--seed", str(seed)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warning: 80 % of the day's money is used: day: ")
    assert lines[1].startswith("200 tasks asked at once; ")
    assert lines[1].endswith("served, at most 20 at a time")
    assert lines[2].startswith("refused because the scope's money for today was spent: ")
    assert "resets at 20" in lines[3]
    assert lines[-1] == "the pools agree with what the tasks noted, to the nanodollar"
    assert len(lines) == 5 + 7


def test_one_nanodollar_more_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = scopes.Day.__init__

    def with_an_unknown_spend(day: scopes.Day) -> None:
        made(day)
        day.whole.record(usd=1e-9)

    monkeypatch.setattr(scopes.Day, "__init__", with_an_unknown_spend)
    assert main(["scopes"]) == 1
    assert capsys.readouterr().out.endswith("the pools DO NOT AGREE with what the tasks noted, to the nanodollar\n")


def test_refusals_are_counted_by_scope(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scopes, "_USERS", ("zoe",))
    assert main(["scopes"]) == 0
    assert " by user:zoe" in capsys.readouterr().out
    monkeypatch.setattr(scopes, "_CALLS", 20)
    monkeypatch.setattr(scopes, "_USERS", ("zoe", "yan", "xia"))
    assert main(["scopes"]) == 0
    assert ": none\n" in capsys.readouterr().out
