"""The error tree, sorted by who must act; each message says what, where, and what was expected."""

from __future__ import annotations


class RelayError(Exception):
    """The root: nothing else is raised on purpose across a module border."""


class OperatorError(RelayError):
    """The operator must act: configuration, certificates, ports. The command line ends with status 2."""


class PeerError(RelayError):
    """A client or server at the other end sent what its protocol does not allow."""


class UpstreamError(RelayError):
    """An upstream does not answer, or refuses."""
