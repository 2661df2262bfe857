"""What metering costs: our own CPU for a metered call, a chunk of a stream, a request that is none of ours, the import.

Each row compares two contenders that do the same, one of them with us: the ratio says what we add to it, the
difference what we take. The time is the CPU's (`time.process_time_ns`), since on a shared machine the wall clock also
counts the others. No network is used: a transport of the HTTP library's own kind answers at once. What is not installed
is left out, and said so.
"""

from __future__ import annotations

import importlib
import json
import statistics
from functools import partial
from pathlib import Path
from time import process_time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import token_budget
from benchmarks._measure import RATIO_HEADER, Options, Table, interleaved, number, own_copy, ratio_cells
from benchmarks._operations import large_pool
from benchmarks.import_time import foreign_modules, interpreter, program_with
from token_budget.metering import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

HEADER = ("operation", "compared", *RATIO_HEADER, "us more", "us more, quartiles", "must / aim, us", "the second, us")
LIBRARIES = ("httpx2", "httpx")
OPENAI = "openai"

METERED = "metered"
WITHOUT = "without us"
IDLE = "a hook that does nothing"
PATCHED = "through the class patch"

URL = "https://api.openai.com/v1"
MODEL = "gpt-5-mini"
JSON = {"content-type": "application/json"}
_PROSE = "The harbour master counted the boats again, wrote 27 into the book and closed the window against the rain. "
MESSAGES = [
    {"role": "system", "content": "You sum up logs, in one paragraph. " + _PROSE * 5},
    {"role": "user", "content": _PROSE * 14},
    {"role": "assistant", "content": _PROSE * 6},
    {"role": "user", "content": _PROSE * 11 + '\n{"id": 81723, "took_ms": 12.5, "status": "ok"}'},
]
REQUEST = {"model": MODEL, "messages": MESSAGES, "max_completion_tokens": 500, "temperature": 0.2}
TOKENS = 1006
USAGE = {
    "prompt_tokens": 874,
    "completion_tokens": 132,
    "total_tokens": TOKENS,
    "prompt_tokens_details": {"cached_tokens": 512, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0},
}
ANSWER = {
    "id": "chatcmpl-9",
    "object": "chat.completion",
    "created": 1790000000,
    "model": f"{MODEL}-2025-08-07",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": _PROSE * 6, "refusal": None}, "finish_reason": "stop"}
    ],
    "usage": USAGE,
    "service_tier": "default",
}
CHUNK = {
    "id": "chatcmpl-9",
    "object": "chat.completion.chunk",
    "created": 1790000000,
    "model": f"{MODEL}-2025-08-07",
    "choices": [{"index": 0, "delta": {"content": " harbour"}, "finish_reason": None}],
}


class Pair(NamedTuple):
    """What two contenders are compared by: the names of both, and what the first may take more than the second."""

    above: str
    below: str
    goal: str = ""


def run(options: Options) -> list[Table]:
    """Measure what is installed, and say what is not."""
    found = {name: library for name in (*LIBRARIES, OPENAI) if (library := _imported(name)) is not None}
    for name in (*LIBRARIES, OPENAI):
        if name not in found:
            print(f"Without {name}, which is not installed here: python -m pip install {name}\n")
    rows: list[list[str]] = []
    chunks: list[list[str]] = []
    passing: list[list[str]] = []
    if OPENAI in found:
        rows += _openai_call(found[OPENAI], options)
        chunks += _openai_chunks(found[OPENAI], options)
    for name in LIBRARIES:
        if name in found:
            rows += _bare_call(found[name], options)
            chunks += _bare_chunks(found[name], options)
            passing += _passing(found[name], options)
    tables = [
        Table("Metering: CPU time of one call, 4 KB of JSON and an answer, smaller is better", HEADER, rows),
        Table("Metering: CPU time of one chunk of a stream, smaller is better", HEADER, chunks),
        Table("Metering: CPU time of a request that is not metered, smaller is better", HEADER, passing),
    ]
    return [*(table for table in tables if table.rows), *_imports(found, options)]


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _rows(
    operation: str, contenders: Mapping[str, Callable[[], float]], calls: int, repeats: int, pairs: list[Pair]
) -> list[list[str]]:
    """Time the contenders, which return nanoseconds, and return a row for each pair, under HEADER."""
    costs = interleaved(contenders, repeats)
    rows = []
    for above, below, goal in pairs:
        more = [(a - b) / calls / 1000 for a, b in zip(costs[above], costs[below], strict=True)]
        first, median, third = statistics.quantiles(more, n=4, method="inclusive")
        rows.append(
            [
                operation,
                f"{above} / {below}",
                *ratio_cells(costs[above], costs[below]),
                number(median),
                f"{number(first)}..{number(third)}",
                goal,
                number(statistics.median(costs[below]) / calls / 1000),
            ]
        )
    return rows


# ---------------------------------------------------------------- one call


def _openai_call(openai: Any, options: Options) -> list[list[str]]:
    """Time `chat.completions.create` of the SDK, with us in it and without."""
    calls = 20 if options.tiny else 1000
    library = _library_of(openai.DefaultHttpxClient)
    answer = json.dumps(ANSWER).encode()

    def create(client: Any) -> Callable[[], object]:
        return partial(client.chat.completions.create, **REQUEST)

    def client() -> Any:
        transport = library.MockTransport(lambda _: library.Response(200, headers=JSON, content=answer))
        http_client = openai.DefaultHttpxClient(transport=transport)
        return openai.OpenAI(api_key="none", base_url=URL, max_retries=0, http_client=http_client)

    meter = _meter()
    with client() as plain, client() as wrapped:
        contenders = {
            METERED: partial(own_copy(_repeat), create(meter.wrap(wrapped)), calls),
            WITHOUT: partial(own_copy(_repeat), create(plain), calls),
        }
        pairs = [Pair(METERED, WITHOUT, "120 / 80")]
        operation = f"chat.completions.create of openai {openai.__version__}"
        rows = _rows(operation, contenders, calls, options.repeats, pairs)
    assert _counted(meter) == calls * (options.repeats + 1)  # or this measured something else
    return rows


def _bare_call(library: Any, options: Options) -> list[list[str]]:
    """Time `post` of a bare client, of one with a hook that does nothing, and of a metered one."""
    calls = 20 if options.tiny else 2000
    answer = json.dumps(ANSWER).encode()
    body = json.dumps(REQUEST, separators=(",", ":")).encode()
    idle = _idle(library.Client)
    transport = library.MockTransport(lambda _: library.Response(200, headers=JSON, content=answer))
    meter = _meter()
    metered = meter.http_client(library.Client, transport=transport)
    with metered, library.Client(transport=transport) as bare, idle(transport=transport) as idling:
        contenders = {
            name: partial(
                own_copy(_repeat), partial(each.post, f"{URL}/chat/completions", content=body, headers=JSON), calls
            )
            for name, each in {METERED: metered, IDLE: idling, WITHOUT: bare}.items()
        }
        pairs = [Pair(METERED, WITHOUT, "75 / 60"), Pair(METERED, IDLE), Pair(IDLE, WITHOUT)]
        rows = _rows(f"post of {_shown(library)}", contenders, calls, options.repeats, pairs)
    assert _counted(meter) == calls * (options.repeats + 1)
    return rows


def _repeat(call: Callable[[], object], calls: int) -> int:
    start = process_time_ns()
    for _ in range(calls):
        call()
    return process_time_ns() - start


def _idle(kind: Any) -> Any:
    """Return a subclass of a client's class whose `send` only calls the one above."""

    class Idle(kind):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            return super().send(request, **options)

    return Idle


def _meter() -> Meter:
    """Return a meter whose pool has room for everything, with a table of its own, so that all machines look up one."""
    return Meter(large_pool(), {MODEL: ("0.25", 2, "0.025")})


def _counted(meter: Meter) -> float:
    """Return how many calls the meter has counted, each by the usage of its answer."""
    before: int = large_pool().snapshot().tokens_used
    used: int = meter.pool.snapshot().tokens_used
    return (used - before) / TOKENS


# ---------------------------------------------------------------- one chunk of a stream


def _openai_chunks(openai: Any, options: Options) -> list[list[str]]:
    """Time the reading of a stream with the SDK, which parses each event."""
    chunks = 50 if options.tiny else 5000
    library = _library_of(openai.DefaultHttpxClient)

    def stream(client: Any) -> Any:
        return client.chat.completions.create(**REQUEST, stream=True)

    def client() -> Any:
        http_client = openai.DefaultHttpxClient(transport=_streaming(library, chunks))
        return openai.OpenAI(api_key="none", base_url=URL, max_retries=0, http_client=http_client)

    meter = _meter()
    with client() as plain, client() as wrapped:
        contenders = {
            METERED: partial(own_copy(_read_all), partial(stream, meter.wrap(wrapped))),
            WITHOUT: partial(own_copy(_read_all), partial(stream, plain)),
        }
        pairs = [Pair(METERED, WITHOUT, "2")]
        rows = _rows(f"a chunk, by openai {openai.__version__}", contenders, chunks, options.repeats, pairs)
    assert _counted(meter) == options.repeats + 1
    return rows


def _bare_chunks(library: Any, options: Options) -> list[list[str]]:
    """Time the reading of a stream's bytes: the usage asked for by us, who take it out again, or by the caller."""
    chunks = 50 if options.tiny else 20_000
    rows = []
    for asker, more in (("us", {}), ("the caller", {"stream_options": {"include_usage": True}})):
        body = json.dumps({**REQUEST, "stream": True, **more}).encode()
        transport = _streaming(library, chunks)
        meter = _meter()
        with (
            library.Client(transport=transport) as plain,
            meter.http_client(library.Client, transport=transport) as metered,
        ):
            contenders = {
                name: partial(own_copy(_read_all), partial(_opened, client, body))
                for name, client in {METERED: metered, WITHOUT: plain}.items()
            }
            operation = f"a chunk, by {_shown(library)}, the usage asked for by {asker}"
            rows += _rows(operation, contenders, chunks, options.repeats, [Pair(METERED, WITHOUT, "2")])
        assert _counted(meter) == options.repeats + 1
    return rows


def _opened(client: Any, body: bytes) -> Any:
    request = client.build_request("POST", f"{URL}/chat/completions", content=body, headers=JSON)
    return client.send(request, stream=True).iter_bytes()


def _read_all(stream: Callable[[], Any]) -> int:
    """Time the chunks of a stream, and not how it is opened."""
    chunks = stream()
    start = process_time_ns()
    for _ in chunks:
        pass
    return process_time_ns() - start


def _streaming(library: Any, chunks: int) -> Any:
    """Return a transport that answers with so many chunks, and with the usage where it is asked for."""
    event = f"data: {json.dumps(CHUNK, separators=(',', ':'))}\n\n".encode()
    usage = f"data: {json.dumps({**CHUNK, 'choices': [], 'usage': USAGE}, separators=(',', ':'))}\n\n".encode()

    class Body(library.SyncByteStream):  # type: ignore[misc]
        def __init__(self, *, tells: bool) -> None:
            self._tells = tells

        def __iter__(self) -> Iterator[bytes]:
            for _ in range(chunks):
                yield event
            if self._tells:
                yield usage
            yield b"data: [DONE]\n\n"

    def answer(request: Any) -> Any:
        headers = {"content-type": "text/event-stream", "transfer-encoding": "chunked"}
        return library.Response(200, headers=headers, stream=Body(tells=b"include_usage" in request.content))

    return library.MockTransport(answer)


# ---------------------------------------------------------------- a request that is not metered


def _passing(library: Any, options: Options) -> list[list[str]]:
    """Time a request that the hook on the classes lets pass outside of a run: of a whole `get`, and of `send` alone.

    Beside a whole request a microsecond is hard to see. So the hook is also put over a `send` that does nothing.
    """
    calls = 50 if options.tiny else 2000
    transport = library.MockTransport(lambda _: library.Response(200, headers=JSON, content=b"{}"))
    whole, alone = _hooked(library.Client, library.Client.send), _hooked(library.Client, _send_nothing)
    nothing = type("Nothing", (library.Client,), {"send": _send_nothing})
    with library.Client(transport=transport) as plain, whole(transport=transport) as hooked:
        contenders = {
            name: partial(own_copy(_repeat), partial(client.get, "https://example.com/"), calls)
            for name, client in {PATCHED: hooked, WITHOUT: plain}.items()
        }
        rows = _rows(f"get of {_shown(library)}", contenders, calls, options.repeats, [Pair(PATCHED, WITHOUT)])
    calls *= 50
    with nothing(transport=transport) as plain, alone(transport=transport) as hooked:
        request = plain.build_request("GET", "https://example.com/")
        contenders = {
            name: partial(own_copy(_repeat), partial(client.send, request, stream=True), calls)
            for name, client in {PATCHED: hooked, WITHOUT: plain}.items()
        }
        pairs = [Pair(PATCHED, WITHOUT, "1")]
        rows += _rows(f"send that does nothing, of {_shown(library)}", contenders, calls, options.repeats, pairs)
    return rows


def _send_nothing(_client: Any, _request: Any, **_options: Any) -> None:
    pass


def _hooked(kind: Any, send: Callable[..., Any]) -> Any:
    """Return a subclass whose `send` is the given one with the hook of the classes over it.

    The hook goes on the classes and stays there. So it is taken off again by hand: else it would be on for all that is
    measured afterwards.
    """
    libraries = [library for name in LIBRARIES if (library := _imported(name)) is not None]
    kinds = [each for library in libraries for each in (library.Client, library.AsyncClient)]
    originals = [each.send for each in kinds]
    kind.send = send
    try:
        with _meter().patch():
            hooked = kind.send
    finally:
        for each, original in zip(kinds, originals, strict=True):
            each.send = original
    assert hooked is not send  # or this measures nothing
    return type("Hooked", (kind,), {"send": hooked})


# ---------------------------------------------------------------- the import


def _imports(found: dict[str, Any], options: Options) -> list[Table]:
    """Time what `import token_budget.metering` takes where the core is imported already."""
    package_folder = Path(token_budget.__file__).parent.parent
    ours = "import token_budget.metering"
    imports = {
        ours: _importing(package_folder, "token_budget.metering", after="token_budget"),
        "import token_budget": _importing(package_folder, "token_budget"),
    }
    if OPENAI in found:
        imports["import openai"] = _importing(Path(found[OPENAI].__file__).parent.parent, OPENAI)
    costs = interleaved(imports, options.repeats)

    rows = [
        [f"{ours} / {each}", *ratio_cells(costs[ours], costs[each]), number(statistics.median(costs[each]) / 1e6)]
        for each in imports
        if each != ours
    ]
    foreign = ", ".join(foreign_modules(package_folder, "token_budget.metering"))
    results = [
        ["median ms above the core", number(statistics.median(costs[ours]) / 1e6), "40"],
        ["modules outside the standard library", foreign or "none", "none"],
    ]
    return [
        Table(f"Metering: CPU time of `{ours}`, smaller is better", ["compared", *RATIO_HEADER, "theirs, ms"], rows),
        Table(f"Metering: what `{ours}` comes to", ["", "found", "must"], results),
    ]


def _importing(folder: Path, module: str, *, after: str = "sys") -> Callable[[], float]:
    """Return a function that gives the nanoseconds of one import, in an interpreter that has done another before."""
    clock = "from time import process_time_ns as now; start = now()"
    program = program_with(folder, f"import {after}; {clock}; import {module}; print(now() - start)")

    def measured() -> float:
        return float(interpreter("-S", "-c", program).stdout)

    return measured


# ---------------------------------------------------------------- the libraries


def _library_of(kind: type) -> Any:
    """Return the library, httpx or httpx2, that a client's class comes from: SDKs have changed theirs."""
    names = {base.__module__.partition(".")[0] for base in kind.__mro__}
    return importlib.import_module(next(name for name in LIBRARIES if name in names))


def _shown(library: Any) -> str:
    return f"{library.__name__} {library.__version__}"
