"""Login, settings, credentials and logs, as a client has them."""

from __future__ import annotations

import asyncio
import gzip
import io
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from relay.emulator.login import client_logs, service
from relay.emulator.login.client_logs import MAX_LOGS_PER_USER
from relay.emulator.login.tokens import MAX_PER_USER
from relay.emulator.store import tables
from relay.turn.credentials import rest_password
from tests.support.benches.cloud import PASSWORD, CloudClient, running_cloud


async def switch_voice_via_web_proxy(client: CloudClient, user_id: str, *, on: bool) -> None:
    async with client.cloud.store.writing() as session:
        user = await session.get_one(tables.User, user_id)
        user.voice_via_web_proxy = on


async def test_a_login_says_who_one_is_and_how_voice_is_to_go(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, runs_turn=True) as client:
        body = await client.login("fay")
        assert body["user"] == {
            "user_id": "fay",
            "name": "Fay Martin",
            "email": "fay@borealis.example",
            "firm_id": "borealis",
            "firm_name": "Borealis Bank",
            "role": "user",
            "extension": "2001",
        }
        settings = body["settings"]
        assert settings["voiceViaWebProxy"] is True
        assert settings["signaling"]["hosts"][0] == {"name": "c9so-euc1.xhoot.com", "region": "euc1"}
        assert settings["media"]["transport"] == "web_proxy"
        assert settings["media"]["hosts"][0]["name"] == "euc1-stun1.xhoot.com"
        assert settings["media"]["ice_servers"][0]["urls"] == ["turns:127.0.0.1:4443?transport=tcp"]
        assert {line["line"] for line in settings["lines"]} >= {"sPK-10000001-100002", "sPK-10000005-100002"}
        assert settings["buttons"] == [
            {"position": 1, "label": "Atlas Rates", "line": "sPK-10000001-100002", "dial": None}
        ]


async def test_who_has_no_voice_via_web_proxy_is_told_to_use_udp(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, runs_turn=True) as client:
        media = (await client.login("gus"))["settings"]["media"]
        assert media["transport"] == "udp"
        assert "Voice via Web Proxy was off" in media["reason"]
        first, second = media["hosts"][:2]
        assert media["ice_servers"][0]["urls"] == [
            f"turn:{host['address']}:{host['udp_port']}?transport=udp" for host in (first, second)
        ]


async def test_by_e_mail_address(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        assert (await client.login("Anna@atlas.example"))["user"]["user_id"] == "anna"


async def test_the_setting_counts_from_the_next_login(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        before = (await client.login("gus"))["token"]
        await switch_voice_via_web_proxy(client, "gus", on=True)
        _, settings, _ = await client.ask("GET", "/rest/v1/settings", token=before)
        assert settings["voiceViaWebProxy"] is False
        after = (await client.login("gus"))["token"]
        _, settings, _ = await client.ask("GET", "/rest/v1/settings", token=after)
        assert settings["voiceViaWebProxy"] is True


async def test_credentials_are_time_limited_and_the_hosts_know_them(tmp_path: Path) -> None:
    async with running_cloud(tmp_path, credentials_lifetime_s=60.0) as client:
        token = (await client.login())["token"]
        status, got, _ = await client.ask("POST", "/rest/v1/turn-credentials", token=token)
        expires, _, user = got["username"].partition(":")
        assert (status, user, int(expires)) == (200, "anna", got["expires_at"])
        assert 0 < got["expires_at"] - time.time() <= 61
        assert got["password"] == rest_password(client.cloud.turn_secret, got["username"])


@pytest.mark.parametrize(
    ("user", "password"), [("anna", "wrong"), ("nobody", "trader"), ("anna", "Trader"), ("' OR 1=1 --", "x")]
)
async def test_a_wrong_name_and_a_wrong_password_are_told_alike(tmp_path: Path, user: str, password: str) -> None:
    async with running_cloud(tmp_path) as client:
        wanted = {"user": user, "password": password}
        status, body, headers = await client.ask("POST", "/rest/v1/login", json=wanted)
        assert (status, body["error"]["message"]) == (401, "The name or the password is wrong.")
        assert "WWW-Authenticate" in headers


async def test_a_disabled_user_is_known_and_may_not(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        async with client.cloud.store.writing() as session:
            (await session.get_one(tables.User, "anna")).enabled = False
        status, body, _ = await client.ask("GET", "/rest/v1/settings", token=token)
        assert status == 401
        wanted = {"user": "anna", "password": "trader"}
        status, body, _ = await client.ask("POST", "/rest/v1/login", json=wanted)
        assert (status, body["error"]["code"]) == (403, "disabled")
        status, _, _ = await client.ask("POST", "/rest/v1/login", json={**wanted, "password": "guess"})
        assert status == 401


async def test_who_guesses_is_slowed_down_and_others_are_not(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        statuses = []
        for number in range(8):
            wanted = {"user": "anna", "password": f"guess {number}"}
            status, body, headers = await client.ask("POST", "/rest/v1/login", json=wanted)
            statuses.append(status)
        assert statuses[:5] == [401] * 5
        assert statuses[5:] == [429] * 3
        assert int(headers["Retry-After"]) >= 1
        assert "Try again in" in body["error"]["message"]
        right = {"user": "anna", "password": "trader"}
        assert (await client.ask("POST", "/rest/v1/login", json=right))[0] == 429
        await client.login("ben")


async def test_many_right_passwords_at_once_all_get_in(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        # More of one name than it has free failures, and more in all than an address has.
        names = [*["anna"] * 8, *["ben", "hana", "gus"] * 15]
        answers = await asyncio.gather(
            *(client.ask("POST", "/rest/v1/login", json={"user": name, "password": PASSWORD}) for name in names)
        )
        assert [status for status, _, _ in answers] == [200] * len(names)


async def test_many_guesses_at_once_gain_nothing(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        wrong = {"user": "anna", "password": "wrong"}
        answers = await asyncio.gather(*(client.ask("POST", "/rest/v1/login", json=wrong) for _ in range(20)))
        assert [status for status, _, _ in answers].count(401) < 10


async def test_a_logout_ends_the_token(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        other = (await client.login())["token"]
        assert (await client.ask("POST", "/rest/v1/logout", token=token))[1] == {"done": True}
        assert (await client.ask("GET", "/rest/v1/settings", token=token))[0] == 401
        assert (await client.ask("GET", "/rest/v1/settings", token=other))[0] == 200


async def test_the_oldest_login_of_a_user_makes_room(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        tokens = [(await client.login())["token"] for _ in range(MAX_PER_USER + 1)]
        asked = [(await client.ask("GET", "/rest/v1/settings", token=token))[0] for token in tokens]
        assert asked == [401] + [200] * MAX_PER_USER


@pytest.mark.parametrize("header", ["", "Basic YTpi", "Bearer", "Bearer ", "Bearer x", "bearer " + "x" * 5000])
async def test_what_is_not_a_token(tmp_path: Path, header: str) -> None:
    async with running_cloud(tmp_path) as client:
        status, body, _ = await client.ask("GET", "/rest/v1/settings", headers={"Authorization": header})
        assert status == 401
        assert body["error"]["where"] == "Authorization"


@pytest.mark.parametrize(
    ("more", "status", "code", "where"),
    [
        ({"data": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not_json", "body"),
        ({"data": b"\xff", "headers": {"Content-Type": "application/json"}}, 400, "not_json", "body"),
        ({"data": b"[" * 60000, "headers": {"Content-Type": "application/json"}}, 400, "not_json", "body"),
        ({"data": b"x" * 70000, "headers": {"Content-Type": "application/json"}}, 413, "too_large", "body"),
        ({"data": b"user=anna"}, 415, "wrong_type", "Content-Type"),
        ({"json": []}, 422, "model_type", "body"),
        ({"json": {}}, 422, "missing", "body.user"),
        ({"json": {"user": 1, "password": "x"}}, 422, "string_type", "body.user"),
        ({"json": {"user": "an\0na", "password": "x"}}, 422, "string_pattern_mismatch", "body.user"),
        ({"json": {"user": "anna", "password": "x" * 129}}, 422, "string_too_long", "body.password"),
        ({"json": {"user": "anna", "password": "x", "colour": 1}}, 422, "extra_forbidden", "body.colour"),
        (
            {"json": {"user": "anna", "password": "x", "client_version": "\n"}},
            422,
            "string_pattern_mismatch",
            "body.client_version",
        ),
    ],
)
async def test_a_bad_body_is_told_what_is_wrong(
    tmp_path: Path, more: dict[str, Any], status: int, code: str, where: str
) -> None:
    async with running_cloud(tmp_path) as client:
        got, body, _ = await client.ask("POST", "/rest/v1/login", **more)
        assert (got, body["error"]["code"], body["error"]["where"]) == (status, code, where)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "PROPFIND"])
async def test_another_method(tmp_path: Path, method: str) -> None:
    async with running_cloud(tmp_path) as client:
        status, body, headers = await client.ask(method, "/rest/v1/login")
        assert (status, body["error"]["code"], headers["Allow"]) == (405, "wrong_method", "POST")


async def test_another_path(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        status, body, _ = await client.ask("GET", "/rest/v2/login")
        assert (status, body["error"]["code"]) == (404, "no_such_path")


# Logs


def log_names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("client-logs/*")}


PLAIN = {"Content-Type": "text/plain"}
GZIP = {"Content-Type": "application/gzip"}


@pytest.mark.parametrize(
    ("headers", "body"), [(PLAIN, "grüße\n".encode()), (GZIP, gzip.compress("grüße\n".encode(), mtime=0))]
)
async def test_a_log_is_kept(tmp_path: Path, headers: dict[str, str], body: bytes) -> None:
    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        status, receipt, _ = await client.ask("POST", "/rest/v1/logs", token=token, data=body, headers=headers)
        assert (status, receipt["size_bytes"]) == (201, 8)
        assert (tmp_path / "client-logs" / f"{receipt['log_id']}.log").read_text() == "grüße\n"


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (PLAIN, b"\xff\xfe", 400),
        (GZIP, b"not gzip at all", 400),
        (GZIP, gzip.compress(b"x" * 1000, mtime=0)[:-9], 400),
        (GZIP, gzip.compress(bytes(17 * 1024 * 1024), mtime=0), 413),
        (PLAIN, io.BytesIO(bytes(1024 * 1024 + 1)), 413),
        ({"Content-Type": "image/png"}, b"x", 415),
    ],
)
async def test_what_is_not_a_log(tmp_path: Path, headers: dict[str, str], body: Any, status: int) -> None:
    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        got, _, _ = await client.ask("POST", "/rest/v1/logs", token=token, data=body, headers=headers)
        assert got == status
        assert log_names(tmp_path) == set()


async def test_the_oldest_log_of_a_user_makes_room(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        kept = []
        for number in range(MAX_LOGS_PER_USER + 2):
            body = f"log {number}"
            _, receipt, _ = await client.ask("POST", "/rest/v1/logs", token=token, data=body, headers=PLAIN)
            kept.append(receipt["log_id"])
        assert log_names(tmp_path) == set(kept[2:])


async def test_logs_are_unpacked_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0
    read = client_logs._text_of

    def counted(content_type: str, raw: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        # Off the loop, where others would wait for it.
        assert threading.current_thread() is not threading.main_thread()
        text = read(content_type, raw)
        running -= 1
        return text

    monkeypatch.setattr(client_logs, "_text_of", counted)
    packed = gzip.compress(b"line\n" * 200_000)
    headers = {"Content-Type": "application/gzip"}
    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        answers = await asyncio.gather(
            *(client.ask("POST", "/rest/v1/logs", token=token, data=packed, headers=headers) for _ in range(5))
        )
        assert [status for status, _, _ in answers] == [201] * 5
        monkeypatch.setattr(client_logs, "MAX_WAITING", 0)
        status, _, told = await client.ask("POST", "/rest/v1/logs", token=token, data=packed, headers=headers)
        assert (status, told["Retry-After"]) == (503, "5")
    assert most == 1


async def test_large_logs_make_room_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_logs, "MAX_BYTES_PER_USER", 25)
    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        kept = []
        for size in (10, 10, 10, 25):
            _, receipt, _ = await client.ask("POST", "/rest/v1/logs", token=token, data="x" * size, headers=PLAIN)
            kept.append(receipt["log_id"])
            if size == 10:
                assert log_names(tmp_path) == set(kept[-2:])
        assert log_names(tmp_path) == {kept[-1]}


async def test_a_full_folder_keeps_no_more_until_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_logs, "MAX_TOTAL_BYTES", 25)
    async with running_cloud(tmp_path) as client:
        anna, ben = [(await client.login(user))["token"] for user in ("anna", "ben")]

        async def upload(token: str, size: int) -> tuple[int, Any]:
            status, body, _ = await client.ask("POST", "/rest/v1/logs", token=token, data="x" * size, headers=PLAIN)
            return status, body

        _, first = await upload(anna, 20)
        status, body = await upload(ben, 6)
        assert (status, body["error"]["code"]) == (507, "logs_full")
        assert "client-logs" in body["error"]["expected"]
        assert (await upload(ben, 5))[0] == 201
        (tmp_path / "client-logs" / f"{first['log_id']}.log").unlink()
        assert (await upload(ben, 20))[0] == 201
        # A user's own old logs count as room.
        monkeypatch.setattr(client_logs, "MAX_LOGS_PER_USER", 1)
        assert (await upload(ben, 25))[0] == 201
        assert len(log_names(tmp_path)) == 1


async def test_a_user_with_many_logs_leaves_places_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_logs, "MAX_WAITING_OF_USER", 1)
    async with running_cloud(tmp_path) as client:
        anna, ben = [(await client.login(user))["token"] for user in ("anna", "ben")]
        has_place, more = asyncio.Event(), asyncio.Event()
        keep = client_logs.ClientLogs.keep

        async def noted(
            logs: client_logs.ClientLogs, user: str, kind: str, read: Callable[[], Awaitable[bytes]]
        ) -> Any:
            async def read_noted() -> bytes:
                has_place.set()
                return await read()

            return await keep(logs, user, kind, read_noted)

        async def body() -> AsyncIterator[bytes]:
            yield b"a line"
            await more.wait()

        monkeypatch.setattr(client_logs.ClientLogs, "keep", noted)
        slow = asyncio.create_task(client.ask("POST", "/rest/v1/logs", token=anna, data=body(), headers=PLAIN))
        # Until then another upload of hers could take its place.
        await has_place.wait()

        async def status_for(token: str) -> int:
            return (await client.ask("POST", "/rest/v1/logs", token=token, data=b"x", headers=PLAIN))[0]

        assert await status_for(anna) == 429
        assert await status_for(ben) == 201
        more.set()
        assert (await slow)[0] == 201


async def test_a_log_that_is_not_registered_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise TimeoutError

    async with running_cloud(tmp_path) as client:
        token = (await client.login())["token"]
        monkeypatch.setattr(client_logs.ClientLogs, "_register", fail)
        assert (await client.ask("POST", "/rest/v1/logs", token=token, data=b"x", headers=PLAIN))[0] == 503
        assert log_names(tmp_path) == set()


# What changes while a login or a log is under way


def pause_at(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Let a coroutine stop when it has done its work. One event tells that it has, and the other lets it go on."""
    done, go_on = asyncio.Event(), asyncio.Event()
    work = getattr(place, name)

    async def work_and_stop(*given: Any) -> Any:
        result = await work(*given)
        done.set()
        await go_on.wait()
        return result

    monkeypatch.setattr(place, name, work_and_stop)
    return done, go_on


@pytest.mark.parametrize("changed", [{"password_hash": "another"}, {"enabled": False}])
async def test_a_login_with_what_no_longer_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    checked, go_on = pause_at(monkeypatch, service.Passwords, "check")
    async with running_cloud(tmp_path) as client, asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        wanted = {"user": "anna", "password": PASSWORD}
        login = tasks.create_task(client.ask("POST", "/rest/v1/login", json=wanted))
        await checked.wait()
        async with client.cloud.store.writing() as session:
            await session.execute(update(tables.User).where(tables.User.user_id == "anna").values(**changed))
        go_on.set()
        status, body, _ = await login
        assert (status, body["error"]["code"]) == (401, "unauthorized")
        async with client.cloud.store.reading() as session:
            assert (await session.scalars(select(tables.LoginSession))).all() == []


async def test_a_log_that_comes_in_after_the_logout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, go_on = pause_at(monkeypatch, service, "read_body")
    async with running_cloud(tmp_path) as client, asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        token = (await client.login())["token"]
        log = tasks.create_task(client.ask("POST", "/rest/v1/logs", token=token, data=b"text", headers=PLAIN))
        await arrived.wait()
        assert (await client.ask("POST", "/rest/v1/logout", token=token))[0] == 200
        go_on.set()
        assert (await log)[0] == 401
        assert not log_names(tmp_path)
