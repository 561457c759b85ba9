"""The SFU: carries a hoot's voice from at most 12 talkers to at most 800 subscribers, and cannot hear it.

sfu          ``Sfu`` opens hoots; it has the thread, its commands and its events
hoot         one hoot: who is in it, who has the floor, and the group key that they share
group_key    the key, how it is handed out, and the two ends of SRTP with it
_fanout      the thread that copies packets, compiled; ``room.pxd`` is one hoot as the thread has it

One group key for each hoot
---------------------------
All who are in a hoot share one SRTP master key, which signaling hands out. The thread that carries packets never has
it, and passes them on unchanged. The other way would be a key for each subscriber. Then the SFU would decrypt each
packet and encrypt it again for each subscriber: it would hear everything, and pay for the encryption of each copy.
``docs/emulator.md`` has both in figures.

What one key costs: anyone in the hoot could speak as any other. The SFU therefore passes on only what comes from the
address and with the SSRC that got the floor. Whoever leaves still knows the key, so the key changes then.

Browsers cannot be in such a hoot. WebRTC wants a DTLS handshake between the two ends, and takes no key from signaling.
"""

from relay.emulator.sfu.group_key import GroupCipher, GroupKey, keepalive
from relay.emulator.sfu.hoot import FloorFull, Hoot, HootError, HootFigures, SsrcRefused
from relay.emulator.sfu.sfu import Sfu

__all__ = [
    "FloorFull",
    "GroupCipher",
    "GroupKey",
    "Hoot",
    "HootError",
    "HootFigures",
    "Sfu",
    "SsrcRefused",
    "keepalive",
]
