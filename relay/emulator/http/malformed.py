"""What a client is told whose request aiohttp's parser cannot read. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp.http_exceptions import ContentEncodingError, InvalidURLError, LineTooLong

from relay.emulator.http.errors import ApiError

# RFC 9112 section 3 asks for 8,000 bytes at least.
MAX_TARGET_BYTES = 8190
# The parser's errors differ only in their bound, so this one must differ.
MAX_HEADER_BYTES = 8192
# What the parser says of too many headers.
_TOO_MANY = "Too many headers received"
# And of a ClientHello.
_TLS = "Received HTTPS traffic on an HTTP port"
# The parser puts the client's bytes after this.
_SHOWN = ":\n\n"
_ENCODINGS = "gzip, deflate, or none"


def refusal(error: BaseException | None) -> ApiError:
    """The answer to a request with this error of the parser. The client's bytes are not in it."""
    if isinstance(error, LineTooLong):
        if error.args[1] == MAX_TARGET_BYTES:
            expected = f"at most {MAX_TARGET_BYTES} bytes"
            return ApiError(414, "too_long", "The request target is too long.", where="path", expected=expected)
        expected = f"at most {MAX_HEADER_BYTES} bytes each"
        return ApiError(431, "too_long", "A header is too long.", where="headers", expected=expected)
    if isinstance(error, ContentEncodingError):
        return _wrong_encoding()
    if isinstance(error, InvalidURLError):
        return ApiError(
            400, "bad_path", "The request target is not a URL.", where="path", expected="a path, as in RFC 3986"
        )
    found, shown, _ = str(getattr(error, "message", "")).partition(_SHOWN)
    if found == _TOO_MANY:
        return ApiError(431, "too_many", "There are too many headers.", where="headers", expected="at most 128")
    if found == _TLS:
        return ApiError(400, "tls", "The request is TLS.", where="request", expected="plain HTTP at this port")
    words = " ".join(found.split())
    what = f": {words[:1].lower()}{words[1:]}" if shown and words else ""
    return ApiError(400, "malformed", f"This is not a request of HTTP/1.1{what}.", where="request", expected="RFC 9112")


def refused_encoding(named: Iterable[str]) -> ApiError | None:
    """The answer to a body with these values of Content-Encoding, or None if all of them are known here.

    aiohttp decodes more if certain packages are installed, and takes the names that it does not know for none.
    """
    found = {one.strip().lower() for value in named for one in value.split(",")}
    return None if found <= {"gzip", "deflate", "identity", ""} else _wrong_encoding()


def _wrong_encoding() -> ApiError:
    message = "The body's encoding is not known here, or the body does not have it."
    return ApiError(415, "wrong_encoding", message, where="Content-Encoding", expected=_ENCODINGS)


def broken_body(error: BaseException) -> ApiError:
    """The answer to a request whose head is right, and whose body is not."""
    if isinstance(error.__cause__, ContentEncodingError):
        message = "The body does not have the encoding that Content-Encoding names."
        return ApiError(400, "broken_body", message, where="body", expected=_ENCODINGS)
    return ApiError(400, "broken_off", "The body broke off, or is malformed.", where="body", expected="all of it")
