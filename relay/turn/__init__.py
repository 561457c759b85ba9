"""TURN state machines (RFC 8489, RFC 8656): client, server, credentials, transactions. No I/O; ``now`` is an argument.

``now`` is in seconds of any monotonic clock, but for credentials, whose expiry is a Unix time.
"""
