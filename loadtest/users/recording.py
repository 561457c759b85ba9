"""RecordingUser: uploads recordings as clients do, and fetches each again to compare it."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
import uuid
from datetime import UTC, datetime

from loadtest.users.measuring import MEASURES
from loadtest.users.phones import opened_phone, phone_loop
from loadtest.users.targeted import TargetUser
from relay.emulator.softphone import Softphone
from relay.emulator.softphone.ogg import build_recording
from relay.emulator.softphone.recorder import Recording

RECORDING = "recording"
PACKETS_PER_SECOND = 50


class Altered(Exception):
    """A recording came back other than it was sent."""

    cause_text = "the recording differs from what was sent"


class RecordingUser(TargetUser):
    """One client with recordings. ``record`` uploads and fetches one of this many seconds."""

    abstract = True
    needs_cloud = True
    _phone: Softphone | None = None

    def on_stop(self) -> None:
        """Log out."""
        phone, self._phone = self._phone, None
        if phone is not None:
            phone_loop().do(phone.close())

    def record(self, seconds: float) -> None:
        """Upload a recording, and fetch it. Raises SoftphoneError or Altered, which are counted."""
        phone, loop = self._signed_in(), phone_loop()
        made = make_recording(phone.user_id, seconds)
        with MEASURES.timed(self.environment, RECORDING, "upload"):
            loop.do(phone.upload(made))
        with MEASURES.timed(self.environment, RECORDING, "fetch"):
            media = loop.do(phone.fetch_recording(made.recording_id))
            if hashlib.sha256(media).hexdigest() != made.sha256:
                raise Altered

    def _signed_in(self) -> Softphone:
        if self._phone is None:
            with MEASURES.timed(self.environment, RECORDING, "sign-in"):
                self._phone = phone_loop().do(opened_phone(self.to, self.number, ("websocket",)))
        return self._phone


def make_recording(user_id: str, seconds: float) -> Recording:
    """A recording of this length, other than all others."""
    activity = os.urandom(max(1, round(seconds * PACKETS_PER_SECOND))).translate(bytes(at & 3 for at in range(256)))
    media = build_recording(activity, {}, secrets.randbits(31))
    return Recording(
        recording_id=str(uuid.uuid4()),
        call_id=str(uuid.uuid4()),
        user_id=user_id,
        line="sPK-20000001-000000",
        participants=(user_id,),
        started_at=datetime.fromtimestamp(time.time() - seconds, UTC),
        duration_s=seconds,
        media=media,
        sha256=hashlib.sha256(media).hexdigest(),
    )
