"""Two catalogs compared."""

from __future__ import annotations

import dataclasses
import ipaddress

from relay import catalog
from relay.catalog import Host, Network, Ports, Protocol, Service, Status, compare

CATALOG = catalog.load()


def test_the_same() -> None:
    assert compare(CATALOG, CATALOG) == ()
    turned = dataclasses.replace(CATALOG, as_of="2027-01", hosts=CATALOG.hosts[::-1], networks=CATALOG.networks[::-1])
    assert compare(CATALOG, turned) == ()


def test_what_came_went_and_changed() -> None:
    hosts = [host for host in CATALOG.hosts if host.name != "jrec-jjj.prod1.xhoot.com"]
    hosts = [
        dataclasses.replace(host, status=Status.ACTIVE) if host.name == "use1-stun10.xhoot.com" else host
        for host in hosts
    ]
    new = dataclasses.replace(
        CATALOG,
        domains=(*CATALOG.domains, "*.apne1.prod1.xhoot.com"),
        hosts=(*hosts, Host("stun1.apne1.prod1.xhoot.com", Service.MEDIA, "apne1", Status.FUTURE)),
        networks=(*CATALOG.networks[1:], Network(ipaddress.ip_network("203.0.113.0/28"), "Tokyo", None)),
        ports=(*CATALOG.ports[:1], Ports(Protocol.UDP, 10000, 65535, "SRTP"), CATALOG.ports[2]),
    )
    there = [
        "+ domain *.apne1.prod1.xhoot.com",
        "- host jrec-jjj.prod1.xhoot.com: recording, active",
        "+ host stun1.apne1.prod1.xhoot.com: media, apne1, future",
        "~ host use1-stun10.xhoot.com: media, use1, not_yet -> media, use1, active",
        "+ network 203.0.113.0/28: Tokyo",
        "- network 54.174.51.240/28: Virginia, use1",
        "+ ports udp 10000-65535: SRTP",
        "- ports udp 16384-65535: SRTP",
    ]
    assert [str(change) for change in compare(CATALOG, new)] == there
    # The way back says the opposite of each.
    back = [str(change) for change in compare(new, CATALOG)]
    assert [line[0] for line in back] == [{"+": "-", "-": "+", "~": "~"}[line[0]] for line in there]
    assert back[3].endswith("media, use1, active -> media, use1, not_yet")
