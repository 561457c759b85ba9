"""The firm's own authority: what OpenSSL and Python's ssl accept of it, and what they refuse."""

from __future__ import annotations

import dataclasses
import datetime
import os
import ssl
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay import catalog, config
from relay.ca import AuthorityFolder, HostCertificate, host_certificates
from relay.ca.certificates import Issuer, certificate_pem, key_pem, new_authority, new_key, sign_server
from relay.ca.folder import CLIENT_LIFETIME, HOST_LIFETIME, RENEW_BEFORE
from relay.errors import OperatorError
from relay.gateway.certificates.client_ca import read_authorities
from relay.gateway.certificates.files import read_all
from relay.plane.certificates import Certificate, read_certificate, read_certificates
from relay.plane.client_certificates import ClientCertificates, name_of
from relay.plane.reference.tls import ServerContexts
from tests.support.benches.commands import run_here

CATALOG = catalog.load()
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
STUN1 = "use1-stun1.xhoot.com"
STUN2 = "stun2.use1.prod1.xhoot.com"
PERMITTED_VIOLATION, EXCLUDED_VIOLATION = 47, 48  # X509_V_ERR_...


def nobody_asks(path: Path) -> bytes:
    raise AssertionError(f"a passphrase was asked for: {path}")


@pytest.fixture
def folder(tmp_path: Path) -> AuthorityFolder:
    return AuthorityFolder.create(tmp_path / "ca", CATALOG, NOW)


def issue(folder: AuthorityFolder, *names: str, now: datetime.datetime = NOW, renew: bool = False) -> HostCertificate:
    [issued] = folder.issue(CATALOG, names, now, nobody_asks, renew=renew)
    return issued


def issuer(folder: AuthorityFolder) -> Issuer:
    return folder.issuer(NOW, nobody_asks)


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def openssl_verify(bundle: Path, certificate: Path, name: str | None = None) -> str:
    """What ``openssl verify`` says, "" if it is all right."""
    named = ["-verify_hostname", name] if name is not None else []
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        "sslserver",
        *named,
        "-CAfile",
        str(bundle),
        str(certificate),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) is (done.stdout == f"{certificate}: OK\n"), done
    return "" if done.returncode == 0 else done.stderr


def shake_hands(bundle: Path, server: ssl.SSLContext, name: str) -> ssl.SSLObject:
    """A TLS handshake of a strict client that asks for ``name``; the client's side. Raises ssl.SSLError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=str(bundle)).wrap_bio(down, up, server_hostname=name)
    peer = server.wrap_bio(up, down, server_side=True)
    pending = [client, peer]
    while pending:
        for side in tuple(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                pass
    return client


def server_context(chain: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


# The authority


def test_authority_can_vouch_for_the_catalogs_domains_only(folder: AuthorityFolder) -> None:
    certificate = read(folder.directory / "ca-1.pem")
    constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.DNSName("xhoot.com")]
    assert {str(each.value) for each in constraints.value.excluded_subtrees or ()} == {"0.0.0.0/0", "::/0"}
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    assert certificate.not_valid_after_utc == NOW + 1826 * DAY
    assert folder.newest.permitted == ("xhoot.com",)


def test_files_and_their_modes(folder: AuthorityFolder) -> None:
    issue(folder, STUN1)
    assert sorted(str(path.relative_to(folder.directory)) for path in folder.directory.rglob("*")) == [
        "bundle.pem",
        "ca-1.key",
        "ca-1.pem",
        "hosts",
        f"hosts/{STUN1}.key",
        f"hosts/{STUN1}.pem",
    ]
    assert {mode(path) for path in folder.directory.rglob("*.key")} == {0o600}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids="{:03o}".format)
def test_nobody_else_reaches_folders_and_keys(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = AuthorityFolder.create(tmp_path / "ca", CATALOG, NOW).rotate(CATALOG, NOW, nobody_asks)
        issue(folder, STUN1)
    finally:
        os.umask(before)
    assert mode(folder.directory) == mode(folder.directory / "hosts") == 0o700
    assert {mode(path) for path in folder.directory.rglob("*.key")} == {0o600}
    assert {mode(path) for path in folder.directory.rglob("*.pem")} == {0o644 & ~umask}


def test_an_empty_folder_that_is_there_becomes_private(tmp_path: Path) -> None:
    made = tmp_path / "ca"
    made.mkdir(mode=0o755)
    assert mode(AuthorityFolder.create(made, CATALOG, NOW).directory) == 0o700


@pytest.mark.parametrize("again", ["issue", "rotate"])
def test_what_others_may_is_taken_away_and_what_the_group_may_stays(folder: AuthorityFolder, again: str) -> None:
    issue(folder, STUN1)
    folder.directory.chmod(0o755)
    for path in (folder.directory / "hosts", *folder.directory.rglob("*.key")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if again == "issue":
        issue(folder, STUN2)
    else:
        folder.rotate(CATALOG, NOW, nobody_asks)
    assert mode(folder.directory) == mode(folder.directory / "hosts") == 0o750
    assert {mode(path) for path in folder.directory.rglob("*.key")} == {0o640, 0o600}


def test_a_folder_with_other_things_in_it_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "other").touch()
    folder = AuthorityFolder.create(tmp_path, CATALOG, NOW)
    issue(folder, STUN1)
    assert mode(tmp_path) == 0o755
    assert mode(tmp_path / "hosts") == 0o700


def test_an_authority_is_never_overwritten(folder: AuthorityFolder) -> None:
    before = {path: path.read_bytes() for path in folder.directory.iterdir()}
    with pytest.raises(OperatorError, match="there is an authority already"):
        AuthorityFolder.create(folder.directory, CATALOG, NOW)
    # Not even one of which nothing but the key is left.
    (folder.directory / "ca-1.pem").unlink()
    with pytest.raises(OperatorError, match="there is an authority already"):
        AuthorityFolder.create(folder.directory, CATALOG, NOW)
    with pytest.raises(OperatorError, match=r"there is no authority here \(ca-1.pem\)"):
        AuthorityFolder.open(folder.directory)
    key = folder.directory / "ca-1.key"
    assert key.read_bytes() == before[key]


@pytest.mark.parametrize("name", ["", "a" * 58, "ä" * 29, "a\nb"])
def test_names_of_authorities(tmp_path: Path, name: str) -> None:
    with pytest.raises(OperatorError, match="expected printable characters, 1 to 57 octets"):
        AuthorityFolder.create(tmp_path, CATALOG, NOW, name=name)
    assert list(tmp_path.iterdir()) == []
    longest = AuthorityFolder.create(tmp_path, CATALOG, NOW, name="ä" * 28).rotate(CATALOG, NOW, nobody_asks)
    assert longest.newest.certificate.subject.rfc4514_string() == f"CN={'ä' * 28} 2"


# Hosts


def test_a_host_certificate(folder: AuthorityFolder) -> None:
    issued = issue(folder, STUN1.upper() + ".")
    certificate = read(issued.files.chain)
    assert certificate.subject == x509.Name([])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    # RFC 5280 section 4.2.1.6: critical, since the subject is empty.
    assert (names.critical, names.value) == (True, x509.SubjectAlternativeName([x509.DNSName(STUN1)]))
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert certificate.not_valid_after_utc == issued.until == NOW + 365 * DAY
    # From the first valid second to the last: the most that Mozilla recommends.
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc < 366 * DAY
    assert read_certificate(issued.files).names == {STUN1}
    assert (issued.names, issued.generation, issued.fresh) == ((STUN1,), 1, True)


def test_every_media_host_verifies_with_openssl_and_by_handshake(folder: AuthorityFolder) -> None:
    names = [host.name for host in CATALOG.media_hosts]
    issued = folder.issue(CATALOG, names, NOW, nobody_asks)
    assert [each.names for each in issued] == [(name,) for name in names]
    assert host_certificates(folder.directory) == tuple(sorted((each.files for each in issued), key=lambda f: f.chain))
    contexts = ServerContexts(read_certificates([each.files for each in issued]))
    for each in issued:
        [name] = each.names
        client = shake_hands(folder.bundle, contexts.beginning[ClientCertificates.NONE], name)
        assert client.version() == "TLSv1.3"
    for each in issued[::16]:
        assert openssl_verify(folder.bundle, each.files.chain, *each.names) == ""
    assert "hostname mismatch" in openssl_verify(folder.bundle, issued[0].files.chain, names[1]).lower()


def test_wildcards_are_one_certificate_for_all_domains(folder: AuthorityFolder) -> None:
    [issued] = folder.issue(CATALOG, CATALOG.domains, NOW, nobody_asks, stem="wildcards")
    assert issued.names == CATALOG.domains
    assert issued.files.chain.name == "wildcards.pem"
    context = server_context(issued.files.chain, issued.files.private_key)
    for host in CATALOG.hosts:
        shake_hands(folder.bundle, context, host.name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(folder.bundle, context, "a.b.xhoot.com")
    assert openssl_verify(folder.bundle, issued.files.chain, STUN2) == ""


@pytest.mark.parametrize(
    "name",
    ["evil.example", "xhoot.com", "a.b.xhoot.com", "*.com", "*.a.xhoot.com", "../x.xhoot.com", "127.0.0.1", "", "*"],
)
def test_names_outside_the_catalog_are_refused(folder: AuthorityFolder, name: str) -> None:
    with pytest.raises(OperatorError, match="not in the catalog as of 2026-11: expected a host within"):
        folder.issue(CATALOG, [STUN1, name], NOW, nobody_asks)
    assert host_certificates(folder.directory) == ()


def test_a_domain_that_the_authority_was_not_made_for(folder: AuthorityFolder) -> None:
    newer = dataclasses.replace(CATALOG, domains=(*CATALOG.domains, "*.newhoot.example"))
    with pytest.raises(OperatorError, match=r"ca-1\.pem can vouch for xhoot\.com only: relay ca rotate"):
        folder.issue(newer, ["a.newhoot.example"], NOW, nobody_asks)
    rotated = folder.rotate(newer, NOW, nobody_asks)
    [issued] = rotated.issue(newer, ["a.newhoot.example"], NOW, nobody_asks)
    assert openssl_verify(rotated.bundle, issued.files.chain, "a.newhoot.example") == ""


# What whoever steals the key cannot do: the verifier refuses, whatever was signed


def forged(folder: AuthorityFolder, *names: str) -> Certificate:
    key = new_key()
    signed = sign_server(issuer(folder), key.public_key(), names, HOST_LIFETIME, NOW)
    files = Certificate(folder.directory / "forged.pem", folder.directory / "forged.key")
    files.chain.write_bytes(certificate_pem(signed))
    files.private_key.write_bytes(key_pem(key))
    return files


@pytest.mark.parametrize(
    ("names", "violation", "said"),
    [
        (["www.bank.example"], PERMITTED_VIOLATION, "permitted subtree violation"),
        (["evilxhoot.com"], PERMITTED_VIOLATION, "permitted subtree violation"),
        ([STUN1, "www.bank.example"], PERMITTED_VIOLATION, "permitted subtree violation"),
        (["*.bank.example"], PERMITTED_VIOLATION, "permitted subtree violation"),
        (["10.0.0.1"], EXCLUDED_VIOLATION, "excluded subtree violation"),
        (["2001:db8::1"], EXCLUDED_VIOLATION, "excluded subtree violation"),
    ],
)
def test_a_name_outside_the_constraint(folder: AuthorityFolder, names: list[str], violation: int, said: str) -> None:
    files = forged(folder, *names)
    assert said in openssl_verify(folder.bundle, files.chain)
    context = server_context(files.chain, files.private_key)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shake_hands(folder.bundle, context, names[-1].replace("*", "www"))
    assert caught.value.verify_code == violation


def test_a_certificate_of_the_same_making_with_a_name_inside(folder: AuthorityFolder) -> None:
    """So that the forgeries fail for their names and for nothing else."""
    files = forged(folder, STUN1)
    assert openssl_verify(folder.bundle, files.chain, STUN1) == ""
    shake_hands(folder.bundle, server_context(files.chain, files.private_key), STUN1)


def test_a_host_is_no_authority(folder: AuthorityFolder) -> None:
    host = issue(folder, STUN1)
    key = new_key()
    stolen = serialization.load_pem_private_key(host.files.private_key.read_bytes(), None)
    assert isinstance(stolen, ec.EllipticCurvePrivateKey)
    below = sign_server(Issuer(read(host.files.chain), stolen), key.public_key(), [STUN2], HOST_LIFETIME, NOW)
    chain, private_key = folder.directory / "below.pem", folder.directory / "below.key"
    chain.write_bytes(certificate_pem(below) + host.files.chain.read_bytes())
    private_key.write_bytes(key_pem(key))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(folder.bundle, server_context(chain, private_key), STUN2)


# Renewal and rotation


def test_what_is_there_is_kept_until_a_month_before_its_end(folder: AuthorityFolder) -> None:
    first = issue(folder, STUN1)
    chain, key = first.files.chain.read_bytes(), first.files.private_key.read_bytes()
    kept = issue(folder, STUN1, now=NOW + HOST_LIFETIME - RENEW_BEFORE - DAY)
    assert (kept.fresh, kept.until, kept.generation) == (False, first.until, 1)
    assert first.files.chain.read_bytes() == chain

    renewed = issue(folder, STUN1, now=NOW + HOST_LIFETIME - RENEW_BEFORE + DAY)
    assert (renewed.fresh, renewed.until) == (True, first.until + HOST_LIFETIME - RENEW_BEFORE + DAY)
    assert first.files.chain.read_bytes() != chain
    # The key stays, so that the two always fit.
    assert first.files.private_key.read_bytes() == key
    assert mode(first.files.private_key) == 0o600
    server_context(first.files.chain, first.files.private_key)


def test_a_key_that_lost_its_certificate_gets_a_new_one(folder: AuthorityFolder) -> None:
    first = issue(folder, STUN1)
    key = first.files.private_key.read_bytes()
    first.files.chain.unlink()
    assert issue(folder, STUN1).fresh
    assert first.files.private_key.read_bytes() == key


def test_no_host_outlives_its_authority(tmp_path: Path) -> None:
    short = AuthorityFolder.create(tmp_path, CATALOG, NOW, lifetime=100 * DAY)
    assert issue(short, STUN1).until == NOW + 100 * DAY
    with pytest.raises(OperatorError, match=r"ca-1.pem: ended on .*: relay ca rotate"):
        issue(short, STUN2, now=NOW + 101 * DAY)


def test_rotation_keeps_the_old_one_trusted(folder: AuthorityFolder, tmp_path: Path) -> None:
    old = issue(folder, STUN1)
    old_bundle = tmp_path / "old-bundle.pem"
    old_bundle.write_bytes(folder.bundle.read_bytes())
    files = [folder.newest.path, folder.newest.key_path]
    before = [path.read_bytes() for path in files]

    rotated = folder.rotate(CATALOG, NOW, nobody_asks)
    assert [path.read_bytes() for path in files] == before
    assert [each.generation for each in AuthorityFolder.open(folder.directory).authorities] == [1, 2]
    assert rotated.newest.path.name == "ca-2.pem"
    assert mode(rotated.newest.key_path) == 0o600
    assert [each.subject.rfc4514_string() for each in x509.load_pem_x509_certificates(rotated.bundle.read_bytes())] == [
        "CN=cloud9-relay CA 2",
        "CN=cloud9-relay CA 1",
    ]

    new = issue(rotated, STUN2)
    assert (new.generation, issue(rotated, STUN1).generation) == (2, 1)
    for each in (old, new):
        context = server_context(each.files.chain, each.files.private_key)
        shake_hands(rotated.bundle, context, *each.names)
        assert openssl_verify(rotated.bundle, each.files.chain, *each.names) == ""
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(old_bundle, server_context(new.files.chain, new.files.private_key), STUN2)

    renewed = issue(rotated, STUN1, renew=True)
    assert (renewed.generation, renewed.fresh) == (2, True)
    assert [each.generation for each in rotated.hosts()] == [2, 2]


def test_a_generation_that_has_ended_leaves_the_bundle(tmp_path: Path) -> None:
    folder = AuthorityFolder.create(tmp_path, CATALOG, NOW, lifetime=100 * DAY)
    third = folder.rotate(CATALOG, NOW, nobody_asks).rotate(CATALOG, NOW + 101 * DAY, nobody_asks)
    assert [each.generation for each in third.authorities] == [1, 2, 3]
    assert len(x509.load_pem_x509_certificates(third.bundle.read_bytes())) == 2


def test_a_key_that_was_left_behind_is_no_obstacle(folder: AuthorityFolder) -> None:
    """As when the machine failed between the two files."""
    left = folder.directory / "ca-2.key"
    left.write_bytes(b"half")
    rotated = AuthorityFolder.open(folder.directory).rotate(CATALOG, NOW, nobody_asks)
    assert rotated.newest.path.name == "ca-3.pem"
    assert left.read_bytes() == b"half"


# What is wrong with the folder


def test_files_that_do_not_fit(folder: AuthorityFolder) -> None:
    newest = folder.newest
    newest.key_path.write_bytes(key_pem(new_key()))
    with pytest.raises(OperatorError, match=r"ca-1\.key: is not the key of .*ca-1\.pem"):
        issue(folder, STUN1)
    newest.key_path.write_bytes(b"no key")
    with pytest.raises(OperatorError, match=r"ca-1\.key: expected a private key in PEM"):
        issue(folder, STUN1)
    newest.key_path.unlink()
    with pytest.raises(OperatorError, match=r"ca-1\.key: No such file"):
        issue(folder, STUN1)
    newest.path.write_bytes(b"no certificate")
    with pytest.raises(OperatorError, match=r"ca-1\.pem: expected a certificate in PEM"):
        AuthorityFolder.open(folder.directory)


def test_an_authority_without_constraints_signs_nothing(folder: AuthorityFolder) -> None:
    free = new_authority("free", 10 * DAY, NOW)
    (folder.directory / "ca-2.pem").write_bytes(certificate_pem(free.certificate))
    (folder.directory / "ca-2.key").write_bytes(key_pem(free.key))
    with pytest.raises(OperatorError, match=r"ca-2\.pem can vouch for nothing only"):
        issue(AuthorityFolder.open(folder.directory), STUN1)


# Passphrases


def test_an_encrypted_key_signs_with_its_passphrase_only(tmp_path: Path) -> None:
    folder = AuthorityFolder.create(tmp_path, CATALOG, NOW, passphrase=b"correct horse")
    assert b"ENCRYPTED" in folder.newest.key_path.read_bytes()
    with pytest.raises(OperatorError, match=r"ca-1\.key: the passphrase is wrong"):
        folder.issue(CATALOG, [STUN1], NOW, lambda _: b"wrong horse")
    [issued] = folder.issue(CATALOG, [STUN1], NOW, lambda _: b"correct horse")
    # The relay has nobody to ask.
    assert b"ENCRYPTED" not in issued.files.private_key.read_bytes()

    with pytest.raises(OperatorError, match="the passphrase is wrong"):
        folder.rotate(CATALOG, NOW, lambda _: b"wrong horse")
    rotated = folder.rotate(CATALOG, NOW, lambda _: b"correct horse")
    assert b"ENCRYPTED" in rotated.newest.key_path.read_bytes()
    rotated.issuer(NOW, lambda _: b"correct horse")
    other = rotated.rotate(CATALOG, NOW, nobody_asks, passphrase=b"battery staple")
    other.issuer(NOW, lambda _: b"battery staple")


def test_a_lost_key_is_rotated_away(folder: AuthorityFolder) -> None:
    folder.newest.key_path.unlink()
    rotated = folder.rotate(CATALOG, NOW, nobody_asks)
    assert issue(rotated, STUN1).generation == 2


# The commands


def run(*arguments: str | Path, passphrase: str = "") -> tuple[int, str, str]:
    return run_here(*arguments, RELAY_CA_PASSPHRASE=passphrase)


def ok(*arguments: str | Path, passphrase: str = "") -> str:
    status, stdout, stderr = run(*arguments, passphrase=passphrase)
    assert (status, stderr) == (0, "")
    return stdout


def test_create_issue_rotate_show(tmp_path: Path) -> None:
    place = tmp_path / "firm" / "ca"
    assert "for names in xhoot.com, until" in ok("ca", "create", place, "--name", "Firm Voice", "--days", "500")
    told = ok("ca", "issue", place, "--media-hosts", STUN1, "--wildcards").splitlines()
    assert len(told) == len(CATALOG.media_hosts) + 1
    assert all(": issued, until " in line for line in told)
    assert ": kept, until " in ok("ca", "issue", place, STUN1)
    assert "--media-hosts --renew" in ok("ca", "rotate", place)
    assert ": issued, until " in ok("ca", "issue", place, STUN1, "--renew")

    shown = ok("ca", "show", place)
    assert "ca-2.pem (signs)" in shown
    assert [line.split()[-1] for line in shown.splitlines() if line.strip().startswith(STUN1)] == ["ca-2"]


def test_fingerprints_are_shown_as_openssl_shows_them(folder: AuthorityFolder) -> None:
    # Until there is one with a part that is also the name of an emoji.
    wanted = ""
    while ":CD:" not in wanted:
        certificate = new_authority("emoji", DAY, NOW).certificate
        wanted = certificate.fingerprint(hashes.SHA256()).hex(":", 1).upper()
    folder.newest.path.write_bytes(certificate_pem(certificate))
    assert wanted in ok("ca", "show", folder.directory)
    command = ["openssl", "x509", "-in", str(folder.newest.path), "-noout", "-fingerprint", "-sha256"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().partition("=")[2] == wanted


# For clients


@pytest.fixture
def for_clients(tmp_path: Path) -> AuthorityFolder:
    return AuthorityFolder.create(tmp_path / "clients-ca", CATALOG, NOW, for_clients=True)


def verifies(folder: AuthorityFolder, chain: Path, purpose: str) -> bool:
    command = ("openssl", "verify", "-purpose", purpose, "-CAfile", folder.bundle, chain)
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_certificates_of_clients(for_clients: AuthorityFolder) -> None:
    issued = for_clients.issue_clients(["a.keller@firm.example", "desk-17"], NOW, nobody_asks)
    authorities = read_authorities(for_clients.bundle)
    assert authorities.certificates == (for_clients.newest.certificate.public_bytes(serialization.Encoding.DER),)
    for one, name in zip(issued, ("a.keller@firm.example", "desk-17"), strict=True):
        made = read(one.files.chain)
        assert name_of(made.public_bytes(serialization.Encoding.DER)) == name
        assert made.not_valid_after_utc == one.until == NOW + CLIENT_LIFETIME
        assert (mode(one.files.private_key), mode(one.files.chain.parent)) == (0o600, 0o700)
        assert verifies(for_clients, one.files.chain, "sslclient")
        # Neither can be a server: the relay's clients may trust this authority for nothing.
        assert not verifies(for_clients, one.files.chain, "sslserver")
    assert [one.names for one in for_clients.clients()] == [("a.keller@firm.example",), ("desk-17",)]


def test_clients_are_renewed_in_their_last_ten_days(for_clients: AuthorityFolder) -> None:
    def issue_at(now: datetime.datetime, *, renew: bool = False) -> bool:
        [issued] = for_clients.issue_clients(["desk-17"], now, nobody_asks, renew=renew)
        return issued.fresh

    key = for_clients.directory / "clients" / "desk-17.key"
    assert issue_at(NOW)
    before = key.read_bytes()
    assert not issue_at(NOW + 19 * DAY)
    assert issue_at(NOW + 21 * DAY)
    assert issue_at(NOW + 21 * DAY, renew=True)
    assert key.read_bytes() == before
    # So does the authority's next generation, which is of the same kind.
    rotated = for_clients.rotate(CATALOG, NOW, nobody_asks)
    assert rotated.newest.for_clients
    [issued] = rotated.issue_clients(["desk-17"], NOW, nobody_asks, renew=True)
    assert issued.generation == 2


@pytest.mark.parametrize("name", ["", "a" * 65, "../desk", "desk 17", "-desk", "a@b@c", "a@", "jörg"])
def test_names_of_clients(for_clients: AuthorityFolder, name: str) -> None:
    with pytest.raises(OperatorError, match="expected 1 to 64 letters"):
        for_clients.issue_clients(["desk-17", name], NOW, nobody_asks)
    assert for_clients.clients() == ()


def test_each_authority_signs_for_its_own(folder: AuthorityFolder, for_clients: AuthorityFolder) -> None:
    with pytest.raises(OperatorError, match="is not an authority for clients"):
        folder.issue_clients(["desk-17"], NOW, nobody_asks)
    with pytest.raises(OperatorError, match="vouches for clients only"):
        for_clients.issue(CATALOG, [STUN1], NOW, nobody_asks)


def test_an_authority_for_clients_on_the_command_line(tmp_path: Path) -> None:
    place = tmp_path / "ca"
    told = ok("ca", "create", place, "--clients")
    assert "ca-1.pem: for clients, until " in told
    assert "what the relay must trust (listen.client_ca)" in told
    assert ": issued, until " in ok("ca", "issue", place, "--client", "desk-17")
    assert ": kept, until " in ok("ca", "issue", place, "--client", "desk-17")
    assert "--media-hosts" not in ok("ca", "rotate", place)
    shown = ok("ca", "show", place)
    assert "desk-17" in shown
    assert "clients" in shown


def test_the_relay_takes_what_show_prints(tmp_path: Path) -> None:
    ok("ca", "create", tmp_path / "ca")
    ok("ca", "issue", tmp_path / "ca", STUN1, STUN2)
    blocks = ok("ca", "show", tmp_path / "ca", "--toml")
    hosts = tmp_path / "ca/hosts"
    assert tomllib.loads(blocks)["certificates"] == [
        {"certificate": str(hosts / "*.pem"), "private_key": str(hosts / "*.key")}
    ]
    path = tmp_path / "relay.toml"
    path.write_text(blocks + '\n[[upstreams]]\nname = "a"\naddress = "192.0.2.1:3478"\n[limits]\nconnections = 9\n')
    assert ok("check-config", path) == f"{path}: ok (1 upstream, 0 routes)\n"
    served = read_all(config.load(path).certificates)
    assert [certificate.names for certificate in served] == [{STUN2}, {STUN1}]


def test_nothing_is_printed_for_no_hosts(tmp_path: Path) -> None:
    ok("ca", "create", tmp_path / "ca")
    assert ok("ca", "show", tmp_path / "ca", "--toml") == ""


def test_show_prints_paths_of_the_relays_machine(tmp_path: Path) -> None:
    ok("ca", "create", tmp_path / "ca")
    ok("ca", "issue", tmp_path / "ca", STUN1)
    for prefix in ("/etc/cloud9-relay/hosts", "/etc/cloud9-relay/hosts/", "hosts"):
        blocks = ok("ca", "show", tmp_path / "ca", "--toml", "--prefix", prefix)
        assert tomllib.loads(blocks)["certificates"] == [
            {
                "certificate": f"{prefix.rstrip('/')}/*.pem",
                "private_key": f"{prefix.rstrip('/')}/*.key",
            }
        ]


def test_passphrase_from_the_environment(tmp_path: Path) -> None:
    ok("ca", "create", tmp_path, passphrase="correct horse")
    for passphrase, told in (("", "set RELAY_CA_PASSPHRASE in the environment"), ("x", "passphrase is wrong")):
        status, stdout, stderr = run("ca", "issue", tmp_path, STUN1, passphrase=passphrase)
        assert (status, stdout, stderr.count("\n")) == (2, "", 1)
        assert told in stderr
    ok("ca", "issue", tmp_path, STUN1, passphrase="correct horse")
    ok("ca", "show", tmp_path)
    status, _, stderr = run("ca", "create", tmp_path / "other", "--encrypt")
    assert (status, stderr.startswith("relay: --encrypt: needs a passphrase")) == (2, True)


def test_show_ends_with_1_when_something_has_ended(tmp_path: Path) -> None:
    AuthorityFolder.create(tmp_path, CATALOG, NOW - 50 * DAY, lifetime=49 * DAY)
    status, shown, stderr = run("ca", "show", tmp_path)
    assert (status, stderr) == (1, "")
    assert "ENDED" in shown


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    ok("ca", "create", tmp_path)
    for arguments, told in (
        (("issue", tmp_path), "expected hosts, --media-hosts, --wildcards, or --client"),
        (("issue", tmp_path, "www.bank.example"), "'www.bank.example': not in the catalog"),
        (("create", tmp_path), f"{tmp_path}: there is an authority already"),
        (("show", tmp_path / "gone"), f"{tmp_path}/gone: there is no authority here"),
        (("show", tmp_path, "--prefix", "/etc/hosts"), "--prefix: needs --toml"),
    ):
        status, stdout, stderr = run("ca", *arguments)
        assert (status, stdout, stderr.count("\n")) == (2, "", 1)
        assert stderr.startswith(f"relay: {told}")
