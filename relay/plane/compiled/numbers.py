"""The numbers by which Python and the workers mean the same thing.

Each list here is in the order of its twin in the data dictionary, or has its values.
``tests/plane/test_numbers.py`` reads both sides and fails where they differ.
"""

from __future__ import annotations

from enum import IntEnum

from relay.plane.api import Carrier, CloseReason, DropReason, Traffic
from relay.plane.client_certificates import ClientCertificates
from relay.quality.stream import Direction
from relay.wire.stream import FramingFault


class Notice(IntEnum):
    """What a worker tells: the first five are facts about a connection, the others are messages."""

    ADOPTED = 1
    TURN_OPENED = 2
    HTTP_OPENED = 4
    STALE = 8  # 437: the flow wants a socket on a fresh port
    CLOSED = 16
    ALLOCATE = 32  # the request that waits
    TEXT = 64
    STUN = 128
    SILENT = 256  # a session's upstream is lost
    UNREACHABLE = 512  # the same, and an errno
    GRANTED = 1024  # the answer that waits
    ALTERNATE = 2048  # 300, the answer: the flow wants a socket for the server that it names
    PAUSED = 4096  # of no connection: newcomers wait
    CERTIFICATE = 8192  # what the client has shown in its handshake
    NAMED = 16384  # the user whom a granted Allocate named


CARRIERS = tuple(Carrier)
REASONS = tuple(CloseReason)
DROPS = tuple(DropReason)
TRAFFICS = tuple(Traffic)
CLIENT_CERTIFICATES = tuple(ClientCertificates)
# A fault has the negative of its place, counted from 1.
FAULTS = (FramingFault.FIRST_BYTE, FramingFault.STUN_LENGTH, FramingFault.MAGIC_COOKIE)
# The kinds of what a tap copies; after the two directions comes the flow's own address.
TAP_DIRECTIONS = (Direction.UPLINK, Direction.DOWNLINK)
TAP_LOCAL = 2
