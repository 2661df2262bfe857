"""Upstreams: the providers that the gateway may call, and which variable of the child's environment leads to which.

A client calls what its variable says, plus a path of its own. So a base URL is cut in two: the upstream's URL, which the
gateway keeps, and what follows it (``/v1``), which stays in the child's variable. The child's variable is then
``http://127.0.0.1:PORT/SECRET/NAME`` and that rest, and the gateway's ``/SECRET/NAME/rest`` goes to ``URL/rest``: the
provider is asked for the very path that it would be asked for without a gateway, whatever was cut where.

Which client reads which variable, and what it adds to it, is in `FAMILIES`; each line says where that was looked up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from token_budget.metering._routes import provider_of

Dialect = Literal["openai", "anthropic", "gemini"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_VERSION = re.compile(r"/v[0-9]+(?:alpha|beta)?[0-9]*\Z")


@dataclass(frozen=True)
class Upstream:
    """One provider that the gateway calls.

    ``name`` is its part of the path: ``/SECRET/NAME/rest`` goes to ``url/rest``. ``url`` is an origin and a prefix,
    without a version and without a slash at its end. ``provider`` is who is paid, by the id of genai-prices, or None.
    ``dialect`` says which shape its errors have. ``keys`` names the environment variables that hold its key.
    ``variables`` are those that tell a client where it is, each with what follows the gateway's base in it.
    """

    name: str
    url: str
    provider: str | None
    dialect: Dialect
    keys: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Family:
    """A provider that clients know by name: its address, its keys, and the variables that its clients read.

    ``variables`` maps each variable to what a client expects in it after ``url``. Without ``url`` it is an upstream only
    if the environment sets one of the variables.
    """

    name: str
    url: str | None
    keys: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    dialect: Dialect = "openai"


FAMILIES: tuple[Family, ...] = (
    Family(
        "openai",
        "https://api.openai.com",
        ("OPENAI_API_KEY",),
        (("OPENAI_BASE_URL", "/v1"), ("OPENAI_API_BASE", "/v1")),
    ),
    Family(
        "anthropic",
        "https://api.anthropic.com",
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        (("ANTHROPIC_BASE_URL", ""), ("ANTHROPIC_API_BASE", "")),
        "anthropic",
    ),
    Family(
        "gemini",
        "https://generativelanguage.googleapis.com",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        (("GOOGLE_GEMINI_BASE_URL", ""), ("GEMINI_API_BASE", "/v1beta")),
        "gemini",
    ),
    Family(
        "groq",
        "https://api.groq.com",
        ("GROQ_API_KEY",),
        (("GROQ_BASE_URL", ""), ("GROQ_API_BASE", "/openai/v1")),
    ),
    Family("mistral", "https://api.mistral.ai", ("MISTRAL_API_KEY",), (("MISTRAL_API_BASE", "/v1"),)),
    Family("deepseek", "https://api.deepseek.com", ("DEEPSEEK_API_KEY",), (("DEEPSEEK_API_BASE", "/beta"),)),
    Family("openrouter", "https://openrouter.ai", ("OPENROUTER_API_KEY",), (("OPENROUTER_API_BASE", "/api/v1"),)),
    Family("xai", "https://api.x.ai", ("XAI_API_KEY",), (("XAI_API_BASE", "/v1"),)),
)


def upstreams(environ: Mapping[str, str], extra: Sequence[str] = ()) -> dict[str, Upstream]:
    """Return the upstreams by their names. It does not block.

    A base URL that the environment sets becomes the upstream of that provider. Where two variables of one provider lead
    to different places, the second is an upstream of its own (``openai-2``), so that each client reaches its own.

    Args:
        environ: the user's environment. A variable that is empty counts as not set.
        extra: what ``--upstream`` says, each ``NAME=URL``; the URL is an origin and a prefix, without the version. It
            goes before the environment.

    Raises:
        ValueError: a URL is none that a request can be sent to, or an ``extra`` is no ``NAME=URL``. The text names the
            variable or the option, and never shows a password.
    """
    said = dict(_parsed(text) for text in extra)
    table: dict[str, Upstream] = {}
    for family in FAMILIES:
        for one in _of_family(family, environ, said.pop(family.name, None)):
            table[one.name] = one
    for name, url in said.items():
        provider = provider_of(urlsplit(url).hostname or "")
        variable = f"{name.upper().replace('-', '_')}_BASE_URL"
        table[name] = Upstream(name, url, provider, _dialect_of(provider), variables=((variable, ""),))
    return table


def _of_family(family: Family, environ: Mapping[str, str], said: str | None) -> list[Upstream]:
    """Return a provider's upstreams: one, or several if its variables disagree."""
    if said is not None:
        url = _cut(said, max((suffix for _, suffix in family.variables), key=len))[0]
        return [_upstream(family, family.name, url, family.variables)]
    places: dict[str, list[tuple[str, str]]] = {}
    endings: dict[str, str] = {}  # what the variables that are set have where others of their form have a default
    for variable, suffix in family.variables:
        if value := environ.get(variable, "").strip():
            url, ending = _cut(checked_url(value, variable), suffix)
            places.setdefault(url, []).append((variable, ending))
            endings.setdefault(suffix, ending)
    if not places:
        return [] if family.url is None else [_upstream(family, family.name, family.url, family.variables)]
    first = next(iter(places))
    for variable, suffix in family.variables:
        if not environ.get(variable, "").strip():
            places[first].append((variable, endings.get(suffix, suffix)))
    names = [family.name, *(f"{family.name}-{number}" for number in range(2, len(places) + 1))]
    return [
        _upstream(family, name, url, tuple(variables))
        for name, (url, variables) in zip(names, places.items(), strict=True)
    ]


def _upstream(family: Family, name: str, url: str, variables: tuple[tuple[str, str], ...]) -> Upstream:
    return Upstream(name, url, provider_of(urlsplit(url).hostname or ""), family.dialect, family.keys, variables)


def _dialect_of(provider: str | None) -> Dialect:
    return "anthropic" if provider == "anthropic" else "gemini" if provider == "google" else "openai"


def _cut(url: str, suffix: str) -> tuple[str, str]:
    """Cut a base URL before the version at its end: ``(url, ending)``; together they are what was given."""
    whole = url.rstrip("/")
    end = len(whole)
    if suffix and whole.endswith(suffix):
        end -= len(suffix)
    elif suffix and (version := _VERSION.search(whole)):
        end = version.start()
    return url[:end].rstrip("/"), url[len(url[:end].rstrip("/")) :]


def _parsed(text: str) -> tuple[str, str]:
    """Return the name and the URL of one ``NAME=URL``."""
    name, equals, url = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise ValueError(
            "--upstream takes NAME=URL, with a name of small letters, digits, '-' and '_' that begins with a letter or a "
            "digit, as in local=http://localhost:8000"
        )
    return name, checked_url(url, f"--upstream {name}").rstrip("/")


def checked_url(url: str, where: str) -> str:
    """Return a base URL if requests can be sent below it. Raise ValueError, which says ``where`` it stands, if not."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"{where}: this is no URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError(f"{where}: a base URL begins with http:// or https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{where}: a base URL with a user or a password in it is not taken; send the key in a header")
    if "?" in url or "#" in url:
        raise ValueError(f"{where}: a base URL has no query and no fragment, since a path is put after it")
    if re.search(r"[^\x21-\x7e]|\\", url) or ".." in parts.path.split("/"):
        raise ValueError(f"{where}: a base URL has no spaces, no control characters and no '..'")
    return url
