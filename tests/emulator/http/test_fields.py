"""What a client is told of a wrong field: always what to send instead, and never the name of one of our classes."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from relay.emulator.apis.audit import AuditRequest
from relay.emulator.apis.call_data import TranscriptionsRequest
from relay.emulator.apis.cti.messages import FROM_CLIENT as FROM_PROGRAMS
from relay.emulator.apis.management import UsersRequest
from relay.emulator.faults.kinds import FaultSetting
from relay.emulator.http.errors import ApiError, from_validation
from relay.emulator.http.fields import MAX_SHOWN
from relay.emulator.login.models import LoginRequest
from relay.emulator.recordings.models import ListQuery, Metadata, RecordingPath
from relay.emulator.signaling.messages import FROM_CLIENT as FROM_SOFTPHONES
from relay.emulator.signaling.parsing import parse
from relay.emulator.signaling.state import Refusal
from tests.support.benches.cloud import running_cloud

METADATA = {
    "line": "sPK-10000001-100001",
    "started_at": "2026-11-27T09:00:00Z",
    "ended_at": "2026-11-27T09:00:10Z",
    "participants": ["anna"],
    "media_type": "audio/ogg",
    "media_bytes": 5000,
    "sha256": "0" * 64,
}
LOGIN = {"user": "anna", "password": "trader"}
NAME = "a name of 1 to 64 printable ASCII characters, without spaces"
FIELDS = "user, password, client_version (optional)"
TIME = "a time in RFC 3339, such as 2026-11-27T09:00:00Z"


def refused(model: type[BaseModel], given: object) -> ApiError:
    with pytest.raises(ValidationError) as invalid:
        model.model_validate(given)
    return from_validation(invalid.value, "body", model)


@pytest.mark.parametrize(
    ("model", "given", "message", "where", "expected"),
    [
        (LoginRequest, [], "The value has the wrong type.", "body", f"a JSON object with {FIELDS}"),
        (LoginRequest, "x", "The value has the wrong type (got 'x').", "body", f"a JSON object with {FIELDS}"),
        (
            LoginRequest,
            {"user": "anna"},
            "The field is missing.",
            "body.password",
            "a text of 1 to 128 characters",
        ),
        (LoginRequest, {**LOGIN, "colour": 1}, "There is no such field (got '1').", "body.colour", FIELDS),
        (
            LoginRequest,
            {**LOGIN, "client_version": "\n"},
            "The value does not have the right form (got '\\n').",
            "body.client_version",
            "at most 64 printable ASCII characters",
        ),
        (
            UsersRequest,
            {"pageSize": 0},
            "The value is too small (got '0').",
            "body.pageSize",
            "a whole number, at least 1 and at most 1000",
        ),
        (
            UsersRequest,
            {"pageSize": "10"},
            "The value is not a whole number (got '10').",
            "body.pageSize",
            "a whole number, at least 1 and at most 1000",
        ),
        (
            UsersRequest,
            {"userIds": "anna"},
            "The value has the wrong type (got 'anna').",
            "body.userIds",
            f"a list of at most 1000; each of its values is {NAME}",
        ),
        (
            UsersRequest,
            {"userIds": ["a b"]},
            "The value does not have the right form (got 'a b').",
            "body.userIds.0",
            NAME,
        ),
        (
            AuditRequest,
            {"pageToken": "junk"},
            "The value does not have the right form (got 'junk').",
            "body.pageToken",
            "nextPageToken of the answer before",
        ),
        (
            TranscriptionsRequest,
            {"beginDate": "now", "endDate": "2026-11-27T09:00:00Z"},
            "The value is not a time in RFC 3339 (got 'now').",
            "body.beginDate",
            TIME,
        ),
        (TranscriptionsRequest, {}, "The field is missing.", "body.beginDate", TIME),
        (
            TranscriptionsRequest,
            {"beginDate": TIME[-20:], "endDate": TIME[-20:], "region": "mars"},
            "The value is not one of those that can be given (got 'mars').",
            "body.region",
            "one of use1, euc1, apse1, apse2",
        ),
        (
            Metadata,
            {**METADATA, "media_type": "audio/wav"},
            "The value is not one of those that can be given (got 'audio/wav').",
            "body.media_type",
            "one of audio/ogg, audio/mp4",
        ),
        (
            Metadata,
            {**METADATA, "media_bytes": 1 << 40},
            f"The value is too large (got '{1 << 40}').",
            "body.media_bytes",
            "a whole number, at least 1 and at most 536870912",
        ),
        (RecordingPath, {"recording_id": "X"}, None, "body.recording_id", "a UUID in lower case"),
        (ListQuery, {"state": "half"}, None, "body.state", "one of waiting_for_metadata, waiting_for_media, complete"),
        (FaultSetting, {"percent": 0}, None, "body.percent", "a number, more than 0 and at most 100"),
    ],
)
def test_what_was_expected_is_told(
    model: type[BaseModel], given: object, message: str | None, where: str, expected: str
) -> None:
    detail = refused(model, given).detail
    assert (detail.message, detail.where, detail.expected) == (message or detail.message, where, expected)


def test_further_mistakes_have_it_too() -> None:
    error = refused(LoginRequest, {})
    assert [each.expected for each in error.also] == ["a text of 1 to 128 characters"]


def test_a_password_and_a_long_value_are_not_shown() -> None:
    assert "hunter2" not in refused(LoginRequest, {**LOGIN, "password": ["hunter2"]}).detail.message
    assert "hunter2" not in refused(LoginRequest, {**LOGIN, "password": "hunter2" * 100}).detail.message
    assert len(refused(LoginRequest, {**LOGIN, "user": "x" * 10_000}).detail.message) < 2 * MAX_SHOWN
    assert len(refused(LoginRequest, {**LOGIN, "x" * 10_000: 1}).detail.where) <= MAX_SHOWN


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
MODELS: list[type[BaseModel]] = [LoginRequest, UsersRequest, TranscriptionsRequest, Metadata, FaultSetting]


@given(st.sampled_from(MODELS), st.data())
def test_whatever_is_wrong_is_told_in_plain_english(model: type[BaseModel], data: st.DataObject) -> None:
    names = [field.alias or name for name, field in model.model_fields.items()]
    given = data.draw(JUNK | st.dictionaries(st.sampled_from(names), JUNK, max_size=4))
    try:
        model.model_validate(given)
    except ValidationError as invalid:
        error = from_validation(invalid, "body", model)
        for detail in (error.detail, *error.also):
            assert detail.message.endswith(".")
            assert detail.expected
            assert not {"Input", model.__name__, "^"} & set(f"{detail.message} {detail.expected}".split())


def patterns_without_words(schema: Any) -> Iterator[Any]:
    """The parts of a schema that have a pattern, and no description at their field or beside them."""
    if isinstance(schema, dict):
        if "pattern" in schema and "description" not in schema:
            yield schema
        for value in schema.values():
            yield from patterns_without_words(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from patterns_without_words(value)


async def test_each_pattern_that_a_client_meets_is_put_in_words(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        endpoints = client.cloud.site.endpoints
    asked = {model for each in endpoints for model in (each.body, each.query, each.path_model) if model is not None}
    for model in (*asked, *FROM_PROGRAMS.values(), *FROM_SOFTPHONES):
        schema = model.model_json_schema()
        # Of a field that may be left out, the words stand beside the choices.
        for field in schema.get("properties", {}).values():
            if "description" in field:
                field.pop("anyOf", None)
        assert list(patterns_without_words(schema)) == []


@pytest.mark.parametrize(
    ("event", "payload", "message", "expected"),
    [
        ("line.ring", {}, "line: The field is missing.", "line.ring with line, number (optional)"),
        (
            "line.ring",
            {"line": "x"},
            "line: The value does not have the right form (got 'x').",
            "line: a line's number, such as sPK-10000001-100001",
        ),
        ("line.ring", "x", "The value has the wrong type (got 'x').", "line.ring with line, number (optional)"),
        (
            "presence.set",
            {"state": "asleep"},
            "state: The value is not one of those that can be given (got 'asleep').",
            "state: one of available, busy, away, do_not_disturb",
        ),
    ],
)
def test_signaling_tells_it_too(event: str, payload: object, message: str, expected: str) -> None:
    with pytest.raises(Refusal) as refusal:
        parse(event, payload)
    assert (refusal.value.info.message, refusal.value.info.expected) == (message, expected)


def test_the_example_of_a_time_is_one() -> None:
    assert datetime.datetime.fromisoformat(TIME[-20:])
