"""The TURN hosts as a client is told of them, and its short-lived credentials (draft-uberti-behave-turn-rest)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from relay.addresses import Address
from relay.emulator.login.models import IceServer, MediaHostView, MediaSettings, RelayView, TurnCredentials
from relay.emulator.login.tokens import Principal
from relay.turn.credentials import rest_password, rest_username

# ICE tries every server; more than two only make the start of a call slower.
HOSTS_IN_ICE = 2
_ON = (
    "Voice via Web Proxy was on for you when you logged in: voice goes by TLS over TCP to your firm's relay. "
    "A firm administrator can change this in the portal; it counts from your next login."
)
_OFF = (
    "Voice via Web Proxy was off for you when you logged in: voice goes over UDP to the TURN hosts. "
    "A firm administrator can change this in the portal; it counts from your next login."
)


@dataclass(frozen=True)
class RunningHost:
    """A TURN host that runs. TCP and UDP have the same address; desks may be given another port for UDP."""

    name: str
    region: str
    address: Address
    tls_port: int
    udp_port: int | None = None

    @property
    def udp(self) -> Address:
        """Where desks reach it over UDP."""
        return self.address if self.udp_port is None else Address(self.address.host, self.udp_port)


@dataclass
class Media:
    """Tells clients how their voice is to go. ``hosts`` is asked each time, because hosts are switched on and off.

    ``lifetime_s`` is asked each time, too: a fault can make credentials that have ended already.
    """

    secret: str = field(repr=False)
    hosts: Callable[[], Sequence[RunningHost]]
    relay: RelayView
    lifetime_s: Callable[[], float]
    clock: Callable[[], float] = time.time

    def credentials(self, user_id: str) -> TurnCredentials:
        """Fresh credentials, which every TURN host accepts until they end."""
        expires = math.ceil(self.clock() + self.lifetime_s())
        username = rest_username(user_id, expires)
        return TurnCredentials(username=username, password=rest_password(self.secret, username), expires_at=expires)

    def settings(self, principal: Principal) -> MediaSettings:
        """The media settings of a login: hosts of the user's own region come first."""
        hosts = sorted(self.hosts(), key=lambda host: host.region != principal.region)
        credentials = self.credentials(principal.user_id)
        near = [host.udp for host in hosts][:HOSTS_IN_ICE]
        udp = [_ice_server([f"turn:{address}?transport=udp" for address in near], credentials)] if near else []
        web_proxy = [_ice_server([f"turns:{self.relay.tls}?transport=tcp"], credentials)]
        proxied = principal.voice_via_web_proxy
        return MediaSettings(
            transport="web_proxy" if proxied else "udp",
            reason=_ON if proxied else _OFF,
            hosts=[
                MediaHostView(
                    name=host.name,
                    region=host.region,
                    address=host.address.host,
                    udp_port=host.udp.port,
                    tcp_port=host.address.port,
                    tls_port=host.tls_port,
                )
                for host in hosts
            ],
            credentials=credentials,
            ice_servers=web_proxy if proxied else udp,
            alternatives={"udp": udp, "web_proxy": web_proxy},
            relay=self.relay,
        )


def _ice_server(urls: list[str], credentials: TurnCredentials) -> IceServer:
    return IceServer(urls=urls, username=credentials.username, credential=credentials.password)
