"""Each format as those who take it read it: by the real tool where there is one, by its documented rules otherwise."""

from __future__ import annotations

import csv
import dataclasses
import ipaddress
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from relay import catalog
from relay.catalog import Catalog, Format, Host, Network, Ports, Protocol, Service, Status, render_allowlist
from relay.errors import OperatorError

CATALOG = catalog.load()
NAMES = [host.name for host in CATALOG.hosts]
FOREIGN = ["xhoot.com.evil.example", "evilxhoot.com", "example.com", "prod1.xhoot.com.example"]
PROXY = "relay.firm.example:3128"

# Whatever a file of the operator's may hold.
OTHER = Catalog(
    as_of="2027-01-31",
    domains=("*.voice.example", "*.other.example", "*.eu.voice.example"),
    hosts=(
        Host("a.voice.example", Service.MEDIA, "us", Status.ACTIVE),
        Host("b.eu.voice.example", Service.SIGNALING, None, Status.FUTURE),
        Host("c.other.example", Service.API, None, Status.ACTIVE),
    ),
    networks=(
        Network(ipaddress.ip_network("203.0.113.0/24"), "New York (2), N.Y.", "us"),
        Network(ipaddress.ip_network("2001:db8::/64"), "Paris", None),
    ),
    ports=(
        Ports(Protocol.UDP, 5000, 6000, "RTP"),
        Ports(Protocol.UDP, 5500, 7000, "RTP"),
        Ports(Protocol.UDP, 7001, 7001, "STUN"),
        Ports(Protocol.TCP, 443, 443, "HTTPS"),
        Ports(Protocol.TCP, 8443, 8443, "HTTPS"),
    ),
)
BOTH = pytest.mark.parametrize("which", [CATALOG, OTHER], ids=["bundled", "other"])


def render(which: Catalog, kind: Format, *, hosts_only: bool = False) -> str:
    return render_allowlist(which, kind, hosts_only=hosts_only, proxy=PROXY if kind is Format.PAC else None)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def tool(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)


# All of them


@BOTH
@pytest.mark.parametrize("kind", Format)
def test_the_same_in_the_same_out(which: Catalog, kind: Format) -> None:
    text = render(which, kind)
    assert text == render(dataclasses.replace(which), kind)
    assert text.isascii()
    assert text.endswith("\n")
    # Where the format has comments, or fields, they say as of when.
    assert (which.as_of in text) is (kind not in {Format.ZSCALER, Format.PALO_ALTO_EDL})


@pytest.mark.parametrize("kind", [Format.NFTABLES, Format.IPTABLES, Format.AWS_SG])
def test_addresses_are_no_hosts(kind: Format) -> None:
    with pytest.raises(OperatorError, match=f"{kind}: has only addresses"):
        render(CATALOG, kind, hosts_only=True)


def test_only_a_pac_names_a_proxy() -> None:
    with pytest.raises(OperatorError, match="squid: only a PAC names a proxy"):
        render_allowlist(CATALOG, Format.SQUID, proxy=PROXY)
    with pytest.raises(OperatorError, match="pac: needs the name of the web proxy"):
        render_allowlist(CATALOG, Format.PAC)


# Those that go by name, as their manuals say that they match


def zscaler_fits(entry: str, name: str) -> bool:
    """A leading dot: the name itself, and up to five labels before it. Without: the name itself."""
    assert "*" not in entry
    if not entry.startswith("."):
        return entry == name
    return name == entry[1:] or (name.endswith(entry) and len(name.removesuffix(entry).split(".")) <= 5)


def palo_alto_fits(entry: str, name: str) -> bool:
    """``*`` is one label or more; the slash ends the host."""
    assert entry.endswith("/")
    parts = [r"[^.]+(\.[^.]+)*" if part == "*" else re.escape(part) for part in entry[:-1].split(".")]
    return re.fullmatch(r"\.".join(parts), name) is not None


def one_label_fits(entry: str, name: str) -> bool:
    parts = ["[^.]+" if part == "*" else re.escape(part) for part in entry.removesuffix("/").split(".")]
    return re.fullmatch(r"\.".join(parts), name) is not None


@BOTH
@pytest.mark.parametrize("hosts_only", [False, True])
@pytest.mark.parametrize(
    ("kind", "fits"),
    [
        (Format.ZSCALER, zscaler_fits),
        (Format.PALO_ALTO_EDL, palo_alto_fits),
        (Format.PALO_ALTO_EDL, one_label_fits),
    ],
)
def test_every_host_fits_and_no_other(
    which: Catalog, hosts_only: bool, kind: Format, fits: Callable[[str, str], bool]
) -> None:
    entries = lines(render(which, kind, hosts_only=hosts_only))
    assert len(entries) == len(set(entries))
    for host in which.hosts:
        assert any(fits(entry, host.name) for entry in entries), host
    for name in FOREIGN:
        assert not any(fits(entry, name) for entry in entries), name
    assert any(fits(entry, "new.voice.example") or fits(entry, "new.xhoot.com") for entry in entries) is not hosts_only


def test_wildcards_literally() -> None:
    assert render(CATALOG, Format.ZSCALER) == ".xhoot.com\n"
    assert render(CATALOG, Format.PALO_ALTO_EDL).splitlines() == [
        "*.xhoot.com/",
        "*.prod1.xhoot.com/",
        "*.use1.prod1.xhoot.com/",
        "*.euc1.prod1.xhoot.com/",
        "*.apse1.prod1.xhoot.com/",
        "*.apse2.prod1.xhoot.com/",
    ]
    assert render(OTHER, Format.ZSCALER) == ".other.example\n.voice.example\n"
    assert render(CATALOG, Format.ZSCALER, hosts_only=True).splitlines() == NAMES


# squid


def squid_says(tmp_path: Path, snippet: str) -> tuple[int, str]:
    """What ``squid -k parse`` says of a configuration that includes the file, as Debian's does."""
    included = tmp_path / "cloud9.conf"
    included.write_text(snippet)
    whole = tmp_path / "squid.conf"
    whole.write_text(
        f"http_port 127.0.0.1:3128\ninclude {included}\n"
        "http_access allow CONNECT cloud9 cloud9_ports\nhttp_access deny all\n"
        f"pid_filename {tmp_path}/squid.pid\ncache_log {tmp_path}/cache.log\naccess_log none\ncoredump_dir {tmp_path}\n"
    )
    done = run(tool("squid"), "-k", "parse", "-f", str(whole))
    return done.returncode, done.stdout + done.stderr


@BOTH
@pytest.mark.parametrize("hosts_only", [False, True])
def test_squid_takes_it_without_a_warning(tmp_path: Path, which: Catalog, hosts_only: bool) -> None:
    status, said = squid_says(tmp_path, render(which, Format.SQUID, hosts_only=hosts_only))
    assert status == 0, said
    assert not re.findall(r"^.*(?:WARNING|ERROR|FATAL|Bungled).*$", said, re.MULTILINE)


def test_squid_would_say_what_it_dislikes(tmp_path: Path) -> None:
    overlapping = "acl cloud9 dstdomain .xhoot.com .prod1.xhoot.com\nacl cloud9_ports port 443\n"
    status, said = squid_says(tmp_path, overlapping)
    assert status != 0 or re.search(r"(WARNING|ERROR|FATAL).*prod1\.xhoot\.com", said), said


# nftables and iptables, in a network of their own


@pytest.fixture
def own_network() -> list[str]:
    """A command's prefix that gives it a network namespace, in which it is root."""
    unshare = tool("unshare")
    if run(unshare, "-rn", "true").returncode:
        pytest.skip("no network namespaces here")
    return [unshare, "-rn"]


def shell(own_network: list[str], script: str) -> subprocess.CompletedProcess[str]:
    return run(*own_network, "sh", "-euc", f"PATH=$PATH:/usr/sbin:/sbin\n{script}")


@BOTH
def test_nft_takes_it_twice_and_has_every_rule_once(tmp_path: Path, own_network: list[str], which: Catalog) -> None:
    tool("nft")
    path = tmp_path / "cloud9.nft"
    path.write_text(render(which, Format.NFTABLES))
    done = shell(own_network, f"nft -c -f {path}; nft -f {path}; nft -f {path}; nft -j list ruleset")
    assert done.returncode == 0, done.stderr
    rules = [each["rule"] for each in json.loads(done.stdout)["nftables"] if "rule" in each]
    assert len(rules) == 2 * len(which.networks)
    assert {rule["chain"] for rule in rules} == {"cloud9"}

    done = shell(own_network, f"nft -f {path}; nft -nn list ruleset")
    for network in which.networks:
        address = str(network.network).removesuffix("/32")
        told = [line for line in done.stdout.splitlines() if f" daddr {address} " in line]
        [udp, tcp] = sorted(told, key=lambda line: " tcp " in line)
        wanted = ("{ 3478, 16384-65535 }", "443") if which is CATALOG else ("5000-7001", "{ 443, 8443 }")
        assert f"udp dport {wanted[0]} accept" in re.sub(r"\{ (5000-7001) \}", r"\1", udp)
        assert f"tcp dport {wanted[1]} accept" in re.sub(r"\{ (443) \}", r"\1", tcp)


def test_nft_leaves_the_operators_chains_alone(tmp_path: Path, own_network: list[str]) -> None:
    tool("nft")
    path = tmp_path / "cloud9.nft"
    path.write_text(render(CATALOG, Format.NFTABLES))
    own = "nft add table inet filter; nft add chain inet filter own; nft add rule inet filter own tcp dport 22 accept"
    done = shell(own_network, f"{own}\nnft -f {path}\nnft add rule inet filter own jump cloud9\nnft -f {path}")
    assert done.returncode == 0, done.stderr
    done = shell(own_network, f"{own}\nnft -f {path}\nnft list chain inet filter own")
    assert "tcp dport 22 accept" in done.stdout


@BOTH
def test_iptables_takes_it_twice_and_has_every_rule_once(
    tmp_path: Path, own_network: list[str], which: Catalog
) -> None:
    tool("iptables-restore")
    path = tmp_path / "cloud9.rules"
    path.write_text(render(which, Format.IPTABLES))
    load = f"iptables-restore --noflush {path}"
    done = shell(
        own_network,
        f"iptables-restore --test {path}; {load}; iptables -A OUTPUT -j CLOUD9; {load}; iptables-save -t filter",
    )
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^-A CLOUD9 -d (\S+) -p (\w+) -m \w+ --dport (\S+) .*-j ACCEPT$", done.stdout, re.MULTILINE)
    ports = (
        [("udp", "3478"), ("udp", "16384:65535"), ("tcp", "443")]
        if which is CATALOG
        else [("udp", "5000:7001"), ("tcp", "443"), ("tcp", "8443")]
    )
    v4 = [str(each.network) for each in which.networks if each.network.version == 4]
    assert found == [(network, *each) for network in v4 for each in ports]
    assert "-A OUTPUT -j CLOUD9" in done.stdout


def test_iptables_says_which_networks_it_leaves_out() -> None:
    assert "# Not here, IPv6: 2001:db8::/64 (Paris)\n" in render(OTHER, Format.IPTABLES)


# AWS, CSV, JSON


@BOTH
def test_aws_permissions(which: Catalog) -> None:
    permissions = json.loads(render(which, Format.AWS_SG))
    found = {
        (
            permission["IpProtocol"],
            permission["FromPort"],
            permission["ToPort"],
            address.get("CidrIp", address.get("CidrIpv6")),
        )
        for permission in permissions
        for address in [*permission.get("IpRanges", ()), *permission.get("Ipv6Ranges", ())]
    }
    ports = (
        [("udp", 3478, 3478), ("udp", 16384, 65535), ("tcp", 443, 443)]
        if which is CATALOG
        else [("udp", 5000, 7001), ("tcp", 443, 443), ("tcp", 8443, 8443)]
    )
    assert found == {(*each, str(network.network)) for network in which.networks for each in ports}
    for permission in permissions:
        assert all("CidrIp" in each and ":" not in each["CidrIp"] for each in permission.get("IpRanges", ()))
        for each in [*permission.get("IpRanges", ()), *permission.get("Ipv6Ranges", ())]:
            # What EC2 allows in a description.
            assert re.fullmatch(r"[A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}", each["Description"])


@BOTH
def test_csv_has_a_row_for_everything(which: Catalog) -> None:
    rows = list(csv.DictReader(render(which, Format.CSV).splitlines()))
    things = [row["kind"] for row in rows]
    assert [things.count(kind) for kind in ("domain", "host", "network", "ports")] == [
        len(which.domains),
        len(which.hosts),
        len(which.networks),
        len(which.ports),
    ]
    hosts = [
        (row["value"], row["service"], row["region"] or None, row["status"]) for row in rows if row["kind"] == "host"
    ]
    assert hosts == [(host.name, host.service, host.region, host.status) for host in which.hosts]
    assert {row["as_of"] for row in rows} == {which.as_of}
    assert {row["note"] for row in rows if row["kind"] == "network"} == {network.place for network in which.networks}
    only = list(csv.DictReader(render(which, Format.CSV, hosts_only=True).splitlines()))
    assert {row["kind"] for row in only} == {"host"}


@BOTH
def test_json_is_a_catalog(tmp_path: Path, which: Catalog) -> None:
    path = tmp_path / "same.json"
    path.write_text(render(which, Format.JSON))
    assert catalog.load(path) == which
    assert list(json.loads(render(which, Format.JSON, hosts_only=True))) == ["as_of", "hosts"]
