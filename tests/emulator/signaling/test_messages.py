"""Messages: bounded, frozen, marked; what is too long or unknown is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from relay.emulator.marks import Mark
from relay.emulator.signaling import messages
from relay.emulator.signaling.messages import (
    FROM_CLIENT,
    FROM_SERVER,
    MAX_CANDIDATE_BYTES,
    MAX_SDP_BYTES,
    Event,
    LineRing,
    LineTalk,
    MediaDescription,
    SendCandidate,
    SendDescription,
)

LINE = "sPK-12345678-987654"
CALL = "0b0fa6b2-7f0b-4a7b-9d3c-2f6b1c9f7a10"


def test_each_message_has_a_name_a_mark_and_a_place_in_the_lists() -> None:
    listed = {*FROM_SERVER, *FROM_CLIENT}
    named = {
        value
        for value in vars(messages).values()
        if isinstance(value, type) and issubclass(value, Event) and "event" in vars(value)
    }
    assert named == listed
    assert {message.mark for message in listed} == {Mark.INVENTED}
    for direction in (FROM_SERVER, tuple(FROM_CLIENT)):
        names = [message.event for message in direction]
        assert len(set(names)) == len(names)


def test_marks_tell_what_they_mean() -> None:
    assert len({mark.sentence for mark in Mark}) == 3


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (LineRing, {}),
        (LineRing, {"line": "PK-1-1"}),
        (LineRing, {"line": LINE + "0" * 12}),
        (LineRing, {"line": LINE + "\n"}),
        (LineRing, {"line": LINE, "number": "call me"}),
        (LineRing, {"line": LINE, "number": "1" * 33}),
        (LineRing, {"line": LINE, "extra": 1}),
        (LineTalk, {"line": LINE, "on": "yes"}),
        (SendDescription, {"call_id": CALL, "to": "anna", "type": "offer", "sdp": "x" * (MAX_SDP_BYTES + 1)}),
        # Half as many characters, but too many bytes.
        (SendDescription, {"call_id": CALL, "to": "anna", "type": "offer", "sdp": "é" * (MAX_SDP_BYTES // 2 + 1)}),
        (SendDescription, {"call_id": CALL, "to": "anna", "type": "rollback", "sdp": "v=0"}),
        (SendDescription, {"call_id": CALL.upper(), "to": "anna", "type": "offer", "sdp": "v=0"}),
        (SendCandidate, {"call_id": CALL, "to": "", "candidate": ""}),
        (SendCandidate, {"call_id": CALL, "to": "anna", "candidate": "x" * (MAX_CANDIDATE_BYTES + 1)}),
    ],
)
def test_bad_fields_are_refused(message: type[Event], fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        message.model_validate(fields)


def test_the_longest_description_passes() -> None:
    fields = {"call_id": CALL, "to": "anna", "type": "offer", "sdp": "x" * MAX_SDP_BYTES}
    assert SendDescription.model_validate(fields).sdp == fields["sdp"]


def test_messages_are_frozen() -> None:
    message = LineRing(line=LINE)
    with pytest.raises(ValidationError):
        message.line = "sPK-1-1"


def test_from_is_a_word_of_python_but_also_of_the_wire() -> None:
    said = {"call_id": CALL, "from": "anna", "type": "offer", "sdp": "v=0"}
    message = MediaDescription.model_validate(said)
    assert message.from_user == "anna"
    assert message.model_dump(mode="json", by_alias=True) == said
