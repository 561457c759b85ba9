"""At which step a connection has failed, from the exception that the client raised."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from relay.client.connect import ProxyError
from relay.doctor.seen import Failure, Step
from relay.logs import printable
from relay.wire.upgrade import UpgradeError


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes, the outermost first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def failure_of(error: BaseException, last: Step = Step.TLS) -> Failure:
    """The step, and its words. ``last`` is the step of an error that does not say which: the last that was tried."""
    chain = list(chain_of(error))
    for one in chain:
        if isinstance(one, ProxyError):
            return Failure(Step.PROXY, _text(one), one.status, one.logins)
        if isinstance(one, UpgradeError):
            return Failure(Step.UPGRADE, _text(error), one.status)
        if isinstance(one, ssl.SSLError):
            return Failure(Step.TLS, _text(one))
        if isinstance(one, socket.gaierror):
            return Failure(Step.NAME, _text(one))
        if isinstance(one, ConnectionRefusedError):
            return Failure(Step.TCP, _text(one))
    # TCP is tested alone before. So a connection that ends, or stays silent, does so later.
    return Failure(last, _text(chain[0]))


def _text(error: BaseException) -> str:
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join((told or type(error).__name__).split()))
