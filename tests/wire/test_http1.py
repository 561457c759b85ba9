"""Answers of HTTP/1.1: heads byte by byte, and bodies cut at every place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.http1 import (
    MAX_ANSWER_HEAD_BYTES,
    AnswerError,
    AnswerHead,
    Body,
    body_of,
    build_head,
    parse_answer_head,
)

HEAD = b"HTTP/1.1 200 Alles gut \xfc\r\nX-Name: r\xe9sum\xe9\r\nx-empty:\r\nX-Spaces : \t a  b \t\r\n\r\n"
FIELDS = [(b"X-Name", b"r\xe9sum\xe9"), (b"x-empty", b""), (b"X-Spaces", b"a  b")]


def test_head_is_kept_as_it_came() -> None:
    found = parse_answer_head(HEAD + b"body")
    assert found == ((1, 200, b"Alles gut \xfc", FIELDS), len(HEAD))
    for end in range(len(HEAD)):
        assert parse_answer_head(HEAD[:end]) is None
    again = build_head(b"HTTP/1.1 200 Alles gut \xfc", found[0].fields)
    assert parse_answer_head(again) == (found[0], len(again))


@pytest.mark.parametrize(
    ("data", "head"),
    [
        (b"HTTP/1.0 404\r\n\r\n", AnswerHead(0, 404, b"", [])),
        (b"HTTP/2.0 200 OK\r\n\r\n", AnswerHead(1, 200, b"OK", [])),
        (b"HTTP/1.1 200 \r\n\r\n", AnswerHead(1, 200, b"", [])),
        (b"HTTP/1.1 200 OK\nA: b\n\n", AnswerHead(1, 200, b"OK", [(b"A", b"b")])),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n  c\r\n\td\r\n\r\n", AnswerHead(1, 200, b"OK", [(b"A", b"b    c   d")])),
        (b"HTTP/1.1 200 OK\r\nA: \x01\x7f\r\n\r\n", AnswerHead(1, 200, b"OK", [(b"A", b"\x01\x7f")])),
    ],
)
def test_heads(data: bytes, head: AnswerHead) -> None:
    assert parse_answer_head(data) == (head, len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/10.1 200 OK\r\n\r\n",
        b"HTTP/1.1  200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 O\rK\r\n\r\n",
        b"HTTP/1.1 200 O\x00K\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"X",
        b"HTTP/1.1 200 OK\r\n folded: first\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\rd\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n\tc\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_ANSWER_HEAD_BYTES,
    ],
)
def test_what_is_no_head(data: bytes) -> None:
    with pytest.raises(AnswerError):
        parse_answer_head(data)


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"a\0b", b"a\rb"])
def test_nothing_that_begins_another_line_is_built(value: bytes) -> None:
    for first, fields in ((b"GET / HTTP/1.1", [(b"A", value)]), (value, []), (b"x", [(value, b"")])):
        with pytest.raises(ValueError, match="line break"):
            build_head(first, fields)


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (AnswerHead(1, 200, b"", []), True),
        (AnswerHead(1, 200, b"", [(b"Connection", b"x, Close")]), False),
        (AnswerHead(0, 200, b"", []), False),
        (AnswerHead(0, 200, b"", [(b"connection", b"Keep-Alive")]), True),
        (AnswerHead(0, 200, b"", [(b"Connection", b"keep-alive"), (b"Connection", b"close")]), False),
    ],
)
def test_what_keeps_its_connection(head: AnswerHead, keeps: bool) -> None:
    assert head.keeps_alive is keeps


# Bodies


def answer(*fields: tuple[bytes, bytes], status: int = 200) -> AnswerHead:
    return AnswerHead(1, status, b"", fields)


def fed(body: Body, *pieces: bytes) -> bytes:
    return b"".join(body.feed(piece) for piece in pieces)


CHUNKED = b"3\r\none\r\n0003;a=b \t\r\ntwo\r\nC\r\n three and..\r\n00\r\nX: 1\r\nY: \xe9\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "data", "payload", "trailers"),
    [
        (answer((b"Content-Length", b"5")), b"12345", b"12345", ()),
        (answer((b"Content-Length", b"5, 5"), (b"content-length", b"5")), b"12345", b"12345", ()),
        (answer((b"Content-Length", b"0")), b"", b"", ()),
        (answer((b"Transfer-Encoding", b"Chunked")), CHUNKED, b"onetwo three and..", [(b"X", b"1"), (b"Y", b"\xe9")]),
        (answer((b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"9")), b"1\r\na\r\n0\r\n\r\n", b"a", ()),
    ],
    ids=["length", "same length again", "nothing", "chunks", "chunks and a length"],
)
def test_bodies(head: AnswerHead, data: bytes, payload: bytes, trailers: object) -> None:
    behind = b"HTTP/1.1 200"
    whole = body_of(head, "GET")
    assert fed(whole, data + behind) == payload
    one_by_one = body_of(head, "GET")
    assert fed(one_by_one, *(data[place : place + 1] for place in range(len(data)))) == payload
    for body in (whole, one_by_one):
        assert body.done
        assert body.trailers == trailers
        body.end()
    assert whole.rest == behind
    for end in range(len(data)):
        cut = body_of(head, "GET")
        assert payload.startswith(fed(cut, data[:end]))
        assert not cut.done
        with pytest.raises(AnswerError, match="within its answer"):
            cut.end()


def test_body_to_the_end_of_the_connection() -> None:
    body = body_of(answer(), "GET")
    assert body.ends_with_the_connection
    assert fed(body, b"one", b"two") == b"onetwo"
    assert not body.done
    body.end()
    assert body.done


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_answers_without_a_body(method: str, status: int) -> None:
    for field in ((b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")):
        assert body_of(answer(field, status=status), method).done


@pytest.mark.parametrize(
    "field",
    [
        (b"Content-Length", b"1, 2"),
        (b"Content-Length", b"-1"),
        (b"Content-Length", b"+1"),
        (b"Content-Length", b""),
        (b"Content-Length", b"9" * 19),
        (b"Transfer-Encoding", b"gzip, chunked"),
        (b"Transfer-Encoding", b"chunked, chunked"),
        (b"Transfer-Encoding", b"identity"),
    ],
)
def test_framing_that_two_would_read_differently(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(AnswerError):
        body_of(answer(field), "GET")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"0x1\r\n",
        b"1_0\r\n",
        b" 1\r\n",
        b"1\ra\r\n",
        b"1" * 16 + b"\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n1\r\n",
        b"1;" + b"a" * 5000,
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n" + b"A: " + b"b" * 5000,
        b"0\r\n" + b"A: bbbbbbbbbbbbbbbbbbbbbbbbbb\r\n" * 1000,
    ],
)
def test_what_are_no_chunks(data: bytes) -> None:
    with pytest.raises(AnswerError):
        fed(body_of(answer((b"Transfer-Encoding", b"chunked")), "GET"), data)


@given(st.binary(max_size=200), st.integers(1, 7))
def test_any_bytes_are_a_head_or_refused(data: bytes, step: int) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n"):
        try:
            found = parse_answer_head(start + data)
        except AnswerError:
            continue
        if found is not None:
            assert parse_answer_head(build_head(b"HTTP/1.1 200 " + found[0].reason, found[0].fields)) is not None


@given(st.lists(st.sampled_from([b"1", b"0", b"a", b"\r", b"\n", b"\r\n", b";", b": ", b"X", b" "]), max_size=30))
def test_any_bytes_are_chunks_or_refused_however_they_are_cut(parts: list[bytes]) -> None:
    def outcome(pieces: list[bytes]) -> tuple[object, ...]:
        body, payload = body_of(answer((b"Transfer-Encoding", b"chunked")), "GET"), b""
        try:
            for piece in pieces:
                if body.done:
                    body.rest += piece
                else:
                    payload += body.feed(piece)
        except AnswerError:
            return ("refused",)
        return body.done, payload, body.rest, list(body.trailers)

    data = b"".join(parts)
    assert outcome([data]) == outcome([data[place : place + 1] for place in range(len(data))])
