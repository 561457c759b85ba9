"""Why a signature is wrong: the mistakes that people make, tried one by one until the signature matches.

A mistake changes one field of the string to sign, or how the whole is put together. If no single one explains the
signature, pairs of them are tried. The client gets the name of the field, or the string that the server signed. The
secret is in neither. Pure.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import email.utils
import functools
import hashlib
import hmac
import itertools
import json
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from relay.catalog import Service, load
from relay.emulator.apis.signing import DEFAULT_PORTS, SignedRequest, fields_of

# Each signature that is tried takes 15 µs, and the loop waits meanwhile. So pairs are made of the most common mistakes
# only, and so are all tries with a body that is longer than bodies of the APIs usually are.
MAX_BODY_FOR_ALL = 8192
# An answer shows this much of the string to sign: enough for all fields except a long body.
MAX_SHOWN_BYTES = 2048

_DIGEST_BYTES = {"sha512": 64, "sha256": 32, "sha384": 48, "sha1": 20}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a signature: the field, in words, and what was expected."""

    field: str
    told: str
    expected: str


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a signature could have been made."""

    fields: Mapping[str, bytes]
    algorithm: str
    secret: bytes
    join: Callable[[Iterable[bytes]], bytes]

    def digest(self) -> bytes:
        return hmac.digest(self.secret, self.join(self.fields.values()), self.algorithm)


@dataclass(frozen=True, slots=True)
class _Mistake:
    field: str
    told: str
    make: Callable[[_Recipe], _Recipe]
    is_common: bool = False


def explain(request: SignedRequest, signature: str, secret: str, *, key: str, nonce: str, date: str) -> Fault:
    """Name the field that differs. If none is found, show the string to sign."""
    fields = fields_of(request, key, nonce, date)
    right = _Recipe(fields, "sha512", secret.encode(), _each_with("\n"))
    given = _digests_in(signature)
    if not given:
        told = "the signature is not base64, nor anything else that the server can read"
        return Fault("signature", told, "base64 of the 64 bytes of HMAC-SHA512")
    if right.digest() in given:
        told = "the signature is right, but it is not written in base64 (standard alphabet, with padding)"
        return Fault("signature", told, "base64 of the 64 bytes of HMAC-SHA512, not hex and not URL-safe base64")
    is_long = len(request.body) > MAX_BODY_FOR_ALL
    mistakes = [*_mistakes(request, secret, fields)]
    common = [mistake for mistake in mistakes if mistake.is_common]
    found = _match(right, given, ((mistake,) for mistake in (common if is_long else mistakes)))
    if found is None and not is_long:
        pairs = itertools.combinations(common, 2)
        found = _match(right, given, ((a, b) for a, b in pairs if a.field != b.field))
    return _told(found, right) if found else _unexplained(right)


def _match(
    right: _Recipe, given: set[bytes], candidates: Iterable[tuple[_Mistake, ...]]
) -> tuple[_Mistake, ...] | None:
    for mistakes in candidates:
        recipe = right
        for mistake in mistakes:
            recipe = mistake.make(recipe)
        digest = recipe.digest()
        if any(hmac.compare_digest(digest, each) for each in given):
            return mistakes
    return None


def _told(mistakes: tuple[_Mistake, ...], right: _Recipe) -> Fault:
    told = "; and ".join(mistake.told for mistake in mistakes)
    return Fault(
        " and ".join(mistake.field for mistake in mistakes),
        f"the signature does not match. It would if {told}",
        "; ".join(_expected(mistake.field, right) for mistake in mistakes),
    )


def _expected(field: str, right: _Recipe) -> str:
    if field in right.fields and field != "body":
        return f"{field} {_text(right.fields[field])}"
    return {
        "body": f"the body's {len(right.fields['body'])} bytes, as they were sent",
        "newlines": r"one \n after each field, also after the body",
        "algorithm": "HMAC with SHA-512",
        "secret": "the bytes of the secret as text in UTF-8",
    }[field]


def _unexplained(right: _Recipe) -> Fault:
    whole = right.join(right.fields.values())
    more = f" and {len(whole) - MAX_SHOWN_BYTES} bytes more" if len(whole) > MAX_SHOWN_BYTES else ""
    told = "the signature does not match, and no usual mistake explains it: the secret differs, or several fields do"
    return Fault("signature", told, f"HMAC-SHA512 of {_text(whole[:MAX_SHOWN_BYTES])}{more}")


def _text(value: bytes) -> str:
    return json.dumps(value.decode("utf-8", "backslashreplace"))


def _digests_in(signature: str) -> set[bytes]:
    """The digests that a signature may be, in every way of writing that gives the length of one."""
    padded = signature.rstrip("=") + "=" * (-len(signature.rstrip("=")) % 4)
    found = set()
    for read in (_standard, base64.urlsafe_b64decode, _hex, _base64_of_hex):
        try:
            digest = read(padded if read is not _hex else signature)
        except (binascii.Error, ValueError):
            continue
        if len(digest) in _DIGEST_BYTES.values():
            found.add(digest)
    return found


def _standard(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _hex(text: str) -> bytes:
    return binascii.unhexlify(text)


def _base64_of_hex(text: str) -> bytes:
    return binascii.unhexlify(base64.b64decode(text, validate=True))


# The mistakes: what a field could have been, and how people would say it. Of two ways to say it, the later one counts.

_Forms = dict[str | bytes, str]
# Names of this machine, and the ports of ``relay emulate`` and of the schemes, as they end a host.
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_LOCALHOST = ".localhost"
_PORTS = (":8080", ":8443", ":80", ":443")
_OTHER_NAME = "another name of this machine"
# The paths that take signatures, except those with a name in them.
SIGNED_PATHS = (
    "/external/apis/users",
    "/external/apis/connections",
    "/v2/calls/transcriptions",
    "/audit/v1/entries",
    "/emulator/v1/rejections",
    "/api",
)
# With the last newline and SHA-256, those that are tried in pairs.
_COMMON = {
    ("host:port", "without its port"),
    ("host:port", "with port 443"),
    ("host:port", _OTHER_NAME),
    ("scheme", ""),
    ("path", "with the query"),
    ("path", "without its beginning"),
    ("content-type", "with its parameters"),
    ("content-type", "left empty"),
    ("content-type", "always application/json"),
    ("method", "in lower case"),
    ("date", "in ISO 8601"),
    ("date", "-1 s off"),
    ("date", "+1 s off"),
    ("body", "left empty"),
    ("body", "written again as JSON without spaces"),
    ("body", "written again as JSON with spaces"),
}


def _mistakes(request: SignedRequest, secret: str, fields: Mapping[str, bytes]) -> Iterator[_Mistake]:
    others: dict[str, _Forms] = {
        "host:port": _hosts(request),
        "scheme": _schemes(request),
        "path": _paths(request),
        "content-type": _content_types(request),
        "method": _methods(request),
        "date": _dates(_as_text(fields["date"])),
        "nonce": _nonces(_as_text(fields["nonce"])),
        "body": _bodies(request.body),
        "api key": {_as_text(fields["api key"]).upper(): "in upper case", "": "left empty"},
    }
    for field, values in others.items():
        yield from _of_field(field, values, fields[field])
    for algorithm in ("sha256", "sha384", "sha1"):
        told = f"the hash were {algorithm.upper().replace('SHA', 'SHA-')}"
        yield _Mistake("algorithm", told, _altering(algorithm=algorithm), is_common=algorithm == "sha256")
    for told, join in _JOINS.items():
        yield _Mistake("newlines", told, _altering(join=join), is_common=join is _JOINS[_LAST_NEWLINE])
    for told, other in _secrets(secret):
        yield _Mistake("secret", told, _altering(secret=other))


def _of_field(field: str, values: _Forms, right: bytes) -> Iterator[_Mistake]:
    for value, how in values.items():
        other = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        if other == right:
            continue
        shown = "" if field == "body" or not other else _text(other)
        told = f"the {field} were {': '.join(filter(None, (how, shown)))}"
        yield _Mistake(field, told, _setting(field, other), is_common=(field, how) in _COMMON)
    yield _Mistake(field, f"the line of the {field} were left out", _without(field))


def _as_text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _setting(field: str, value: bytes) -> Callable[[_Recipe], _Recipe]:
    return lambda recipe: replace(recipe, fields={**recipe.fields, field: value})


def _altering(**parts: Any) -> Callable[[_Recipe], _Recipe]:
    return lambda recipe: replace(recipe, **parts)


def _without(field: str) -> Callable[[_Recipe], _Recipe]:
    return lambda recipe: replace(
        recipe, fields={name: value for name, value in recipe.fields.items() if name != field}
    )


@functools.cache
def _vendors_names() -> tuple[str, ...]:
    """The vendor's hosts of APIs, by the catalog that comes with the relay."""
    return tuple(host.name for host in load().hosts if host.service is Service.API)


def _hosts(request: SignedRequest) -> _Forms:
    host = request.host.strip().lower()
    bare = re.sub(r":\d+$", "", host)
    plain = bare.removesuffix(_LOCALHOST)
    port = DEFAULT_PORTS.get(request.scheme.lower(), 0)
    sent = host.removeprefix(bare)
    others: _Forms = {}
    for ports, how in ((_PORTS, f"{_OTHER_NAME} and another port"), ((sent,), _OTHER_NAME)):
        others |= {f"{name}{port}": how for name in _LOCAL for port in ports}
        vendors = [f"{name}{end}" for name in _vendors_names() for end in ("", _LOCALHOST)]
        others |= {f"{name}{port}": "a name of the vendor's" for name in vendors for port in ports}
    return {
        **others,
        **{f"{bare}{port}": "with another port" for port in _PORTS},
        plain: "the vendor's name without a port",
        f"{plain}:443": "with port 443",
        f"{plain}:80": "with port 80",
        f"{plain}:{port}": f"with the port {port} of {request.scheme}",
        host.upper(): "in upper case",
        request.host: "as in the Host header",
        bare: "without its port",
        "": "left empty",
    }


def _schemes(request: SignedRequest) -> _Forms:
    others: _Forms = {f"{each}{end}": "" for end in ("", "://", ":") for each in ("https", "http", "wss", "ws")}
    return {**others, request.scheme.upper(): "in upper case", "": "left empty"}


def _paths(request: SignedRequest) -> _Forms:
    path, query = request.path, request.query
    shorter: _Forms = {path[cut.start() :]: "without its beginning" for cut in re.finditer("/", path) if cut.start()}
    parents: _Forms = {path[: cut.start()]: "without its end" for cut in re.finditer("/", path) if cut.start()}
    return {
        **dict.fromkeys(SIGNED_PATHS, "the path of another endpoint"),
        **parents,
        f"{path}?{query}": "with the query",
        path.rstrip("/"): "without the slash at its end",
        path + "/": "with a slash at its end",
        path.lstrip("/"): "without the slash at its beginning",
        urllib.parse.unquote(path): "without percent-encoding",
        urllib.parse.quote(path): "percent-encoded",
        path.lower(): "in lower case",
        f"{request.scheme}://{request.host}{path}": "the whole URL",
        **shorter,
        "": "left empty",
    }


def _content_types(request: SignedRequest) -> _Forms:
    sent = request.content_type
    bare = sent.partition(";")[0].strip()
    return {
        "application/json; charset=utf-8": "with a charset that was not sent",
        "application/json;charset=UTF-8": "with a charset that was not sent",
        "application/json": "always application/json",
        "text/plain": "text/plain",
        bare.lower(): "in lower case",
        sent.replace(" ", ""): "with its parameters and without the space",
        sent: "with its parameters",
        "": "left empty",
    }


def _methods(request: SignedRequest) -> _Forms:
    others: _Forms = dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"), "")
    return {**others, request.method.lower(): "in lower case", "": "left empty"}


def _dates(date: str) -> _Forms:
    try:
        sent = email.utils.parsedate_to_datetime(date).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        return {"": "left empty"}
    seconds = int(sent.timestamp())
    iso = sent.strftime("%Y-%m-%dT%H:%M:%S")
    return {
        f"{iso}Z": "in ISO 8601",
        f"{iso}.000Z": "in ISO 8601 with milliseconds",
        f"{iso}+00:00": "in ISO 8601 with an offset",
        str(seconds): "seconds since 1970",
        str(seconds * 1000): "milliseconds since 1970",
        date.replace("GMT", "UTC"): "with UTC instead of GMT",
        date.replace("GMT", "+0000"): "with +0000 instead of GMT",
        email.utils.formatdate(seconds): "with -0000 instead of GMT",
        **{email.utils.formatdate(seconds + off, usegmt=True): f"{off:+} s off" for off in (-2, -1, 1, 2)},
        "": "left empty",
    }


def _nonces(nonce: str) -> _Forms:
    return {
        nonce.replace("-", ""): "without hyphens",
        nonce.upper(): "in upper case",
        nonce.lower(): "in lower case",
        f"{{{nonce}}}": "in braces",
        "": "left empty",
    }


def _bodies(body: bytes) -> _Forms:
    if len(body) > MAX_BODY_FOR_ALL:
        return {b"": "left empty"}
    forms: _Forms = {
        b"": "left empty",
        b"{}": "an empty object",
        b"null": "null",
        body.strip(): "without the white space around it",
        body + b"\n": "with one more newline",
        hashlib.sha512(body).hexdigest().encode(): "its SHA-512 in hex",
        hashlib.sha256(body).hexdigest().encode(): "its SHA-256 in hex",
        base64.b64encode(hashlib.sha512(body).digest()): "its SHA-512 in base64",
        base64.b64encode(hashlib.sha256(body).digest()): "its SHA-256 in base64",
        base64.b64encode(body): "in base64",
    }
    return {**forms, **_json_forms(body)}


def _json_forms(body: bytes) -> _Forms:
    try:
        value = json.loads(body)
        dumped: _Forms = {
            json.dumps(value, separators=(",", ":"), ensure_ascii=False): "written again as JSON without spaces",
            json.dumps(value, separators=(",", ":")): "written again as JSON without spaces, in ASCII",
            json.dumps(value, ensure_ascii=False): "written again as JSON with spaces",
            json.dumps(value): "written again as JSON with spaces, in ASCII",
            json.dumps(value, indent=2, ensure_ascii=False): "written again as JSON with lines",
            json.dumps(value, separators=(",", ":"), sort_keys=True): "written again as JSON, sorted",
        }
        return {text.encode() if isinstance(text, str) else text: how for text, how in dumped.items()}
    except (ValueError, RecursionError):
        return {}


def _each_with(end: str) -> Callable[[Iterable[bytes]], bytes]:
    return lambda values: b"".join(value + end.encode() for value in values)


def _between(end: str) -> Callable[[Iterable[bytes]], bytes]:
    return lambda values: end.encode().join(values)


_LAST_NEWLINE = "the last newline, after the body, were missing"
_JOINS = {
    _LAST_NEWLINE: _between("\n"),
    r"lines ended with \r\n": _each_with("\r\n"),
    r"lines ended with \r\n, except the last": _between("\r\n"),
    r"lines ended with a backslash and an n": _each_with("\\n"),
    "the fields were joined without newlines": _between(""),
    "the fields were joined with colons": _between(":"),
}


def _secrets(secret: str) -> Iterator[tuple[str, bytes]]:
    for told, read in (("base64", _standard), ("hex", _hex)):
        try:
            if (value := read(secret)) != secret.encode():
                yield f"the secret were read as {told}", value
        except (binascii.Error, ValueError):
            continue
    yield "the secret were written in base64 first", base64.b64encode(secret.encode())
    yield "the secret were followed by a newline", secret.encode() + b"\n"
