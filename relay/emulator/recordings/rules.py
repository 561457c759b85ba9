"""What may be changed of a recording when, and when its media is what its metadata says. Pure."""

from __future__ import annotations

from relay.emulator.http.errors import ApiError, not_found
from relay.emulator.recordings import models
from relay.emulator.recordings.disk import Content
from relay.emulator.store import tables

# What the media type of a file is that is in no known format.
NO_FORMAT = "neither Ogg/Opus nor M4A"


def metadata_of(row: tables.Recording) -> models.Metadata | None:
    """The metadata of a recording, if it has come."""
    return None if row.details is None else models.Metadata.model_validate(row.details)


def state_of(row: tables.Recording) -> models.RecordingState:
    """What a recording lacks."""
    if row.completed_at is not None:
        return models.RecordingState.COMPLETE
    lacks_metadata = row.sha256 is None
    return models.RecordingState.WAITING_FOR_METADATA if lacks_metadata else models.RecordingState.WAITING_FOR_MEDIA


def no_such(recording_id: str) -> ApiError:
    """404: there is no such recording, or it is not theirs, which is the same for who asks."""
    expected = "a recording_id of GET /recordings/v1"
    return not_found(f"You have no recording {recording_id}.", where="path.recording_id", expected=expected)


def total_bytes(row: tables.Recording | None, length: int | None) -> int:
    """How long the media is, as metadata or an upload has said. Raises ApiError if they differ, or none has."""
    known = None if row is None else row.media_bytes
    if known is None and length is None:
        message = "It is not known how long the media is."
        raise ApiError(
            400,
            "no_length",
            message,
            where="Upload-Length",
            expected=f"the bytes of the whole media, from 1 to {models.MAX_MEDIA_BYTES}",
        )
    if known is not None and length is not None and known != length:
        message = f"The media has {known} bytes, as was said before, not {length}."
        raise ApiError(409, "other_length", message, where="Upload-Length", expected=str(known))
    total = length if known is None else known
    assert total is not None
    if not 1 <= total <= models.MAX_MEDIA_BYTES:
        message = f"The media has {total} bytes."
        expected = f"from 1 to {models.MAX_MEDIA_BYTES} bytes"
        raise ApiError(413, "too_large", message, where="Upload-Length", expected=expected)
    return total


def check_agrees(row: tables.Recording, metadata: models.Metadata) -> None:
    """Whether new metadata agrees with the media that has come, or was announced."""
    announced = row.media_bytes if row.details is None else None
    if (announced is not None and announced != metadata.media_bytes) or row.received_bytes > metadata.media_bytes:
        given = announced or row.received_bytes
        message = f"The media has {given} bytes, as was said before, not {metadata.media_bytes}."
        raise ApiError(409, "other_length", message, where="body.media_bytes", expected=str(given))


def wrong_metadata(metadata: models.Metadata, content: Content) -> ApiError | None:
    """What is wrong with metadata whose media has come already."""
    if (found := _difference(metadata, content)) is None:
        return None
    name, has, _ = found
    right = "" if has == NO_FORMAT else f"{has}, or "
    expected = f"{right}other media: DELETE the recording, and begin again"
    return ApiError(422, "other_content", _differs(name, has), where=f"body.{name}", expected=expected)


def wrong_media(metadata: models.Metadata, content: Content) -> ApiError | None:
    """What is wrong with media whose metadata has come already."""
    if (found := _difference(metadata, content)) is None:
        return None
    name, has, wanted = found
    expected = f"media with the {name} {wanted}, as its metadata says"
    return ApiError(422, "other_content", _differs(name, has), where="body", expected=expected)


def _difference(metadata: models.Metadata, content: Content) -> tuple[str, str, str] | None:
    """The first field that differs, what the media has, and what its metadata says."""
    if content.size != metadata.media_bytes:
        return "media_bytes", str(content.size), str(metadata.media_bytes)
    if content.sha256 != metadata.sha256:
        return "sha256", content.sha256, metadata.sha256
    if content.media_type != metadata.media_type:
        return "media_type", content.media_type or NO_FORMAT, str(metadata.media_type)
    return None


def _differs(name: str, has: str) -> str:
    return f"The media's {name} is {has}, which is not what its metadata says."


def is_complete() -> ApiError:
    """409: the recording is whole."""
    expected = "a recording_id of your own that is new"
    return ApiError(409, "complete", "The recording is whole, and nothing changes it.", where="path", expected=expected)


def changed_meanwhile() -> ApiError:
    """409: another process has changed the recording, or has begun it."""
    message = "Another request has changed this recording meanwhile."
    expected = "one request at a time; HEAD says how much of the media is there"
    return ApiError(409, "changed", message, where="path", expected=expected)


def at_offset(error: ApiError, offset: int) -> ApiError:
    """The same error; it says where to go on."""
    error.headers["Upload-Offset"] = str(offset)
    return error
