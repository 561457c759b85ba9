"""What an issuer's answer about a certificate is worth, and which certificates cannot do without one."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from relay.ca.certificates import Issuer
from relay.errors import OperatorError
from relay.gateway.certificates.ocsp import (
    AnswerError,
    Question,
    Revoked,
    is_must_staple,
    question_of,
    read_answer,
    require_staples,
)
from relay.plane.certificates import ServerCertificate, read_certificate
from tests.support.certificates_made import DAY, NOW, authority, files_in, signed, write_pair
from tests.support.peers.ocsp import MUST_STAPLE, answer_about, names_responder

URL = "http://ocsp.test/"
MINUTE = datetime.timedelta(minutes=1)


class Made:
    """A certificate that names a responder, its issuer, and the question about it."""

    def __init__(self, folder: Path) -> None:
        self.issuer = authority()
        self.leaf, key = signed(self.issuer, "a.test", extensions=[names_responder(URL)])
        self.certificate = read_certificate(
            write_pair(files_in(folder, "made"), (self.leaf, key), self.issuer.certificate)
        )

    @property
    def question(self) -> Question:
        question = question_of(self.certificate)
        assert question is not None
        return question

    def delegate(self, *usages: x509.ObjectIdentifier, end: datetime.datetime = NOW + DAY) -> Issuer:
        """Somebody whom the issuer lets do this."""
        return Issuer(*signed(self.issuer, "signer.test", end=end, extensions=[x509.ExtendedKeyUsage(usages)]))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_what_is_asked(made: Made) -> None:
    question = made.question
    assert question.url == URL
    request = ocsp.load_der_ocsp_request(question.request)
    assert request.serial_number == made.leaf.serial_number


def test_a_good_answer_is_stapled_as_it_is(made: Made) -> None:
    answer = answer_about(made.leaf, made.issuer, end=NOW + 4 * DAY)
    staple = read_answer(made.question, answer, NOW)
    assert (staple.answer, staple.until, staple.renew_at) == (answer, NOW + 4 * DAY, NOW + 2 * DAY)


def test_an_answer_of_a_delegate(made: Made) -> None:
    signer = made.delegate(ExtendedKeyUsageOID.OCSP_SIGNING)
    answer = answer_about(made.leaf, made.issuer, signer=signer, with_signer=True)
    assert read_answer(made.question, answer, NOW).answer == answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(lambda _: b"", "not an OCSP response", id="empty"),
        pytest.param(lambda _: b"\x30\x82garbage", "not an OCSP response", id="garbage"),
        pytest.param(lambda made: answer_about(made.leaf, made.issuer)[:-9], "not an OCSP response", id="cut"),
        pytest.param(
            lambda _: ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER).public_bytes(
                serialization.Encoding.DER
            ),
            "the responder says try_later",
            id="try later",
        ),
        pytest.param(
            lambda made: answer_about(signed(made.issuer, "b.test")[0], made.issuer), "another certificate", id="other"
        ),
        pytest.param(
            lambda made: answer_about(made.leaf, made.issuer, status=ocsp.OCSPCertStatus.UNKNOWN),
            "does not know",
            id="unknown",
        ),
        pytest.param(lambda made: answer_about(made.leaf, made.issuer, end=None), "nextUpdate", id="no end"),
        pytest.param(lambda made: answer_about(made.leaf, made.issuer, end=NOW), "which is not now", id="ended"),
        pytest.param(
            lambda made: answer_about(made.leaf, made.issuer, begin=NOW + 6 * MINUTE), "which is not now", id="not yet"
        ),
        pytest.param(
            lambda made: answer_about(made.leaf, made.issuer, signer=authority(), with_signer=True),
            "is not signed by",
            id="stranger",
        ),
        pytest.param(
            lambda made: answer_about(
                made.leaf, made.issuer, signer=made.delegate(ExtendedKeyUsageOID.SERVER_AUTH), with_signer=True
            ),
            "is not signed by",
            id="may not sign",
        ),
        pytest.param(
            lambda made: answer_about(
                made.leaf,
                made.issuer,
                signer=made.delegate(ExtendedKeyUsageOID.OCSP_SIGNING, end=NOW - MINUTE),
                with_signer=True,
            ),
            "is not signed by",
            id="delegate that ended",
        ),
    ],
)
def test_an_answer_that_is_worth_nothing(made: Made, answer: Callable[[Made], bytes], said: str) -> None:
    with pytest.raises(AnswerError, match=said):
        read_answer(made.question, answer(made), NOW)


def test_a_changed_answer_is_not_signed(made: Made) -> None:
    """One bit in the signature, which is at the end."""
    answer = bytearray(answer_about(made.leaf, made.issuer))
    answer[-1] ^= 1
    with pytest.raises(AnswerError):
        read_answer(made.question, bytes(answer), NOW)


def test_revoked(made: Made) -> None:
    answer = answer_about(made.leaf, made.issuer, status=ocsp.OCSPCertStatus.REVOKED)
    with pytest.raises(Revoked, match=f"revoked by its issuer on {NOW - DAY:%Y-%m-%d}"):
        read_answer(made.question, answer, NOW)


def certificate(
    folder: Path, *extensions: x509.ExtensionType, with_issuer: bool = True, issuer: Issuer | None = None
) -> ServerCertificate:
    issuer = issuer or authority()
    above = [issuer.certificate] if with_issuer else []
    made: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] = signed(issuer, "a.test", extensions=extensions)
    return read_certificate(write_pair(files_in(folder, "made"), made, *above))


def test_nothing_is_asked_without_responder_or_issuer(tmp_path: Path) -> None:
    assert question_of(certificate(tmp_path)) is None
    assert question_of(certificate(tmp_path, names_responder("ldap://directory.test/"))) is None
    assert question_of(certificate(tmp_path, names_responder(URL), with_issuer=False)) is None


def test_must_staple_needs_a_way_to_a_staple(tmp_path: Path) -> None:
    good = certificate(tmp_path, MUST_STAPLE, names_responder(URL))
    assert is_must_staple(good)
    require_staples([good, certificate(tmp_path)], "")
    for lacking, why_not, said in (
        (good, "ocsp.stapling is false", "ocsp.stapling is false"),
        (certificate(tmp_path, MUST_STAPLE), "", "it names no OCSP responder"),
        (certificate(tmp_path, MUST_STAPLE, names_responder(URL), with_issuer=False), "", "lacks the issuer's"),
    ):
        with pytest.raises(OperatorError, match=rf"made\.pem: clients refuse it .*must-staple.*{said}"):
            require_staples([lacking], why_not)
    # Without must-staple nothing is needed.
    require_staples([certificate(tmp_path)], "ocsp.stapling is false")
