"""An agent of OpenAI's Agents SDK in a run block."""

import asyncio

from agents import Agent, ModelSettings, Runner

from token_budget import BudgetExceeded, BudgetPool
from token_budget.metering import Meter, budget_run

pool = BudgetPool(usd_cap=10, name="agents")
meter = Meter(pool, {"gpt-5-mini": (0.25, 2, 0.025)})
agent = Agent(name="Poet", model="gpt-5-mini", model_settings=ModelSettings(max_tokens=200))


async def main() -> None:
    async with budget_run("poems", usd_cap=0.001, meter=meter) as run:
        try:
            while True:
                await Runner.run(agent, "Write about the sea.")
        except BudgetExceeded as error:
            print(f"refused by {error.pool}")
    print(run.summary())


asyncio.run(main())
