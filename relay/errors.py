"""The error tree, sorted by who must act; each message says what, where, and what was expected."""

from __future__ import annotations


class RelayError(Exception):
    """The root of all errors that a module raises on purpose for another."""


class OperatorError(RelayError):
    """The operator must act: configuration, certificates, ports. The command line ends with status 2."""


class PeerError(RelayError):
    """The client or server at the other end sent something that its protocol does not allow."""


class UpstreamError(RelayError):
    """An upstream does not answer, or refuses."""
