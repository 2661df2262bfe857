"""Metering: an existing LLM program, capped before the money is spent.

from token_budget import BudgetPool
from token_budget.metering import Meter, budget_run

meter = Meter(BudgetPool(usd_cap=1.00))
client = meter.wrap(openai.OpenAI())  # BudgetExceeded before the call that would pass the cap

with budget_run("auth-refactor", usd_cap=2.00) as run:  # every SDK call inside, whoever makes it
    agent.invoke(...)
print(run.summary())
"""

from token_budget.contract import BudgetUnavailable
from token_budget.metering._block import budget_run
from token_budget.metering._call import Call
from token_budget.metering._decision import Decision
from token_budget.metering._meter import Meter
from token_budget.metering._prices import Prices
from token_budget.metering._refusals import (
    LoopDetected,
    ModelBlocked,
    Refusal,
    RunStopped,
    UnknownModel,
    Unmetered,
    refusal,
)
from token_budget.metering._report import CallRecord
from token_budget.metering._run import Run, current_run
from token_budget.metering._shapes import UnknownUsage
from token_budget.metering._usage import Usage

__all__ = [
    "BudgetUnavailable",
    "Call",
    "CallRecord",
    "Decision",
    "LoopDetected",
    "Meter",
    "ModelBlocked",
    "Prices",
    "Refusal",
    "Run",
    "RunStopped",
    "UnknownModel",
    "UnknownUsage",
    "Unmetered",
    "Usage",
    "budget_run",
    "current_run",
    "refusal",
]
