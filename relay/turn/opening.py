"""Allocates that wait for their sockets: one after the other, and for another port where one cannot be opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from relay.addresses import Address
from relay.turn.allocate import AllocateWish
from relay.turn.authentication import AuthenticRequest, TurnError
from relay.turn.commands import CloseRelayed, Command, OpenRelayed
from relay.turn.relayed_ports import RelayedPorts, sibling_of
from relay.wire.stun import family_of

# A port that another program holds makes an open fail. More than 16 of them in a row mean that something else is wrong.
MAX_OPEN_TRIES = 16


@dataclass(slots=True)
class Opening:
    """An Allocate that waits: ``families`` are still to be opened."""

    request: AuthenticRequest
    wish: AllocateWish
    families: list[int]
    # The sibling of an even port is the second.
    opened: list[Address] = field(default_factory=list)
    # Why a family has no relayed address.
    failed: dict[int, TurnError] = field(default_factory=dict)
    tries: int = 0
    client_closed: bool = False


class Openings:
    """All of a server. ``done`` answers an Allocate when no socket is left to ask for; it may have none."""

    def __init__(
        self, ports: RelayedPorts, hosts: Sequence[str], done: Callable[[float, Opening], list[Command]]
    ) -> None:
        self._ports = ports
        self._hosts = hosts
        self._done = done
        # By the address that is being opened.
        self._opening: dict[Address, Opening] = {}

    def all(self) -> Iterable[Opening]:
        """All that wait."""
        return self._opening.values()

    def of_client(self, client: Address) -> Opening | None:
        """The one of a client."""
        return next((opening for opening in self._opening.values() if opening.request.client == client), None)

    def begin(self, now: float, opening: Opening) -> list[Command]:
        """Ask for the next socket; the Allocate is answered when there is none left to ask for."""
        while opening.families:
            try:
                address = self._choose_address(now, opening.families[0], opening.wish)
            except TurnError as error:
                opening.failed[opening.families.pop(0)] = error
                continue
            if opening.wish.token is not None:
                # It was opened with the other of its pair.
                opening.opened.append(address)
                break
            opening.tries += 1
            self._opening[address] = opening
            return [OpenRelayed(address)]
        return self._done(now, opening)

    def _choose_address(self, now: float, family: int, wish: AllocateWish) -> Address:
        if wish.token is not None:
            address = self._ports.redeem(now, wish.token)
            if address is None:
                raise TurnError(508, "no such reservation")
            return address
        host = next((host for host in self._hosts if family_of(host) == family), None)
        if host is None:
            raise TurnError(440, "this address family is not relayed")
        address = self._ports.take(host, even=wish.even, with_sibling=wish.with_sibling)
        if address is None:
            raise TurnError(508, "no free port")
        return address

    def on_opened(self, now: float, relayed_address: Address) -> list[Command]:
        """The socket of this address is open."""
        opening = self._opening.pop(relayed_address)
        opening.opened.append(relayed_address)
        if opening.client_closed:
            return self._abandon(opening)
        if opening.wish.with_sibling and len(opening.opened) == 1:
            sibling = sibling_of(relayed_address)
            self._opening[sibling] = opening
            return [OpenRelayed(sibling)]
        opening.families.pop(0)
        opening.tries = 0
        return self.begin(now, opening)

    def on_failed(self, now: float, relayed_address: Address, lacking: str) -> list[Command]:
        """The socket of this address could not be opened. A pair of ports is tried as a whole."""
        opening = self._opening.pop(relayed_address)
        self._release(opening, relayed_address)
        commands = self._abandon(opening) if opening.client_closed or opening.wish.with_sibling else []
        if opening.client_closed:
            return commands
        if lacking or opening.tries == MAX_OPEN_TRIES:
            opening.failed[opening.families.pop(0)] = TurnError(508, lacking or "no free port")
            opening.tries = 0
        return [*commands, *self.begin(now, opening)]

    def _abandon(self, opening: Opening) -> list[Command]:
        addresses, opening.opened = opening.opened, []
        for address in addresses:
            self._release(opening, address)
        return [CloseRelayed(address) for address in addresses]

    def _release(self, opening: Opening, address: Address) -> None:
        """Give back a port; of a pair, both."""
        self._ports.release(address, *([sibling_of(address)] if opening.wish.with_sibling else []))
