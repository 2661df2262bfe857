"""The gateway is safe: who may call it, where it may lead, and what never leaves it."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from gateways import (
    CHAT,
    SECONDS,
    Asked,
    Connection,
    ask,
    asked,
    chat,
    completion,
    eventually,
    gateway_to,
    head,
    meter_of,
    raw,
    received,
    upstream,
    used,
    wired,
)
from token_budget.gateway import Gateway, Limits
from token_budget.gateway._address import climbs, is_loopback, target_of
from token_budget.gateway._client import Body, Client, proxy_for


def whole(connection: Connection, _: Asked) -> None:
    connection.answer(completion(), "200 OK", "Content-Type: application/json")


def never(connection: Connection, _: Asked) -> None:
    raise AssertionError("nothing may reach the provider")


# ---------------------------------------------------------------- who may call


def test_it_listens_on_loopback_alone() -> None:
    with gateway_to("http://127.0.0.1:9") as gateway:
        assert gateway._socket is not None
        assert gateway._socket.getsockname()[0] == "127.0.0.1"
        assert gateway.base == f"http://127.0.0.1:{gateway.port}/{gateway.secret}"


def test_each_gateway_has_a_secret_of_24_random_bytes() -> None:
    secrets = {Gateway(meter_of(), {}).secret for _ in range(50)}
    assert len(secrets) == 50
    assert {len(secret) for secret in secrets} == {32}


@pytest.mark.parametrize(
    "change",
    [
        lambda secret: "",
        lambda secret: secret[:-1],
        lambda secret: secret + "x",
        lambda secret: secret.swapcase(),
        lambda secret: "%" + f"{ord(secret[0]):02x}" + secret[1:],
        lambda secret: "-",
        lambda secret: "x/" + secret,
    ],
)
def test_without_the_secret_there_is_nothing(change: Any) -> None:
    with wired(never) as (gateway, wire):
        for rest in ("/openai/v1/models", "/_status", ""):
            line = f"GET /{change(gateway.secret)}{rest} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            got = raw(gateway, line.encode())
            assert got.split(b" ")[1] == b"404"
            assert gateway.secret.encode() not in got
        assert wire.seen == []


def test_the_secret_is_compared_in_a_time_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("secrets.compare_digest", compare)
    assert target_of("/wrong/openai/v1", "right", None) is None
    assert target_of("/right/openai/v1", "right", None) == ("openai", "/v1", "")
    assert compared == [(b"wrong", b"right"), (b"right", b"right")]


def test_the_secret_may_come_in_a_header_which_never_leaves() -> None:
    with wired(whole) as (gateway, wire):
        headers = {"X-Token-Budget-Secret": gateway.secret}
        assert asked(gateway, "POST", f"/-/openai{CHAT}", chat(), headers).status == 200
        assert asked(gateway, "GET", "/-/_status", headers=headers).status == 200
        assert asked(gateway, "GET", "/-/openai/v1/models", headers={"X-Token-Budget-Secret": "x"}).status == 404
        assert asked(gateway, "GET", "/-/openai/v1/models").status == 404
        assert asked(gateway, "GET", "/x/openai/v1/models", headers=headers).status == 404
        assert ask(gateway, "GET", "/v1/models", headers={"X-Token-Budget-Secret": "mine"}).status == 200
        assert [one.header("x-token-budget-secret") for one in wire.seen] == [[], []]
        assert all(gateway.secret not in str(one) for one in wire.seen)


def test_no_header_and_no_query_carries_the_secret_to_the_provider() -> None:
    with wired(whole) as (gateway, wire):
        headers = {"Referer": f"{gateway.base}/openai", "Authorization": f"Bearer {gateway.secret}", "X-Kept": "1"}
        assert ask(gateway, "GET", f"/v1/models?key={gateway.secret}&x=1", headers=headers).status == 200
        assert gateway.secret not in str(wire.seen)
        assert wire.seen[0].target == "/v1/models?key=&x=1"
        assert wire.seen[0].header("x-kept") == ["1"]
        assert ask(gateway, "GET", f"/v1/{gateway.secret}").status == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:80", "", "localhost:80:80", "[::2]"]
)
def test_a_name_that_was_rebound_to_loopback_is_a_421(host: str) -> None:
    with wired(never) as (gateway, _):
        request = f"GET /{gateway.secret}/openai/v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert raw(gateway, request.encode()).split(b" ")[1] == b"421"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]", "[::1]:80"])
def test_the_names_of_loopback_are_known(host: str) -> None:
    assert is_loopback(host)


def test_it_is_no_proxy() -> None:
    with wired(never) as (gateway, wire):
        port = wire.url.rpartition(":")[2]
        for line in (
            f"CONNECT 127.0.0.1:{port} HTTP/1.1",
            f"GET {wire.url}/v1/models HTTP/1.1",
            f"GET {wire.url}/{gateway.secret}/openai/v1/models HTTP/1.1",
            f"CONNECT /{gateway.secret}/openai/v1/models HTTP/1.1",
            "OPTIONS * HTTP/1.1",
        ):
            got = raw(gateway, f"{line}\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert got.split(b" ")[1] in {b"404", b"400"}, line
            assert gateway.secret.encode() not in got
        assert wire.connections == 0


def test_a_websocket_is_a_426_and_other_upgrades_are_passed_over() -> None:
    with wired(whole) as (gateway, wire):
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
        got = raw(gateway, head(gateway, "GET", "/v1/responses", *upgrade), until=b"}}")
        assert got.startswith(b"HTTP/1.1 426")
        assert wire.seen == []
        body = json.dumps(chat()).encode()
        lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        got = raw(gateway, head(gateway, "POST", CHAT, *lines, f"Content-Length: {len(body)}") + body, until=b"}}")
        assert got.startswith(b"HTTP/1.1 200")
        assert [name for name, _ in wire.seen[0].headers] == ["Host", "Content-Length"]


# ---------------------------------------------------------------- where it may lead


def test_only_upstreams_of_the_table_are_reached() -> None:
    with wired(never) as (gateway, _):
        got = ask(gateway, "GET", "/v1/models", name="elsewhere")
        assert got.status == 404
        assert "--upstream NAME=URL" in got.message


@pytest.mark.parametrize(
    "rest",
    [
        "/../admin",
        "/v1/../../admin",
        "/%2e%2e/admin",
        "/.%2E/admin",
        "/v1/..%2fadmin",
        "/v1/..%5cadmin",
        "/v1/..\\admin",
        "/%252e%252e/admin",
        "/%25252e./admin",
        "/v1/..",
        "/./v1/models",
    ],
)
def test_no_path_climbs_out_of_its_upstream(rest: str) -> None:
    with wired(never) as (_, wire), gateway_to(wire.url + "/prefix") as gateway:
        assert raw(gateway, head(gateway, "GET", rest, "Connection: close")).split(b" ")[1] == b"404"
        assert wire.seen == []


@pytest.mark.parametrize("path", ["v1/models", "v1/a..b", "v1/...", "v1/%zz", "v1/a%20b.c", "%25252525", "v1/.env"])
def test_a_path_that_climbs_nowhere_passes(path: str) -> None:
    assert not climbs(path)


@pytest.mark.parametrize("rest", ["@evil.example/v1/models", ":80@evil.example/", ".evil.example/v1/models"])
def test_no_path_changes_the_host(rest: str) -> None:
    with wired(never) as (gateway, wire):
        assert ask(gateway, "GET", rest).status == 404
        assert wire.connections == 0


@pytest.mark.parametrize("raw_target", ["/s/openai/v1#x", "s/openai/v1", "/s/openai/\udcff", "/s"])
def test_a_target_that_cannot_be_passed_on_as_it_is_leads_nowhere(raw_target: str) -> None:
    found = target_of(raw_target, "s", None)
    assert found is None or found == ("", "", "")


# ---------------------------------------------------------------- keys


def test_keys_pass_untouched() -> None:
    keys = {"Authorization": "Bearer sk-1", "x-api-key": "sk-2", "x-goog-api-key": "sk-3", "api-key": "sk-4"}
    with wired(whole) as (gateway, wire):
        ask(gateway, "GET", "/v1/models?key=sk-5", headers=keys)
        assert {name: wire.seen[0].header(name)[0] for name in keys} == keys
        assert wire.seen[0].target == "/v1/models?key=sk-5"


def test_a_key_that_is_held_is_put_in_for_its_own_upstream_alone() -> None:
    with wired(whole) as (_, wire):
        table = {name: upstream(wire.url, name) for name in ("openai", "other")}
        with Gateway(meter_of(), table) as gateway:
            gateway.keys = {"openai": (gateway.secret, "sk-real")}
            assert gateway.keys["openai"][1] == "sk-real"
            for name in table:
                ask(gateway, body=chat(), headers={"Authorization": f"Bearer {gateway.secret}"}, name=name)
            ask(gateway, "GET", f"/v1/models?key={gateway.secret}", headers={"x-api-key": gateway.secret})
        assert [one.header("authorization") for one in wire.seen] == [["Bearer sk-real"], [], []]
        assert wire.seen[2].header("x-api-key") == ["sk-real"]
        assert wire.seen[2].target == "/v1/models?key=sk-real"


def test_nothing_is_logged_and_repr_shows_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with wired(lambda connection, _: connection.close()) as (gateway, _):
        gateway.keys = {"openai": (gateway.secret, "sk-real")}
        ask(gateway, body=chat(), headers={"Authorization": "Bearer sk-mine"})
        raw(gateway, head(gateway, "GET", "/v1/models", "Authorization: " + "sk-mine" * 10_000))
        raw(gateway, b"sk-mine\r\n\r\n")
        shown = repr(gateway) + caplog.text
        assert "openai" not in shown
        for secret in (gateway.secret, "sk-real", "sk-mine", "sky"):
            assert secret not in shown
        assert f"open on port {gateway.port}: 1 metered, 0 passed" in repr(gateway)


# ---------------------------------------------------------------- limits


def test_a_connection_too_many_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    with wired(whole, limits=Limits(connections=2)) as (gateway, _):
        with (
            socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as first,
            socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as second,
        ):
            for one in (first, second):
                one.sendall(head(gateway, "GET", "/v1/models"))
                assert received(one, b"}}").startswith(b"HTTP/1.1 200")
            assert raw(gateway, b"").startswith(b"HTTP/1.1 503")
        eventually(lambda: raw(gateway, head(gateway, "GET", "/v1/models"), until=b"\r\n").startswith(b"HTTP/1.1 200"))


def test_who_does_not_show_the_secret_keeps_no_client_out() -> None:
    with wired(whole, limits=Limits(connections=3)) as (gateway, _), contextlib.ExitStack() as stack:

        def connected() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS))

        def answered(client: socket.socket) -> bool:
            client.sendall(head(gateway, "GET", "/v1/models"))
            return received(client, b"}}").startswith(b"HTTP/1.1 200")

        clients = [connected()]
        assert answered(clients[0])
        strangers = [connected(), connected()]
        strangers[1].sendall(b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert received(strangers[1], b"here").startswith(b"HTTP/1.1 404")
        for _ in strangers:  # the oldest makes room for the next client
            clients.append(connected())
            assert answered(clients[-1])
        assert strangers[0].recv(1) == b""
        received(strangers[1])  # comes to its end
        assert raw(gateway, b"").startswith(b"HTTP/1.1 503")
        assert all(answered(client) for client in clients)


def test_no_connection_that_has_ended_is_kept() -> None:
    with wired(whole) as (gateway, _):
        for _ in range(5):
            raw(gateway, head(gateway, "GET", "/v1/models"), until=b"}}")
        assert len(gateway._spared) <= 2


def test_a_connection_that_does_not_come_to_the_end_of_its_head_is_closed() -> None:
    with wired(whole, limits=Limits(idle_seconds=0.1)) as (gateway, _):
        assert raw(gateway, head(gateway, "GET", "/v1/models")[:-2]) == b""
        assert raw(gateway, b"") == b""


# ---------------------------------------------------------------- proxies and certificates


def test_the_proxy_of_the_user_is_obeyed_and_its_exceptions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert proxy_for("https://api.openai.com") is None
    monkeypatch.setenv("HTTPS_PROXY", "http://user:pw@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "internal.example")
    assert str(proxy_for("https://api.openai.com")) == "http://user:pw@proxy.example:3128"
    assert proxy_for("http://api.openai.com") is None
    assert proxy_for("https://internal.example:8443/x") is None
    for host in ("127.0.0.1:1", "127.1.2.3", "localhost", "[::1]:8000"):
        assert proxy_for(f"https://{host}/v1") is None
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    assert str(proxy_for("https://api.openai.com")) == "http://proxy.example:3128"


def test_a_request_goes_through_the_proxy_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = meter_of()
    with wired(whole, meter) as (_, proxy):
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with gateway_to("http://api.example/base", meter) as gateway:
            assert ask(gateway, body=chat()).status == 200
        assert proxy.seen[0].target == f"http://api.example/base{CHAT}"
        assert proxy.seen[0].header("host") == ["api.example"]


def test_a_proxy_that_refuses_the_tunnel_is_a_502_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(connection: Connection, asked: Asked) -> None:
        assert asked.method == "CONNECT"
        connection.answer(b"", "403 Forbidden")

    meter = meter_of()
    with wired(respond, meter) as (_, proxy):
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with gateway_to("https://api.example", meter) as gateway:
            assert ask(gateway, body=chat()).status == 502
        assert used(meter) == (0, 0, 0)


def test_passwords_out_of_netrc_reach_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "netrc").write_text("default login user password hush")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with wired(whole) as (gateway, wire):
        assert ask(gateway, body=chat(), headers={"Authorization": "Bearer mine"}).status == 200
        assert ask(gateway, body=chat()).status == 200
        assert [one.header("authorization") for one in wire.seen] == [["Bearer mine"], []]


def test_an_upstream_without_a_proxy_goes_there_alone_and_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[str] = []
    monkeypatch.setattr("token_budget.gateway._client.proxy_for", lambda url: asked_for.append(url))
    with wired(whole) as (gateway, wire):
        for _ in range(3):
            assert ask(gateway, body=chat()).status == 200
        assert asked_for == [wire.url]


def test_a_body_is_text_for_whoever_asks() -> None:
    assert Body("ü".encode()).decode() == "ü"


def test_certificates_are_those_that_the_system_trusts() -> None:
    import truststore

    made: list[Any] = []

    def respond(connection: Connection, _: Asked) -> None:
        connection.close()

    with wired(respond) as (_, wire), gateway_to(wire.url.replace("http:", "https:")) as gateway:
        wire._read = lambda *_: made.append(1)  # type: ignore[method-assign]
        for _ in range(2):
            assert ask(gateway, body=chat()).status == 502
        client: Client | None = gateway._forward._client
        assert client is not None
        assert type(client._tls) is truststore.SSLContext
    assert len(made) == 2
