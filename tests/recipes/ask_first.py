"""Ask before a call and book it after, under a cap for each user and each run; fail open or closed."""

from typing import Any

from token_budget import BudgetPool, Window
from token_budget.metering import BudgetUnavailable, Meter

pool = BudgetPool(usd_cap=100, name="all", window=Window.monthly("UTC"))
users = pool.keyed(usd_cap=10, name="user", window=Window.monthly("UTC"))
runs = pool.keyed(usd_cap=0.01, name="run")
prices = {"gpt-5": (1.25, 10), "gpt-5-mini": (0.25, 2)}
meter = Meter(prices=prices, policies=({"plan": "free"}, ["gpt-5", "claude-opus-*"]))


def ask(model: str, user: str, run: str, plan: str) -> str:
    scope = BudgetPool.join(users[user], runs[run])
    decision = meter.check(model, input_tokens=1_000, max_output_tokens=500, pool=scope, context={"plan": plan})
    if not decision:
        return f"{decision.reason} {decision.pool or ''}".strip()
    answer = {"usage": {"prompt_tokens": 900, "completion_tokens": 400}}  # call the model here
    meter.record(model, answer, pool=scope)
    return f"{scope.snapshot().usd_used:.4f}"


print("ann, free:", ask("gpt-5", "ann", "run-1", plan="free"))
print("ann, paid:", [ask("gpt-5", "ann", "run-1", plan="paid") for _ in range(3)])
print("bob, paid:", ask("gpt-5-mini", "bob", "run-2", plan="paid"))


class OutOfReach:
    """Stands for a budget that is kept in a store, which does not answer."""

    name, closed = "store", False

    def snapshot(self, **_: Any) -> Any:
        raise BudgetUnavailable("the store does not answer")

    record = reserve = snapshot


store: Any = OutOfReach()
for choice in ("block", "allow"):  # closed is the default; only a store that is out of reach fails open, never a cap
    careful = Meter(prices=prices, on_error=choice)
    decision = careful.check("gpt-5", input_tokens=1_000, max_output_tokens=500, pool=store)
    print(f"{choice}: allowed={decision.allowed} ({decision.reason})")
