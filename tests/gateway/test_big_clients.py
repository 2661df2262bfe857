"""What ``python tests/gateway/big_clients`` says of clients, shown on small ones: right, or wrong in one way."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from big_clients import __main__ as program
from big_clients.installed import CLIENTS, BigClient, NotInstalled, install
from clients import environment
from token_budget.cli._provider import Provider

for library in ("aiohttp", "psutil", "truststore"):
    pytest.importorskip(library)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a client is a script with an interpreter's name in it")

CLIENT = """\
import json, os, sys, urllib.error, urllib.request
question, tries, way = sys.argv[1], int(sys.argv[2]), sys.argv[3]
body = {"model": "house-small", "max_tokens": 60, "stream": True, "messages": [{"role": "user", "content": question}]}
base = os.environ["OUTSIDE"] if way == "around" else os.environ["OPENAI_BASE_URL"]
request = urllib.request.Request(base + "/chat/completions", json.dumps(body).encode())
words = []
for _ in range(tries):
    try:
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if b'"content"' in line:
                    words.append(json.loads(line[6:])["choices"][0]["delta"]["content"])
                    print(end="" if way == "late" else f"<{words[-1]}>", flush=True)
        print(*(f"<{word}>" for word in words if way == "late"))
        break
    except urllib.error.HTTPError as error:
        print(error.read().decode())
else:
    sys.exit(3)
"""


def made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, tries: int = 1, way: str = "through", tools: bool = False
) -> str:
    """Have a client that is installed already."""
    client = BigClient("npm", "@some/client", "client", ("QUESTION", str(tries), way), "<WORD>", tools=tools)
    place = folder / "client"
    place.mkdir()
    (place / "ready").write_text("1.0", encoding="utf-8")
    (place / "client").write_text(f"#!{sys.executable}\n{CLIENT}", encoding="utf-8")
    (place / "client").chmod(0o755)
    monkeypatch.setattr(program, "PACE", 0.1)
    monkeypatch.setitem(CLIENTS, "client", client)
    return "client"


def line_of(folder: Path, name: str) -> tuple[list[str], bool]:
    return program.row(name, folder, None, verbose=False)


def test_a_client_that_is_right_has_a_line_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, right = line_of(tmp_path, made(tmp_path, monkeypatch))
    assert right, cells
    assert cells[:3] == ["client", "1.0", "1"]
    metered, _, billed = cells[3].partition(" = ")
    assert metered == billed != "0"
    assert int(cells[4].removesuffix(" ms")) > program.PACE * 1000
    assert cells[5:] == ["1 of 1 call", "0, 3", "none", "nothing"]


def test_a_client_that_is_wrong_has_a_line_that_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, right = line_of(tmp_path, made(tmp_path, monkeypatch, tries=3, way="late", tools=True))
    assert not right
    assert cells[5] == "3 of 1 call"
    assert cells[-1] == "its stream came at once; it does not go on after a tool; more than 1 for a call"


def test_a_client_that_goes_around_the_gateway_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_way_out(provider: Provider, **more: str) -> dict[str, str]:
        return environment(provider, OUTSIDE=f"{provider.url}/v1", **more)

    monkeypatch.setattr("big_clients.__main__.environment", with_a_way_out)
    cells, right = line_of(tmp_path, made(tmp_path, monkeypatch, way="around"))
    assert not right
    assert "metered is not billed; the provider was asked without a budget; nothing was refused" in cells[-1]


def test_a_client_that_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotInstalled, match="node or npm is not on this machine"):
        install(CLIENTS["claude"], tmp_path, None)
    cells, right = line_of(tmp_path, "claude")
    assert not right
    assert len(cells) == len(program.HEADINGS)
    assert cells[-1] == "not installed: node or npm is not on this machine"


def test_a_name_that_no_client_has_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["nobody"])
    assert ended.value.code == 2
    assert "no client is named nobody" in capsys.readouterr().err
