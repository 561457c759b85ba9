"""The files of certificates: pairs named in the configuration, one by one or by a pattern, and whether they change.

A pattern has one ``*`` in the path of the certificate and one in that of the key. It means all pairs of files for which
both are the same text: ``hosts/*.pem`` and ``hosts/*.key``, or ``live/*/fullchain.pem`` and ``live/*/privkey.pem``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from relay.config import CertificateFiles
from relay.errors import OperatorError
from relay.gateway import file_state
from relay.gateway.file_state import FileState
from relay.plane.certificates import Certificate, ServerCertificate, read_certificate

STAR = "*"
# Of both files.
State = tuple[FileState, ...]


def read_all(entries: Sequence[CertificateFiles]) -> list[ServerCertificate]:
    """Read all certificates of ``[[certificates]]``. Raises OperatorError with one line for each mistake."""
    empty = [number for number, entry in enumerate(entries) if not list(_pairs_of(entry))]
    if empty:
        patterns = (f"certificates.{number}.certificate: {entries[number].certificate}" for number in empty)
        raise OperatorError("\n".join(f"{pattern}: no file matches" for pattern in patterns))
    certificates: list[ServerCertificate] = []
    mistakes: list[str] = []
    for pair, key in keys_of(entries).items():
        try:
            certificates.append(read_certificate(pair))
        except OperatorError as error:
            mistakes.append(f"{key}: {error}")
    if mistakes:
        raise OperatorError("\n".join(mistakes))
    return certificates


def pairs_of(entries: Sequence[CertificateFiles]) -> list[Certificate]:
    """The pairs of files, each once, in the order of the configuration; those of a pattern by name.

    A pattern that matches nothing has none. A pair that is named without a pattern need not exist.
    """
    return list(keys_of(entries))


def keys_of(entries: Sequence[CertificateFiles]) -> dict[Certificate, str]:
    """The same pairs, each with the key of the first entry that names it."""
    keys: dict[Certificate, str] = {}
    for number, entry in enumerate(entries):
        for pair in _pairs_of(entry):
            keys.setdefault(pair, f"certificates.{number}")
    return keys


def _pairs_of(entry: CertificateFiles) -> Iterator[Certificate]:
    if STAR not in str(entry.certificate):
        yield Certificate(entry.certificate, entry.private_key)
        return
    for text in _texts(str(entry.certificate)):
        chain = Path(str(entry.certificate).replace(STAR, text))
        if chain.is_file():
            yield Certificate(chain, Path(str(entry.private_key).replace(STAR, text)))


def _texts(pattern: str) -> list[str]:
    """What ``*`` may be: it stands within one part of the path, and hidden files do not match."""
    before, _, after = pattern.partition(STAR)
    folder, start = os.path.split(before)
    end = after.partition(os.sep)[0]
    try:
        names = sorted(os.listdir(folder or os.curdir))
    except OSError:
        return []
    matching = (name for name in names if name.startswith(start) and name.endswith(end) and (start or name[0] != "."))
    return [name[len(start) : len(name) - len(end)] for name in matching if len(name) > len(start) + len(end)]


def state_of(files: Certificate) -> State:
    """How both files are now. Links are followed, so a link that leads elsewhere is a change."""
    return file_state.state_of(files.chain), file_state.state_of(files.private_key)
