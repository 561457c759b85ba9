"""Makes the plan: of an emulator's folder, of a named relay, or of the vendor's own hosts.

The vendor's hosts are in a plan only if ``live`` was asked for. Everything else stays on this machine and on the relay.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from relay.addresses import Address, parse_address
from relay.catalog import Catalog, Host, Service, Status
from relay.doctor.plan import QUICK, Credentials, Kind, Limits, Plan, ProxyPlan, RelaySite, Site, Skipped, TurnSite
from relay.errors import OperatorError
from relay.turn.credentials import rest_password, rest_username

HTTPS = 443
# A user of the emulator's own fixtures, with Voice via Web Proxy.
USER, PASSWORD = "dora", "trader"
# A login checks a password, which takes a while by design.
LOGIN_S = 10.0
# Credentials that are made of the emulator's secret last for the examination and some clock skew.
CREDENTIALS_S = 600
DOCTOR = "doctor"
RELAY_ONLY = "only a relay was named; --live or an emulator is needed"

# What no probe looks at, whatever the target is.
NO_PROBE = (
    Skipped("cuts of idle connections", "there is no probe of it yet: keep a call on hold for some minutes"),
    Skipped("the kind and lifetime of NAT bindings, and the path MTU", "there is no probe of them yet"),
)


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for, beside the target."""

    catalog: Catalog
    quick: bool = False
    proxy: ProxyPlan = field(default_factory=ProxyPlan)
    credentials: Credentials | None = field(default=None, repr=False)
    ca: Path | None = None
    relay: Address | None = None
    # The server name of the relay, if it is not its host.
    relay_name: str = ""
    turn_host: Address | None = None

    @property
    def limits(self) -> Limits:
        """How long it may take."""
        return QUICK if self.quick else Limits()


def of_relay(wishes: Wishes) -> Plan:
    """A named relay alone. Raises OperatorError for files that cannot be read."""
    assert wishes.relay is not None
    relay = _relay(wishes, wishes.relay, wishes.turn_host)
    return Plan(
        kind=Kind.RELAY,
        target=f"the relay {relay.label}",
        catalog=wishes.catalog,
        trust=trust_of(wishes.ca),
        relay=relay,
        expected=wishes.ca,
        credentials=wishes.credentials,
        proxy=wishes.proxy,
        looks_up=not relay.address.is_literal,
        limits=wishes.limits,
        skipped=(Skipped("the vendor's hosts", RELAY_ONLY), *_without_upstream(relay), *NO_PROBE),
    )


def of_vendor(wishes: Wishes) -> Plan:
    """The vendor's own hosts, and a relay if one is named. Raises OperatorError."""
    catalog = wishes.catalog
    hosts, skipped = _chosen(catalog, wishes.quick)
    upstream = next((Address(host.name, 3478) for host in hosts if host.service is Service.MEDIA), None)
    relay = None if wishes.relay is None else _relay(wishes, wishes.relay, wishes.turn_host or upstream)
    sites = tuple(_site(host, Address(host.name, HTTPS)) for host in hosts)
    turn = tuple(
        TurnSite(host.name, host.region or "", Address(host.name, 3478))
        for host in hosts
        if host.service is Service.MEDIA
    )
    return Plan(
        kind=Kind.LIVE,
        target="the vendor's hosts" + (f" and the relay {relay.label}" if relay is not None else ""),
        catalog=catalog,
        trust=trust_of(wishes.ca),
        sites=sites,
        turn=turn,
        relay=relay,
        credentials=wishes.credentials,
        proxy=wishes.proxy,
        looks_up=True,
        limits=wishes.limits,
        skipped=(*skipped, *NO_PROBE),
    )


def of_emulator(folder: Path, wishes: Wishes, *, with_relay: bool) -> Plan:
    """The emulator that has written this folder. Raises OperatorError if it has not."""
    facts = _Facts.read(folder)
    hosts, skipped = _chosen(wishes.catalog, wishes.quick)
    running = [host for host in hosts if host.service is not Service.MEDIA or host.name in facts.tls_hosts]
    turn = tuple(
        TurnSite(host.name, host.region or "", facts.udp_hosts[host.name])
        for host in running
        if host.name in facts.udp_hosts
    )
    relay = None
    if wishes.relay is not None or with_relay:
        first = next((site.address for site in turn), None)
        relay = _relay(
            wishes, wishes.relay or facts.relay, wishes.turn_host or facts.upstreams.get(turn[0].name, first)
        )
    else:
        skipped.append(Skipped("a relay", f"none answers at {facts.relay}; relay emulate --with-relay starts one"))
    return Plan(
        kind=Kind.EMULATOR,
        target=f"the emulator of {folder}" + (f" and the relay {relay.label}" if relay is not None else ""),
        catalog=wishes.catalog,
        trust=trust_of(facts.ca, *([wishes.ca] if wishes.ca is not None else [])),
        sites=tuple(_site(host, facts.tls_hosts.get(host.name, facts.tls)) for host in running),
        turn=turn,
        relay=relay,
        expected=facts.ca,
        credentials=wishes.credentials or facts.credentials(),
        proxy=ProxyPlan(**{**vars_of(wishes.proxy), "knows_names": facts.proxies}),
        limits=wishes.limits,
        skipped=(
            *skipped,
            Skipped("DNS", "the emulator's names are not in DNS; its folder has their addresses"),
            *NO_PROBE,
        ),
    )


@contextlib.asynccontextmanager
async def emulator_login(folder: Path, user: str = USER, password: str = PASSWORD) -> AsyncIterator[Credentials | None]:
    """The credentials of TURN that a user gets at the login, which ends with the block. None if there is no such user.

    By default it is a user of the emulator's own fixtures, who may call through the relay. Its password is public.
    """
    http = _Facts.read(folder).http
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LOGIN_S)) as session:
        try:
            async with session.post(f"{http}/rest/v1/login", json={"user": user, "password": password}) as answer:
                tree = await answer.json() if answer.status == HTTPStatus.OK else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise OperatorError(f"{http}: the emulator does not answer: {error}. Does it run?") from None
        if tree is None:
            yield None
            return
        given = tree["settings"]["media"]["credentials"]
        try:
            yield Credentials(given["username"], given["password"])
        finally:
            # A courtesy: a login ends by itself.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                bearer = {"Authorization": f"Bearer {tree['token']}"}
                async with session.post(f"{http}/rest/v1/logout", headers=bearer):
                    pass


def emulator_relay(folder: Path) -> Address:
    """Where the relay of an emulator would be. Raises OperatorError."""
    return _Facts.read(folder).relay


def vars_of(plan: ProxyPlan) -> dict[str, Any]:
    """The fields of a plan with slots."""
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


@dataclass(frozen=True)
class _Facts:
    """What ``emulator.json`` says."""

    http: str
    tls: Address
    ca: Path
    secret: str = field(repr=False)
    upstreams: Mapping[str, Address]
    udp_hosts: Mapping[str, Address]
    tls_hosts: Mapping[str, Address]
    relay: Address
    proxies: tuple[Address, ...]

    @classmethod
    def read(cls, folder: Path) -> _Facts:
        path = folder / "emulator.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            bad, relay = tree["bad_web_proxy"], tree["relay"]
            return cls(
                http=str(tree["http"]),
                tls=parse_address(tree["tls"].removeprefix("https://")),
                ca=Path(tree["ca"]),
                secret=tree["turn_secret"],
                upstreams={name: parse_address(one) for name, one in tree["turn_hosts"].items()},
                udp_hosts={name: parse_address(one["udp"]) for name, one in tree["desk_hosts"].items()},
                tls_hosts={name: parse_address(one["tls"]) for name, one in tree["desk_hosts"].items()},
                relay=parse_address(relay["tls"]),
                proxies=tuple(parse_address(one) for one in (bad, relay["web_proxy"]) if one is not None),
            )
        except OSError as error:
            raise OperatorError(
                f"{path}: {error.strerror}. Start an emulator with `relay emulate --with-relay`, or say what to test: "
                "--emulator DIR, --relay HOST[:PORT], or --live for the vendor's own hosts"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OperatorError(f"{path}: not of an emulator of this version: {error!r}") from None

    def credentials(self) -> Credentials:
        """Fresh ones, as the emulator's login gives them."""
        username = rest_username(DOCTOR, int(time.time()) + CREDENTIALS_S)
        return Credentials(username, rest_password(self.secret, username))


def trust_of(*files: Path | None) -> ssl.SSLContext:
    """What the system trusts, and the authorities in these files. Raises OperatorError."""
    trust = ssl.create_default_context()
    for path in files:
        if path is None:
            continue
        try:
            trust.load_verify_locations(cafile=str(path))
        except OSError as error:
            raise OperatorError(f"{path}: expected authorities in PEM: {error.strerror or error}") from None
    return trust


def _chosen(catalog: Catalog, quick: bool) -> tuple[list[Host], list[Skipped]]:
    """The hosts that exist; in a hurry the first of each service and region. And what is left out."""
    existing = [host for host in catalog.hosts if host.status is Status.ACTIVE]
    skipped = [
        Skipped(
            f"{len(catalog.hosts) - len(existing)} hosts of the catalog",
            "they do not exist yet, or are for the future; they belong on the allow-list all the same",
        )
    ]
    if not quick:
        return existing, skipped
    first: dict[tuple[Service, str | None], Host] = {}
    for host in existing:
        first.setdefault((host.service, host.region), host)
    if len(first) < len(existing):
        skipped.append(Skipped(f"{len(existing) - len(first)} more hosts", "--quick tests one of each kind and region"))
    return list(first.values()), skipped


def _site(host: Host, address: Address) -> Site:
    return Site(host.name, host.service, host.region, host.status, address, Address(host.name, HTTPS))


def _relay(wishes: Wishes, address: Address, upstream: Address | None) -> RelaySite:
    return RelaySite(address, wishes.relay_name or address.host, upstream)


def _without_upstream(relay: RelaySite) -> Sequence[Skipped]:
    if relay.upstream is not None:
        return ()
    return (Skipped("the carrier CONNECT-UDP", "it needs to name a TURN server of the relay (--turn-host)"),)
