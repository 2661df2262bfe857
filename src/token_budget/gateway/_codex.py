"""Codex: it takes the URL of its provider from its options alone, so they are put before its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

SECRET_HEADER = "x-token-budget-secret"  # noqa: S105 - the name of a header
SECRET_VARIABLE = "TB_SECRET"  # noqa: S105 - the name of a variable
_PROVIDER = "token-budget"


def is_codex(argv: Sequence[str]) -> bool:
    """Return whether a command is Codex: by the name of its program, in any folder."""
    return bool(argv) and PurePath(argv[0].replace("\\", "/")).name.lower() in {"codex", "codex.exe", "codex.cmd"}


def codex_command(
    argv: Sequence[str], base: str, secret: str, environ: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command of Codex with a provider that leads to the gateway, and the variable with the secret.

    The arguments of a process can be read by other users, so the secret is in none of them: the URL has ``-`` in its
    place, and Codex sends the secret in a header that it takes from its environment.
    """
    origin = base.removesuffix(f"/{secret}")
    url = environ.get("OPENAI_BASE_URL", "")
    path = url.removeprefix(base) if url.startswith(f"{base}/") else "/openai/v1"
    entry = (
        f'{{name="{_PROVIDER}", base_url="{origin}/-{path}", wire_api="responses", env_key="OPENAI_API_KEY", '
        f'env_http_headers={{"{SECRET_HEADER}"="{SECRET_VARIABLE}"}}}}'
    )
    options = ["-c", f'model_provider="{_PROVIDER}"', "-c", f"model_providers.{_PROVIDER}={entry}"]
    return [argv[0], *options, *argv[1:]], {SECRET_VARIABLE: secret}
