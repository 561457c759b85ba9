"""Codecs: bytes to values and back, without sockets, clocks or logs.

Each gives a value, "need more", or one documented error.
"""
