"""TLS of the reference plane: contexts chosen by server name, and one session between two memory buffers."""

from __future__ import annotations

import contextlib
import datetime
import ssl
import sys
from collections.abc import Iterator, Sequence

from relay.errors import PeerError
from relay.name_patterns import one_label_wildcard
from relay.plane.certificates import (
    ALPN_PROTOCOLS,
    HANDSHAKE_FAILURES,
    HandshakeFailure,
    ServerCertificate,
    load_certificate,
    new_context,
    refusal_of,
    trust_clients,
)
from relay.plane.client_certificates import ClientAuthorities, ClientCertificates, has_ended, name_of
from relay.plane.reference.hello import (
    MAX_CLIENT_CHAIN_BYTES,
    MAX_HANDSHAKE_RECORDS,
    MAX_SILENT_RECORDS,
    ChainTooLong,
    Hello,
    HelloFault,
    RecordCutter,
    SilentRecords,
)
from relay.wire.client_hello import ClientHello, parse_client_hello

_READ_BYTES = 16 * 1024
# What a client may say after its ClientHello where it is asked for a certificate. Python cannot give OpenSSL a bound
# for the chain, and its own is 100 KB. There are also a signature, keys, and perhaps a second hello.
_MAX_REST_BYTES = MAX_CLIENT_CHAIN_BYTES + 8 * 1024
# RFC 7301 section 3.2. Python's server does not know it, and would go on without a protocol.
_ALERT_NO_APPLICATION_PROTOCOL = 120


class TlsError(PeerError):
    """The client broke TLS. ``failure`` says how, for a handshake."""

    def __init__(self, failure: HandshakeFailure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class TlsFlood(TlsError):
    """The client sends more records without data than it needs."""

    def __init__(self) -> None:
        super().__init__(HandshakeFailure.OTHER, "records without data")


class _ServerObject(ssl.SSLObject):
    # The name of the session. Where TLS 1.2 resumes one, it is the name of that one. None before it is known.
    server_name: str | None = None
    # What the client has asked for, once its message is whole and can be read.
    hello: ClientHello | None = None
    speaks_nothing_of_ours: bool = False


class ServerContexts:
    """One context for each set of names: exact names first, then wildcards, then the first certificate.

    A handshake begins with a context of ``beginning`` or ``anew``, and goes on with the one that its name chooses. What
    the client is asked for stays as it began. Sessions are resumed only where they began: each of those contexts has
    ticket keys of its own. So a client cannot bring a session in where more is asked, or other authorities count.
    """

    def __init__(self, certificates: Sequence[ServerCertificate], authorities: ClientAuthorities | None = None) -> None:
        self._by_name: dict[str, ssl.SSLContext] = {}
        by_names: dict[frozenset[str], ssl.SSLContext] = {}
        for certificate in certificates:
            context = by_names.setdefault(certificate.names, _new_context(authorities))
            load_certificate(context, certificate)
            for name in certificate.names:
                self._by_name.setdefault(name, context)
        self._default = next(iter(by_names.values()))
        first = [one for one in certificates if one.names == certificates[0].names]
        self.beginning = {asks: self._make(first, authorities, asks) for asks in ClientCertificates}
        # The same for a handshake that must not resume a session.
        self.anew = {asks: self._make(first, authorities, asks) for asks in ClientCertificates}
        for context in self.anew.values():
            context.options |= ssl.OP_NO_TICKET

    def _make(
        self, first: Sequence[ServerCertificate], authorities: ClientAuthorities | None, asks: ClientCertificates
    ) -> ssl.SSLContext:
        context = _new_context(authorities, asks)
        for certificate in first:
            load_certificate(context, certificate)
        # It is called for every handshake, because a session always starts with one of these contexts.
        context.sni_callback = self._on_server_name
        return context

    def choose(self, server_name: str) -> ssl.SSLContext:
        """The context for a name: exact, then wildcard of one label, then the first."""
        name = server_name.lower().rstrip(".")
        return self._by_name.get(name) or self._by_name.get(one_label_wildcard(name)) or self._default

    def _on_server_name(self, connection: ssl.SSLObject, server_name: str | None, _: ssl.SSLContext) -> int | None:
        assert isinstance(connection, _ServerObject)
        connection.server_name = (server_name or "").lower()
        connection.context = self.choose(connection.server_name)
        offered = None if connection.hello is None else connection.hello.protocols
        if offered is not None and not any(protocol.encode() in offered for protocol in ALPN_PROTOCOLS):
            connection.speaks_nothing_of_ours = True
            return _ALERT_NO_APPLICATION_PROTOCOL
        return None


def _new_context(
    authorities: ClientAuthorities | None, asks: ClientCertificates = ClientCertificates.NONE
) -> ssl.SSLContext:
    context = new_context()
    context.sslobject_class = _ServerObject
    trust_clients(context, authorities, asks)
    return context


def _tls_error(error: ssl.SSLError) -> TlsError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(refusal_of(error.verify_code), error.verify_message)
    return TlsError(HANDSHAKE_FAILURES.get(error.reason or "", HandshakeFailure.OTHER), error.reason or str(error))


@contextlib.contextmanager
def _names_in_silence() -> Iterator[None]:
    # A server name that is not ASCII fails the handshake, but before that CPython writes a traceback to stderr: a
    # client could fill the log with them.
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, UnicodeDecodeError):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


class TlsSession:
    """The server's side of one TLS connection: bytes in, bytes out, no socket."""

    def __init__(self, contexts: ServerContexts, asks: ClientCertificates = ClientCertificates.NONE) -> None:
        self._contexts = contexts
        self._asks = asks
        self.established = False
        # Whose certificate the client has shown, once the handshake is done; empty without one.
        self.client_certificate = ""
        # The client has said that it sends no more (close_notify).
        self.client_closed = False
        self._records = RecordCutter()
        self._handshake_records = 0
        self._rest_bytes = 0
        self._silent = SilentRecords()
        self._hello = Hello()
        # What the client has sent, until it is known that the session can stay.
        self._said: bytes | None = b""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # Made when the ClientHello is whole: it takes 40 KiB, and a client that begins a hello and does not end it must
        # not get them.
        self._session: _ServerObject | None = None

    def _begin(self, context: ssl.SSLContext) -> _ServerObject:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        assert isinstance(session, _ServerObject)
        if self._hello.message is not None:
            session.hello = parse_client_hello(self._hello.message)
        self._session = session
        return session

    @property
    def server_name(self) -> str:
        """The name that the client asked for, in lower case, or an empty text."""
        return "" if self._session is None else self._session.server_name or ""

    @property
    def alpn(self) -> str | None:
        """The protocol agreed on, or None."""
        return None if self._session is None else self._session.selected_alpn_protocol()

    @property
    def version(self) -> str:
        """For example ``TLSv1.3``."""
        return "" if self._session is None else self._session.version() or ""

    def receive(self, data: bytes, now: float = 0.0) -> bytes:
        """Take bytes of the wire, and give what they say in plain. After close_notify there is nothing more.

        ``now`` is any clock in seconds. Raises TlsError, and TlsFlood for a client that sends too much without data.
        """
        if self.client_closed:
            return b""  # OpenSSL would not take them, and they would pile up
        try:
            chunks = self._take_all(data, now)
        except HelloFault as fault:
            raise TlsError(fault.failure, str(fault)) from None
        except ssl.SSLZeroReturnError:  # in the handshake
            self.client_closed = True
            return b""
        except ssl.SSLError as error:
            if self._session is not None and self._session.speaks_nothing_of_ours:
                raise TlsError(HandshakeFailure.OTHER, "no application protocol") from None
            raise _tls_error(error) from None
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _take_all(self, data: bytes, now: float) -> list[bytes]:
        chunks: list[bytes] = []
        for piece, records in self._records.cut(data):
            chunks += self._take(piece, records, now)
            if self.client_closed:
                break
        return chunks

    def _take(self, piece: bytes, records: int, now: float) -> list[bytes]:
        if not self.established:
            self._handshake_records += records
            if self._handshake_records > MAX_HANDSHAKE_RECORDS:
                raise HelloFault(HandshakeFailure.HELLO_TOO_LONG, "client hello in too many records")
            self._hello.take(piece)
            self._bound_rest(piece)
            self._shake_hands(piece)
            return []
        self._incoming.write(piece)
        chunks = self._read()
        # Each read gives the data of one record.
        if not self.client_closed and not self._silent.add(max(0, records - len(chunks)), now):
            raise TlsFlood
        return chunks

    def _bound_rest(self, piece: bytes) -> None:
        if self._asks is not ClientCertificates.NONE and self._session is not None:
            self._rest_bytes += len(piece)
            if self._rest_bytes > _MAX_REST_BYTES:
                raise ChainTooLong

    def _shake_hands(self, piece: bytes) -> None:
        if self._said is not None:
            self._said += piece
        if self._session is not None:
            self._go_on(self._session, piece)
        elif self._hello.whole and self._said is not None:
            self._go_on(self._begin(self._contexts.beginning[self._asks]), self._said)

    def _go_on(self, session: _ServerObject, wire: bytes) -> None:
        self._incoming.write(wire)
        try:
            with _names_in_silence():
                session.do_handshake()
        except ssl.SSLWantReadError:
            self._stay_or_begin_anew(session)
        else:
            self._take_certificate(session)
            self.established = True
            self._records.max_records = MAX_SILENT_RECORDS

    def _take_certificate(self, session: _ServerObject) -> None:
        """Look whose certificate it is. TLS has verified it: now, or when the session began that goes on here."""
        shown = None if self._asks is ClientCertificates.NONE else session.getpeercert(binary_form=True)
        if shown is None:
            return
        if session.session_reused and has_ended(shown, datetime.datetime.now(datetime.UTC)):
            raise HelloFault(HandshakeFailure.CLIENT_CERTIFICATE_EXPIRED, "certificate has expired")
        self.client_certificate = name_of(shown)

    def _stay_or_begin_anew(self, session: _ServerObject) -> None:
        """Throw away the answer to the first message if it resumes a session that has another name.

        A session of TLS 1.2 belongs to the name that it began with, and must not be resumed under another (RFC 6066
        section 3): the client would be taken to where the old name leads. TLS 1.3 has the name in each handshake.
        """
        hello, said = session.hello, self._said
        if session.server_name is None:
            return
        self._said = None
        if hello is None or session.server_name == hello.server_name.lower().decode(errors="replace"):
            return
        if said is None:  # it was begun anew already: the client has made up the identifier of a session
            raise HelloFault(HandshakeFailure.OTHER, "session of another name")
        self._go_on(self._begin(self._contexts.anew[self._asks]), said)

    def _read(self) -> list[bytes]:
        session, incoming = self._session, self._incoming
        assert session is not None
        chunks: list[bytes] = []
        try:
            # To ask once more, and only get SSLWantReadError, would cost as much as a small record.
            while incoming.pending or session.pending():
                chunk = session.read(_READ_BYTES)
                if not chunk:
                    self.client_closed = True
                    break
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.client_closed = True
        return chunks

    def send(self, plain: bytes) -> bytes:
        """The bytes of the wire for ``plain``, after what TLS itself had to say. Raises TlsError."""
        assert self._session is not None
        try:
            self._session.write(plain)
        except ssl.SSLError as error:
            # WantRead: the client has begun a KeyUpdate and not ended it. Nothing can be said before it does.
            raise _tls_error(error) from None
        return self._outgoing.read()

    def take_output(self) -> bytes:
        """What TLS itself has to say: handshake messages, alerts, tickets."""
        output = self._outgoing.read() if self._outgoing.pending else b""
        self._hello.note_answer(output)
        return output

    def close(self) -> bytes:
        """The close_notify, if the session has one to send."""
        if self.established and self._session is not None:
            # WantRead is raised: the client's close_notify is not waited for.
            with contextlib.suppress(ssl.SSLError):
                self._session.unwrap()
        return self.take_output()
