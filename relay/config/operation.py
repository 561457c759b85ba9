"""What the operator sets up around the calls: addresses to listen on, certificates, captures, the catalog, the log."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import Field, model_validator

from relay.addresses import Address, collide
from relay.config.values import (
    AdminAddress,
    AtLeastOne,
    Count,
    FilePath,
    Flag,
    HostPattern,
    KeyedError,
    ListenAddress,
    Network,
    Seconds,
    Section,
    TokenHash,
)


class ListenSettings(Section):
    """``[listen]``: where the relay is reached."""

    # HTTPS, WebSocket and TURN/TLS, all on this port. [::] takes IPv6 only; list 0.0.0.0 as well for both.
    tls: AtLeastOne[ListenAddress] = (Address("0.0.0.0", 443),)  # noqa: S104
    # The explicit web proxy (CONNECT and PAC).
    web_proxy: tuple[ListenAddress, ...] = ()
    # Those of the addresses above that are behind a balancer: each connection begins with a PROXY header (version 1 or
    # 2), which names the client. It must come from balancers.networks. Without a header there, and with one elsewhere,
    # a connection is refused.
    proxy_protocol: tuple[ListenAddress, ...] = ()
    # Those of tls at which clients are asked for a certificate of their own (mutual TLS), and how: with "optional" a
    # client may have none, but one that it shows must be good; with "required" it must have one.
    client_certificates: dict[ListenAddress, Literal["optional", "required"]] = Field(default={})
    # Who may sign them: the authorities' certificates in PEM. The file is watched, like those of [[certificates]].
    client_ca: FilePath | None = None
    # HTTP for operators. "unix:" and a path is a socket of this machine, mode 0660. At an address that other machines
    # reach it is HTTPS, with a certificate of the relay, and needs admin.token_hash.
    admin: AdminAddress = Address("127.0.0.1", 9443)
    # At such an address: plain HTTP, and a token only if there is a hash. For a proxy in front that ends TLS, or for a
    # network that nobody else is in, such as a container's.
    admin_unprotected: Flag = False
    # The names by which operators and their tools ask for the admin listener. Addresses, localhost and this machine's
    # name always work. Any other name could be a page's own name that resolves to this machine (DNS rebinding). *. is
    # one label or more; * alone is every name.
    admin_hosts: tuple[HostPattern, ...] = ()
    # Data-plane threads; 0 is one for each core. The reference plane runs on the loop and has none.
    workers: Count = Field(default=0, ge=0, le=256)
    plane: Literal["compiled", "reference"] = "compiled"

    @model_validator(mode="after")
    def _proxied_listeners(self) -> Self:
        for number, address in enumerate(self.proxy_protocol):
            key = f"proxy_protocol.{number}"
            if address not in (*self.tls, *self.web_proxy):
                raise KeyedError(key, f"expected an address of tls or web_proxy, not {address}")
            if address in self.proxy_protocol[:number]:
                raise KeyedError(key, f"{address} is given twice")
        return self

    @model_validator(mode="after")
    def _client_certificates(self) -> Self:
        for address in self.client_certificates:
            if address not in self.tls:
                raise KeyedError("client_certificates", f"{address}: expected an address of tls")
        if self.client_certificates and self.client_ca is None:
            raise KeyedError("client_ca", "expected a file with authorities, because of client_certificates")
        if self.client_ca is not None and not self.client_certificates:
            raise KeyedError("client_certificates", "expected some, because of client_ca: now nobody is asked for one")
        return self

    @model_validator(mode="after")
    def _one_listener_at_each_address(self) -> Self:
        listeners = self.listeners()
        for number, (key, address) in enumerate(listeners):
            for other, taken in listeners[:number]:
                if collide(address, taken):
                    raise KeyedError(key, f"{address}: expected another address or port: listen.{other} has {taken}")
        return self

    def listeners(self) -> list[tuple[str, Address]]:
        """All addresses, each with its key in this table."""
        tls = [(f"tls.{number}", address) for number, address in enumerate(self.tls)]
        web_proxy = [(f"web_proxy.{number}", address) for number, address in enumerate(self.web_proxy)]
        admin = [("admin", self.admin)] if isinstance(self.admin, Address) else []
        return [*tls, *web_proxy, *admin]

    @property
    def admin_is_remote(self) -> bool:
        """True if other machines reach the admin listener."""
        return isinstance(self.admin, Address) and not ipaddress.ip_address(self.admin.host).is_loopback

    @property
    def admin_has_tls(self) -> bool:
        """True if the admin listener speaks TLS."""
        return self.admin_is_remote and not self.admin_unprotected


class AdminSettings(Section):
    """``[admin]``: who may ask the admin listener."""

    # The argon2 hash of the token that it asks for, at any address, but not on a unix socket. "relay admin-token" makes
    # a token and its hash. /healthz and /readyz need none.
    token_hash: TokenHash | None = None


class BalancerSettings(Section):
    """``[balancers]``: who stands between clients and the relay, and only passes their bytes on."""

    # Only these may say in a PROXY header who a client is. Their health checks are counted apart, and not logged.
    networks: tuple[Network, ...] = ()


class CertificateFiles(Section):
    """One of ``[[certificates]]``. The names in it say which clients get it; the first is the default.

    With one * in each path it is many: all pairs of files for which both are the same text.
    """

    certificate: FilePath
    private_key: FilePath

    @model_validator(mode="after")
    def _a_star_in_both(self) -> Self:
        stars = str(self.certificate).count("*"), str(self.private_key).count("*")
        if stars not in {(0, 0), (1, 1)}:
            raise ValueError("expected one * in certificate and one in private_key, or none in both")
        return self


class OcspSettings(Section):
    """``[ocsp]``: whether the issuers of certificates are asked if these still hold."""

    # For clients that ask for it, the answer is stapled to the handshake. Only certificates that name a responder take
    # part, and only on the compiled plane. The relay must be able to reach these responders, without a proxy.
    stapling: Flag = True


class CaptureSettings(Section):
    """``[capture]``: recording the packets of a flow, as ``relay capture`` asks for it."""

    # A capture tells who talks to whom and when, though not what they say. So only the operator can allow captures.
    allowed: Flag = False
    # Trouble with a call shows within minutes.
    max_seconds: Seconds = 300.0
    # Of one file: half an hour of voice both ways is 40 MB. The smallest bound has room for one packet of any size.
    max_bytes: Count = Field(default=64 * 1024 * 1024, ge=128 * 1024, le=4 * 1024**3)


class CatalogSettings(Section):
    """``[catalog]``: the vendor's network requirements, which say what names clients may reach and where media goes."""

    # A newer file than those that come with the relay. "relay catalog diff" says what is new in it.
    path: FilePath | None = None


class LogSettings(Section):
    """``[log]``: what is logged on stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
