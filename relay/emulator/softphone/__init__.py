"""A headless softphone, for scripts, for the demo and for load tests: it logs in, and makes and takes calls.

A whole call::

    from relay.emulator.softphone import Softphone

    async with Softphone("http://127.0.0.1:8080", "anna", "trader", records=True) as anna:
        call = await anna.ring("sPK-10000001-100001")
        await call.ready()                    # answered, and voice goes both ways
        await asyncio.sleep(10)
        await call.release()
        recording = await call.recorded()     # with the recorder

Each part imports only what stands above it in this list
--------------------------------------------------------
errors      what can go wrong, sorted by who must act
sdp         media descriptions, as pure functions
voice       RTP and SRTP of both directions, with a check of each packet
pacer       the clock of all speakers
ogg         recordings as Ogg Opus
recorder    who spoke when in a call
group       voice of a hoot, under the key that all share, with the same check
carriers    how voice travels: UDP, TURN/TLS, WebSocket, sessions, CONNECT-UDP, or nothing
rest        login, settings and credentials
uploading   recordings go to the recorder
signaling   the connection of socket.io, which comes back by itself
media       the media of one call
hoot        the media of a hoot
calls       one call
softphone   a user with their lines and calls
"""

from relay.emulator.softphone.calls import Call
from relay.emulator.softphone.carriers import (
    Carrier,
    ConnectUdp,
    MediaSession,
    NoMedia,
    Trust,
    TurnTls,
    TurnWebSocket,
    UdpTurn,
)
from relay.emulator.softphone.errors import (
    CallEnded,
    LoginRefused,
    MediaFailed,
    NotEntitled,
    SessionEnded,
    SessionReplaced,
    SignalingRefused,
    SoftphoneError,
    Unreachable,
    UploadFailed,
)
from relay.emulator.softphone.pacer import Pacer
from relay.emulator.softphone.softphone import Softphone

__all__ = [
    "Call",
    "CallEnded",
    "Carrier",
    "ConnectUdp",
    "LoginRefused",
    "MediaFailed",
    "MediaSession",
    "NoMedia",
    "NotEntitled",
    "Pacer",
    "SessionEnded",
    "SessionReplaced",
    "SignalingRefused",
    "Softphone",
    "SoftphoneError",
    "Trust",
    "TurnTls",
    "TurnWebSocket",
    "UdpTurn",
    "Unreachable",
    "UploadFailed",
]
