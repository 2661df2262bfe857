"""Packages from npm for the tests, in ``.venvs/node``: they are installed by the first test that needs them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGES = ("openai@6", "@anthropic-ai/sdk@1")  # the generations that the tests know
# A folder for each choice of packages: what is there is whole, and never changes.
FOLDER = Path(__file__).parents[2] / ".venvs" / "node" / "+".join(PACKAGES).replace("/", "_")


class NotToBeHad(Exception):
    """What is missing here: node, npm, or an answer of its registry."""


def node_packages() -> Path:
    """Return the folder ``node_modules`` with `PACKAGES` in it. Installing them takes some seconds, once.

    Several processes may ask at once: each installs beside the place, and the first one's folder is moved there.

    Raises:
        NotToBeHad: node or npm is not on this machine, or the registry does not answer.
    """
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            raise NotToBeHad(f"{name} is not installed")
    if not FOLDER.exists():
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix="new-") as beside:
            _install(Path(beside))
            with contextlib.suppress(OSError):  # another process was faster
                Path(beside, "packages").rename(FOLDER)
    return FOLDER / "node_modules"


def _install(beside: Path) -> None:
    packages = beside / "packages"
    packages.mkdir()
    command = [str(shutil.which("npm")), "install", "--prefix", str(packages), "--no-audit", "--no-fund", *PACKAGES]
    environ = {**os.environ, "npm_config_cache": str(beside / "cache"), "npm_config_fetch_retries": "1"}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=100)
    except subprocess.TimeoutExpired:
        raise NotToBeHad("npm install took more than 100 seconds") from None
    if done.returncode:
        raise NotToBeHad(f"npm install failed: {done.stderr.strip()[-400:]}")
