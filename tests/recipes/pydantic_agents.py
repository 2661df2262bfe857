"""Ten agents of pydantic-ai at once on one budget, each a run inside of the whole."""

import asyncio

from pydantic_ai import Agent

from token_budget import BudgetExceeded, BudgetPool
from token_budget.metering import Meter, budget_run

pool = BudgetPool(usd_cap=10, name="agents")
meter = Meter(pool, {"gpt-5-mini": (0.25, 2, 0.025)})
agent = Agent("openai:gpt-5-mini", instructions="Answer in one word.", model_settings={"max_tokens": 100})


async def research(topic: str) -> str:
    async with budget_run(topic, usd_cap=0.001):
        try:
            return str((await agent.run(f"What is {topic}?")).output)
        except BudgetExceeded:
            return "no budget"


async def main() -> None:
    async with budget_run("research", usd_cap=0.0005, meter=meter) as run:
        answers = await asyncio.gather(*(research(f"topic {number}") for number in range(10)))
    print(f"{answers.count('no budget')} of {len(answers)} without budget")
    print(run.summary())


asyncio.run(main())
