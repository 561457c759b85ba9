"""Which proxy is to be used: by setting, environment, PAC; and PAC files that loop, throw, and fill the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay import catalog
from relay.addresses import Address
from relay.catalog import render_pac
from relay.client.connect import Proxy
from relay.doctor import pac
from relay.doctor.plan import ProxyPlan
from relay.doctor.probes import proxies
from relay.doctor.seen import ProxySource

SITES = ["c9rest.xhoot.com", "relay.firm.example"]
PROXY = Proxy(Address("proxy.firm.example", 3128))
needs_engine = pytest.mark.skipif(not pac.has_engine(), reason="the extra doctor is not installed")


async def test_without_a_proxy_all_is_direct() -> None:
    found = await proxies.find(ProxyPlan(), SITES)
    assert (found.source, found.way_of(SITES[0]), found.faults) == (ProxySource.NONE, None, ())


async def test_the_setting_comes_first() -> None:
    plan = ProxyPlan(url="http://proxy.firm.example:3128", environment={"https_proxy": "http://other:1"})
    found = await proxies.find(plan, SITES)
    assert (found.source, found.way_of(SITES[0])) == (ProxySource.SETTING, PROXY)


async def test_the_login_is_added_where_there_is_none() -> None:
    plan = ProxyPlan(url="http://proxy.firm.example:3128", login=("desk", "secret"))
    way = (await proxies.find(plan, SITES)).way_of(SITES[0])
    assert way == Proxy(PROXY.address, "desk", "secret")
    assert "secret" not in repr(plan)
    named = ProxyPlan(url="http://me:mine@proxy.firm.example:3128", login=("desk", "secret"))
    assert (await proxies.find(named, SITES)).way_of(SITES[0]) == Proxy(PROXY.address, "me", "mine")


@pytest.mark.parametrize("name", proxies.VARIABLES)
async def test_the_environment_and_its_exceptions(name: str) -> None:
    environment = {name: "http://proxy.firm.example:3128", "no_proxy": ".firm.example"}
    found = await proxies.find(ProxyPlan(environment=environment), SITES)
    assert (found.source, found.where) == (ProxySource.ENVIRONMENT, name)
    assert found.way_of(SITES[0]) == PROXY
    assert found.way_of(SITES[1]) is None
    assert found.answers[SITES[1]] == "DIRECT (no_proxy=.firm.example)"


async def test_a_proxy_that_is_not_understood_is_a_fault_and_shows_no_password() -> None:
    found = await proxies.find(ProxyPlan(environment={"https_proxy": "socks5://me:secret@proxy:1"}), SITES)
    assert found.ways == {}
    assert len(found.faults) == 1
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("answer", "ways", "faults"),
    [
        ("DIRECT", (None,), 0),
        ("PROXY proxy.firm.example:3128; DIRECT", (PROXY, None), 0),
        (" proxy proxy.firm.example:3128 ;", (PROXY,), 0),
        ("PROXY proxy.firm.example", (Proxy(Address("proxy.firm.example", 80)),), 0),
        ("HTTP [2001:db8::1]:8080", (Proxy(Address("2001:db8::1", 8080)),), 0),
        ("SOCKS proxy:1; PROXY proxy.firm.example:3128", (PROXY,), 1),
        ("PROXY proxy:port", (), 1),
        ("PROXY a b:1", (), 1),
        ("nonsense", (), 1),
        ("", (), 0),
    ],
)
def test_answers_of_a_pac_file(answer: str, ways: tuple[Proxy | None, ...], faults: int) -> None:
    found, wrong = pac.parse_answer(answer)
    assert found == ways
    assert len(wrong) == faults


async def test_a_pac_file_that_is_not_there(tmp_path: Path) -> None:
    found = await proxies.find(ProxyPlan(pac=str(tmp_path / "proxy.pac")), SITES)
    assert found.source is ProxySource.PAC
    assert "No such file" in found.faults[0]


async def test_without_the_engine_a_pac_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pac, "has_engine", lambda: False)
    path = tmp_path / "proxy.pac"
    path.write_text("")
    found = await proxies.find(ProxyPlan(pac=str(path)), SITES)
    assert found.faults == (pac.NO_ENGINE,)


@needs_engine
async def test_our_own_pac_file(tmp_path: Path) -> None:
    path = tmp_path / "proxy.pac"
    path.write_text(render_pac(catalog.load(), "PROXY proxy.firm.example:3128; DIRECT"))
    found = await proxies.find(ProxyPlan(pac=str(path), login=("desk", "secret")), SITES)
    assert found.faults == ()
    assert found.ways[SITES[0]] == (Proxy(PROXY.address, "desk", "secret"), None)
    assert found.ways[SITES[1]] == (None,)


LOOPS = "function FindProxyForURL(url, host) { while (true) {} }"
GROWS = (
    "function FindProxyForURL(url, host) { var a = []; while (true) a.push(new Array(100000).join('x') + a.length) }"
)
BROKEN = {
    "loops": LOOPS,
    "loops at once": "while (true) {}",
    "grows": GROWS,
    "throws": "function FindProxyForURL(url, host) { throw 'no' }",
    "no function": "var a = 1;",
    "no JavaScript": "<html>",
    "empty": "",
    "a number": "function FindProxyForURL(url, host) { return 7 }",
    "nothing": "function FindProxyForURL(url, host) { }",
    "1 MiB and more": "// " + "x" * pac.MAX_FILE_BYTES,
}


@needs_engine
@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
async def test_a_broken_pac_file_ends_with_an_error(text: str) -> None:
    with pytest.raises(pac.PacError) as found:
        await pac.ask(text, SITES, 2.0 if text in {LOOPS, GROWS, "while (true) {}"} else 30.0)
    assert str(found.value)
