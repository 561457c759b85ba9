"""The error tree, sorted by who must act; each message says what, where, and what was expected."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class RelayError(Exception):
    """The root of all errors that a module raises on purpose for another."""


class OperatorError(RelayError):
    """The operator must act: configuration, certificates, ports. The command line ends with status 2."""


class PeerError(RelayError):
    """The client or server at the other end sent something that its protocol does not allow."""


class UpstreamError(RelayError):
    """An upstream does not answer, or refuses."""


@contextlib.contextmanager
def needing_emulator(command: str) -> Iterator[None]:
    """Import what the extra ``emulator`` installs. Raises OperatorError if a package is missing.

    Modules of our own pass as they are: they are there, or were not built.
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in {"", "relay"}:
            raise
        raise OperatorError(f"{command} needs {package}: install cloud9-relay[emulator]") from None
