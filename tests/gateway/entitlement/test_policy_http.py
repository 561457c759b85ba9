"""The service of users: what it is asked, how long its answers hold, and every way in which it can fail."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from relay.config import EntitlementSettings
from relay.demo.authority import Authority
from relay.errors import OperatorError
from relay.gateway.entitlement import policy_http
from relay.gateway.entitlement.policies import NOBODY, PolicyUnavailable, Question, Rule
from relay.gateway.entitlement.policy_http import UserService
from tests.support.peers.user_service import user_service
from tests.support.waiting import eventually

ANN = Question("ann", "use1", "192.0.2.1")
BOB = Question("bob", "use1", "192.0.2.1")


@contextlib.asynccontextmanager
async def asking(url: str, **keys: Any) -> AsyncIterator[UserService]:
    policy = UserService(EntitlementSettings(policy="http", url=url, **keys))
    try:
        yield policy
    finally:
        await policy.close()


async def test_the_question_and_the_answer() -> None:
    async with user_service() as service, asking(service.url + "?site=ny", token="s3cret") as policy:
        service.says({"allowed": True, "calls": 2, "regions": ["use1", "euc1"], "name": "Ann Keller"})
        user = "ann&allowed=1 ü/../"
        assert policy.rule_now(Question(user, "use1", "2001:db8::7")) is None
        rule = await policy.rule(Question(user, "use1", "2001:db8::7"))
        assert rule == Rule(True, 2, frozenset({"use1", "euc1"}))
        [asked] = service.asked
        assert dict(asked.query) == {"site": "ny", "user": user, "region": "use1", "client": "2001:db8::7"}
        assert (asked.path, asked.headers["Authorization"]) == ("/voice", "Bearer s3cret")
        assert "s3cret" not in repr(policy.__dict__["_settings"])


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ({"allowed": True}, Rule()),
        ({"allowed": False, "calls": 3}, Rule(False, 3)),
        ({"allowed": True, "calls": None, "regions": None}, Rule()),
        ({"allowed": True, "regions": []}, Rule(True, None, frozenset())),
    ],
)
async def test_answers(answer: dict[str, Any], rule: Rule) -> None:
    async with user_service() as service, asking(service.url) as policy:
        service.says(answer)
        assert await policy.rule(ANN) == rule


async def test_answers_are_remembered_each_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with user_service() as service, asking(service.url, cache_s=60.0, refused_cache_s=0.0) as policy:
        for _ in range(3):
            assert await policy.rule(ANN) == Rule()
        assert policy.rule_now(ANN) == Rule()
        service.says({"allowed": False})
        for _ in range(2):
            assert await policy.rule(BOB) == NOBODY
        assert policy.rule_now(BOB) is None
        assert service.users == ["ann", "bob", "bob"]
        # Another region or client is another question: the service may see a difference.
        await policy.rule(Question("ann", "euc1", ANN.client))
        await policy.rule(Question("ann", ANN.region, "192.0.2.2"))
        assert len(service.asked) == 5
        later = asyncio.get_running_loop().time() + 60
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: later, raising=False)
        assert policy.rule_now(ANN) is None


async def test_the_memory_is_bounded() -> None:
    async with user_service() as service, asking(service.url, cache_answers=2) as policy:
        await policy.rule(ANN)
        await policy.rule(BOB)
        assert policy.rule_now(ANN) == Rule()  # used last
        await policy.rule(Question("cid", "", ""))
        assert (policy.rule_now(ANN), policy.rule_now(BOB)) == (Rule(), None)


async def test_names_that_somebody_makes_up_push_out_their_like_only() -> None:
    async with user_service() as service, asking(service.url, cache_answers=3) as policy:
        await policy.rule(ANN)
        service.says({"allowed": False})
        for number in range(10):
            await policy.rule(Question(f"made up {number}", "", "192.0.2.66"))
        assert policy.rule_now(ANN) == Rule()
        assert policy.rule_now(Question("made up 6", "", "192.0.2.66")) is None
        assert policy.rule_now(Question("made up 7", "", "192.0.2.66")) == NOBODY
        # A user who may no longer is not remembered twice.
        policy._remember(ANN, NOBODY)
        assert policy.rule_now(ANN) == NOBODY
        policy._remember(ANN, Rule())
        assert policy.rule_now(ANN) == Rule()


async def test_one_client_has_at_most_half_of_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_http, "MAX_QUESTIONS", 100)
    async with user_service() as service, asking(service.url) as policy:
        service.hang()
        crowd = [asyncio.ensure_future(policy.rule(Question(f"{n}", "", "192.0.2.66"))) for n in range(60)]
        await eventually(lambda: len(service.asked) == policy_http.MAX_CONNECTIONS // 2)
        refused = [one for one in crowd if one.done()]
        assert len(refused) == 10
        assert all("50 questions of 192.0.2.66 wait" in str(one.exception()) for one in refused)
        # Another one is asked for at once.
        other = asyncio.ensure_future(policy.rule(Question("bob", "", "192.0.2.7")))
        await eventually(lambda: "bob" in service.users)
        service.release()
        assert await other == Rule()
        await asyncio.gather(*crowd, return_exceptions=True)
        assert not policy._sources


async def test_clients_that_ask_together_share_one_request() -> None:
    async with user_service() as service, asking(service.url) as policy:
        service.hang()
        waiting = [asyncio.ensure_future(policy.rule(ANN)) for _ in range(20)]
        await eventually(lambda: service.asked)
        # One that goes does not take the answer from the others.
        waiting.pop().cancel()
        service.release()
        assert await asyncio.gather(*waiting) == [Rule()] * 19
        assert service.users == ["ann"]


async def test_questions_beyond_a_bound_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_http, "MAX_QUESTIONS", 1)
    monkeypatch.setattr(policy_http, "SHARE", 1)
    async with user_service() as service, asking(service.url) as policy:
        service.hang()
        waiting = asyncio.ensure_future(policy.rule(ANN))
        await eventually(lambda: service.asked)
        with pytest.raises(PolicyUnavailable, match="1 questions wait"):
            await policy.rule(BOB)
        service.release()
        assert await waiting == Rule()


# Faults


async def _redirect(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/elsewhere")


async def _text(_: web.Request) -> web.StreamResponse:
    return web.Response(text="yes")


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 65536)
    return response


async def _cut_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"allowed"')
    assert request.transport is not None
    request.transport.close()
    return response


async def _compressed(request: web.Request) -> web.StreamResponse:
    response = web.json_response({"allowed": True})
    response.enable_compression(web.ContentCoding.gzip)
    return response


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (_redirect, "expected status 200, but it is 302"),
        (_text, "not the expected JSON: Invalid JSON"),
        (_endless, "at most 65536 bytes"),
        (_cut_off, "payload"),
        (_compressed, "not the expected JSON"),  # nobody asked for it
    ],
)
async def test_faults_of_the_service(answer: Any, cause: str) -> None:
    async with user_service() as service, asking(service.url) as policy:
        service.answer = answer
        with pytest.raises(PolicyUnavailable, match=cause):
            await policy.rule(ANN)
        assert len(service.asked) == 1
        # Just asked: not again, so that a client that tries in a loop costs nothing.
        with pytest.raises(PolicyUnavailable):
            policy.rule_now(ANN)


@pytest.mark.parametrize(
    ("content", "status", "cause"),
    [
        ({"allowed": True}, 500, "it is 500"),
        ({"allowed": True}, 404, "it is 404"),
        ({"allowed": True}, 201, "it is 201"),
        ({}, 200, "allowed: Field required"),
        ({"allowed": "yes"}, 200, "allowed: Input should be a valid boolean"),
        ({"allowed": 1}, 200, "allowed: Input should be a valid boolean"),
        ({"allowed": True, "calls": 0}, 200, "calls: Input should be greater than or equal to 1"),
        ({"allowed": True, "calls": "2"}, 200, "calls: Input should be a valid integer"),
        ({"allowed": True, "regions": "use1"}, 200, "regions: Input should be a valid array"),
        ([], 200, "not the expected JSON"),
        (None, 200, "not the expected JSON"),
    ],
)
async def test_answers_that_are_none(content: object, status: int, cause: str) -> None:
    async with user_service() as service, asking(service.url) as policy:
        service.says(content, status)
        with pytest.raises(PolicyUnavailable, match=cause):
            await policy.rule(ANN)


async def test_no_answer_within_the_deadline() -> None:
    async with user_service() as service, asking(service.url, timeout_s=0.05) as policy:
        service.hang()
        with pytest.raises(PolicyUnavailable, match=r"no answer within 0\.05 s"):
            await policy.rule(ANN)


async def test_nobody_listens_and_later_somebody_does() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with capture_logs() as lines:
            async with asking(url) as policy:
                for question in (ANN, BOB):
                    with pytest.raises(PolicyUnavailable, match=r"refused|Cannot connect"):
                        await policy.rule(question)
                assert "connect" in policy.trouble.lower()
                async with user_service() as service:
                    policy._url = policy._url.with_port(int(service.url.split(":")[2].partition("/")[0]))
                    assert await policy.rule(Question("cid", "", "")) == Rule()
                assert policy.trouble == ""
    assert [line["event"] for line in lines] == ["entitlement service fails", "entitlement service answers again"]


async def test_neither_proxy_nor_password_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ann password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with user_service() as service, asking(service.url) as policy:
        assert await policy.rule(ANN) == Rule()
        assert "Authorization" not in service.asked[0].headers


async def test_tls_is_verified(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.chain, issued.private_key)
    async with user_service(context) as service:
        async with asking(service.url, ca=authority.ca_certificate) as policy:
            assert await policy.rule(ANN) == Rule()
        # The system does not know that CA; and the name must fit.
        for url, ca in (
            (service.url, None),
            (service.url.replace("127.0.0.1", "localhost"), authority.ca_certificate),
        ):
            async with asking(url, ca=ca) as policy:
                with pytest.raises(PolicyUnavailable, match="certificate verify failed"):
                    await policy.rule(ANN)
    assert service.users == ["ann"]


def test_a_ca_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for path in (tmp_path / "absent.pem", tmp_path / "empty.pem"):
        with pytest.raises(OperatorError, match=r"pem \(entitlement.ca\)"):
            UserService(EntitlementSettings(policy="http", url="https://a.test/", ca=path))


async def test_questions_under_way_are_answered_at_the_end() -> None:
    async with user_service() as service:
        async with asking(service.url) as policy:
            service.hang()
            waiting = asyncio.ensure_future(policy.rule(ANN))
            await eventually(lambda: service.asked)
            service.release()
        assert await waiting == Rule()
