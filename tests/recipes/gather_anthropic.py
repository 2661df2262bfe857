"""Fifty prompts in one `asyncio.gather`; those that do not fit the budget are never sent."""

import asyncio

import anthropic

from token_budget import BudgetExceeded, BudgetPool
from token_budget.metering import Meter

pool = BudgetPool(usd_cap=0.002, name="prompts")
meter = Meter(pool, {"claude-haiku-4-5": (1, 5, 0.1, 1.25)})


async def main() -> None:
    async with meter.wrap(anthropic.AsyncAnthropic()) as client:

        async def ask(prompt: str) -> str:
            said = [{"role": "user", "content": prompt}]
            answer = await client.messages.create(model="claude-haiku-4-5", max_tokens=50, messages=said)
            return str(answer.content[0].text)

        prompts = [f"What is {number} squared?" for number in range(50)]
        answers = await asyncio.gather(*map(ask, prompts), return_exceptions=True)
    refused = sum(isinstance(answer, BudgetExceeded) for answer in answers)
    answered = sum(isinstance(answer, str) for answer in answers)
    print(f"{answered} answered, {refused} refused: {pool.snapshot()}")


asyncio.run(main())
