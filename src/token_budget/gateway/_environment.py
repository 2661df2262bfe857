"""The child's environment: its clients call the gateway, past every proxy, and hold no key if that is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from token_budget.gateway._codex import codex_command, place_of_codex
from token_budget.gateway._families import FAMILIES
from token_budget.gateway._upstreams import Upstream

LOOPBACK = ("127.0.0.1", "localhost")
GATEWAY = "TOKEN_BUDGET_GATEWAY"  # for scripts: the base itself


def child_environment(
    environ: Mapping[str, str],
    table: Mapping[str, Upstream],
    base: str,
    secret: str,
    *,
    hold_keys: bool = False,
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Return the environment of the child, and the keys that the gateway is to put in. It does not block.

    Args:
        environ: the user's environment; it is not changed.
        table: what `upstreams` made of it.
        base: ``http://127.0.0.1:PORT/SECRET``.
        secret: the gateway's secret.
        hold_keys: whether the variables of keys hold the secret in place of the key. A client that ignores the
            gateway's address then fails at its provider. It is for keys, and not for subscriptions: the logins of
            Claude Code (``CLAUDE_CODE_OAUTH_TOKEN``, or the one in its own files) and of Codex (``codex login``) stay
            where they are, as those programs use them at other hosts too. ``ANTHROPIC_AUTH_TOKEN`` counts as a key.
            On a terminal, Claude Code asks its user about each new ``ANTHROPIC_API_KEY``, so it asks at each run.

    Returns:
        The environment, and for each upstream whose key is held ``(placeholder, real key)``.

    Raises:
        ValueError: with ``hold_keys``, two variables of one provider hold different keys. The text names them.
    """
    child = dict(environ)
    for upstream in table.values():
        for variable, ending in upstream.variables:
            child[variable] = f"{base}/{upstream.name}{ending}"
    child[GATEWAY] = base
    for variable, other in (("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")):
        hosts = environ.get(variable) or environ.get(other) or ""  # a client that reads one must not lose the other's
        child[variable] = _with_loopback(hosts)
    held = _hold(child, table, secret) if hold_keys else {}
    return child, held


def child_command(
    argv: Sequence[str], base: str, secret: str, environ: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command as it is started, and what its environment gets besides. It does not block.

    Codex takes its URL from its options alone, and gets them; every other command is started as it is.

    Args:
        argv: what the user asked for.
        base: ``http://127.0.0.1:PORT/SECRET``.
        secret: the gateway's secret; it is in no argument, since other users of the machine can read those.
        environ: the child's environment, as `child_environment` made it.
    """
    place = place_of_codex(argv)
    return (list(argv), {}) if place is None else codex_command(argv, place, base, secret, environ)


def _with_loopback(hosts: str) -> str:
    """Return a list of hosts that no proxy serves, with the loopback in it. ``*`` says it all."""
    parts = [part.strip() for part in hosts.split(",") if part.strip()]
    if "*" not in parts:
        parts += [host for host in LOOPBACK if host not in parts]
    return ",".join(parts)


def _hold(child: dict[str, str], table: Mapping[str, Upstream], secret: str) -> dict[str, tuple[str, str]]:
    """Put the secret into the variables of keys; return what was there, by upstream."""
    held: dict[str, tuple[str, str]] = {}
    before = dict(child)
    for upstream in table.values():
        found = [variable for variable in upstream.keys if before.get(variable)]
        if len({before[variable] for variable in found}) > 1:
            raise ValueError(
                f"--hold-keys holds one key for each provider, and {' and '.join(found)} differ: unset one of them"
            )
        for variable in found:
            held[upstream.name] = (secret, before[variable])
            child[variable] = secret
    for family in FAMILIES:  # a key of a provider that is no upstream, as Azure without its variable, is nobody's
        child.update({variable: secret for variable in family.keys if before.get(variable)})
    return held
