"""A batch of LiteLLM's, which runs in threads of its own: the run takes every thread of the program."""

import litellm

from token_budget import BudgetExceeded, BudgetPool
from token_budget.adapters.litellm import install
from token_budget.metering import Meter, budget_run

litellm.suppress_debug_info = True
install()  # refusals come as themselves, and not as litellm.InternalServerError
pool = BudgetPool(usd_cap=10, name="batches")
meter = Meter(pool, {"gpt-5-mini": (0.25, 2, 0.025)}, timeout=0)

prompts = [[{"role": "user", "content": f"What is {number} squared?"}] for number in range(20)]
with budget_run("batch", usd_cap=0.0004, meter=meter, threads=True) as run:
    answers = litellm.batch_completion("openai/gpt-5-mini", prompts, max_tokens=100)
refused = sum(isinstance(answer, BudgetExceeded) for answer in answers)
print(f"{len(answers) - refused} answered, {refused} refused")
print(run.summary())
