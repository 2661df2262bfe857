"""A LangChain agent in a run block: its model, its tools and its retries count, and it needs no change."""

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

from token_budget import BudgetExceeded, BudgetPool
from token_budget.metering import Meter, budget_run

pool = BudgetPool(usd_cap=10, name="agents")
meter = Meter(pool, {"gpt-5-mini": (0.25, 2, 0.025)})


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"It rains in {city}."


agent = create_agent(ChatOpenAI(model="gpt-5-mini", max_tokens=500), tools=[weather])
try:
    with budget_run("weather", usd_cap=0.002, meter=meter) as run:
        while True:
            agent.invoke({"messages": [{"role": "user", "content": "What is the weather in Rome?"}]})
except BudgetExceeded as error:
    print(f"refused by {error.pool}")
print(run.summary())
