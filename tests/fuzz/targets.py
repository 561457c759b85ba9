"""What is compared: each target reads any bytes as a scenario, plays it to both twins, and raises where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import relay._fastpath
import relay.wire.stream
from relay.plane import first_bytes
from relay.turn.transactions import RTO_S, Answer
from relay.turn.transactions import Transactions as ObviousTransactions
from relay.wire.stream import MAX_UNIT_BYTES
from tests.fuzz import _leaves

COOKIE = b"\x21\x12\xa4\x42"
# Beyond, a scenario is longer but not different.
MAX_STEPS = 600


def compare_framing(data: bytes) -> None:
    """Bytes: how many cuts (0 to 15; 16 more: zeroes follow, enough for every unit), where each is, the stream."""
    count, follows = (data[0] % 16, data[0] & 16) if data else (0, 0)
    stream = data[1 + 2 * count :] + bytes(MAX_UNIT_BYTES if follows else 0)
    places = (int.from_bytes(data[at : at + 2]) % (len(stream) + 1) for at in range(1, 1 + 2 * count, 2))
    obvious, compiled = relay.wire.stream.StreamCutter(), relay._fastpath.StreamCutter()
    for start, end in pairwise([0, *sorted(places), len(stream), len(stream)]):
        chunk = stream[start:end]
        assert compiled.feed(chunk) == obvious.feed(chunk), (start, end)
        assert (compiled.fault, compiled.pending) == (obvious.fault, obvious.pending), (start, end)


def compare_first_bytes(data: bytes) -> None:
    """Bytes: those of the connection. Every prefix is judged, as it might have come alone."""
    for size in range(min(len(data), 64) + 1):
        assert _leaves.decide(data[:size]) is first_bytes.decide(data[:size], None), data[:size]


def compare_transactions(data: bytes) -> None:
    """Bytes: steps of one byte for what happens and one for what it happens to."""
    # With an interval in microseconds the obvious twin counts in whole numbers, as the compiled one does.
    obvious, compiled = ObviousTransactions(rto_s=round(RTO_S * 1e6)), _leaves.Transactions()
    now_us = 1
    for step, (verb, what) in enumerate(_steps(data)):
        identity = what.to_bytes(12, "little")
        if verb < 96:
            message = b"\0\1" + bytes([verb, what]) + COOKIE + identity + bytes(_attribute_bytes(verb))
            obvious.on_request(now_us, identity, message)
            compiled.on_request(now_us, message)
        elif verb < 160:
            assert compiled.on_response(identity) is obvious.on_response(identity), step
        elif verb < 176:
            # One that differs in the first byte only.
            _compare_answers(obvious, compiled, bytes([what ^ 0xFF]) + identity[1:])
        elif verb < 224:
            # Up to 39.5 s, after which nothing waits any longer: steps of 1 us, and such as meet the intervals.
            now_us += what if verb < 184 else what * 125_000
        else:
            now_us = max(now_us, round(obvious.next_deadline() or 0) - (verb & 1))
        assert compiled.on_deadline(now_us) == obvious.on_deadline(now_us)[0], step
        assert len(compiled) == len(obvious), step
        assert compiled.waiting_since == obvious.waiting_since, step
        assert compiled.next_deadline() == obvious.next_deadline(), step
    for identity in (what.to_bytes(12, "little") for what in range(256)):
        _compare_answers(obvious, compiled, identity)


def _steps(data: bytes) -> Iterator[tuple[int, int]]:
    return zip(data[: 2 * MAX_STEPS : 2], data[1 : 2 * MAX_STEPS : 2], strict=False)


def _attribute_bytes(verb: int) -> int:
    """Mostly none; also the longest request that is sent again, and one beyond."""
    return {0: 1480, 1: 1481, 2: 1484}.get(verb, 0)


def _compare_answers(obvious: ObviousTransactions, compiled: _leaves.Transactions, identity: bytes) -> None:
    answer: Answer = obvious.on_response(identity)
    assert compiled.on_response(identity) is answer, identity


TARGETS: dict[str, Callable[[bytes], None]] = {
    "framing": compare_framing,
    "first_bytes": compare_first_bytes,
    "transactions": compare_transactions,
}
