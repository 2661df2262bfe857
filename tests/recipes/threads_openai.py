"""A hundred documents in thirty-two threads, through one client, on one budget."""

from concurrent.futures import ThreadPoolExecutor

import openai

from token_budget import BudgetExceeded, BudgetPool
from token_budget.metering import Meter

pool = BudgetPool(usd_cap=0.002, name="batch")
client = Meter(pool, {"gpt-5-mini": (0.25, 2, 0.025)}).wrap(openai.OpenAI())


def summarise(document: str) -> str | None:
    try:
        answer = client.chat.completions.create(
            model="gpt-5-mini",
            max_completion_tokens=100,
            messages=[{"role": "user", "content": f"Summarise: {document}"}],
        )
    except BudgetExceeded:  # before anything is sent
        return None
    return str(answer.choices[0].message.content)


documents = [f"document {number}: {'some text ' * 20}" for number in range(100)]
with ThreadPoolExecutor(32) as workers:
    summaries = list(workers.map(summarise, documents))
print(f"{sum(text is not None for text in summaries)} of {len(documents)}: {pool.snapshot()}")
