"""What a relay says of itself, as JSON in Redis. What others say is read with care: they may be of another version."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from relay.logs import printable

# A record has some 200 bytes. More than this is not one, and is not read.
MAX_RECORD_BYTES = 1024
MAX_TEXT_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class RelayRecord:
    """A relay that is up. ``address`` is where its clients connect."""

    id: str
    name: str
    address: str
    version: str
    draining: bool

    def dump(self) -> bytes:
        """As it is written, without the id, which is in the key."""
        fields = {"name": self.name, "address": self.address, "version": self.version, "draining": self.draining}
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def load(cls, identity: str, raw: bytes) -> RelayRecord:
        """As another relay has written it. What is missing, or is not a text, is empty."""
        try:
            fields = json.loads(raw)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            fields = {}

        def text(key: str) -> str:
            value = fields.get(key)
            return printable(value)[:MAX_TEXT_CHARACTERS] if isinstance(value, str) else ""

        known = cls(printable(identity)[:MAX_TEXT_CHARACTERS], text("name"), text("address"), text("version"), False)
        return replace(known, draining=fields.get("draining") is True)
