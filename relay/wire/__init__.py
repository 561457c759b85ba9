"""Codecs: bytes to values and back. No socket, no clock, no log; a value, "need more", or one documented error."""
