"""A message in its signed envelope. Pure.

What a message's signature covers beside its body is not public. Here it is what the handshake's does: GET, ws or wss,
host and ``/api``. ``messageType`` is not covered. The content type is empty unless the headers have a ``Content-Type``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from pydantic import BaseModel, ValidationError

from relay.emulator.apis.cti.messages import FROM_CLIENT, Envelope, Rejected, RejectionCode, name_of
from relay.emulator.apis.models import ApiModel, ApiRequest
from relay.emulator.apis.signing import SignedRequest, sign
from relay.emulator.apis.verifying import SignatureRefused, parse_authorization
from relay.emulator.http.fields import first_wrong

# Errors show this many characters of a name.
_MAX_SHOWN = 64


@dataclass(frozen=True, slots=True)
class Opened:
    """A message of a client. ``signed`` is what its signature covers."""

    message_type: str
    body: str
    signed: SignedRequest
    authorization: str | None
    date: str | None

    @property
    def nonce(self) -> str | None:
        """The nonce, if there is one that can be read."""
        try:
            return parse_authorization(self.authorization).nonce[:_MAX_SHOWN]
        except SignatureRefused:
            return None


def seal(message: ApiModel, handshake: SignedRequest, key: str, secret: str, *, nonce: str, date: str) -> str:
    """A message of ours, signed with the client's own key."""
    body = message.model_dump_json(by_alias=True)
    signed = replace(handshake, content_type="", body=body.encode(), query="")
    headers = sign(signed, key, secret, nonce=nonce, date=date)
    return json.dumps({"headers": headers, "messageType": name_of(message), "messageBody": body})


def open_envelope(text: str, handshake: SignedRequest) -> Opened:
    """Read an envelope. Its signature is not checked yet. Raises Rejected."""
    expected = '{"headers": {...}, "messageType": "...", "messageBody": "<JSON>"}'
    try:
        envelope = Envelope.model_validate(json.loads(text))
    except ValidationError as invalid:
        raise _invalid(invalid, Envelope, "envelope", expected) from None
    except (ValueError, RecursionError):
        raise Rejected(RejectionCode.BAD_MESSAGE, "the message is not JSON", expected=expected) from None
    headers = {name.lower(): value for name, value in envelope.headers.items()}
    body = envelope.message_body.encode("utf-8", "surrogatepass")
    signed = replace(handshake, content_type=headers.get("content-type", ""), body=body, query="")
    return Opened(
        envelope.message_type, envelope.message_body, signed, headers.get("authorization"), headers.get("date")
    )


def read_body(opened: Opened) -> ApiRequest:
    """The message of a client whose signature is right. Raises Rejected."""
    model = FROM_CLIENT.get(opened.message_type)
    if model is None:
        reason = f"there is no message {opened.message_type[:_MAX_SHOWN]!a}"
        raise Rejected(RejectionCode.BAD_MESSAGE, reason, where="messageType", expected=", ".join(FROM_CLIENT))
    expected = ", ".join(
        f"{field.alias or name}{'' if field.is_required() else ' (optional)'}"
        for name, field in model.model_fields.items()
    )
    try:
        return model.model_validate(json.loads(opened.body))
    except ValidationError as invalid:
        raise _invalid(invalid, model, "messageBody", expected) from None
    except (ValueError, RecursionError):
        reason = "messageBody is not JSON"
        raise Rejected(RejectionCode.BAD_MESSAGE, reason, where="messageBody", expected=expected) from None


def _invalid(invalid: ValidationError, model: type[BaseModel], part: str, expected: str) -> Rejected:
    wrong = first_wrong(invalid, model)
    where = f"{part}.{wrong.where}".rstrip(".")[:_MAX_SHOWN]
    is_one_field = bool(wrong.where) and wrong.code not in {"missing", "extra_forbidden"}
    return Rejected(
        RejectionCode.BAD_MESSAGE, wrong.message, where=where, expected=wrong.expected if is_one_field else expected
    )
