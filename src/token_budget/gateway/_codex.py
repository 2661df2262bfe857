"""Codex: it takes the URL of its provider from its options alone, so they are put before its own.

Known by the name of its program (``codex``, in any folder), also after ``npx``, ``bunx`` or ``pnpx`` with nothing but
``-y`` and such between. Not known, and so unmetered: a script that starts Codex, ``npx -p`` and ``npm exec``, Codex in
an editor, and a Codex that is told another provider on its command line (``-c model_provider=...``, ``--oss``), since
what comes later goes before ours.

With a ChatGPT login and no ``OPENAI_API_KEY``, Codex sends its login to OpenAI's API, where it is no key: the call
fails, and costs nothing. Subscriptions are not metered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from token_budget.gateway._address import SECRET_HEADER

SECRET_VARIABLE = "TOKEN_BUDGET_SECRET"  # noqa: S105 - the name of a variable
_PROVIDER = "token-budget"
_PROGRAM = re.compile(r"(?:.*[/\\])?codex(?:\.exe|\.cmd|\.js)?", re.IGNORECASE | re.DOTALL)
_LAUNCHER = re.compile(r"(?:.*[/\\])?(?:npx|bunx|pnpx)(?:\.exe|\.cmd)?", re.IGNORECASE | re.DOTALL)
_PACKAGE = re.compile(r"codex|@openai/codex(?:@[^/]*)?")
_HARMLESS = frozenset({"-y", "--yes", "-q", "--quiet", "--bun"})


def place_of_codex(argv: Sequence[str]) -> int | None:
    """Return how many parts of a command come before Codex's own arguments; None if it is not Codex."""
    if not argv:
        return None
    if _PROGRAM.fullmatch(argv[0]):
        return 1
    if not _LAUNCHER.fullmatch(argv[0]):
        return None
    for place, part in enumerate(argv[1:], 2):
        if part not in _HARMLESS:
            return place if _PACKAGE.fullmatch(part) else None
    return None


def codex_command(
    argv: Sequence[str], place: int, base: str, secret: str, environ: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command of Codex with a provider that leads to the gateway, and the variable with the secret.

    The arguments of a process can be read by every user of the machine, so the secret is in none of them: the URL has
    ``-`` in its place, and Codex sends the secret in a header whose value it takes from its environment.

    Args:
        argv: the command.
        place: what `place_of_codex` says.
        base: ``http://127.0.0.1:PORT/SECRET``.
        secret: the gateway's secret.
        environ: the child's environment: its ``OPENAI_BASE_URL`` says which upstream is OpenAI.
    """
    origin = base.removesuffix(f"/{secret}")
    url = environ.get("OPENAI_BASE_URL", "")
    path = url.removeprefix(base) if url.startswith(f"{base}/") else "/openai/v1"
    settings = {
        "model_provider": f'"{_PROVIDER}"',
        f"model_providers.{_PROVIDER}.name": f'"{_PROVIDER}"',
        f"model_providers.{_PROVIDER}.base_url": f'"{origin}/-{path}"',
        f"model_providers.{_PROVIDER}.wire_api": '"responses"',
        f"model_providers.{_PROVIDER}.env_http_headers": f'{{"{SECRET_HEADER}"="{SECRET_VARIABLE}"}}',
    }
    if environ.get("OPENAI_API_KEY"):
        settings[f"model_providers.{_PROVIDER}.env_key"] = '"OPENAI_API_KEY"'
    else:  # a key that `codex login` keeps in a file of its own
        settings[f"model_providers.{_PROVIDER}.requires_openai_auth"] = "true"
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return [*argv[:place], *options, *argv[place:]], {SECRET_VARIABLE: secret}
