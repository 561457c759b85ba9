"""OCSP (RFC 6960): whether a certificate still holds, as its issuer says for some days at a time.

Nothing is asked here, and there is no clock: ``now`` is an argument, in UTC. ``stapling`` asks.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from relay.errors import OperatorError, PeerError
from relay.plane.certificates import ServerCertificate

# A responder's clock and ours may differ by this much.
CLOCK_SKEW = datetime.timedelta(minutes=5)
# An answer brings the certificate of who has signed it, and perhaps a chain.
MAX_SIGNERS = 8


class AnswerError(PeerError):
    """A responder's answer that cannot be stapled: why."""


class Revoked(AnswerError):
    """The issuer has taken the certificate back."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a certificate's issuer. ``request`` is sent to ``url``, in DER."""

    url: str
    request: bytes
    leaf: x509.Certificate
    issuer: x509.Certificate


@dataclass(frozen=True, slots=True)
class Staple:
    """An answer in DER. Clients take it until ``until``; ``renew_at`` is half of the way there."""

    answer: bytes
    until: datetime.datetime
    renew_at: datetime.datetime


def question_of(certificate: ServerCertificate) -> Question | None:
    """What to ask; None if the certificate names no responder, or its chain lacks the issuer."""
    leaf, *chain = x509.load_pem_x509_certificates(certificate.chain)
    url, issuer = _responder_of(leaf), _issuer_of(leaf, chain)
    if url is None or issuer is None:
        return None
    # Not for safety: the hash says which certificate is meant, and responders know no other (RFC 5019 section 2.1).
    builder = ocsp.OCSPRequestBuilder().add_certificate(leaf, issuer, hashes.SHA1())  # noqa: S303
    return Question(url, builder.build().public_bytes(serialization.Encoding.DER), leaf, issuer)


def _responder_of(leaf: x509.Certificate) -> str | None:
    try:
        access = leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    except x509.ExtensionNotFound:
        return None
    locations = [one.access_location for one in access if one.access_method == AuthorityInformationAccessOID.OCSP]
    urls = [one.value for one in locations if isinstance(one, x509.UniformResourceIdentifier)]
    # OCSP is signed, so it mostly comes over plain HTTP.
    return next((url for url in urls if url.lower().startswith(("http://", "https://"))), None)


def _issuer_of(leaf: x509.Certificate, chain: Sequence[x509.Certificate]) -> x509.Certificate | None:
    return next((one for one in chain if _has_issued(one, leaf)), None)


def _has_issued(issuer: x509.Certificate, issued: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def is_must_staple(certificate: ServerCertificate) -> bool:
    """Whether clients are to refuse it without a staple (RFC 7633: the TLS feature status_request)."""
    leaf = x509.load_pem_x509_certificates(certificate.chain)[0]
    try:
        features = leaf.extensions.get_extension_for_class(x509.TLSFeature).value
    except x509.ExtensionNotFound:
        return False
    return x509.TLSFeatureType.status_request in features


def require_staples(certificates: Sequence[ServerCertificate], why_not: str) -> None:
    """Raises OperatorError for certificates that need a staple and can have none.

    ``why_not`` says why the relay staples nothing at all; it is empty if it does.
    """
    mistakes = [
        f"certificate {one.files.chain}: clients refuse it without a stapled OCSP response (must-staple), and {lack}"
        for one in certificates
        if is_must_staple(one) and (lack := why_not or _lack_of(one))
    ]
    if mistakes:
        raise OperatorError("\n".join(mistakes))


def _lack_of(certificate: ServerCertificate) -> str:
    leaf, *chain = x509.load_pem_x509_certificates(certificate.chain)
    if _responder_of(leaf) is None:
        return "it names no OCSP responder"
    if _issuer_of(leaf, chain) is None:
        return "its file lacks the issuer's certificate, which is needed to ask"
    return ""


def read_answer(question: Question, answer: bytes, now: datetime.datetime) -> Staple:
    """The staple in a responder's answer (RFC 6960 section 3.2). Raises AnswerError."""
    try:
        response = ocsp.load_der_ocsp_response(answer)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise AnswerError(f"the responder says {response.response_status.name.lower()}")
        single = _single_of(question, response)
        _check_signature(question, response, now)
        return _staple_of(single, answer, now)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AnswerError(f"not an OCSP response: {error}") from None


def _single_of(question: Question, response: ocsp.OCSPResponse) -> ocsp.OCSPSingleResponse:
    asked = ocsp.load_der_ocsp_request(question.request)
    for single in response.responses:
        if single.serial_number == asked.serial_number and single.issuer_key_hash == asked.issuer_key_hash:
            return single
    raise AnswerError("it is about another certificate")


def _staple_of(single: ocsp.OCSPSingleResponse, answer: bytes, now: datetime.datetime) -> Staple:
    if single.certificate_status is ocsp.OCSPCertStatus.REVOKED:
        raise Revoked(f"revoked by its issuer on {single.revocation_time_utc:%Y-%m-%d %H:%M} UTC")
    if single.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        raise AnswerError("the responder does not know the certificate")
    begin, end = single.this_update_utc, single.next_update_utc
    if end is None:
        raise AnswerError("it does not say until when it holds (nextUpdate), so it cannot be kept")
    if not begin - CLOCK_SKEW <= now < end:
        raise AnswerError(f"it holds from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, which is not now")
    return Staple(answer, end, now + (end - now) / 2)


def _check_signature(question: Question, response: ocsp.OCSPResponse, now: datetime.datetime) -> None:
    """The issuer has signed it, or someone whom the issuer lets do it (RFC 6960 section 4.2.2.2)."""
    if not any(_has_signed(signer, response) for signer in _signers(question, response, now)):
        raise AnswerError("it is not signed by the certificate's issuer, nor by who may sign for it")


def _signers(question: Question, response: ocsp.OCSPResponse, now: datetime.datetime) -> Iterator[x509.Certificate]:
    yield question.issuer
    for one in response.certificates[:MAX_SIGNERS]:
        valid = one.not_valid_before_utc - CLOCK_SKEW <= now <= one.not_valid_after_utc
        if valid and _may_sign_answers(one) and _has_issued(question.issuer, one):
            yield one


def _may_sign_answers(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return ExtendedKeyUsageOID.OCSP_SIGNING in usages


def _has_signed(signer: x509.Certificate, response: ocsp.OCSPResponse) -> bool:
    key, signature, signed = signer.public_key(), response.signature, response.tbs_response_bytes
    algorithm = response.signature_hash_algorithm
    try:
        if isinstance(key, rsa.RSAPublicKey) and algorithm is not None:
            key.verify(signature, signed, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm is not None:
            key.verify(signature, signed, ec.ECDSA(algorithm))
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            key.verify(signature, signed)
        else:
            return False
    except InvalidSignature:
        return False
    return True
