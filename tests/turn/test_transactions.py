"""Retransmission over UDP, second by second (RFC 8489 section 6.2.1)."""

from __future__ import annotations

import pytest

from relay.turn.transactions import (
    MAX_ANSWERED,
    MAX_PENDING,
    MAX_PENDING_BYTES,
    MAX_REQUEST_BYTES,
    Answer,
    Transactions,
)


def run(transactions: Transactions, until: float) -> tuple[list[tuple[float, bytes]], list[tuple[float, bytes]]]:
    """Keep every deadline: (when, message) of what is sent again, and (when, id) of what has failed."""
    again: list[tuple[float, bytes]] = []
    ended: list[tuple[float, bytes]] = []
    while (deadline := transactions.next_deadline()) is not None and deadline <= until:
        messages, ids = transactions.on_deadline(deadline)
        again += [(deadline, message) for message in messages]
        ended += [(deadline, transaction_id) for transaction_id in ids]
    return again, ended


def test_section_6_2_1_the_schedule_of_the_rfc() -> None:
    """Sent at 0, 500, 1500, 3500, 7500, 15500 and 31500 ms, given up at 39500 ms."""
    transactions = Transactions()
    transactions.on_request(0.0, b"id", b"request")
    again, ended = run(transactions, 1000.0)
    assert again == [(when, b"request") for when in (0.5, 1.5, 3.5, 7.5, 15.5, 31.5)]
    assert ended == [(39.5, b"id")]
    assert len(transactions) == 0
    assert transactions.next_deadline() is None


def test_section_6_2_1_another_rto_scales_the_schedule() -> None:
    transactions = Transactions(rto_s=0.125)
    transactions.on_request(100.0, b"id", b"request")
    again, ended = run(transactions, 1000.0)
    assert [when - 100 for when, _ in again] == [0.125, 0.375, 0.875, 1.875, 3.875, 7.875]
    assert ended == [(100 + 9.875, b"id")]


def test_nothing_is_sent_before_its_time() -> None:
    transactions = Transactions()
    transactions.on_request(0.0, b"id", b"request")
    assert transactions.on_deadline(0.499) == ([], [])
    assert transactions.on_deadline(0.5) == ([b"request"], [])
    assert transactions.on_deadline(0.5) == ([], [])


def test_a_late_timer_sends_once_and_goes_on_from_there() -> None:
    transactions = Transactions()
    transactions.on_request(0.0, b"id", b"request")
    assert transactions.on_deadline(20.0) == ([b"request"], [])
    assert transactions.next_deadline() == 21.0


def test_a_response_ends_it_and_its_copies_are_known() -> None:
    transactions = Transactions()
    transactions.on_request(0.0, b"id", b"request")
    assert transactions.request(b"id") == b"request"
    assert transactions.on_response(b"id") is Answer.FIRST
    assert transactions.on_response(b"id") is Answer.DUPLICATE
    assert transactions.on_response(b"other") is Answer.UNKNOWN
    assert transactions.request(b"id") is None
    assert run(transactions, 100.0) == ([], [])


def test_an_answer_after_the_end_is_unknown() -> None:
    transactions = Transactions()
    transactions.on_request(0.0, b"id", b"request")
    run(transactions, 39.5)
    assert transactions.on_response(b"id") is Answer.UNKNOWN


def test_a_copy_that_the_requester_sends_changes_nothing() -> None:
    transactions = Transactions()
    transactions.on_request(0.0, b"id", b"request")
    transactions.on_request(0.4, b"id", b"changed")
    assert transactions.next_deadline() == 0.5
    assert transactions.request(b"id") == b"request"


def test_an_id_may_be_used_again_after_its_answer() -> None:
    transactions = Transactions()
    transactions.on_request(0.0, b"id", b"request")
    transactions.on_response(b"id")
    transactions.on_request(1.0, b"id", b"request")
    assert transactions.on_response(b"id") is Answer.FIRST


def test_waiting_since_is_when_the_oldest_was_first_sent() -> None:
    transactions = Transactions()
    seen = [transactions.waiting_since]
    transactions.on_request(0.5, b"0", b"\0\1 a Binding, which a server may ignore")
    seen.append(transactions.waiting_since)
    transactions.on_request(1.0, b"a", b"\0\3 Allocate")
    transactions.on_request(2.0, b"b", b"\0\4 Refresh")
    transactions.on_deadline(5.0)
    seen.append(transactions.waiting_since)
    transactions.on_response(b"a")
    seen.append(transactions.waiting_since)
    transactions.on_response(b"b")
    seen.append(transactions.waiting_since)
    assert seen == [None, None, 1.0, 2.0, None]


@pytest.mark.parametrize("kind", range(0x12))
def test_only_what_every_server_answers_tells_of_silence(kind: int) -> None:
    """Allocate, Refresh, CreatePermission and ChannelBind (RFC 8656 section 18.1); no Binding, nothing unknown."""
    transactions = Transactions()
    transactions.on_request(1.0, b"id", kind.to_bytes(2) + b" request")
    assert transactions.waiting_since == (1.0 if kind in {3, 4, 8, 9} else None)
    assert transactions.first_sent(b"id") == 1.0
    assert transactions.first_sent(b"other") is None


def test_two_requests_keep_their_own_time() -> None:
    transactions = Transactions()
    transactions.on_request(0.0, b"a", b"request a")
    transactions.on_request(0.2, b"b", b"request b")
    again, _ = run(transactions, 1.8)
    assert [(round(when, 3), message) for when, message in again] == [
        (0.5, b"request a"),
        (0.7, b"request b"),
        (1.5, b"request a"),
        (1.7, b"request b"),
    ]


def test_beyond_the_bound_the_oldest_is_let_go() -> None:
    transactions = Transactions()
    for number in range(MAX_PENDING + 1):
        transactions.on_request(0.0, number.to_bytes(2), b"request")
    assert len(transactions) == MAX_PENDING == 32
    assert transactions.on_response((0).to_bytes(2)) is Answer.UNKNOWN
    assert transactions.on_response((1).to_bytes(2)) is Answer.FIRST


def test_of_the_answered_the_latest_are_remembered() -> None:
    transactions = Transactions()
    for number in range(MAX_ANSWERED + 1):
        transactions.on_request(0.0, number.to_bytes(2), b"request")
        transactions.on_response(number.to_bytes(2))
    assert transactions.on_response((0).to_bytes(2)) is Answer.UNKNOWN
    assert transactions.on_response((1).to_bytes(2)) is Answer.DUPLICATE


@pytest.mark.parametrize(("size", "kept"), [(MAX_REQUEST_BYTES, True), (MAX_REQUEST_BYTES + 1, False)])
def test_a_request_longer_than_a_datagram_is_not_sent_again(size: int, kept: bool) -> None:
    transactions = Transactions()
    transactions.on_request(0.0, b"id", bytes(size))
    assert (transactions.request(b"id") is not None) is kept


def test_beyond_the_bound_of_bytes_the_oldest_are_let_go() -> None:
    transactions = Transactions()
    for identity in (b"a", b"b", b"c"):
        transactions.on_request(0.0, identity, bytes(MAX_PENDING_BYTES // 3))
    transactions.on_request(0.0, b"d", bytes(MAX_PENDING_BYTES // 3 + 2))
    kept = [identity for identity in (b"a", b"b", b"c", b"d") if transactions.request(identity) is not None]
    assert kept == [b"c", b"d"]
    transactions.on_request(0.0, b"e", bytes(MAX_REQUEST_BYTES))
    assert len(transactions) == 1
    assert transactions.on_response(b"e") is Answer.FIRST
    # What has been answered or has ended makes room.
    for number in range(3 * MAX_PENDING):
        transactions.on_request(0.0, number.to_bytes(2), bytes(1500))
        assert transactions.on_response(number.to_bytes(2)) is Answer.FIRST
    transactions.on_request(0.0, b"f", bytes(MAX_REQUEST_BYTES))
    run(transactions, 100.0)
    transactions.on_request(100.0, b"g", bytes(100))
    transactions.on_request(100.0, b"h", bytes(MAX_PENDING_BYTES - 100))
    assert len(transactions) == 2


def test_whoever_must_lose_none_has_room_for_all() -> None:
    transactions = Transactions(max_bytes=10 * MAX_REQUEST_BYTES)
    for number in range(10):
        transactions.on_request(0.0, number.to_bytes(2), bytes(MAX_REQUEST_BYTES))
    assert len(transactions) == 10
