"""A web handler under daily limits for each user, each project and all together: 402 when spent, 429 when busy."""

import json
import math
import os
from decimal import Decimal
from typing import Annotated

import openai
from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse

from token_budget import BudgetExceeded, BudgetPool, Window
from token_budget.metering import Meter, budget_run

# APP_USD_CAP=500 APP_WINDOW="daily Europe/Berlin" APP_USER_USD=5 APP_PROJECT_USD=50 APP_PRICES='{"gpt-5": [1.25, 10]}'
pool = BudgetPool.from_env("APP_")
day = Window.parse(os.environ["APP_WINDOW"])
users = pool.keyed(usd_cap=Decimal(os.environ["APP_USER_USD"]), name="user", window=day)
projects = pool.keyed(usd_cap=Decimal(os.environ["APP_PROJECT_USD"]), name="project", window=day)
prices = {"gpt-5-mini": (0.25, 2, 0.025), **json.loads(os.environ.get("APP_PRICES", "{}"))}
meter = Meter(pool, prices, timeout=1)  # seconds that a request waits for room
client = openai.AsyncOpenAI()
app = FastAPI()


@app.post("/ask")
async def ask(question: str, x_user: Annotated[str, Header()], x_project: Annotated[str, Header()]) -> dict[str, str]:
    scope = BudgetPool.join(users[x_user], projects[x_project])
    async with budget_run("ask", pool=scope, meter=meter, user=x_user):
        answer = await client.chat.completions.create(
            model="gpt-5-mini", max_completion_tokens=100, messages=[{"role": "user", "content": question}]
        )
    return {"answer": answer.choices[0].message.content or ""}


@app.exception_handler(BudgetExceeded)
async def refused(request: Request, error: BudgetExceeded) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    return JSONResponse({"scope": error.pool}, 402 if error.exhausted else 429, headers)
