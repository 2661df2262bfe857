"""Upstreams: the providers that the gateway may call, and which variable of the child's environment leads to which.

A client calls what its variable says, plus a path of its own. So a base URL is cut in two: the upstream's URL, which
the gateway keeps, and what follows it (``/v1``), which stays in the child's variable. That variable then holds
``http://127.0.0.1:PORT/SECRET/NAME`` and the rest, and the gateway's ``/SECRET/NAME/rest`` goes to ``URL/rest``: the
provider is asked for the very path that it would be asked for without a gateway, wherever the cut is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from token_budget.gateway._families import FAMILIES, Dialect, Family
from token_budget.metering._routes import provider_of

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"/v[0-9]+[a-z0-9]*(?=/|\Z)")


@dataclass(frozen=True)
class Upstream:
    """One provider that the gateway calls.

    ``name`` is its part of the path: ``/SECRET/NAME/rest`` goes to ``url/rest``. ``url`` is an origin and a prefix, and
    has no slash at its end. ``provider`` is who is paid, by the id of genai-prices; None where the host is no vendor's.
    ``dialect`` says which shape its errors have. ``keys`` names the environment variables that hold its key.
    ``variables`` are those that tell a client where it is, each with what follows the gateway's base in it.
    """

    name: str
    url: str
    provider: str | None
    dialect: Dialect
    keys: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()


def upstreams(environ: Mapping[str, str], extra: Sequence[str] = ()) -> dict[str, Upstream]:
    """Return the upstreams by their names. It does not block.

    A base URL that the environment sets becomes the upstream of that provider, and the provider's other variables lead
    there too: a user who sets ``OPENAI_BASE_URL`` alone means every client that speaks to OpenAI. Where two variables
    of one provider lead to different places, the second is an upstream of its own (``openai-2``), so that each client
    reaches the place that it would have reached.

    Args:
        environ: the user's environment. A variable that is empty counts as not set.
        extra: what ``--upstream`` says, each ``NAME=URL``; the URL is an origin and a prefix, without the version. A
            known name (``openai``) gets that URL, whatever the environment says. Of any other name, clients find the
            base in ``NAME_BASE_URL`` and ``--hold-keys`` the key in ``NAME_API_KEY``.

    Raises:
        ValueError: a URL is none that a request can be sent below, or an ``extra`` is no ``NAME=URL``. The text names
            the variable or the option, and never shows the URL, which may have a password in it.
    """
    said: dict[str, str] = {}
    for text in extra:
        name, url = _parsed(text)
        if name in said:
            raise ValueError(f"--upstream names {name!r} twice: give each upstream a name of its own")
        said[name] = url
    table: dict[str, Upstream] = {}
    for family in FAMILIES:
        for one in _of_family(family, environ, said):
            table[one.name] = one
    for name, url in said.items():
        if name not in table:
            word = name.upper().replace("-", "_")
            provider = _payee(url)
            dialect = _DIALECTS.get(provider or "", "openai")
            table[name] = Upstream(name, url, provider, dialect, (f"{word}_API_KEY",), ((f"{word}_BASE_URL", ""),))
    return table


def _of_family(family: Family, environ: Mapping[str, str], said: Mapping[str, str]) -> list[Upstream]:
    """Return a provider's upstreams: one, or several if its variables disagree, or none if nothing says where it is."""
    if family.name in said:
        longest = max((suffix for _, suffix in family.variables), key=len)
        url = said[family.name].removesuffix(longest)
        return [_upstream(family, family.name, url, family.variables)]
    places = _places(family, environ)
    if not places:
        return [] if family.url is None else [_upstream(family, family.name, family.url, family.variables)]
    made: list[Upstream] = []
    number = 1
    for url, variables in places.items():
        name = family.name if number == 1 else f"{family.name}-{number}"
        while name in said:  # the user's own name goes first
            number += 1
            name = f"{family.name}-{number}"
        made.append(_upstream(family, name, url, tuple(variables)))
        number += 1
    return made


def _places(family: Family, environ: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Return where a provider's variables lead: each URL with its variables and what follows the URL in them."""
    places: dict[str, list[tuple[str, str]]] = {}
    first: tuple[str, str, str] | None = None  # of the first variable that is set: URL, what follows it, the usual rest
    unset: list[tuple[str, str]] = []
    for variable, suffix in family.variables:
        if value := environ.get(variable, "").strip():
            url, ending = _cut(checked_url(value, variable), suffix)
            places.setdefault(url, []).append((variable, ending))
            first = first or (url, ending, suffix)
        else:
            unset.append((variable, suffix))
    if first is not None:
        url, ending, usual = first
        places[url] += [(variable, _ending_beside(ending, usual, suffix)) for variable, suffix in unset]
    return places


def _ending_beside(ending: str, usual: str, suffix: str) -> str:
    """Return what follows the URL in a variable that is not set, by what follows it in one that is.

    Args:
        ending: what follows the URL in the variable that is set.
        usual: what usually does.
        suffix: what usually does in the variable that is not set.
    """
    if suffix == usual:
        return ending
    bare = ending.rstrip("/")
    return bare.removesuffix(usual) + suffix if bare.endswith(usual) else suffix


def _cut(url: str, suffix: str) -> tuple[str, str]:
    """Cut a base URL before its version: ``(url, ending)``; together they are what was given, byte for byte."""
    whole = url.rstrip("/")
    if suffix and whole.endswith(suffix):
        end = len(whole) - len(suffix)
    else:
        versions = [*_VERSION.finditer(whole, len(_origin(whole)))]
        end = versions[-1].start() if versions else len(whole)
    end = len(whole[:end].rstrip("/"))
    return url[:end], url[end:]


def _origin(url: str) -> str:
    """Return the part of a URL before its path."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _upstream(family: Family, name: str, url: str, variables: tuple[tuple[str, str], ...]) -> Upstream:
    return Upstream(name, url, _payee(url), family.dialect, family.keys, variables)


def _payee(url: str) -> str | None:
    """Return who is paid for what is sent to a URL; None if its host is no vendor's."""
    return provider_of(urlsplit(url).hostname or "")


_DIALECTS: Mapping[str, Dialect] = {"anthropic": "anthropic", "google": "gemini"}


def _parsed(text: str) -> tuple[str, str]:
    """Return the name and the URL of one ``NAME=URL``."""
    name, equals, url = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise ValueError(
            "--upstream takes NAME=URL, as in local=http://localhost:8000; NAME has small letters, digits, '-' and "
            "'_', and begins with a letter or a digit"
        )
    return name, checked_url(url.strip(), f"--upstream {name}").rstrip("/")


def checked_url(url: str, where: str) -> str:
    """Return a base URL if requests can be sent below it.

    Raises:
        ValueError: they cannot. The text says ``where`` the URL stands, and does not show it.
    """
    if re.search(r"[^\x21-\x7e]|\\", url):
        raise ValueError(f"{where}: a base URL has no spaces, no backslashes and no letters outside of ASCII")
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # as it is looked up: a part of it may be too long, or empty
    except ValueError:
        raise ValueError(f"{where}: this is no URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError(f"{where}: a base URL begins with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError(f"{where}: a base URL with a user or a password in it is not taken; send the key in a header")
    if "?" in url or "#" in url:
        raise ValueError(f"{where}: a base URL has no query and no fragment, since a path is put after it")
    if ".." in parts.path.split("/"):
        raise ValueError(f"{where}: a base URL has no '..' in its path")
    return url
