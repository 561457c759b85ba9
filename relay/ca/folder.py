"""The folder of an authority: its keys and certificates by generation, the bundle for clients, and the hosts' files.

    ca-1.pem ca-1.key    the first generation; ``rotate`` adds ca-2, and so on. The newest one signs
    bundle.pem           all generations that have not expired: what clients must trust
    hosts/NAME.pem .key  one pair for each host; a * is written as _
    clients/NAME.pem .key  the same for each client, in the folder of an authority for clients

A key is written only once. A certificate is renewed for its existing key, so that both match at all times.
Certificates and the bundle are replaced whole.
"""

from __future__ import annotations

import datetime
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay import writing
from relay.ca import certificates
from relay.ca.certificates import Issuer
from relay.catalog import Catalog
from relay.errors import OperatorError
from relay.plane.certificates import Certificate

AUTHORITY_LIFETIME = datetime.timedelta(days=5 * 365 + 1)
# Mozilla recommends at most 366 days ("intermediate"). All clients accept it.
HOST_LIFETIME = datetime.timedelta(days=365)
# A client's cannot be revoked, so it is short. A month lets somebody renew it who looks once a week.
CLIENT_LIFETIME = datetime.timedelta(days=30)
RENEW_CLIENT_BEFORE = datetime.timedelta(days=10)
# Certificates with less time left than this are renewed on request. A month is enough to notice if nobody asks.
RENEW_BEFORE = datetime.timedelta(days=30)
WILDCARDS = "wildcards"
_KEY_MODE = 0o600
_FOLDER_MODE = 0o700
# Others than owner and group may do nothing with a folder or a key of an authority.
_OTHERS = 0o007
# RFC 5280 allows 64 characters. The library counts octets, and the generation is appended.
_MAX_NAME = 57
_NAMES = frozenset({"bundle.pem", "hosts", "clients"})
# Also the name of a file, and at most as long as a common name may be (RFC 5280, ub-common-name).
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_AUTHORITY = re.compile(r"ca-([1-9]\d{0,5})\.(?:pem|key)")

# Called with the file of an encrypted key; returns its passphrase. May raise OperatorError.
AskPassphrase = Callable[[Path], bytes]


@dataclass(frozen=True)
class AuthorityFile:
    """One generation of the authority."""

    generation: int
    path: Path
    key_path: Path
    certificate: x509.Certificate

    @property
    def permitted(self) -> tuple[str, ...]:
        """The domains that it can vouch for."""
        try:
            constraints = self.certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            return ()
        return tuple(str(each.value) for each in constraints.permitted_subtrees or ())

    @property
    def for_clients(self) -> bool:
        """True if it can vouch for clients, and for nobody else."""
        try:
            purposes = self.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            return False
        return ExtendedKeyUsageOID.CLIENT_AUTH in purposes

    def ended(self, now: datetime.datetime) -> bool:
        """True if it has expired: then nothing that it signed is valid."""
        return now > self.certificate.not_valid_after_utc


@dataclass(frozen=True)
class HostCertificate:
    """A pair of files of a host or a client. ``generation`` is its authority's; None if that is not in the folder."""

    files: Certificate
    names: tuple[str, ...]
    until: datetime.datetime
    generation: int | None
    # False if it existed already, with time left.
    fresh: bool = False


class AuthorityFolder:
    """Creates, reads and extends one folder. All methods raise OperatorError if the operator must act."""

    def __init__(self, directory: Path, authorities: Sequence[AuthorityFile]) -> None:
        self.directory = directory
        self.authorities = tuple(authorities)

    @classmethod
    def open(cls, directory: Path) -> AuthorityFolder:
        """Read the authorities' certificates, not their keys."""
        found = [_authority_file(directory, number) for number in _generations(directory)]
        present = [each for each in found if each is not None]
        if not present:
            raise OperatorError(f"{directory}: there is no authority here (ca-1.pem): make one with relay ca create")
        return cls(directory, present)

    @classmethod
    def create(
        cls,
        directory: Path,
        catalog: Catalog,
        now: datetime.datetime,
        *,
        name: str = "cloud9-relay CA",
        lifetime: datetime.timedelta = AUTHORITY_LIFETIME,
        passphrase: bytes | None = None,
        for_clients: bool = False,
    ) -> AuthorityFolder:
        """Make the folder and the first generation, limited to the catalog's domains, or ``for_clients``."""
        if not 1 <= len(name.encode()) <= _MAX_NAME or not name.isprintable():
            raise OperatorError(f"name {name!r}: expected printable characters, 1 to {_MAX_NAME} octets of UTF-8")
        _make_private(directory)
        if _generations(directory):
            raise OperatorError(
                f"{directory}: there is an authority already; relay ca rotate makes its next generation"
            )
        return cls(directory, ())._add(
            1, catalog, now, name=name, lifetime=lifetime, passphrase=passphrase, for_clients=for_clients
        )

    @property
    def newest(self) -> AuthorityFile:
        """The generation that signs."""
        return self.authorities[-1]

    @property
    def bundle(self) -> Path:
        """The file with all certificates that clients must trust."""
        return self.directory / "bundle.pem"

    def rotate(
        self,
        catalog: Catalog,
        now: datetime.datetime,
        ask: AskPassphrase,
        *,
        lifetime: datetime.timedelta = AUTHORITY_LIFETIME,
        passphrase: bytes | None = None,
    ) -> AuthorityFolder:
        """Make the next generation, with the same name. The others stay in the bundle until they expire.

        Unless a passphrase is given, the new key has the passphrase of the newest one, if that key exists and has one.
        """
        number = max(_generations(self.directory)) + 1
        if passphrase is None and self.newest.key_path.exists():
            passphrase = self._passphrase(ask)
        [name] = self.newest.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        own = re.sub(r" \d+$", "", str(name.value))
        kind = self.newest.for_clients
        return self._add(number, catalog, now, name=own, lifetime=lifetime, passphrase=passphrase, for_clients=kind)

    def _passphrase(self, ask: AskPassphrase) -> bytes | None:
        """The passphrase of the newest key, checked with this key."""
        asked: list[bytes] = []

        def once(path: Path) -> bytes:
            asked.append(ask(path))
            return asked[0]

        _read_key(self.newest.key_path, once)
        return asked[0] if asked else None

    def _add(
        self,
        number: int,
        catalog: Catalog,
        now: datetime.datetime,
        *,
        name: str,
        lifetime: datetime.timedelta,
        passphrase: bytes | None,
        for_clients: bool,
    ) -> AuthorityFolder:
        permitted = () if for_clients else catalog.apexes
        common_name = f"{name} {number}"
        issuer = certificates.new_authority(common_name, lifetime, now, permitted=permitted, for_clients=for_clients)
        path, key_path = _authority_paths(self.directory, number)
        # The key comes first: a generation without a certificate does not count.
        writing.write_new(key_path, certificates.key_pem(issuer.key, passphrase), mode=_KEY_MODE)
        writing.write_new(path, certificates.certificate_pem(issuer.certificate))
        added = AuthorityFolder(
            self.directory, [*self.authorities, AuthorityFile(number, path, key_path, issuer.certificate)]
        )
        added.write_bundle(now)
        _shut_out_others(self.directory)
        return added

    def write_bundle(self, now: datetime.datetime) -> None:
        """Write ``bundle.pem``: newest first, without expired generations."""
        trusted = [each.certificate for each in reversed(self.authorities) if not each.ended(now)]
        writing.replace(self.bundle, b"".join(map(certificates.certificate_pem, trusted)))

    def issuer(self, now: datetime.datetime, ask: AskPassphrase) -> Issuer:
        """The newest generation with its key, ready to sign."""
        newest = self.newest
        if newest.ended(now):
            raise OperatorError(
                f"{newest.path}: ended on {_day(newest.certificate.not_valid_after_utc)}: relay ca rotate"
            )
        key = _read_key(newest.key_path, ask)
        if key.public_key() != newest.certificate.public_key():
            raise OperatorError(f"{newest.key_path}: is not the key of {newest.path}")
        return Issuer(newest.certificate, key)

    def check_names(self, catalog: Catalog, names: Sequence[str]) -> tuple[str, ...]:
        """The names in lower case. Raises OperatorError for names that are not the vendor's."""
        return tuple(self._check_name(catalog, name) for name in names)

    def _check_name(self, catalog: Catalog, name: str) -> str:
        lowered = name.lower().removesuffix(".")
        if lowered not in catalog.domains and not catalog.covers(name):
            within = ", ".join(catalog.domains)
            raise OperatorError(f"{name!r}: not in the catalog as of {catalog.as_of}: expected a host within {within}")
        permitted = self.newest.permitted
        if not any(f".{lowered}".endswith(f".{domain}") for domain in permitted):
            raise OperatorError(
                f"{name!r}: {self.newest.path} can vouch for {', '.join(permitted) or 'nothing'} only: relay ca rotate"
                " makes one for the catalog's domains of today"
            )
        return lowered

    def issue(
        self,
        catalog: Catalog,
        names: Sequence[str],
        now: datetime.datetime,
        ask: AskPassphrase,
        *,
        stem: str | None = None,
        renew: bool = False,
    ) -> tuple[HostCertificate, ...]:
        """Certificates for the names: one for each, or with ``stem``, the name of its files, one for all.

        Existing ones that are valid for more than 30 days are kept, unless ``renew``. If one of the names is refused,
        nothing is written.
        """
        if self.newest.for_clients:
            raise OperatorError(f"{self.newest.path}: vouches for clients only: expected --client")
        checked = tuple(dict.fromkeys(self.check_names(catalog, names)))
        wanted = {stem: checked} if stem is not None else {_stem(name): (name,) for name in checked}
        issuer = self.issuer(now, ask)
        hosts = self.directory / "hosts"
        _make_private(hosts)
        _shut_out_others(self.directory)
        return tuple(self._issue(issuer, each, wanted[each], now, renew=renew) for each in wanted)

    def _issue(
        self, issuer: Issuer, stem: str, names: tuple[str, ...], now: datetime.datetime, *, renew: bool
    ) -> HostCertificate:
        files = _host_files(self.directory, stem)
        if files.chain.exists() and not renew:
            present = self._host(files)
            lasts = present.until > now + RENEW_BEFORE and present.generation is not None
            if lasts and set(present.names) == set(names):
                return present
        if not files.private_key.exists():
            writing.write_new(files.private_key, certificates.key_pem(certificates.new_key()), mode=_KEY_MODE)
        public_key = _read_key(files.private_key, _no_passphrase).public_key()
        certificate = certificates.sign_server(issuer, public_key, names, HOST_LIFETIME, now)
        writing.replace(files.chain, certificates.certificate_pem(certificate))
        return HostCertificate(files, names, certificate.not_valid_after_utc, self.newest.generation, fresh=True)

    def issue_clients(
        self, names: Sequence[str], now: datetime.datetime, ask: AskPassphrase, *, renew: bool = False
    ) -> tuple[HostCertificate, ...]:
        """Certificates for clients, one for each name, valid for 30 days.

        Existing ones that are valid for more than 10 days are kept, unless ``renew``. If one of the names is refused,
        nothing is written.
        """
        if not self.newest.for_clients:
            raise OperatorError(
                f"{self.newest.path}: is not an authority for clients: make one in a folder of its own with relay ca"
                " create --clients"
            )
        for name in names:
            if not _CLIENT_NAME.fullmatch(name) or name.count("@") > 1 or name.endswith("@"):
                expected = "expected 1 to 64 letters, digits, '.', '_' and '-', and at most one '@' within them"
                raise OperatorError(f"{name!r}: {expected}")
        issuer = self.issuer(now, ask)
        clients = self.directory / "clients"
        _make_private(clients)
        _shut_out_others(self.directory)
        return tuple(self._issue_client(issuer, name, now, renew=renew) for name in dict.fromkeys(names))

    def _issue_client(self, issuer: Issuer, name: str, now: datetime.datetime, *, renew: bool) -> HostCertificate:
        files = Certificate(self.directory / "clients" / f"{name}.pem", self.directory / "clients" / f"{name}.key")
        if files.chain.exists() and not renew:
            present = self._client(files)
            if present.until > now + RENEW_CLIENT_BEFORE and present.generation is not None:
                return present
        if not files.private_key.exists():
            writing.write_new(files.private_key, certificates.key_pem(certificates.new_key()), mode=_KEY_MODE)
        public_key = _read_key(files.private_key, _no_passphrase).public_key()
        certificate = certificates.sign_client(issuer, public_key, name, CLIENT_LIFETIME, now)
        writing.replace(files.chain, certificates.certificate_pem(certificate))
        return HostCertificate(files, (name,), certificate.not_valid_after_utc, self.newest.generation, fresh=True)

    def clients(self) -> tuple[HostCertificate, ...]:
        """All clients' certificates, in the order of their files' names."""
        chains = sorted((self.directory / "clients").glob("*.pem"))
        return tuple(self._client(Certificate(chain, chain.with_suffix(".key"))) for chain in chains)

    def _client(self, files: Certificate) -> HostCertificate:
        certificate = _read_certificate(files.chain)
        return HostCertificate(
            files, (files.chain.stem,), certificate.not_valid_after_utc, self._signer_of(certificate)
        )

    def _signer_of(self, certificate: x509.Certificate) -> int | None:
        return next((each.generation for each in self.authorities if _signed(certificate, each.certificate)), None)

    def hosts(self) -> tuple[HostCertificate, ...]:
        """All hosts' certificates, in the order of their files' names."""
        return tuple(map(self._host, host_certificates(self.directory)))

    def _host(self, files: Certificate) -> HostCertificate:
        certificate = _read_certificate(files.chain)
        names: list[str] = []
        for extension in certificate.extensions:
            if isinstance(extension.value, x509.SubjectAlternativeName):
                names = extension.value.get_values_for_type(x509.DNSName)
        return HostCertificate(files, tuple(names), certificate.not_valid_after_utc, self._signer_of(certificate))


def host_certificates(directory: Path) -> tuple[Certificate, ...]:
    """The hosts' pairs of files in an authority's folder, by name. Empty for any other folder."""
    chains = sorted((directory / "hosts").glob("*.pem"))
    return tuple(Certificate(chain, chain.with_suffix(".key")) for chain in chains)


def _make_private(folder: Path) -> None:
    """Make a folder that only its owner can use, unless it exists. Raises OperatorError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir() or not any(folder.iterdir()):
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
            folder.chmod(_FOLDER_MODE)
    except OSError as error:
        raise OperatorError(f"{folder}: {error.strerror}") from None


def _shut_out_others(directory: Path) -> None:
    """Take from others all rights to an authority's folders and keys. Rights of the group are the operator's choice.

    If the folder contains anything else, its own rights stay: others may need it. Raises OperatorError.
    """
    own = {path for path in directory.iterdir() if _AUTHORITY.fullmatch(path.name) or path.name in _NAMES}
    private = [*directory.glob("ca-*.key")]
    for folder in (directory / "hosts", directory / "clients"):
        private += [folder, *folder.glob("*.key")]
    if own == set(directory.iterdir()):
        private.append(directory)
    for path in private:
        try:
            mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
            if mode & _OTHERS:
                path.chmod(mode & ~_OTHERS)
        except OSError as error:
            raise OperatorError(f"{path}: {error.strerror}") from None


def _generations(directory: Path) -> list[int]:
    """The numbers in use, including those of keys whose certificate was never written."""
    found = (_AUTHORITY.fullmatch(path.name) for path in directory.glob("ca-*"))
    return sorted({int(match[1]) for match in found if match})


def _authority_paths(directory: Path, number: int) -> tuple[Path, Path]:
    return directory / f"ca-{number}.pem", directory / f"ca-{number}.key"


def _authority_file(directory: Path, number: int) -> AuthorityFile | None:
    path, key_path = _authority_paths(directory, number)
    return AuthorityFile(number, path, key_path, _read_certificate(path)) if path.exists() else None


def _host_files(directory: Path, stem: str) -> Certificate:
    return Certificate(directory / "hosts" / f"{stem}.pem", directory / "hosts" / f"{stem}.key")


def _stem(name: str) -> str:
    return name.replace("*", "_")


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    # ValueError: the names differ. TypeError: a kind of key that we never make. Otherwise another key has signed it.
    except Exception:
        return False
    return True


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise OperatorError(f"{path}: expected a certificate in PEM") from None


def _read_key(path: Path, ask: AskPassphrase) -> ec.EllipticCurvePrivateKey:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}") from None
    passphrase = ask(path) if is_encrypted(content) else None
    try:
        key = serialization.load_pem_private_key(content, passphrase)
    except ValueError:
        wrong = "the passphrase is wrong" if passphrase is not None else "expected a private key in PEM"
        raise OperatorError(f"{path}: {wrong}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise OperatorError(f"{path}: expected an ECDSA key")
    return key


def is_encrypted(key: bytes) -> bool:
    """True for a private key in PEM that needs a passphrase."""
    return b"ENCRYPTED" in key


def _no_passphrase(path: Path) -> bytes:
    raise OperatorError(f"{path}: expected a key without a passphrase: the relay has to read it")


def _day(moment: datetime.datetime) -> str:
    return moment.date().isoformat()
