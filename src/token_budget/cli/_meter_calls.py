"""The calls of the meter demo: their plan, and the clients that make them.

With the openai SDK its own clients make the calls: one that is wrapped, and one that knows nothing of any budget.
Without it a small client of the standard library makes them, and asks the meter for room itself (`meter.call`). What
makes a call returns the text of its answer.
"""

from __future__ import annotations

import asyncio
import enum
import gzip
import http.client
import importlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

from token_budget.cli._provider import RATES
from token_budget.cli._provider_shapes import count
from token_budget.metering import Call, Meter, refusal

# What the meter prices by, in dollars for a million tokens: input, output, input from a cache. The provider has a table
# of its own.
PRICES = {"house-small": ("0.15", "0.60", "0.075"), "house-large": ("3", "15", "0.30")}

LIMIT = 16  # tokens of output that each call allows
_TRIES = 3
_PATIENCE = 60.0  # seconds; a call that will hang is given less
_HANGING = 0.5
_MOST_THREADS = 200  # of the tasks of the standard library's client, which are answered in threads
_WORDS = (
    "why",
    "is",
    "the",
    "sky",
    "over",
    "our",
    "harbour",
    "so",
    "blue",
    "this",
    "morning",
    "and",
    "grey",
    "at",
    "noon",
)

# What becomes of twenty calls: what goes wrong with each (a fault of the provider), and whether its answer is streamed.
_TWENTY: tuple[tuple[str | None, bool], ...] = (
    *[(None, False)] * 6,
    *[(None, True)] * 5,
    ("gzip", False),
    ("gzip", True),
    ("429-once", False),
    ("429-once", False),
    ("429-once", True),
    ("500", False),
    ("cut", True),
    ("no-usage", False),
    ("hang", False),
)


class Outcome(enum.Enum):
    """How a call ended for its caller."""

    ANSWERED = "answered"
    BROKEN = "broken"  # it was sent, and no whole answer came
    FAILED = "failed"  # the provider turned it away to the end
    REFUSED = "refused"  # by the budget, before it was sent


_ENDS = {"500": Outcome.FAILED, "cut": Outcome.BROKEN, "hang": Outcome.BROKEN}
BROKEN = frozenset({"cut", "hang", "no-usage"})  # faults after which nobody can know what was billed


@dataclass(frozen=True)
class Job:
    """One call that is to be made."""

    number: int
    model: str
    prompt: str
    fault: str | None
    stream: bool

    @property
    def body(self) -> dict[str, Any]:
        """What is asked for."""
        asked = {"model": self.model, "max_tokens": LIMIT, "messages": [{"role": "user", "content": self.prompt}]}
        return {**asked, "stream": True} if self.stream else asked

    @property
    def headers(self) -> dict[str, str]:
        """The header that says what goes wrong."""
        return {} if self.fault is None else {"x-fault": self.fault}

    @property
    def most(self) -> int:
        """The most that it can cost, in nanodollars: a token for each byte that is sent, and all the output."""
        rate = RATES[self.model]
        return len(json.dumps(self.body)) * rate.input + LIMIT * rate.output

    @property
    def query(self) -> dict[str, int]:
        """What tells the provider's log which call it is."""
        return {"call": self.number}

    @property
    def path(self) -> str:
        """Where it is sent."""
        return f"/v1/chat/completions?call={self.number}"

    @property
    def seconds(self) -> float:
        """How long its caller waits for an answer."""
        return _HANGING if self.fault == "hang" else _PATIENCE

    @property
    def tries(self) -> int:
        """How often it is made, if the provider turns it away."""
        return 1 if self.fault == "hang" else _TRIES

    @property
    def ends(self) -> Outcome:
        """How it ends, if the budget does not refuse it."""
        return _ENDS.get(self.fault or "", Outcome.ANSWERED)


def plan(calls: int, random: Random) -> list[Job]:
    """Return so many calls."""
    kinds = [_TWENTY[number % len(_TWENTY)] for number in range(calls)]
    random.shuffle(kinds)
    return [
        Job(
            number=number,
            model="house-large" if random.random() < 0.25 else "house-small",
            prompt=f"Question {number}: {' '.join(random.choices(_WORDS, k=random.randrange(5, 60)))}?",
            fault=fault,
            stream=stream,
        )
        for number, (fault, stream) in enumerate(kinds)
    ]


def cost(jobs: list[Job]) -> int:
    """Return what the calls cost if all of them are answered, in nanodollars."""
    return sum(RATES[job.model].nanos(count(job.body, made=True)) for job in jobs)


def outcome_of(error: Exception | None) -> Outcome:
    """Return how a call ended."""
    if error is None:
        return Outcome.ANSWERED
    if refusal(error) is not None:
        return Outcome.REFUSED
    return Outcome.BROKEN if getattr(error, "status_code", None) is None else Outcome.FAILED


# ---------------------------------------------------------------- the openai SDK


@contextmanager
def openai_client(url: str, meter: Meter) -> Iterator[Callable[[Job], str]]:
    """Give what makes a call through the SDK's client, which is wrapped."""
    openai: Any = importlib.import_module("openai")
    http_client = openai.DefaultHttpxClient(trust_env=False)  # a proxy does not lead to the loopback
    with meter.wrap(openai.OpenAI(api_key="none", base_url=f"{url}/v1", http_client=http_client)) as client:

        def call(job: Job) -> str:
            patient = client.with_options(timeout=job.seconds, max_retries=job.tries - 1)
            answer = patient.chat.completions.create(**job.body, extra_headers=job.headers, extra_query=job.query)
            if not job.stream:
                return str(answer.choices[0].message.content)
            # As most programs read a stream: each chunk has a choice.
            return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

        yield call


@asynccontextmanager
async def openai_async_client(url: str, _meter: Meter) -> AsyncIterator[Callable[[Job], Awaitable[str]]]:
    """Give what makes a call through the SDK's async client, which nobody wrapped: it is the run that counts."""
    openai: Any = importlib.import_module("openai")
    http_client = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", http_client=http_client) as client:

        async def call(job: Job) -> str:
            patient = client.with_options(timeout=job.seconds, max_retries=job.tries - 1)
            answer = await patient.chat.completions.create(**job.body, extra_headers=job.headers, extra_query=job.query)
            if not job.stream:
                return str(answer.choices[0].message.content)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

        yield call


# ---------------------------------------------------------------- the standard library


class TurnedAway(Exception):
    """The provider answered with a status that is no success: nothing is billed."""

    def __init__(self, status_code: int, retry_after: float) -> None:
        super().__init__(f"status {status_code}")
        self.status_code = status_code
        self.retry_after = retry_after  # seconds


def post(url: str, job: Job) -> Any:
    """Make one request; return its answer, or the list of its events.

    Raises:
        TurnedAway: it was not served.
        OSError, HTTPException: no whole answer came.
    """
    where = urlsplit(url)
    asked = {**job.body, "stream_options": {"include_usage": True}} if job.stream else job.body
    headers = {"content-type": "application/json", "accept-encoding": "gzip", **job.headers}
    with closing(http.client.HTTPConnection(str(where.hostname), where.port, timeout=job.seconds)) as connection:
        connection.request("POST", job.path, json.dumps(asked), headers)
        response = connection.getresponse()
        body = response.read()  # IncompleteRead, if it was cut
        if response.getheader("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if response.status != http.HTTPStatus.OK:
            raise TurnedAway(response.status, int(response.getheader("retry-after-ms", "0")) / 1000)
    return (
        [json.loads(line[6:]) for line in body.splitlines() if line[:7] == b"data: {"]
        if job.stream
        else json.loads(body)
    )


def text_of(answer: Any) -> str:
    """Return the text of an answer, or of the list of its events."""
    if isinstance(answer, list):
        return "".join(one["delta"].get("content") or "" for event in answer for one in event["choices"])
    return str(answer["choices"][0]["message"]["content"])


def _room(meter: Meter, job: Job) -> Call:
    """Return the block of one try. The bytes of a prompt are a bound of its tokens; eight more frame the message."""
    return meter.call(job.model, input_tokens=len(job.prompt.encode()) + 8, max_output_tokens=LIMIT)


@contextmanager
def standard_client(url: str, meter: Meter) -> Iterator[Callable[[Job], str]]:
    """Give what makes a call with the standard library alone: each try holds room of its own."""

    def call(job: Job) -> str:
        tries_left = job.tries
        while True:
            tries_left -= 1
            with _room(meter, job) as room:
                try:
                    answer = post(url, job)
                    room.settle(answer)
                except TurnedAway as error:
                    room.release()
                    if not tries_left:
                        raise
                    pause = error.retry_after
                else:
                    return text_of(answer)
            time.sleep(pause)

    yield call


@asynccontextmanager
async def standard_async_client(url: str, meter: Meter) -> AsyncIterator[Callable[[Job], Awaitable[str]]]:
    """Give what does the same in a task, which waits for room without a thread, and has one while it is answered."""
    with ThreadPoolExecutor(_MOST_THREADS) as threads:

        async def call(job: Job) -> str:
            tries_left = job.tries
            while True:
                tries_left -= 1
                async with _room(meter, job) as room:
                    try:
                        answer = await asyncio.get_running_loop().run_in_executor(threads, post, url, job)
                        room.settle(answer)
                    except TurnedAway as error:
                        room.release()
                        if not tries_left:
                            raise
                        pause = error.retry_after
                    else:
                        return text_of(answer)
                await asyncio.sleep(pause)

        yield call
