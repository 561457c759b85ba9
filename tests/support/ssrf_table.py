"""What must never be connected to, in every spelling: one table for CONNECT, CONNECT-UDP and the names of upstreams.

``PROHIBITED`` are hosts as a client may write them, ``PERMITTED`` ones that only look like it. ``FakeDns`` answers
for names, and may answer otherwise the next time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

from relay.addresses import NEVER_RELAYED

# One from the middle of what an attacker wants most, by name.
INTERESTING = {
    "loopback": "127.0.0.1",
    "cloud metadata": "169.254.169.254",
    "private 10": "10.1.2.3",
    "private 172": "172.20.30.40",
    "private 192": "192.168.1.1",
    "carrier-grade NAT": "100.64.0.1",
    "this network": "0.0.0.0",
    "multicast": "224.0.0.251",
    "broadcast": "255.255.255.255",
}


def wrapped(ipv4: str) -> dict[str, str]:
    """The IPv6 addresses that a packet to ``ipv4`` can hide in, by name."""
    number = int(ipaddress.IPv4Address(ipv4))
    high, low = number >> 16, number & 0xFFFF
    inverted = number ^ 0xFFFFFFFF
    server = 0x08080808  # of Teredo, which is a public one
    found = {
        "v4-mapped": f"::ffff:{high:x}:{low:x}",
        "v4-mapped, dotted": f"::ffff:{ipv4}",
        "v4-mapped, in full": f"0000:0000:0000:0000:0000:ffff:{high:04x}:{low:04x}",
        "6to4": f"2002:{high:x}:{low:x}::1",
        "NAT64": f"64:ff9b::{high:x}:{low:x}",
        "NAT64, local": f"64:ff9b:1::{high:x}:{low:x}",
        "Teredo, client": f"2001:0:{server >> 16:x}:{server & 0xFFFF:x}:0:0:{inverted >> 16:x}:{inverted & 0xFFFF:x}",
        "Teredo, server": f"2001:0:{high:x}:{low:x}:0:0:f7f7:f7f7",
    }
    if number:  # ::0.0.0.0 is the unspecified address, which has a row of its own
        found["v4-compatible"] = f"::{high:x}:{low:x}"
    return found


def spellings(ipv4: str) -> dict[str, str]:
    """The texts that inet_aton, and so getaddrinfo, reads as ``ipv4`` but that are not how it is written."""
    number = int(ipaddress.IPv4Address(ipv4))
    parts = [int(part) for part in ipv4.split(".")]
    first, *rest = parts
    return {
        "decimal": str(number),
        "hexadecimal": f"{number:#x}",
        "upper case": f"0X{number:08X}",
        "octal": f"0{number:o}",
        "octal parts": ".".join(f"0{part:o}" for part in parts),
        "hexadecimal parts": ".".join(f"{part:#x}" for part in parts),
        "mixed parts": f"{first}.{rest[0]:#x}.0{rest[1]:o}.{rest[2]}",
        "two parts": f"{first}.{number & 0xFFFFFF}",
        "three parts": f"{first}.{rest[0]}.{number & 0xFFFF}",
        "leading zeros": ".".join(f"{part:03d}" for part in parts),
        "final dot": f"{ipv4}.",
    }


def _edges() -> Iterator[tuple[str, str]]:
    """First and last address of each network of the classifier."""
    for network in NEVER_RELAYED:
        yield f"first of {network}", str(network[0])
        yield f"last of {network}", str(network[-1])


def _prohibited_literals() -> Iterator[tuple[str, str]]:
    yield from _edges()
    for name, ipv4 in INTERESTING.items():
        yield name, ipv4
        for kind, text in wrapped(ipv4).items():
            yield f"{name}, {kind}", text
    yield "link-local with a zone", "fe80::1%lo"
    yield "public with a zone", "2606:4700::1111%1"


# name of the row -> literal address, as a client may write it and as a resolver may answer
PROHIBITED_LITERALS: dict[str, str] = dict(_prohibited_literals())
# name of the row -> text that is no literal, but that getaddrinfo reads as one
PROHIBITED_SPELLINGS: dict[str, str] = {
    f"{name}, {kind}": text for name, ipv4 in INTERESTING.items() for kind, text in spellings(ipv4).items()
} | {f"public, {kind}": text for kind, text in spellings("8.8.8.8").items()}
PROHIBITED: dict[str, str] = PROHIBITED_LITERALS | PROHIBITED_SPELLINGS

# name of the row -> literal address that may be connected to, and how sockets write it
PERMITTED: dict[str, tuple[str, str]] = {
    "public IPv4": ("8.8.8.8", "8.8.8.8"),
    "public IPv6": ("2606:4700::1111", "2606:4700::1111"),
    "public, v4-mapped": ("::ffff:8.8.8.8", "8.8.8.8"),
    "just below 10/8": ("9.255.255.255", "9.255.255.255"),
    "just above 10/8": ("11.0.0.0", "11.0.0.0"),
    "just above 172.16/12": ("172.32.0.0", "172.32.0.0"),
    "just below 224/4": ("223.255.255.255", "223.255.255.255"),
}


class FakeDns:
    """A resolver that a test can inject (``relay.gateway.routing.resolve.Lookup``).

    Each name has a row of answers, one for each time it is asked, the last one again and again. ``asked`` are the
    names in order. A name without answers does not exist.
    """

    def __init__(self, names: dict[str, Sequence[Sequence[str]]] | None = None) -> None:
        self.names = dict(names or {})
        self.asked: list[str] = []

    def answer(self, name: str, *answers: str) -> None:
        """This name has these addresses, whenever it is asked for."""
        self.names[name] = [answers]

    def change(self, name: str, *rows: Sequence[str]) -> None:
        """This name has these addresses first, those the next time, and so on."""
        self.names[name] = rows

    async def __call__(self, host: str) -> Sequence[str]:
        """What is answered now. Raises OSError for a name that does not exist."""
        before = self.asked.count(host)
        self.asked.append(host)
        if host not in self.names:
            raise OSError(-2, "Name or service not known")
        rows = self.names[host]
        return rows[min(before, len(rows) - 1)]
