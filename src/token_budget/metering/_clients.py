"""Where the hook is put: on the HTTP client inside an SDK's client, on one that is made here, or on the classes.

What always holds: a client keeps its own transport, proxies, limits and subclass; only its `send` is another one. The
hook stands right over httpx's own `send`, below that of a subclass, which may send a request several times. The hook on
the classes is put on once and stays: taking it off again would take off what others have put over it. It does nothing
outside of a run and of a `Meter.patch` block. A client that would spend unseen is refused (`TypeError`), or
refuses by itself what goes by other ways than HTTP (`Unmetered`).

An SDK keeps its HTTP client under a private name. So `wrap` looks for it, and says what to write where it finds none.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from token_budget._money import shown_type
from token_budget.metering._refusals import Unmetered
from token_budget.metering._refused import HTTP_LIBRARIES
from token_budget.metering._run import current_run
from token_budget.metering._send import asend, patching, send

Client = TypeVar("Client")

_METER = "_token_budget_meter"  # the attribute of an HTTP client that is metered
_HOOKED = "_token_budget_class"  # the attribute of the classes that are made here

_lock = threading.RLock()  # a signal handler may open a run while its thread does

_WRITE_THIS = (
    "write http_client=meter.http_client(openai.DefaultHttpxClient), as the SDK takes it, or use budget_run(...)"
)
_LANGCHAIN = (
    "LangChain gives one HTTP client to all models of the process, so metering one would meter them all: "
    "use budget_run(...), or give it its own: ChatOpenAI(http_client=meter.http_client(openai.DefaultHttpxClient))"
)

# What a client can open that is no HTTP: the attributes that lead there.
_SOCKETS = (
    "realtime",
    "live",
    "beta",
    "responses",
    "aio",
    "sideband",
    "forks",
    "translations",
    "music",
    "interactions",
)


# ---------------------------------------------------------------- one client


def wrap(meter: Any, client: Client) -> Client:
    """Put the hook on the HTTP clients inside of an SDK's client; return the client.

    Raises:
        TypeError: No HTTP client is found in it, or it is one that is shared.
        ValueError: It is metered by another meter already.
    """
    found = _http_clients(client)
    if not found:
        raise TypeError(f"no HTTP client of httpx or httpx2 is found in {shown_type(client)}: {_WRITE_THIS}")
    for one in found:
        _check(meter, one)
    for one in found:
        _hook(meter, one)
    if meter.unmetered == "refuse":
        _refuse_sockets(client)
    return client


def http_client(meter: Any, base_class: Any, **arguments: Any) -> Any:
    """Return a new HTTP client that is metered.

    Raises:
        TypeError: It is no client of httpx or httpx2.
    """
    client = base_class(**arguments) if callable(base_class) else None
    if not _is_http_client(client):
        name = getattr(base_class, "__qualname__", None) or shown_type(base_class)
        raise TypeError(f"http_client takes a class of httpx or httpx2 clients, such as httpx.Client, not {name}")
    _hook(meter, client)
    return client


def _http_clients(client: Any) -> list[Any]:
    """Return the HTTP clients inside of an SDK's client.

    Raises:
        TypeError: It is shared with other clients, or goes by other ways.
    """
    if any(kind.__module__.partition(".")[0].startswith("langchain") for kind in type(client).__mro__):
        raise TypeError(_LANGCHAIN)
    if _is_http_client(client):
        return [client]
    google = getattr(client, "_api_client", None)
    if google is not None:
        _keep_to_httpx(google)
    mistral = getattr(client, "sdk_configuration", None)
    found = [
        getattr(client, "_client", None),  # openai, anthropic, groq
        getattr(google, "_httpx_client", None),
        getattr(google, "_async_httpx_client", None),
        getattr(mistral, "client", None),
        getattr(mistral, "async_client", None),
    ]
    return [one for one in found if _is_http_client(one)]


def _is_http_client(client: object) -> bool:
    """Return whether it is a client of httpx or httpx2. It is known by name: others put their own classes there."""
    return any(_is_of(kind, "Client") or _is_of(kind, "AsyncClient") for kind in type(client).__mro__)


def _is_of(kind: type, name: str) -> bool:
    return kind.__name__ == name and kind.__module__.partition(".")[0] in HTTP_LIBRARIES


def _check(meter: Any, client: Any) -> None:
    if any(kind.__module__.partition(".")[0].startswith("langchain") for kind in type(client).__mro__):
        raise TypeError(_LANGCHAIN)
    if vars(client).get(_METER, meter) is not meter:
        raise ValueError("the HTTP client is metered by another meter already: give each meter a client of its own")
    if "send" in vars(client):
        raise TypeError(
            f"the send() of this {type(client).__name__} was replaced, so it cannot be metered: {_WRITE_THIS}"
        )


def _hook(meter: Any, client: Any) -> None:
    """Make a client's class one whose `send` is metered. Does nothing if it is that already."""
    setattr(client, _METER, meter)
    if not hasattr(type(client), _HOOKED):
        client.__class__ = _hooked_class(type(client))


def _hooked_class(kind: Any) -> Any:
    """Return the subclass of a client's class whose `send` is metered; it is made once.

    Where the class has a `send` of its own that sends by the one below it, the hook goes between the two.
    """
    for made in kind.__subclasses__():
        if _HOOKED in vars(made):
            return made
    body: dict[str, Any] = {_HOOKED: True, "__module__": kind.__module__, "__doc__": kind.__doc__}
    own = _own_class(kind)
    above = [vars(one)["send"] for one in kind.__mro__[: kind.__mro__.index(own)] if "send" in vars(one)]
    if all(map(_calls_the_one_below, above)) and kind is not own:
        return type(kind.__name__, (kind, _hooked_class(own)), body)
    body["send"] = _metered_async(kind) if _is_async(kind) else _metered(kind)
    return type(kind.__name__, (kind,), body)


_SENDERS = frozenset({"request", "stream", "post", "put", "handle_request", "handle_async_request"})


def _own_class(kind: Any) -> Any:
    """Return the library's own class below a client's class, which others may have put into its place."""
    return next((one for one in reversed(kind.__mro__) if _is_of(one, "Client") or _is_of(one, "AsyncClient")), kind)


def _calls_the_one_below(method: Any) -> bool:
    """Return whether a `send` sends by ``super().send`` alone, by its source; some hand the request on to others."""
    import ast
    import inspect
    import textwrap

    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):  # there is no source to be read
        return False
    nodes = [*ast.walk(tree)]
    sends = [node.value for node in nodes if isinstance(node, ast.Attribute) and node.attr == "send"]
    calls = [one.func for one in sends if isinstance(one, ast.Call)]
    takes = next((node.args.args for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))), [])
    request = takes[1].arg if len(takes) > 1 else None
    for node in nodes:
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Attribute) and node.func.attr == "send"):
            given = [*node.args, *(one.value for one in node.keywords)]
            if any(isinstance(one, ast.Name) and one.id == request for one in given):
                return False  # somebody else is given the request
            if isinstance(node.func, ast.Attribute) and node.func.attr in _SENDERS:
                return False
    return bool(sends) and [one.id for one in calls if isinstance(one, ast.Name)] == ["super"] * len(sends)


def _metered(kind: Any) -> Any:
    def hooked(self: Any, request: Any, **options: Any) -> Any:
        meter = getattr(self, _METER, None)
        if meter is None:  # somebody made another client of this class
            return kind.send(self, request, **options)
        return send(self, kind.send, meter, current_run(), request, options)

    return hooked


def _metered_async(kind: Any) -> Any:
    async def hooked(self: Any, request: Any, **options: Any) -> Any:
        meter = getattr(self, _METER, None)
        if meter is None:
            return await kind.send(self, request, **options)
        return await asend(self, kind.send, meter, current_run(), request, options)

    return hooked


def _is_async(kind: type) -> bool:
    return any(_is_of(base, "AsyncClient") for base in kind.__mro__)


# ---------------------------------------------------------------- other ways than HTTP


def _keep_to_httpx(google: Any) -> None:
    """Let google-genai's async client use its httpx client, and not aiohttp, which it prefers where it is installed.

    Raises:
        TypeError: It uses requests or aiohttp, with a client certificate.
    """
    by_certificate = [getattr(google, f"_use_google_auth_{kind}", _never) for kind in ("sync", "async")]
    if any(one() for one in by_certificate):
        raise TypeError(
            "google-genai does not use httpx with a client certificate: give it httpx_client=meter.http_client(...)"
        )
    google._use_aiohttp = _never


def _never() -> bool:
    return False


def _refuse_sockets(resource: Any) -> None:
    """Make an SDK's client, or a part of it, refuse to open websockets: what goes over them is not seen.

    It gets a subclass of its class, so that the copies that it makes of itself (`with_options`) refuse too.
    """
    kind = type(resource)
    if kind.__module__.partition(".")[0] in {"openai", "google"} and _HOOKED not in vars(kind):
        resource.__class__ = _deaf_class(kind)


def _deaf_class(kind: Any) -> Any:
    """Return the subclass of a class of an SDK that opens no websockets; it is made once."""
    for made in kind.__subclasses__():
        if _HOOKED in vars(made):
            return made
    body: dict[str, Any] = {_HOOKED: True, "__module__": kind.__module__, "__doc__": kind.__doc__}
    body.update({name: _part(kind, name) for name in _SOCKETS if hasattr(kind, name)})
    if hasattr(kind, "connect"):
        body["connect"] = _refuse_to_connect
    return type(kind.__name__, (kind,), body)


def _part(kind: Any, name: str) -> property:
    """Return the property of a part of a client that opens no websockets either."""

    def part(self: Any) -> Any:
        found = getattr(super(_deaf_class(kind), self), name)
        _refuse_sockets(found)
        return found

    return property(part)


def _refuse_to_connect(self: Any, *_args: Any, **_options: Any) -> NoReturn:
    name = type(self).__name__
    raise Unmetered(f"what {name}.connect() costs cannot be seen; Meter(unmetered='allow') lets it pass uncounted")


# ---------------------------------------------------------------- all clients


def patch_classes() -> None:
    """Put the hook on the classes of httpx and httpx2, where they are installed and it is not on already."""
    import importlib

    for name in HTTP_LIBRARIES:
        try:
            library = importlib.import_module(name)
        except ImportError:
            continue
        sync, asynchronous = _own_class(library.Client), _own_class(library.AsyncClient)
        if _HOOKED in vars(sync.send) and _HOOKED in vars(asynchronous.send):
            continue  # without the lock, which an interrupt of an entering run or a fork could leave taken
        with _lock:
            for kind, patched in ((sync, _patched), (asynchronous, _patched_async)):
                if _HOOKED not in vars(kind.send):
                    hooked = functools.update_wrapper(patched(kind.send), kind.send)
                    setattr(hooked, _HOOKED, True)
                    kind.send = hooked
    _patch_google()


@functools.cache
def _patch_google() -> None:
    """Let google-genai's async clients go through httpx while they are metered, and not through aiohttp.

    They prefer that where it is installed, and nobody sees what goes through it.
    """
    import importlib.util

    try:
        if importlib.util.find_spec("aiohttp") is None or importlib.util.find_spec("google.genai") is None:
            return
    except ImportError:  # there is no package google
        return
    kind = importlib.import_module("google.genai._api_client").BaseApiClient
    original = kind._use_aiohttp

    def use_aiohttp(self: Any) -> bool:
        # A client that is being made asks too, and makes what it needs for aiohttp: it may be used outside of a run.
        is_made = hasattr(self, "_async_client_session_request_args")
        return bool(original(self)) and not (is_made and (patching or current_run() is not None))

    kind._use_aiohttp = use_aiohttp


def _patched(original: Any) -> Any:
    """Return a `send` that is metered where a run or a `Meter.patch` block is open, and else the original at once."""

    def hooked(self: Any, request: Any, **options: Any) -> Any:
        run = current_run()
        if run is None and not patching:
            return original(self, request, **options)
        meter = _meter_of(run)
        if meter is None:  # the block was left just now
            return original(self, request, **options)
        return send(self, original, meter, run, request, options)

    return hooked


def _patched_async(original: Any) -> Any:
    """Do what `_patched` does, for an async client."""

    async def hooked(self: Any, request: Any, **options: Any) -> Any:
        run = current_run()
        if run is None and not patching:
            return await original(self, request, **options)
        meter = _meter_of(run)
        if meter is None:
            return await original(self, request, **options)
        return await asend(self, original, meter, run, request, options)

    return hooked


def _meter_of(run: Any) -> Any:
    """Return the meter of a call through the classes: that of the `Meter.patch` block, or else the run's."""
    try:
        return patching[-1]
    except IndexError:
        return None if run is None else run.meter


@contextmanager
def patch(meter: Any) -> Iterator[Any]:
    """Meter the calls of all clients of the process, in all threads, until the block is left."""
    patch_classes()
    patching.append(meter)
    try:
        yield meter
    finally:
        patching.remove(meter)
