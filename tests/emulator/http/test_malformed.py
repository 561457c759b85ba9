"""Requests that are not HTTP, or whose body is broken: an answer in the form of all errors, one line in the log."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.benches.cloud import CloudClient, running_cloud

POST = b"POST /rest/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
BROKEN_GZIP = gzip.compress(b"{}" * 500)[:20] + b"\xff" * 20


async def connect(client: CloudClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(client.cloud.http.host, client.cloud.http.port)


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """An answer, which must be in the documented form."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert "content-type: application/json" in head
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    body = json.loads(await reader.readexactly(length))
    assert set(body) == {"error", "also"}
    assert body["error"]["expected"]
    return int(head.split()[1]), body["error"]


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "malformed"),
        (bytes.fromhex("1603010200") + bytes(100), 400, "tls"),
        (GET + b"no colon\r\n\r\n", 400, "malformed"),
        (GET + b"A: b\0c\r\n\r\n", 400, "malformed"),
        (GET + b"A: " + b"a" * 9000 + b"\r\n\r\n", 431, "too_long"),
        (GET + b"A: b\r\n" * 200 + b"\r\n", 431, "too_many"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, "too_long"),
        (b"GET http://[::1 HTTP/1.1\r\n\r\n", 400, "bad_path"),
        (b"GET / HTTP/3.0\r\n\r\n", 400, "malformed"),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "malformed"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "malformed"),
        (POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", 415, "wrong_encoding"),
        (POST + b"Content-Encoding: unknown\r\nContent-Length: 2\r\n\r\n{}", 415, "wrong_encoding"),
        (POST + b"Content-Encoding: gzip, br\r\nContent-Length: 2\r\n\r\n{}", 415, "wrong_encoding"),
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 40\r\n\r\n" + bytes(40), 400, "broken_body"),
        (
            b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk",
            404,
            "no_such_path",
        ),
    ],
)
async def test_what_is_not_http_gets_one_answer_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, said: bytes, status: int, code: str
) -> None:
    async with running_cloud(tmp_path) as client:
        with capture_logs() as logs:
            reader, writer = await connect(client)
            writer.write(said)
            async with asyncio.timeout(30):
                got, error = await answer(reader)
                assert (got, error["code"]) == (status, code)
                # Nobody knows where the next request begins.
                assert await reader.read() == b""
            writer.close()
        assert len([line for line in logs if line["event"] == "malformed request"]) <= 1
        assert not any("exc_info" in line for line in logs)
        assert not caplog.records


async def test_bytes_of_the_client_are_not_in_the_answer(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        reader, writer = await connect(client)
        writer.write(GET + b"secret token\r\n\r\n")
        _, error = await answer(reader)
        assert error["message"] == "This is not a request of HTTP/1.1: invalid header token."
        writer.close()


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Transfer-Encoding: chunked", b"2\r\n{}junk\r\n"),
        (b"Content-Encoding: gzip\r\nContent-Length: 100", bytes(50)),
    ],
)
async def test_a_body_that_turns_out_to_be_broken_is_not_waited_for(tmp_path: Path, head: bytes, body: bytes) -> None:
    async with running_cloud(tmp_path) as client:
        reader, writer = await connect(client)
        writer.write(POST + head + b"\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(10):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await answer(reader))[0] == 400
            assert await reader.read() == b""
        writer.close()


async def test_an_expectation_that_nobody_can_meet(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        status, body, _ = await client.ask("POST", "/rest/v1/login", json={}, headers={"Expect": "a pony"})
        assert (status, body["error"]["code"], body["error"]["where"]) == (417, "wrong_expect", "Expect")


async def test_a_flood_of_malformed_requests_does_not_fill_the_log(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        with capture_logs() as logs:
            for _ in range(20):
                reader, writer = await connect(client)
                writer.write(b"junk\r\n\r\n")
                await answer(reader)
                writer.close()
        assert 1 <= len(logs) < 20


async def test_a_fault_outside_of_the_application_has_the_form_of_all_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_cloud(tmp_path) as client:

        async def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(client.cloud.site.app.router, "resolve", fail)
        with capture_logs() as logs:
            status, body, _ = await client.ask("GET", "/")
        assert (status, body["error"]["code"]) == (500, "internal")
        (line,) = logs
        assert line["incident"] in body["error"]["message"]
        assert isinstance(line["exc_info"], ZeroDivisionError)
