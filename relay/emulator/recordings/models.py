"""What goes over the wire between a client and the recording upload.

That metadata and media are uploaded apart and in any order is documented, and so are the two formats. The rest is ours.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from relay.emulator.apis.models import WHOLE, Name, Time
from relay.emulator.marks import Mark
from relay.emulator.recordings.formats import MediaType

# A day of Opus at 32 kbit/s is 346 MB, so a hoot that is never closed fits in.
MAX_MEDIA_BYTES = 512 << 20
# A hoot has at most 800 subscribers.
MAX_PARTICIPANTS = 800
MAX_PAGE_SIZE = 500

RecordingId = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        examples=["1b4e28ba-2fa1-4d3b-9f2d-5d8f1f5d6c7a"],
        description="a UUID in lower case",
    ),
]


class RecordingState(StrEnum):
    """What a recording lacks. Only those that are whole can be downloaded."""

    WAITING_FOR_METADATA = "waiting_for_metadata"
    WAITING_FOR_MEDIA = "waiting_for_media"
    COMPLETE = "complete"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    mark: ClassVar[Mark] = Mark.INVENTED


class RecordingPath(_Model):
    """The recording in the path."""

    recording_id: RecordingId


class Metadata(_Model):
    """What was recorded, and what its media will be. Documented: it comes apart from the media, before or after it."""

    call_id: RecordingId | None = None
    line: Name
    started_at: Time
    ended_at: Time
    participants: Annotated[list[Name], Field(max_length=MAX_PARTICIPANTS)]
    media_type: MediaType
    media_bytes: Annotated[int, Field(ge=1, le=MAX_MEDIA_BYTES), WHOLE]
    sha256: Annotated[
        str, Field(pattern="^[0-9a-f]{64}$", description="the SHA-256 of the whole media: 64 hex digits in lower case")
    ]


class Recording(_Model):
    """A recording, whole or not yet. ``received_bytes`` of the media are on disk."""

    recording_id: str
    state: RecordingState
    user_id: str
    received_bytes: int
    media_bytes: int | None
    media_type: MediaType | None
    sha256: str | None
    metadata: Metadata | None
    created_at: Time
    completed_at: Time | None


def _digits(value: object) -> object:
    if isinstance(value, int) or (isinstance(value, str) and re.fullmatch("[0-9]{1,4}", value)):
        return value
    raise ValueError("the value is not a whole number")


class ListQuery(_Model):
    """Which recordings to list: a user's own, or all of the firm for its administrators. The newest come first."""

    call_id: RecordingId | None = None
    state: RecordingState | None = None
    page_size: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE), BeforeValidator(_digits)] = 100
    page_token: Annotated[
        str | None,
        Field(pattern=r"^[0-9]{1,12}(\.[0-9]{1,9})?_[!-~]{36}$", description="next_page_token of the answer before"),
    ] = None


class RecordingList(_Model):
    """A page of recordings."""

    recordings: list[Recording]
    next_page_token: str | None
