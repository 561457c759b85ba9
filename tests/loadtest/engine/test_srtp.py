"""SRTP of the engine: the RFC's vectors, and pylibsrtp both ways."""

from __future__ import annotations

import random
import struct

import pytest
from pylibsrtp import Policy, Session

from tests.loadtest.engine._parts import Srtp

MALFORMED, FORGED = -1, -2
# RFC 3711 appendix B.3; the packet of libsrtp's own tests, with this key and salt.
MASTER = bytes.fromhex("E1F97A0D3E018BE0D64FA32C06DE41390EC675AD498AFEEBB6960B3AABE6")
PLAIN = bytes.fromhex("800f1234decafbadcafebabe" + "ab" * 16)
PROTECTED = bytes.fromhex("800f1234decafbadcafebabe4e55dc4ce79978d88ca4d215949d2402b78d6acc99ea179b8dbb")


def rtp(sequence: int, payload: bytes = b"voice" * 32, ssrc: int = 0xCAFEBABE, first: int = 0x80) -> bytes:
    return struct.pack("!BBHII", first, 0, sequence & 0xFFFF, 160 * sequence & 0xFFFFFFFF, ssrc) + payload


def pylibsrtp(master: bytes, kind: int) -> Session:
    return Session(Policy(key=master, ssrc_type=kind, srtp_profile=Policy.SRTP_PROFILE_AES128_CM_SHA1_80))


def test_a_known_packet() -> None:
    assert Srtp(MASTER).protect(PLAIN, 0x1234) == PROTECTED
    assert Srtp(MASTER).unprotect(PROTECTED) == PLAIN


def test_agrees_with_pylibsrtp_over_two_rollovers() -> None:
    chance = random.Random(3711)
    master = chance.randbytes(30)
    ours, coming = Srtp(master), Srtp(master)
    theirs, taking = pylibsrtp(master, Policy.SSRC_ANY_OUTBOUND), pylibsrtp(master, Policy.SSRC_ANY_INBOUND)
    # Steps as large as a receiver can follow.
    for index in range(0xFF00, 0x2_0200, 97):
        plain = rtp(index, chance.randbytes(chance.randrange(0, 400)))
        protected = ours.protect(plain, index)
        assert protected is not None
        assert theirs.protect(plain) == protected
        assert taking.unprotect(protected) == plain
        assert coming.unprotect(protected) == plain


@pytest.mark.parametrize(
    "plain",
    [
        rtp(7, b""),
        struct.pack("!BBHIIII", 0x82, 0, 7, 0, 1, 2, 3) + b"with two sources",
        struct.pack("!BBHIIHHI", 0x90, 0, 7, 0, 1, 0xBEDE, 1, 5) + b"with an extension",
    ],
    ids=["empty", "sources", "extension"],
)
def test_every_header_agrees_with_pylibsrtp(plain: bytes) -> None:
    protected = Srtp(MASTER).protect(plain, 7)
    assert protected == pylibsrtp(MASTER, Policy.SSRC_ANY_OUTBOUND).protect(plain)
    assert Srtp(MASTER).unprotect(protected) == plain


def test_reordered_packets_around_a_rollover() -> None:
    sender, receiver = Srtp(MASTER), Srtp(MASTER)
    for index in (0xFFFE, 0x1_0000, 0xFFFF, 0x1_0002, 0x1_0001):
        protected = sender.protect(rtp(index), index)
        assert protected is not None
        assert receiver.unprotect(protected) == rtp(index)


def test_each_changed_byte_is_seen() -> None:
    for place in range(len(PROTECTED)):
        changed = bytearray(PROTECTED)
        changed[place] ^= 1
        assert Srtp(MASTER).unprotect(bytes(changed)) in {MALFORMED, FORGED}


def test_a_forged_packet_does_not_move_the_receiver() -> None:
    receiver = Srtp(MASTER)
    assert receiver.unprotect(PROTECTED) == PLAIN
    forged = bytearray(PROTECTED)
    forged[2:4] = b"\xff\xf0"
    assert receiver.unprotect(bytes(forged)) == FORGED
    following = Srtp(MASTER).protect(rtp(0x1235), 0x1235)
    assert following is not None
    assert receiver.unprotect(following) == rtp(0x1235)


@pytest.mark.parametrize("size", range(len(PROTECTED)))
def test_a_packet_that_is_cut_is_refused(size: int) -> None:
    assert Srtp(MASTER).unprotect(PROTECTED[:size]) in {MALFORMED, FORGED}


@pytest.mark.parametrize(
    "packet", [b"", PLAIN[:11], b"\x40" + PLAIN[1:], b"\x8f" + PLAIN[1:], b"\x90" + PLAIN[1:]], ids=range(5)
)
def test_what_is_not_rtp_is_not_protected(packet: bytes) -> None:
    assert Srtp(MASTER).protect(packet, 0) is None
