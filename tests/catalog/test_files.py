"""Catalogs as files: what is read, and what each mistake is called."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import catalog
from relay.catalog.files import load_version
from relay.errors import OperatorError

HOST = {"name": "a.x.example", "service": "media", "region": "use1", "status": "active"}
NETWORK = {"network": "192.0.2.0/24", "place": "Virginia"}
PORTS = {"protocol": "udp", "first": 3478, "last": 3478, "use": "STUN"}


def tree(**changes: Any) -> dict[str, Any]:
    whole = {"as_of": "2026-12", "domains": ["*.x.example"], "hosts": [HOST], "networks": [NETWORK], "ports": [PORTS]}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def mistakes(value: object) -> list[str]:
    with pytest.raises(OperatorError) as caught:
        catalog.parse(value, source="new.toml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("new.toml: ") for line in lines)
    return [line.removeprefix("new.toml: ") for line in lines]


def test_smallest() -> None:
    read = catalog.parse(tree(), source="")
    assert (read.as_of, read.domains, len(read.hosts)) == ("2026-12", ("*.x.example",), 1)
    assert read.networks[0].region is None


def test_names_are_canonical() -> None:
    read = catalog.parse(tree(hosts=[{**HOST, "name": "A.X.example."}], domains=["*.X.Example"]), source="")
    assert (read.hosts[0].name, read.domains) == ("a.x.example", ("*.x.example",))


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"as_of": None}, "as_of: required, but missing"),
        ({"as_of": "November"}, "as_of: 'November': expected a month or a day, such as '2026-11' or '2026-11-30'"),
        ({"as_of": "2026-13"}, "as_of: '2026-13': expected a month"),
        ({"as_of": "2026-11\n"}, "as_of: '2026-11\\n': expected a month"),
        ({"host": []}, "host: unknown key"),
        ({"hosts": []}, "hosts: expected a list with at least one entry"),
        ({"networks": None}, "networks: expected a list with at least one entry"),
        ({"ports": {"udp": 3478}}, "ports: expected a list with at least one entry"),
        ({"hosts": ["a.x.example"]}, "hosts.0: 'a.x.example': expected a table"),
        ({"hosts": [{**HOST, "status": "soon"}]}, "hosts.0: status: 'soon': expected one of active, not_yet, future"),
        ({"hosts": [{**HOST, "service": 5}]}, "hosts.0: service: 5: expected one of api, login, portal, recording"),
        ({"hosts": [{**HOST, "name": "a b.x.example"}]}, "hosts.0: name: 'a b.x.example': expected a host name"),
        ({"hosts": [{**HOST, "name": "example"}]}, "hosts.0: name: 'example': expected a host name"),
        ({"hosts": [{**HOST, "name": "*.x.example"}]}, "hosts.0: name: '*.x.example': expected a host name"),
        ({"hosts": [{**HOST, "region": "US 1"}]}, "hosts.0: region: 'US 1': expected a region"),
        ({"hosts": [{**HOST, "port": 1}]}, "hosts.0: port: unknown key"),
        ({"hosts": [{"name": "a.x.example"}]}, "hosts.0: service: required, but missing"),
        ({"hosts": [HOST, {**HOST, "name": "A.x.example"}]}, "hosts: a.x.example is given twice"),
        ({"hosts": [{**HOST, "name": "a.b.x.example"}]}, "hosts: a.b.x.example is not in any of the domains"),
        ({"domains": ["*.x.example", "*.X.example"]}, "domains: *.x.example is given twice"),
        ({"domains": ["*.x.example", "x.example"]}, "domains.1: 'x.example': expected a wildcard"),
        ({"domains": ["*.x.example", "*.com"]}, "domains.1: '*.com': expected a wildcard"),
        ({"domains": ["*.x.example", "*.*.x.example"]}, "domains.1: '*.*.x.example': expected a wildcard"),
        ({"networks": [{**NETWORK, "network": "192.0.2.1/24"}]}, "networks.0: network: '192.0.2.1/24': expected a net"),
        ({"networks": [{**NETWORK, "network": "0.0.0.0/0"}]}, "networks.0: network: '0.0.0.0/0': expected a network"),
        ({"networks": [{**NETWORK, "network": 5}]}, "networks.0: network: 5: expected a network"),
        ({"networks": [{**NETWORK, "place": "a\n-A OUTPUT -j ACCEPT"}]}, "networks.0: place: 'a\\n-A OUTPUT"),
        ({"networks": [NETWORK, NETWORK]}, "networks: 192.0.2.0/24 is given twice"),
        ({"ports": [PORTS, {**PORTS, "use": "TURN"}]}, "ports: udp 3478 is given twice"),
        ({"ports": [{**PORTS, "first": 0}]}, "ports.0: first: 0: expected a port, 1 to 65535"),
        ({"ports": [{**PORTS, "last": 65536}]}, "ports.0: last: 65536: expected a port"),
        ({"ports": [{**PORTS, "last": True}]}, "ports.0: last: True: expected a port"),
        ({"ports": [{**PORTS, "first": 3479}]}, "ports.0: last: 3478: expected at least first, 3479"),
        ({"ports": [{**PORTS, "protocol": "sctp"}]}, "ports.0: protocol: 'sctp': expected one of udp, tcp"),
    ],
)
def test_mistakes(changes: dict[str, Any], mistake: str) -> None:
    [line] = mistakes(tree(**changes))
    assert line.startswith(mistake)


def test_all_mistakes_are_told_at_once() -> None:
    assert len(mistakes(tree(as_of="", hosts=[{}, {}], networks=[{}], ports=None))) == 5


@pytest.mark.parametrize("value", [None, [], "text", 5, {}])
def test_what_is_no_table_lacks_everything(value: object) -> None:
    assert len(mistakes(value)) == 5


_leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["*.", "::/128", "udp"])
_anything = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@given(_anything, st.sampled_from([("as_of",), ("domains",), ("hosts", HOST), ("networks", NETWORK), ("ports", PORTS)]))
@settings(database=None)
def test_whatever_stands_there_is_read_or_refused(value: object, where: tuple[Any, ...]) -> None:
    key, *items = where
    trees = [tree(**{key: value}), tree(**{key: [value]})]
    trees += [tree(**{key: [{**item, inner: value}]}) for item in items for inner in item]
    for each in trees:
        try:
            read = catalog.parse(each, source="new.toml")
        except OperatorError:
            assert mistakes(each)
            continue
        # What is read can be written, and read again.
        again = json.loads(catalog.render_allowlist(read, catalog.Format.JSON))
        assert catalog.parse(again, source="") == read
        for kind in catalog.Format:
            proxy = "a:1" if kind is catalog.Format.PAC else None
            assert catalog.render_allowlist(read, kind, proxy=proxy).isascii()


def test_json_and_toml_files(tmp_path: Path) -> None:
    as_json = tmp_path / "new.json"
    as_json.write_text(json.dumps(tree()))
    assert catalog.load(as_json) == catalog.parse(tree(), source="")

    [version] = [version for version in catalog.bundled() if version == "2026-11"]
    as_toml = tmp_path / "same.toml"
    as_toml.write_text(resources.files("relay.catalog").joinpath(f"cloud9-{version}.toml").read_text())
    assert catalog.load(as_toml) == load_version("2026-11") == load_version(str(as_toml))


@pytest.mark.parametrize(
    ("name", "content", "mistake"),
    [
        ("bad.toml", b"as_of = ", "not valid TOML: "),
        ("bad.json", b"as_of = 5", "not valid JSON: "),
        ("bad.toml", b'as_of = "\xff"', "not valid TOML: "),
        ("deep.json", b"[" * 100_000, "not valid JSON: "),
        ("large.toml", b"#" * (4 * 1024 * 1024 + 1), "expected a catalog of at most 4194304 bytes"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, mistake: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(OperatorError) as caught:
        catalog.load(path)
    assert str(caught.value).startswith(f"{path}: {mistake}")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=rf"{tmp_path} \(catalog.path\): {os.strerror(21)}"):
        catalog.load(tmp_path)
    with pytest.raises(OperatorError, match=r"gone.toml \(catalog.path\): No such file or directory"):
        catalog.load(tmp_path / "gone.toml")
    with pytest.raises(OperatorError, match="1999-01: no such version of the catalog; there are: 2026-11"):
        load_version("1999-01")


def test_the_newest_is_the_default() -> None:
    assert catalog.load().as_of == catalog.bundled()[-1]
    assert list(catalog.bundled()) == sorted(catalog.bundled())
