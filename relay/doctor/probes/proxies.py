"""Which proxy is to be used for each site: by setting, environment, PAC or WPAD, the first that is there.

WPAD by DHCP needs rights that a desk does not have. WPAD by DNS asks for ``wpad`` in the machine's own search domains
and nowhere above them: a parent may be somebody else's.
"""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp

from relay import deadlines
from relay.client.connect import Proxy
from relay.doctor import pac
from relay.doctor.plan import ProxyPlan
from relay.doctor.probes.names import look_up
from relay.doctor.seen import ProxySeen, ProxySource
from relay.logs import printable

# As curl, pip and most programs read them; the name in lower case wins.
VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
FETCH_S = 4.0


async def find(plan: ProxyPlan, sites: Sequence[str]) -> ProxySeen:
    """The first source that is there, and its answer for each site."""
    if plan.url is not None:
        return _fixed(plan, ProxySource.SETTING, "--proxy", plan.url, sites)
    if plan.pac is not None:
        return await _by_pac(plan, ProxySource.PAC, plan.pac, sites)
    name = next((name for name in VARIABLES if plan.environment.get(name)), None)
    if name is not None:
        return _by_environment(plan, name, sites)
    if plan.wpad and (url := await _wpad(plan.search)) is not None:
        return await _by_pac(plan, ProxySource.WPAD, url, sites)
    return ProxySeen(ProxySource.NONE)


def _fixed(plan: ProxyPlan, source: ProxySource, where: str, url: str, sites: Sequence[str]) -> ProxySeen:
    try:
        proxy = _with_login(plan, Proxy.parse(url))
    except ValueError as error:
        # The value may hold a password.
        return ProxySeen(source, where, faults=(str(error),))
    return ProxySeen(source, where, dict.fromkeys(sites, (proxy,)), dict.fromkeys(sites, f"PROXY {proxy.address}"))


def _by_environment(plan: ProxyPlan, name: str, sites: Sequence[str]) -> ProxySeen:
    found = _fixed(plan, ProxySource.ENVIRONMENT, name, plan.environment[name], sites)
    excepted = plan.environment.get("no_proxy") or plan.environment.get("NO_PROXY") or ""
    past = {site for site in sites if urllib.request.proxy_bypass_environment(site, {"no": excepted})}  # type: ignore[attr-defined]
    return replace(
        found,
        ways={**found.ways, **dict.fromkeys(past, (None,))},
        answers={**found.answers, **dict.fromkeys(past, f"DIRECT (no_proxy={printable(excepted)})")},
    )


def _with_login(plan: ProxyPlan, proxy: Proxy) -> Proxy:
    if proxy.username or plan.login is None:
        return proxy
    return replace(proxy, username=plan.login[0], password=plan.login[1])


# PAC


async def _by_pac(plan: ProxyPlan, source: ProxySource, where: str, sites: Sequence[str]) -> ProxySeen:
    try:
        answers = await pac.ask(await _read(where), sites)
    except pac.PacError as error:
        return ProxySeen(source, where, faults=(str(error),))
    ways: dict[str, tuple[Proxy | None, ...]] = {}
    faults: dict[str, None] = {}
    for site, answer in answers.items():
        found, wrong = pac.parse_answer(answer)
        ways[site] = tuple(one if one is None else _with_login(plan, one) for one in found)
        faults |= dict.fromkeys(wrong)
        if not found:
            faults[f"the answer {answer!r} names no way"] = None
    return ProxySeen(source, where, ways, answers, tuple(faults))


async def _read(where: str) -> str:
    """The file's text. Raises PacError."""
    if not where.startswith(("http://", "https://")):
        try:
            content = await asyncio.to_thread(Path(where.removeprefix("file://")).read_bytes)
        except OSError as error:
            raise pac.PacError(f"{where}: {error.strerror}") from None
        return content[: pac.MAX_FILE_BYTES + 1].decode(errors="replace")
    try:
        async with (
            deadlines.timeout(FETCH_S),
            aiohttp.ClientSession() as session,
            session.get(where) as answer,
        ):
            if answer.status != 200:
                raise pac.PacError(f"{where}: answered {answer.status}")
            return (await _body(answer)).decode(errors="replace")
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise pac.PacError(f"{where}: {printable(str(error)) or f'no answer within {FETCH_S:g} s'}") from None


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    content = b""
    async for part in answer.content.iter_any():
        content += part
        if len(content) > pac.MAX_FILE_BYTES:
            break
    return content


async def _wpad(search: Sequence[str]) -> str | None:
    """Where WPAD says that the PAC file is, or None. ``search`` are domains of the firm's own."""
    names = [f"wpad.{domain}" for domain in search if "." in domain.strip(".")]
    found: Mapping[str, object] = await look_up(names, FETCH_S) if names else {}
    for name in names:
        if getattr(found[name], "addresses", ()):
            return f"http://{name}/wpad.dat"
    return None
