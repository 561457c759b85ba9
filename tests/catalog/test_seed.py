"""Everything in the vendor's document is in the catalog, and nothing else: compared literally where it lies beside."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from relay import catalog
from relay.catalog import Service, Status

SEED = Path(__file__).parents[3] / "shared" / "seed" / "cloud9-network-requirements.txt"
CATALOG = catalog.load()

SECTIONS = {
    "APIs": Service.API,
    "Login/logs/user settings": Service.LOGIN,
    "Cloud9 Admin Portal (user admin portal)": Service.PORTAL,
    "Recording upload": Service.RECORDING,
    "Signaling": Service.SIGNALING,
    "Media servers": Service.MEDIA,
}
REMARKS = {"": Status.ACTIVE, "doesn’t exist yet": Status.NOT_YET, "in the future": Status.FUTURE}  # noqa: RUF001


@pytest.fixture
def seed() -> str:
    if not SEED.exists():
        pytest.skip("the vendor's document is not beside the repository: ../shared/seed")
    return SEED.read_text(encoding="utf-8")


def test_every_host_with_its_service_and_status(seed: str) -> None:
    found, service = {}, None
    for line in seed.splitlines():
        service = SECTIONS.get(line, service if "xhoot.com" in line else None)
        if service is not None:
            for name, _, remark in re.findall(r"([a-z0-9.-]+\.xhoot\.com)( \(([^)]*)\))?", line):
                found[name] = (service, REMARKS[remark])
    assert {host.name: (host.service, host.status) for host in CATALOG.hosts} == found


def test_every_name_that_stands_anywhere(seed: str) -> None:
    """Not even the sections of the document are believed."""
    names = set(re.findall(r"(?<![\w.*>-])[a-z0-9][a-z0-9.-]*\.xhoot\.com", seed))
    assert {host.name for host in CATALOG.hosts} == names - {"prod1.xhoot.com"}


def test_every_network_with_its_place(seed: str) -> None:
    found = re.findall(r"^- (\w+): ([\d.]+/\d+)$", seed, re.MULTILINE)
    assert [(network.place, str(network.network)) for network in CATALOG.networks] == found
    assert len(re.findall(r"\d+\.\d+\.\d+\.\d+", seed)) == len(CATALOG.networks)


def test_every_port(seed: str) -> None:
    [stun] = re.findall(r"^- UDP port (\d+) for STUN$", seed, re.MULTILINE)
    [srtp] = re.findall(r"^- UDP (\d+) to (\d+) for SRTP$", seed, re.MULTILINE)
    [https] = re.findall(r"TCP port (\d+) traffic", seed)
    assert [(port.protocol.value, str(port)) for port in CATALOG.ports] == [
        ("udp", stun),
        ("udp", "-".join(srtp)),
        ("tcp", https),
    ]


def test_every_domain(seed: str) -> None:
    [regions] = re.findall(r"where <rgn> is ([a-z0-9, ]+)\.", seed)
    domains = {"*.xhoot.com", "*.prod1.xhoot.com", *(f"*.{r}.prod1.xhoot.com" for r in regions.split(", "))}
    assert set(CATALOG.domains) == domains


def test_counts() -> None:
    """What the document has, for where it is not beside the repository."""
    assert CATALOG.as_of == "2026-11"
    services = Counter(host.service.value for host in CATALOG.hosts)
    assert services == {"api": 6, "login": 1, "portal": 1, "recording": 2, "signaling": 9, "media": 65}
    statuses = Counter(host.status.value for host in CATALOG.hosts)
    assert statuses == {"active": 48, "not_yet": 8, "future": 28}
    regions = Counter(host.region for host in CATALOG.hosts if host.service is Service.MEDIA)
    assert regions == {"use1": 22, "euc1": 21, "apse1": 12, "apse2": 10}
    assert sum(network.network.num_addresses for network in CATALOG.networks) == 16 + 16 + 8 + 1 + 8
    assert [str(ports) for ports in CATALOG.ports] == ["3478", "16384-65535", "443"]
    assert len(CATALOG.domains) == 6


@pytest.mark.parametrize("host", CATALOG.hosts, ids=lambda host: host.name)
def test_a_region_in_the_name_is_the_region(host: catalog.Host) -> None:
    named = re.findall(r"(use1|euc1|apse1|apse2)", host.name)
    assert [host.region] == (named or [None])


def test_regions_of_networks() -> None:
    assert {network.place: network.region for network in CATALOG.networks} == {
        "Virginia": "use1",
        "Singapore": "apse1",
        "Frankfurt": "euc1",
        "Sydney": "apse2",
    }
