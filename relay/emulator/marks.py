"""Where our knowledge of an endpoint or a message comes from. Everything that the emulator speaks carries one mark."""

from __future__ import annotations

from enum import StrEnum


class Mark(StrEnum):
    """Documented, observed or invented. ``sentence`` tells a reader what that means."""

    DOCUMENTED = "documented"
    OBSERVED = "observed"
    INVENTED = "invented"

    @property
    def sentence(self) -> str:
        """What the mark means, in one sentence."""
        return _SENTENCES[self]


_SENTENCES = {
    Mark.DOCUMENTED: "A public page of the vendor or of a partner describes it.",
    Mark.OBSERVED: "Public sample code uses it, but no public page describes it.",
    Mark.INVENTED: "Nothing public describes it: this is our own design, and the vendor's cloud will differ.",
}
