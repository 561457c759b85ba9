"""What may be changed of a recording when, and when its media is what its metadata says. Pure."""

from __future__ import annotations

from relay.emulator.http.errors import ApiError, not_found
from relay.emulator.recordings import models
from relay.emulator.recordings.disk import Content
from relay.emulator.store import tables


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
    return not_found(f"You have no recording {recording_id}.", where="path.recording_id")


def total_bytes(row: tables.Recording | None, length: int | None) -> int:
    """How long the media is, as metadata or an upload has said. Raises ApiError if they differ, or none has."""
    known = None if row is None else row.media_bytes
    if known is None and length is None:
        message = "It is not known how long the media is."
        raise ApiError(400, "no_length", message, where="Upload-Length", expected="the bytes of the whole media")
    if known is not None and length is not None and known != length:
        message = f"The media has {known} bytes, as was said before, not {length}."
        raise ApiError(409, "other_length", message, where="Upload-Length", expected=str(known))
    total = length if known is None else known
    assert total is not None
    if not 1 <= total <= models.MAX_MEDIA_BYTES:
        message = f"The media has {total} bytes."
        expected = f"1 to {models.MAX_MEDIA_BYTES} bytes"
        raise ApiError(413, "too_large", message, where="Upload-Length", expected=expected)
    return total


def check_agrees(row: tables.Recording, metadata: models.Metadata) -> None:
    """Whether new metadata agrees with the media that has come, or was announced."""
    announced = row.media_bytes if row.details is None else None
    if (announced is not None and announced != metadata.media_bytes) or row.received_bytes > metadata.media_bytes:
        given = announced or row.received_bytes
        message = f"The media has {given} bytes, as was said before, not {metadata.media_bytes}."
        raise ApiError(409, "other_length", message, where="body.media_bytes", expected=str(given))


def difference(metadata: models.Metadata, content: Content) -> ApiError | None:
    """How the media differs from what its metadata says."""
    if content.size != metadata.media_bytes:
        message, where, expected = f"The media has {content.size} bytes.", "media_bytes", str(metadata.media_bytes)
    elif content.sha256 != metadata.sha256:
        message, where, expected = f"The media's SHA-256 is {content.sha256}.", "sha256", metadata.sha256
    elif content.media_type != metadata.media_type:
        found = content.media_type or "neither Ogg/Opus nor M4A"
        message, where, expected = f"The media's content is {found}.", "media_type", str(metadata.media_type)
    else:
        return None
    return ApiError(422, "other_content", message, where=where, expected=expected)


def is_complete() -> ApiError:
    """409: the recording is whole."""
    return ApiError(409, "complete", "The recording is whole, and is not changed any more.", where="path")


def at_offset(error: ApiError, offset: int) -> ApiError:
    """The same error; it says where to go on."""
    error.headers["Upload-Offset"] = str(offset)
    return error
