"""One job with a budget, a report and guards against loops; the code inside knows nothing of them."""

import json

import openai

from token_budget import BudgetPool
from token_budget.metering import LoopDetected, Meter, budget_run

pool = BudgetPool(usd_cap=10, name="agents")
meter = Meter(pool, {"gpt-5-mini": (0.25, 2, 0.025)})
client = openai.OpenAI()


def agent(task: str) -> None:
    while True:  # it never gets anywhere
        client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": task}])


try:  # the guards: a request sent again, more calls in a minute, an input that grows by half in ten calls in a row
    with budget_run("auth-refactor", usd_cap=2, meter=meter, repeats=5, calls_per_minute=60, growth=(0.5, 10)) as run:
        agent("Fix the login.")
except LoopDetected as error:
    print(error)
print(run.summary())
report = run.report()
print(report["by_model"]["gpt-5-mini"]["call_count"], report["most_expensive"]["model"])
json.dumps(report)  # is ready for JSON
