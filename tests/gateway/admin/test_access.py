"""Who may ask the admin listener: with a token, over TLS, from its own pages, and through a unix socket."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import stat
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr
from rich.console import Console
from structlog.testing import capture_logs

from relay.addresses import Address, UnixSocket
from relay.console import top
from relay.console.listener import AdminListener
from relay.errors import OperatorError
from relay.gateway.admin import listener as module
from relay.gateway.admin import tokens as tokens_module
from relay.gateway.admin.listener import Admin
from relay.gateway.admin.sockets import admin_context, identity_of
from relay.gateway.admin.tokens import TokenCheck, TokenVerdict, hash_token, new_token, token_of
from relay.plane.certificates import read_certificate
from relay.rate_limit import RateLimit
from tests.support.benches.gateway import Relay, running_relay, write_config
from tests.support.benches.made_up import NO_CAPTURES, MadeUpRelay
from tests.support.certificates_made import authority, files_in, signed, write_pair
from tests.support.waiting import eventually

NO_UPSTREAM = Address("127.0.0.1", 9)
TOKEN = "relay-a-token-of-the-tests"
# As cheap as a hash can be.
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
TOKEN_HASH = CHEAP.hash(TOKEN)
WITH_TOKEN = {"admin": {"token_hash": TOKEN_HASH}}
# Every address of this machine: others could reach it.
EVERYWHERE = {"admin": "0.0.0.0:0"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(autouse=True)
def _no_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests send more wrong tokens than anybody may. The test of the bounds sets its own."""
    monkeypatch.setattr(tokens_module, "CHECKS_OF_SOURCE_PER_S", 0)
    monkeypatch.setattr(tokens_module, "CHECKS_PER_S", 0)


async def ask(
    url: str, headers: dict[str, str] | None = None, method: str = "GET", **options: Any
) -> tuple[int, str, dict[str, list[str]]]:
    """Status, text and fields."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, headers=headers, **options) as answer,
    ):
        fields = {name: answer.headers.getall(name) for name in answer.headers}
        return answer.status, await answer.text(), fields


async def status_of(url: str, headers: dict[str, str] | None = None, method: str = "GET", **options: Any) -> int:
    return (await ask(url, headers, method, **options))[0]


# The token


async def test_nothing_without_the_token(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, **WITH_TOKEN) as relay:
        url = f"http://{relay.admin}"
        for path in ("/", "/metrics", "/api/summary", "/api/events", "/table.js", "/none"):
            status, text, fields = await ask(f"{url}{path}")
            assert (status, "summary" in text) == (401, False)
            assert [one.partition(" ")[0] for one in fields["WWW-Authenticate"]] == ["Basic", "Bearer"]
        assert await status_of(f"{url}/api/flows/1/capture?seconds=1", method="POST") == 401
        # These tell nothing, and balancers ask for them.
        assert await status_of(f"{url}/healthz") == 200
        assert await status_of(f"{url}/readyz") == 503

        for headers in (BEARER, {"Authorization": f"bearer  {TOKEN}"}, basic("", TOKEN), basic("anybody", TOKEN)):
            assert await status_of(f"{url}/api/summary", headers) == 200
        wrong = [
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": TOKEN},
            {"Authorization": f"Digest {TOKEN}"},
            {"Authorization": "Basic ä"},
            {"Authorization": "Basic"},
            {"Authorization": "Bearer " + 600 * "a"},
            basic(TOKEN, ""),
            basic("anybody", TOKEN[:-1]),
        ]
        for headers in wrong:
            assert await status_of(f"{url}/api/summary", headers) == 401


async def test_a_wrong_token_is_logged_without_it(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, **WITH_TOKEN) as relay:
        with capture_logs() as lines:
            await ask(f"http://{relay.admin}/metrics", {"Authorization": "Bearer guess"})
            await ask(f"http://{relay.admin}/metrics")
    [line] = [line for line in lines if line["event"] == "admin request refused"]
    assert (line["client"], line["path"], line["reason"]) == ("127.0.0.1", "/metrics", "token_wrong")
    assert "guess" not in str(line)


async def test_another_token_after_a_reload(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, **WITH_TOKEN) as relay:
        url = f"http://{relay.admin}/metrics"
        assert await status_of(url, BEARER) == 200
        reload(relay, admin={"token_hash": CHEAP.hash("another")})
        assert await status_of(url, BEARER) == 401
        assert await status_of(url, {"Authorization": "Bearer another"}) == 200
        reload(relay, admin={})
        assert await status_of(url) == 200


def reload(relay: Relay, **sections: Any) -> None:
    write_config(relay.config_file, {**relay.tree, **sections})
    relay.gateway.reload(relay.config_file)


def test_tokens() -> None:
    token = new_token()
    assert token.startswith("relay-")
    assert len(token) > 40
    assert token != new_token()
    assert hash_token(token).startswith("$argon2id$v=19$")
    assert token_of(f"Bearer {token}") == token
    assert token_of(None) == ""


async def test_a_token_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []

    def verify(hashed: str, token: str) -> bool:
        checks.append(token)
        return token == TOKEN

    monkeypatch.setattr(tokens_module, "_verify", verify)
    tokens = TokenCheck(SecretStr(TOKEN_HASH))
    found = await asyncio.gather(*(tokens.check(f"Bearer {TOKEN}", "192.0.2.1") for _ in range(9)))
    assert (found, checks) == ([TokenVerdict.GOOD] * 9, [TOKEN])
    # A wrong one does not make the right one forgotten.
    assert await tokens.check("Bearer wrong", "192.0.2.1") is TokenVerdict.WRONG
    assert await tokens.check(f"Bearer {TOKEN}", "192.0.2.1") is TokenVerdict.GOOD
    assert checks == [TOKEN, "wrong"]
    tokens.configure(SecretStr(TOKEN_HASH))
    assert await tokens.check(f"Bearer {TOKEN}", "192.0.2.1") is TokenVerdict.GOOD
    assert len(checks) == 2


async def test_wrong_tokens_are_checked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    tokens = TokenCheck(SecretStr(TOKEN_HASH))
    monkeypatch.setattr(tokens, "_of_source", Clocked(1.0, lambda: now))
    monkeypatch.setattr(tokens, "_of_all", Clocked(4.0, lambda: now))

    async def guess(client: str, token: str = "wrong") -> TokenVerdict:
        return await tokens.check(f"Bearer {token}", client)

    assert [await guess("192.0.2.1") for _ in range(3)] == [
        TokenVerdict.WRONG,
        TokenVerdict.TOO_MANY,
        TokenVerdict.TOO_MANY,
    ]
    others = [await guess(f"192.0.2.{number}") for number in range(2, 6)]
    assert others == [TokenVerdict.WRONG] * 3 + [TokenVerdict.TOO_MANY]
    # The right one waits as well, until it was checked once.
    assert await guess("192.0.2.9", TOKEN) is TokenVerdict.TOO_MANY
    now += 1
    assert await guess("192.0.2.9", TOKEN) is TokenVerdict.GOOD
    assert await guess("192.0.2.1", TOKEN) is TokenVerdict.GOOD


class Clocked(RateLimit):
    """A limit whose time is the test's."""

    def __init__(self, per_second: float, now: Any) -> None:
        super().__init__(per_second)
        self._now = now

    def allows(self, now: float, source: str) -> bool:
        return super().allows(self._now(), source)


async def test_too_many_wrong_tokens_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_many(*_: object) -> TokenVerdict:
        return TokenVerdict.TOO_MANY

    monkeypatch.setattr(TokenCheck, "check", too_many)
    async with running_relay(tmp_path, NO_UPSTREAM, **WITH_TOKEN) as relay:
        status, text, fields = await ask(f"http://{relay.admin}/metrics", BEARER)
    assert (status, fields["Retry-After"], "try again" in text) == (429, ["5"], True)


# Pages of others


@pytest.mark.parametrize("path", ["/api/flows/1/capture?seconds=1", "/api/events", "/api/summary", "/"])
async def test_pages_of_other_origins(tmp_path: Path, path: str) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, **WITH_TOKEN) as relay:
        url, method = f"http://{relay.admin}{path}", "POST" if "capture" in path else "GET"
        port = relay.admin.port
        for origin in ("null", "https://attacker.example", f"http://127.0.0.2:{port}", "http://127.0.0.1", ""):
            assert await status_of(url, {**BEARER, "Origin": origin}, method) == 403
        async with aiohttp.ClientSession() as session:
            own = {**BEARER, "Origin": f"http://{relay.admin}"}
            async with session.request(method, url, headers=own) as answer:
                # Captures are not allowed here, which is another reason.
                assert "Origin" not in (await answer.content.read(99)).decode()
        assert await status_of(f"http://{relay.admin}/healthz", {"Origin": "https://attacker.example"}) == 200


# TLS


async def test_other_machines_need_tls_and_the_token(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, listen=EVERYWHERE, **WITH_TOKEN) as relay:
        url = f"https://127.0.0.1:{relay.admin.port}"
        assert await status_of(f"{url}/metrics", BEARER, ssl=relay.trust) == 200
        assert await status_of(f"{url}/metrics", ssl=relay.trust) == 401
        assert await status_of(f"{url}/healthz", ssl=relay.trust) == 200
        with pytest.raises(aiohttp.ClientError):
            await status_of(f"http://127.0.0.1:{relay.admin.port}/healthz")
        with pytest.raises(aiohttp.ClientError):
            await status_of(f"{url}/healthz")  # whoever does not trust the authority
        # The next reload must leave it a token.
        with pytest.raises(OperatorError, match=r"admin\.token_hash: expected one until the next start"):
            reload(relay, admin={}, listen={**relay.tree["listen"], "admin": "127.0.0.1:0"})
        assert await status_of(f"{url}/metrics", BEARER, ssl=relay.trust) == 200


async def test_open_to_all_if_the_operator_says_so(tmp_path: Path) -> None:
    listen = {**EVERYWHERE, "admin_unprotected": True}
    async with running_relay(tmp_path, NO_UPSTREAM, listen=listen) as relay:
        assert await status_of(f"http://127.0.0.1:{relay.admin.port}/metrics") == 200
        assert await status_of(f"http://127.0.0.1:{relay.admin.port}/metrics", {"Host": "attacker.example"}) == 421


async def test_a_renewed_certificate(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, listen=EVERYWHERE, **WITH_TOKEN) as relay:
        first = await leaf(relay)
        renewed = relay.authority.issue("127.0.0.1", "relay.test")
        reload(relay, certificates=[{"certificate": str(renewed.chain), "private_key": str(renewed.private_key)}])
        assert await leaf(relay) != first


async def leaf(relay: Relay) -> bytes:
    _, writer = await asyncio.open_connection("127.0.0.1", relay.admin.port, ssl=relay.trust)
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return found


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "first.test"),
        (["admin.second.test"], "admin.second.test"),
        (["none.test", "a.third.test"], "*.third.test"),
        (["*.third.test", "admin.second.test"], "*.third.test"),
    ],
)
def test_which_certificate(tmp_path: Path, names: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer, chosen = authority(), []
    made = [
        read_certificate(write_pair(files_in(tmp_path, str(number)), signed(issuer, name)))
        for number, name in enumerate(("first.test", "admin.second.test", "*.third.test"))
    ]
    monkeypatch.setattr("relay.gateway.admin.sockets.load_certificate", lambda _, one: chosen.append(one.names))
    admin_context(made, names)
    assert chosen == [{expected}]


async def test_a_client_that_does_not_speak_tls_takes_no_place(tmp_path: Path) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, listen=EVERYWHERE, **WITH_TOKEN) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.admin.port)
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert b"200 OK" not in await reader.read()
        writer.close()
        await eventually(lambda: relay.gateway._admin._connections == 0)


# What is refused


async def answer_to(address: Address, request: bytes) -> tuple[bytes, dict[str, str]]:
    """The first line of the answer, and its fields."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    head = (await reader.read()).partition(b"\r\n\r\n")[0].decode()
    writer.close()
    first, *lines = head.split("\r\n")
    return first.encode(), {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_all_answers_name_their_connection_in_the_log(tmp_path: Path) -> None:
    end = b"Connection: close\r\n\r\n"
    with capture_logs() as lines:
        async with running_relay(tmp_path, NO_UPSTREAM, **WITH_TOKEN) as relay:
            told, token = [], f"Authorization: Bearer {TOKEN}\r\n".encode()
            for request, status in (
                (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + end, b"200"),
                (b"GET /none HTTP/1.1\r\nHost: localhost\r\n" + token + end, b"404"),
                (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + end, b"401"),
                (b"GET /metrics HTTP/1.1\r\nHost: attacker.example\r\n" + end, b"421"),
                (b"GARBAGE\0\r\n\r\n", b"400"),
            ):
                first, fields = await answer_to(relay.admin, request)
                assert first.split()[1] == status
                assert fields["server"] == "cloud9-relay"
                told.append(fields["x-relay-id"])
    assert len({*told}) == len(told)
    assert all(relay.gateway.ids.connection_of(one) is not None for one in told)
    refused = {line["reason"]: line["connection"] for line in lines if line["event"] == "admin request refused"}
    assert refused == {"host": told[3], "bad_request": told[4]}


async def test_each_refusal_is_counted_by_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_relay(tmp_path, NO_UPSTREAM, **WITH_TOKEN) as relay:
        url, counts = f"http://{relay.admin}/metrics", relay.gateway._admin.refusals.counts
        await ask(url)
        await ask(url, {"Authorization": "Bearer guess"})
        await ask(url, {"Host": "attacker.example"})
        await ask(url, {"Origin": "https://attacker.example"})
        await answer_to(relay.admin, b"GARBAGE\0\r\n\r\n")
        for name, value in (("FIRST_REQUEST_TIMEOUT_S", 0.05), ("MAX_CONNECTIONS", 0)):
            with monkeypatch.context() as patched:
                patched.setattr(module, name, value)
                reader, writer = await asyncio.open_connection(*relay.admin)
                assert await reader.read() == b""
                writer.close()
        reasons = ("token_missing", "token_wrong", "host", "origin", "bad_request", "request_timeout")
        assert counts == dict.fromkeys((*reasons, "too_many_connections"), 1)
        text = (await ask(url, BEARER))[1]
        assert 'relay_admin_refusals_total{reason="host"} 1.0' in text
        assert 'relay_admin_refusals_total{reason="too_many_tokens"} 0.0' in text


# Bounds


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    admin = Admin(MadeUpRelay().view, NO_CAPTURES)
    address = await admin.listen(Address("127.0.0.1", 0))
    try:
        held = [await asyncio.open_connection(*address) for _ in range(2)]
        await eventually(lambda: admin._connections == 2)
        reader, writer = await asyncio.open_connection(*address)
        assert await reader.read() == b""
        writer.close()
        for _, one in held:
            one.close()
        await eventually(lambda: not admin._connections)
        assert not admin._waiting
        assert await status_of(f"http://{address}/healthz") == 200
    finally:
        await admin.stop()


async def test_nobody_waits_forever_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_REQUEST_TIMEOUT_S", 0.05)
    admin = Admin(MadeUpRelay().view, NO_CAPTURES)
    address = await admin.listen(Address("127.0.0.1", 0))
    try:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        assert await reader.read() == b""
        writer.close()
        # Whoever has asked once may wait.
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}/api/events") as answer:
            assert answer.status == 200
            assert (admin._connections, admin._waiting) == (1, {})
    finally:
        await admin.stop()


# Unix sockets


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    before = os.umask(0o077)
    try:
        async with running_relay(tmp_path, NO_UPSTREAM, listen={"admin": f"unix:{path}"}, **WITH_TOKEN) as relay:
            assert relay.gateway.admin == UnixSocket(str(path))
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            # Its mode says who may ask.
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
                assert (await session.get("http://localhost/metrics")).status == 200
                assert (await session.get("http://attacker.example/metrics")).status == 421
            reload(relay, admin={"token_hash": CHEAP.hash("another")})
            listener = AdminListener(f"unix:{path}")
            async with listener.open(aiohttp.ClientTimeout(total=60)) as session:
                assert (await session.get(listener.url_of("/api/summary"))).status == 200
        assert not path.exists()
    finally:
        os.umask(before)


async def test_what_a_relay_has_left_behind_is_replaced(tmp_path: Path) -> None:
    where = UnixSocket(str(tmp_path / "admin.sock"))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(where.path)
    admin = Admin(MadeUpRelay().view, NO_CAPTURES)
    await admin.listen_unix(where)
    other = Admin(MadeUpRelay().view, NO_CAPTURES)
    # Somebody listens there.
    with pytest.raises(OperatorError) as refused:
        await other.listen_unix(where)
    assert str(refused.value) == f"cannot listen on {where} (listen.admin): address already in use"
    # The next relay has put its own there: it stays.
    os.unlink(where.path)
    await other.listen_unix(where)
    await admin.stop()
    assert identity_of(where) is not None
    await other.stop()
    assert identity_of(where) is None


@pytest.mark.parametrize(("name", "reason"), [("file", "file exists"), ("no/folder", "no such file or directory")])
async def test_a_path_that_cannot_be_used(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("mine")
    where = UnixSocket(str(tmp_path / name))
    with pytest.raises(OperatorError) as refused:
        await Admin(MadeUpRelay().view, NO_CAPTURES).listen_unix(where)
    assert str(refused.value) == f"cannot listen on {where} (listen.admin): {reason}"
    assert (tmp_path / "file").read_text() == "mine"


# Programs for operators


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "unix:/none/admin.sock"])
async def test_no_listener_there(url: str) -> None:
    with pytest.raises(OperatorError, match="/api/summary cannot be read"):
        await top.show_once(AdminListener(url), "", Console())


def test_a_token_that_no_header_can_carry() -> None:
    with pytest.raises(OperatorError, match="expected printable ASCII"):
        AdminListener(token="a\nb")


def test_authorities_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no PEM")
    for name in ("ca.pem", "none.pem"):
        with pytest.raises(OperatorError, match=f"--ca .*{name}: "):
            AdminListener("https://relay.test:9443", ca=tmp_path / name)
