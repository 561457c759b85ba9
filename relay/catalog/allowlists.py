"""The formats of allow-lists, for the products between a firm and the vendor. The same catalog gives the same text."""

from __future__ import annotations

import enum

from relay.catalog import by_name, by_network, data
from relay.catalog.model import Catalog
from relay.catalog.pac import render_pac
from relay.errors import OperatorError


class Format(enum.StrEnum):
    """The product or format that an allow-list is written for."""

    ZSCALER = "zscaler"
    SQUID = "squid"
    PAC = "pac"
    NFTABLES = "nftables"
    IPTABLES = "iptables"
    AWS_SG = "aws-sg"
    PALO_ALTO_EDL = "palo-alto-edl"
    CSV = "csv"
    JSON = "json"


_BY_NAME = {
    Format.ZSCALER: by_name.zscaler,
    Format.SQUID: by_name.squid,
    Format.PALO_ALTO_EDL: by_name.palo_alto_edl,
    Format.CSV: data.as_csv,
    Format.JSON: data.as_json,
}
_BY_NETWORK = {
    Format.NFTABLES: by_network.nftables,
    Format.IPTABLES: by_network.iptables,
    Format.AWS_SG: by_network.aws_security_group,
}


def render_allowlist(catalog: Catalog, kind: Format, *, hosts_only: bool = False, proxy: str | None = None) -> str:
    """The text of an allow-list, which ends with a newline.

    ``hosts_only`` lists each host instead of the vendor's wildcards. The vendor advises against this, because hosts
    change without warning. A PAC needs ``proxy``. Raises OperatorError for options that do not go together.
    """
    if proxy is not None and kind is not Format.PAC:
        raise OperatorError(f"{kind}: only a PAC names a proxy")
    if kind is Format.PAC:
        if proxy is None:
            raise OperatorError("pac: needs the name of the web proxy, for example --proxy relay.firm.example:3128")
        return render_pac(catalog, proxy, hosts_only=hosts_only)
    if kind in _BY_NAME:
        return _BY_NAME[kind](catalog, hosts_only)
    if hosts_only:
        raise OperatorError(f"{kind}: has only addresses, so there are no hosts to list")
    return _BY_NETWORK[kind](catalog)
