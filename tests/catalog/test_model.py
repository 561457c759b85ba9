"""Names: which are the vendor's, whatever their case, and which only look so."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import catalog
from relay.catalog import Service, Status

CATALOG = catalog.load()


@pytest.mark.parametrize(
    "name",
    [
        "c9rest.xhoot.com",
        "C9REST.Xhoot.COM",
        "c9rest.xhoot.com.",
        "new-one.xhoot.com",
        "xn--bcher-kva.xhoot.com",
        "prod1.xhoot.com",
        "0.prod1.xhoot.com",
        "use1.prod1.xhoot.com",
        "stun99.use1.prod1.xhoot.com",
        "a.apse2.prod1.xhoot.com",
        "a" * 63 + ".xhoot.com",
    ],
)
def test_covered(name: str) -> None:
    assert CATALOG.covers(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "com",
        "xhoot.com",
        ".xhoot.com",
        "*.xhoot.com",
        "a.b.xhoot.com",
        "a.use2.prod1.xhoot.com",
        "a.b.use1.prod1.xhoot.com",
        "evilxhoot.com",
        "evil-xhoot.com",
        "c9rest.xhoot.com.evil.example",
        "c9rest.xhoot.com..",
        "c9rest..xhoot.com",
        "c9rest.xhoot.com:443",
        "user@c9rest.xhoot.com",
        "c9rest.xhoot.com\n",
        "c9rest .xhoot.com",
        "c9rest\0.xhoot.com",
        "c9rest%2e.xhoot.com",
        "-a.xhoot.com",
        "a-.xhoot.com",
        "a_b.xhoot.com",
        "bücher.xhoot.com",
        "\u212a.xhoot.com",  # KELVIN SIGN, which is k in lower case
        "c9rest.xhoot\u3002com",  # IDEOGRAPHIC FULL STOP, which some resolvers take for a dot
        "a" * 64 + ".xhoot.com",
        "54.174.51.240",
        "[::1]",
    ],
)
def test_not_covered(name: str) -> None:
    assert not CATALOG.covers(name)
    assert CATALOG.find(name) is None


def test_find_tells_the_host() -> None:
    host = CATALOG.find("STUN1.use1.prod1.xhoot.com.")
    assert host is not None
    assert (host.name, host.service, host.region, host.status) == (
        "stun1.use1.prod1.xhoot.com",
        Service.MEDIA,
        "use1",
        Status.FUTURE,
    )
    assert CATALOG.find("new-one.xhoot.com") is None


def test_a_listed_host_is_covered_without_its_domain() -> None:
    alone = dataclasses.replace(CATALOG, domains=("*.example.com",))
    assert alone.covers("c9rest.xhoot.com")
    assert not alone.covers("c9rest2.xhoot.com")


@given(st.text(alphabet=st.sampled_from("aZ0.-_* \u212a"), max_size=80), st.sampled_from(["", "x", "prod1.", "use1."]))
def test_what_is_covered_ends_in_the_vendors_domain(start: str, middle: str) -> None:
    name = f"{start}.{middle}xhoot.com"
    if CATALOG.covers(name):
        assert name.lower().endswith((".xhoot.com", ".prod1.xhoot.com"))
        assert not set(name) & set("_* \u212a")


def test_media_hosts_and_apexes() -> None:
    assert {host.service for host in CATALOG.media_hosts} == {Service.MEDIA}
    assert CATALOG.apexes == ("xhoot.com",)
    two = dataclasses.replace(CATALOG, domains=("*.b.example", "*.a.b.example", "*.ab.example"))
    assert two.apexes == ("ab.example", "b.example")


def test_a_catalog_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CATALOG.as_of = "2026-12"  # type: ignore[misc]
    hash(CATALOG)
