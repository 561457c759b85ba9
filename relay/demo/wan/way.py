"""A way on which voice can go between a trader and someone at the far end of the WAN, ready for one call."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from relay.client.turn import OnData, TurnConnection
from relay.demo.wan.link import Link

T = TypeVar("T")

# The path: 40 ms each way. The loss begins with the voice, so that the set-up takes no luck.
PATH = Link(delay_s=0.04)
LOSS = 0.03
# Decides which packets are lost: of both ways that have UDP across the path the same ones.
SEED = 1

UDP = "UDP all the way"
TLS = "TLS all the way"
RELAY = "TLS to the relay, then UDP"


class Runner(Protocol):
    """Runs a coroutine where the trader is."""

    async def __call__(self, main: Callable[[], Coroutine[Any, Any, T]], /) -> T:
        """Returns and raises what it does."""


@dataclass(frozen=True)
class Way:
    """``connect`` opens TURN where ``run`` runs. ``far`` is the other side's UDP socket, next to the TURN server.

    ``set_loss`` sets the share of packets that the path loses from now on, in both directions, and ``lost_packets``
    tells how many it has lost on the way to the trader, among them those that TCP sends again.
    """

    name: str
    connect: Callable[[OnData], Awaitable[TurnConnection]]
    far: socket.socket
    run: Runner
    set_loss: Callable[[float], None]
    lost_packets: Callable[[], int]


async def here(main: Callable[[], Coroutine[Any, Any, T]], /) -> T:
    """A ``Runner``: in this task."""
    return await main()
