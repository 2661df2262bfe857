"""`Meter.wrap`, `http_client` and `patch` on the clients of the SDKs, as far as they are installed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hooked import ANSWER, CHAT, COST, DONE, LIBRARIES, Door, Reply, answer, delta, event, maybe, streamed
from token_budget import BudgetExceeded, BudgetPool
from token_budget.metering import Meter, Unmetered, _clients, _refused, _stream, budget_run

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs httpx or httpx2")

MESSAGES: Any = CHAT["messages"]
CLAUDE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 10, "output_tokens": 5},
}
GEMINI = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "Hello."}]}, "finishReason": "STOP"}],
    "modelVersion": "m",
    "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15},
}
OPENAI = {
    **ANSWER,
    "id": "chatcmpl-1",
    "created": 1,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
}


class Sdk:
    """One SDK's client before the script of a door, with one call that it makes."""

    def __init__(self, name: str, library: str, make: Any, call: Any, reply: Any, *, is_async: bool) -> None:
        self.name, self.library, self.make, self.call, self.reply, self.is_async = (
            name,
            library,
            make,
            call,
            reply,
            is_async,
        )

    def door(self, **options: Any) -> tuple[Door, Any]:
        """Return the door, and the SDK's client whose HTTP client it is."""
        module = pytest.importorskip(self.name)
        pytest.importorskip(self.library)
        door = Door(self.library, "none", is_async=self.is_async, **options)
        return door, self.make(module, door.client)

    def ask(self, door: Door, client: Any, *script: Any) -> Any:
        door.script = list(script)
        return door.run(lambda: maybe(self.call(client)))

    def __repr__(self) -> str:
        return f"{self.name}-{'async' if self.is_async else 'sync'}-{self.library}"


def stainless(kind: str, module: Any, http: Any) -> Any:
    return getattr(module, kind)(api_key="x", base_url="http://127.0.0.1:1/v1", http_client=http)


def google(module: Any, http: Any) -> Any:
    name = "httpx_async_client" if "Async" in type(http).__name__ else "httpx_client"
    options = {"base_url": "http://127.0.0.1:1", name: http}
    return module.Client(api_key="x", http_options=options)


def mistral(module: Any, http: Any) -> Any:
    name = "async_client" if "Async" in type(http).__name__ else "client"
    return module.Mistral(api_key="x", server_url="http://127.0.0.1:1", **{name: http})


def chat(client: Any) -> Any:
    return client.chat.completions.create(model="m", max_tokens=100, messages=MESSAGES)


def claude(client: Any) -> Any:
    return client.messages.create(model="m", max_tokens=100, messages=MESSAGES)


def gemini(client: Any, *, of: str = "models") -> Any:
    where = client.aio.models if of == "aio" else client.models
    return where.generate_content(model="m", contents="hi", config={"max_output_tokens": 100})


def complete(client: Any, *, method: str = "complete") -> Any:
    return getattr(client.chat, method)(model="m", max_tokens=100, messages=MESSAGES)


MISTRAL = "mistralai.client"
SDKS = [
    Sdk("openai", "httpx2", functools.partial(stainless, "OpenAI"), chat, OPENAI, is_async=False),
    Sdk("openai", "httpx2", functools.partial(stainless, "AsyncOpenAI"), chat, OPENAI, is_async=True),
    Sdk("openai", "httpx", functools.partial(stainless, "OpenAI"), chat, OPENAI, is_async=False),
    Sdk("openai", "httpx", functools.partial(stainless, "AsyncOpenAI"), chat, OPENAI, is_async=True),
    Sdk("anthropic", "httpx2", functools.partial(stainless, "Anthropic"), claude, CLAUDE, is_async=False),
    Sdk("anthropic", "httpx2", functools.partial(stainless, "AsyncAnthropic"), claude, CLAUDE, is_async=True),
    Sdk("groq", "httpx", functools.partial(stainless, "Groq"), chat, OPENAI, is_async=False),
    Sdk("groq", "httpx", functools.partial(stainless, "AsyncGroq"), chat, OPENAI, is_async=True),
    Sdk("google.genai", "httpx", google, gemini, GEMINI, is_async=False),
    Sdk("google.genai", "httpx", google, functools.partial(gemini, of="aio"), GEMINI, is_async=True),
    Sdk("google.genai", "httpx2", google, gemini, GEMINI, is_async=False),
    Sdk("google.genai", "httpx2", google, functools.partial(gemini, of="aio"), GEMINI, is_async=True),
    Sdk(MISTRAL, "httpx2", mistral, complete, OPENAI, is_async=False),
    Sdk(MISTRAL, "httpx2", mistral, functools.partial(complete, method="complete_async"), OPENAI, is_async=True),
]


@pytest.fixture(params=SDKS, ids=repr)
def sdk(request: pytest.FixtureRequest) -> Any:
    return request.param


# ---------------------------------------------------------------- wrap


def test_a_wrapped_client_is_the_same_client_and_its_calls_count(sdk: Any) -> None:
    door, client = sdk.door()
    assert door.meter.wrap(client) is client
    assert door.meter.wrap(client) is client  # once more changes nothing
    sdk.ask(door, client, answer(sdk.reply))
    assert door.spent == COST
    assert door.statuses == ["settled"]


@pytest.mark.parametrize("hooking", ["wrap", "run", "patch"])
def test_a_refusal_arrives_as_it_is_in_one_try(sdk: Any, hooking: str) -> None:
    door, client = sdk.door(usd_cap=0.0001)
    door.hooking = hooking
    if hooking == "wrap":
        door.meter.wrap(client)
    with pytest.raises(BudgetExceeded) as refused:
        sdk.ask(door, client)
    assert type(refused.value) is BudgetExceeded
    assert door.statuses == ["refused"]
    assert door.requests == []


def test_a_refusal_that_waited_arrives_as_it_is_in_one_try(sdk: Any) -> None:
    from token_budget import BudgetTimeout

    door, client = sdk.door(usd_cap=0.0009, timeout=0.01)
    door.meter.wrap(client)

    async def work() -> None:
        held = door.pool.reserve(usd=0.0008)
        with pytest.raises(BudgetTimeout):
            await maybe(sdk.call(client))
        held.release()

    door.run(work)
    assert door.statuses == ["refused"]
    assert door.requests == []


def test_the_retries_of_an_sdk_are_metered_one_by_one(sdk: Any) -> None:
    door, client = sdk.door()
    door.meter.wrap(client)
    busy = Reply(429, body=b"{}", headers={"retry-after-ms": "1", "content-type": "application/json"})
    with contextlib.suppress(Exception):  # some do not try again
        sdk.ask(door, client, busy, answer(sdk.reply))
    assert door.statuses in (["released"], ["released", "settled"])
    assert door.spent in {0, COST}


@pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.call in (chat, claude)], ids=repr)
def test_copies_of_a_wrapped_client_are_metered(sdk: Any) -> None:
    door, client = sdk.door()
    copy = door.meter.wrap(client).with_options(timeout=7)
    sdk.ask(door, copy, answer(sdk.reply))
    assert door.spent == COST


@pytest.mark.parametrize("kind", ["OpenAI", "AsyncOpenAI"])
def test_raw_and_streamed_calls_are_refused_and_counted_alike(kind: str) -> None:
    sdk = Sdk("openai", "httpx2", functools.partial(stainless, kind), chat, OPENAI, is_async=kind.startswith("Async"))

    async def raw(client: Any) -> Any:
        response = await maybe(
            client.chat.completions.with_raw_response.create(model="m", max_tokens=9, messages=MESSAGES)
        )
        return response.parse()

    async def opened(client: Any) -> Any:
        manager = client.chat.completions.with_streaming_response.create(model="m", max_tokens=9, messages=MESSAGES)
        if sdk.is_async:
            async with manager as response:
                return await response.parse()
        with manager as response:
            return response.parse()

    async def pieces(client: Any) -> Any:
        stream = await maybe(client.chat.completions.create(model="m", max_tokens=9, messages=MESSAGES, stream=True))
        if sdk.is_async:
            return [chunk async for chunk in stream]
        return list(stream)

    chunks = [
        event({**delta("Hello."), "id": "1", "created": 1}),
        event({**delta(""), "choices": [], "usage": OPENAI["usage"]}),
        DONE,
    ]
    for call, reply in ((raw, answer(OPENAI)), (opened, answer(OPENAI)), (pieces, streamed(chunks))):
        sdk.call = call
        door, client = sdk.door()
        door.meter.wrap(client)
        got = sdk.ask(door, client, reply)
        assert door.spent == COST
        if call is pieces:
            assert [chunk.choices[0].delta.content for chunk in got] == ["Hello."]
        door, client = sdk.door(usd_cap=0.00001)
        door.meter.wrap(client)
        with pytest.raises(BudgetExceeded):
            sdk.ask(door, client)
        assert door.requests == []


def test_the_clients_that_sdks_make_for_themselves_are_found(sdk: Any) -> None:
    module = pytest.importorskip(sdk.name)
    meter = Meter(BudgetPool(usd_cap=1))
    kinds = [
        kind
        for kind in ("OpenAI", "AsyncOpenAI", "Anthropic", "AsyncAnthropic", "Groq", "Client", "Mistral")
        if hasattr(module, kind)
    ]
    assert kinds
    for name in kinds:
        client = getattr(module, name)(api_key="x")
        before = type(client).__name__
        assert meter.wrap(client) is client
        assert type(client).__name__ == before
        assert isinstance(client, getattr(module, name))
        found = _clients._http_clients(client)
        assert found
        assert all(hasattr(type(one), "_token_budget_class") for one in found)


def test_azure_and_other_subclasses_are_clients_too() -> None:
    openai = pytest.importorskip("openai")
    client = openai.AzureOpenAI(api_key="x", api_version="1", azure_endpoint="http://127.0.0.1:1")
    assert Meter().wrap(client) is client


# ---------------------------------------------------------------- what wrap refuses


@pytest.mark.parametrize("thing", [None, 17, "openai", object(), sys, Meter, [1]])
def test_what_has_no_http_client_is_refused_with_the_line_to_write(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"http_client=meter\.http_client\(openai\.DefaultHttpxClient\)"):
        Meter().wrap(thing)


@pytest.mark.parametrize("inside", [False, True])
def test_langchain_s_models_and_clients_are_refused(inside: bool) -> None:
    library = importlib.import_module(LIBRARIES[0])
    of_langchain = {"__module__": "langchain_openai.chat_models._client_utils"}
    if inside:
        http = type("_SyncHttpxClientWrapper", (library.Client,), of_langchain)()
        thing = type("OpenAI", (), {"_client": http})()
    else:
        http = library.Client()
        thing = type("ChatOpenAI", (), {**of_langchain, "_client": http})()
    with pytest.raises(TypeError, match="LangChain.*budget_run"):
        Meter().wrap(thing)
    assert type(http).__name__ in {"Client", "_SyncHttpxClientWrapper"}
    assert not hasattr(http, "_token_budget_meter")


def test_a_client_is_known_also_where_others_put_a_class_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module(LIBRARIES[0])
    client = library.Client()
    monkeypatch.setattr(library, "Client", type("Instrumented", (library.Client,), {}))
    assert Meter().wrap(client) is client


@pytest.mark.parametrize("hooking", ["wrap", "run", "patch"])
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_client_made_before_others_put_a_class_of_their_own_there_is_metered(
    library: str, hooking: str, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = importlib.import_module(library), "AsyncClient" if is_async else "Client"
    door, kind = Door(library, "none", is_async=is_async), getattr(module, name)
    _clients.patch_classes()
    monkeypatch.setattr(kind, "send", inspect.unwrap(kind.send))  # as before the first run
    monkeypatch.setattr(module, name, type("Instrumented", (kind,), {}))
    door.hooking = hooking
    for client in (door.client, door.make()):
        door.client = client
        if hooking == "wrap":
            door.meter.wrap(client)
        door.send(answer())
    assert door.spent == COST * 2


def trying(kind: Any, *, is_async: bool, calls: str) -> Any:
    """Return a class of clients that send a request again where it breaks."""

    class Trying(kind):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    return super().send(request, **options)
            raise OSError

    class AsyncTrying(kind):  # type: ignore[misc]
        async def send(self, request: Any, **options: Any) -> Any:
            for _ in range(2):
                with contextlib.suppress(OSError):
                    return await super(AsyncTrying, self).send(request, **options)  # noqa: UP008 - a way to write it
            raise OSError

    made: Any = AsyncTrying if is_async else Trying
    if calls == "decorated":
        made.send = functools.update_wrapper(
            lambda *given, send=made.send, **options: send(*given, **options), made.send
        )
    elif calls == "hidden":
        made.send = functools.partialmethod(made.send)
    return type("Again", (made,), {})


@pytest.mark.parametrize(("calls", "times"), [("super", 2), ("decorated", 2), ("hidden", 1)])
@pytest.mark.parametrize("hooking", ["wrap", "run", "patch"])
@pytest.mark.parametrize("is_async", [False, True])
def test_each_time_counts_that_a_client_s_own_send_sends_a_request(
    hooking: str, is_async: bool, calls: str, times: int
) -> None:
    door = Door(LIBRARIES[0], "none", is_async=is_async)
    kind = trying(type(door.client), is_async=is_async, calls=calls)
    door.client = kind(transport=door.client._transport)
    door.hooking = hooking
    if hooking == "wrap":
        assert door.meter.wrap(door.meter.wrap(door.client)) is door.client
        assert isinstance(door.client, kind)
    elif calls == "hidden":
        times = 2  # the hook on the classes is the one below in any case
    door.send(Reply(error=OSError()), answer())
    assert door.statuses == ["charged", "settled"][-times:]
    assert len(door.requests) == 2


@pytest.mark.parametrize("is_async", [False, True])
def test_a_client_that_hands_on_to_another_is_metered(is_async: bool) -> None:
    door = Door(LIBRARIES[0], "none", is_async=is_async)
    other = door.client

    class Handing(type(other)):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            return other.send(request, **options) if self.hands_on else super().send(request, **options)

    door.client = door.meter.wrap(Handing(transport=other._transport))
    for hands_on in (False, True):
        door.client.hands_on = hands_on
        door.send(answer())
    assert door.spent == COST * 2


def test_a_client_that_others_make_of_a_wrapped_one_s_class_is_not_metered() -> None:
    for is_async in (False, True):
        door = Door(LIBRARIES[0], "wrap", is_async=is_async)
        door.client = type(door.client)(transport=door.client._transport)
        door.send(answer())
        assert door.statuses == []


def test_a_client_has_one_meter() -> None:
    library = importlib.import_module(LIBRARIES[0])
    client = Meter().wrap(library.Client())
    with pytest.raises(ValueError, match="another meter"):
        Meter().wrap(client)


def test_a_client_whose_send_was_replaced_is_refused() -> None:
    library = importlib.import_module(LIBRARIES[0])
    client = library.Client()
    client.send = lambda request, **options: None
    with pytest.raises(TypeError, match="was replaced"):
        Meter().wrap(client)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_google_with_a_client_certificate_is_refused(kind: str) -> None:
    genai = pytest.importorskip("google.genai")
    client = genai.Client(api_key="x")
    assert getattr(client._api_client, f"_use_google_auth_{kind}")() is False
    setattr(client._api_client, f"_use_google_auth_{kind}", lambda: True)
    with pytest.raises(TypeError, match="client certificate"):
        Meter().wrap(client)


def test_google_keeps_to_httpx_where_aiohttp_is_installed() -> None:
    genai = pytest.importorskip("google.genai")
    client = genai.Client(api_key="x")
    type(client._api_client)._use_aiohttp  # what wrap relies on is there
    client._api_client._use_aiohttp = lambda: True
    Meter().wrap(client)
    assert client._api_client._use_aiohttp() is False
    assert Meter().wrap(genai.Client(api_key="x").aio)


def sockets(client: Any) -> list[Callable[[], Any]]:
    """Return how each websocket of a client is opened."""
    if hasattr(client, "aio"):
        found = [lambda: client.aio.live.connect(model="m"), lambda: client.aio.live.music.connect(model="m")]
        newer = hasattr(getattr(client.aio, "interactions", None), "connect")
        return [*found, lambda: client.aio.interactions.connect("x")] if newer else found
    paths = [
        "realtime",
        "beta.realtime",
        "responses",
        "beta.responses",
        "live",
        "live.sideband",
        "live.forks",
        "realtime.translations",
    ]
    opened = []
    for path in paths:
        part = client
        for name in path.split("."):
            part = getattr(part, name, None)
        if hasattr(part, "connect"):
            opened.append(part.connect)
    return opened


@pytest.mark.filterwarnings("ignore")  # some are experimental
@pytest.mark.parametrize(
    ("module", "kind"), [("openai", "OpenAI"), ("openai", "AsyncOpenAI"), ("google.genai", "Client")]
)
def test_websockets_are_refused_by_a_wrapped_client_and_its_copies(module: str, kind: str) -> None:
    make = getattr(pytest.importorskip(module), kind)
    client = Meter().wrap(make(api_key="x"))
    clients = [client] if module != "openai" else [client, client.with_options(timeout=1)]
    for one in clients:
        found = sockets(one)
        assert found
        for connect in found:
            with pytest.raises(Unmetered, match="connect"):
                connect()
    for other in (make(api_key="x"), Meter(unmetered="allow").wrap(make(api_key="x"))):
        for connect in sockets(other):
            try:
                assert connect() is not None
            except TypeError as error:
                assert "argument" in str(error)


def test_the_parts_of_a_wrapped_client_are_what_they_were() -> None:
    openai = pytest.importorskip("openai")
    client = Meter().wrap(openai.OpenAI(api_key="x"))
    responses = importlib.import_module("openai.resources.responses")
    assert isinstance(client.responses, responses.Responses)
    assert client.responses is client.responses
    assert client.responses.with_raw_response is not None


# ---------------------------------------------------------------- http_client


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_an_http_client_is_made_with_its_arguments_and_metered(library: str, kind: str) -> None:
    module = pytest.importorskip(library)
    meter = Meter()
    client = meter.http_client(getattr(module, kind), timeout=7, headers={"x-mine": "1"})
    assert isinstance(client, getattr(module, kind))
    assert client.timeout == module.Timeout(7)
    assert client.headers["x-mine"] == "1"
    assert type(client) is type(meter.http_client(getattr(module, kind)))


def test_an_sdk_takes_an_http_client_that_was_made_for_it() -> None:
    openai = pytest.importorskip("openai")
    meter = Meter()
    client = openai.OpenAI(api_key="x", http_client=meter.http_client(openai.DefaultHttpxClient, timeout=7))
    assert client._client.timeout.read == 7
    assert meter.wrap(client) is client


@pytest.mark.parametrize("thing", [dict, "httpx.Client", None, object])
def test_http_client_takes_only_classes_of_http_clients(thing: Any) -> None:
    with pytest.raises(TypeError, match="http_client takes a class"):
        Meter().http_client(thing)


# ---------------------------------------------------------------- the classes


def test_the_hook_is_put_on_the_classes_once() -> None:
    library = importlib.import_module(LIBRARIES[0])
    _clients.patch_classes()
    before = library.Client.send, library.AsyncClient.send
    with budget_run("twice"), Meter().patch():
        pass
    assert (library.Client.send, library.AsyncClient.send) == before
    assert inspect.iscoroutinefunction(library.AsyncClient.send)
    assert list(inspect.signature(library.Client.send).parameters) == [
        "self",
        "request",
        "stream",
        "auth",
        "follow_redirects",
    ]


def test_it_is_put_on_again_where_others_took_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module(LIBRARIES[0])
    _clients.patch_classes()
    monkeypatch.setattr(library.Client, "send", inspect.unwrap(library.Client.send))
    door = Door(LIBRARIES[0], "run", is_async=False)
    door.send(answer())
    assert door.spent == COST


def test_others_may_patch_over_it_and_nothing_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module(LIBRARIES[0])
    _clients.patch_classes()
    ours = library.Client.send

    def over(self: Any, request: Any, **options: Any) -> Any:
        return ours(self, request, **options)

    monkeypatch.setattr(library.Client, "send", over)
    door = Door(LIBRARIES[0], "run", is_async=False)
    door.send(answer())
    door.send(answer())
    assert door.spent == COST * 2


def test_a_library_that_is_not_installed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("httpx", "httpx2"):
        monkeypatch.setitem(sys.modules, name, None)
    _clients.patch_classes()
    with pytest.raises(TypeError, match="no HTTP client"):
        Meter().wrap(object())


def test_a_class_that_does_not_come_from_these_libraries_is_none_of_them() -> None:
    with pytest.raises(TypeError, match="no class of httpx"):
        _refused.library_of(dict)


def test_a_library_that_was_loaded_anew_gets_classes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module(LIBRARIES[0])
    refused, body = _refused.refused_class(library), _stream.body_class(library, is_async=False)
    monkeypatch.setattr(library, "Response", type("Response", (library.Response,), {}))
    monkeypatch.setattr(library, "SyncByteStream", type("SyncByteStream", (), {}))
    assert _refused.refused_class(library) is not refused
    assert _stream.body_class(library, is_async=False) is not body
    assert _refused.refused_class(library) is _refused.refused_class(library)


def test_a_block_that_is_left_while_a_call_starts_leaves_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaving(list[Any]):
        def __bool__(self) -> bool:
            return True

    monkeypatch.setattr(_clients, "patching", Leaving())
    for is_async in (False, True):
        door = Door(LIBRARIES[0], "none", is_async=is_async)
        door.send(answer())
        assert door.statuses == []


# ---------------------------------------------------------------- waiting


def test_an_async_client_waits_without_blocking_its_loop() -> None:
    door = Door(LIBRARIES[0], "wrap", is_async=True, usd_cap=0.0009, timeout=10)
    door.script = [answer()]

    async def work() -> None:
        held = door.pool.reserve(usd=0.0008)
        call = asyncio.ensure_future(door.asend())
        await asyncio.sleep(0.02)
        assert not call.done()
        held.release()
        await call

    door.run(work)
    assert door.spent == COST


def test_a_sync_client_waits_for_room() -> None:
    door = Door(LIBRARIES[0], "wrap", is_async=False, usd_cap=0.0009, timeout=10)
    held = door.pool.reserve(usd=0.0008)
    timer = threading.Timer(0.02, held.release)
    timer.start()
    door.send(answer())
    timer.join()
    assert door.spent == COST
