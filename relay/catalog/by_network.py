"""Rules by address and port, for firewalls: media to the vendor's networks.

The vendor publishes no addresses for signaling, so signaling goes by name, through a web proxy.
"""

from __future__ import annotations

import json

from relay.catalog.model import Catalog, Network, Protocol

_NAMES_ONLY = "Signaling has only names, no addresses: it needs a web proxy, or a firewall that knows names."


def nftables(catalog: Catalog) -> str:
    """A chain for ``nft -f``. It can be loaded again and again. The operator's own chain jumps to it."""
    return f"""\
# Cloud9 network requirements as of {catalog.as_of}: outgoing media; answers are "established".
# {_NAMES_ONLY}
# Load it with nft -f, and again after each change. Jump to it from a chain of your own: jump cloud9
table inet filter {{
    chain cloud9 {{
    }}
}}
flush chain inet filter cloud9
table inet filter {{
    chain cloud9 {{
{"".join(f"        {rule}" for rule in _nft_rules(catalog))}    }}
}}
"""


def _nft_rules(catalog: Catalog) -> list[str]:
    rules = []
    for network in catalog.networks:
        family = "ip" if network.network.version == 4 else "ip6"
        for protocol in Protocol:
            if ranges := _ranges(catalog, protocol):
                ports = ", ".join(_joined(bounds, "-") for bounds in ranges)
                match = f"{family} daddr {network.network} {protocol} dport {{ {ports} }}"
                rules.append(f'{match} accept comment "{_title(network)}"\n')
    return rules


def iptables(catalog: Catalog) -> str:
    """A chain for ``iptables-restore --noflush``. It has only IPv4; comments name the IPv6 networks."""
    lines = [
        f"# Cloud9 network requirements as of {catalog.as_of}: outgoing media; answers are ESTABLISHED.",
        f"# {_NAMES_ONLY}",
        "# Load it with iptables-restore --noflush, again after changes. Run once: iptables -A OUTPUT -j CLOUD9",
        *(f"# Not here, IPv6: {each.network} ({each.place})" for each in catalog.networks if each.network.version == 6),
        "*filter",
        ":CLOUD9 - [0:0]",
    ]
    for network in catalog.networks:
        if network.network.version == 4:
            for protocol in Protocol:
                lines += [
                    f"-A CLOUD9 -d {network.network} -p {protocol} -m {protocol} --dport {_joined(bounds, ':')}"
                    f' -m comment --comment "{_title(network)}" -j ACCEPT'
                    for bounds in _ranges(catalog, protocol)
                ]
    return "".join(f"{line}\n" for line in [*lines, "COMMIT"])


def aws_security_group(catalog: Catalog) -> str:
    """``--ip-permissions`` for ``aws ec2 authorize-security-group-egress``. Descriptions have the catalog's date."""
    permissions = [
        {
            "IpProtocol": protocol.value,
            "FromPort": first,
            "ToPort": last,
            **_aws_networks(catalog, 4, "IpRanges", "CidrIp"),
            **_aws_networks(catalog, 6, "Ipv6Ranges", "CidrIpv6"),
        }
        for protocol in Protocol
        for first, last in _ranges(catalog, protocol)
    ]
    return json.dumps(permissions, indent=2) + "\n"


def _aws_networks(catalog: Catalog, version: int, key: str, address_key: str) -> dict[str, list[dict[str, str]]]:
    networks = [
        {address_key: str(each.network), "Description": f"{_title(each)} as of {catalog.as_of}"}
        for each in catalog.networks
        if each.network.version == version
    ]
    return {key: networks} if networks else {}


def _title(network: Network) -> str:
    return f"Cloud9 {network.place}"


def _ranges(catalog: Catalog, protocol: Protocol) -> list[tuple[int, int]]:
    """First and last ports, in order. Ranges that touch are joined, because nft refuses overlaps."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted((each.first, each.last) for each in catalog.ports if each.protocol is protocol):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _joined(bounds: tuple[int, int], mark: str) -> str:
    first, last = bounds
    return f"{first}" if first == last else f"{first}{mark}{last}"
