"""The answers of a TURN server, and the successes that it keeps for copies of their requests."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from relay.addresses import Address
from relay.turn.authentication import AuthenticRequest, TurnError
from relay.wire.stun import AttributeType, Message, MessageClass, build_error_code, build_message

# A client sends a request again for up to 39.5 s. Its answer is kept that long, for at most this many requests.
ANSWER_LIFETIME_S = 40.0
MAX_ANSWERS = 4096


@dataclass(frozen=True, slots=True)
class _Kept:
    """A success. A copy of its request has the same bytes, credentials included."""

    expires: float
    request_digest: bytes
    data: bytes


class Answers:
    """What has been granted lately: a request that is sent again must not be carried out again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Address, bytes], _Kept] = OrderedDict()

    def known(self, now: float, client: Address, message: Message) -> bytes | None:
        """The answer to an earlier copy of this request."""
        kept = self._kept.get((client, message.transaction_id))
        if kept is None or kept.expires <= now or kept.request_digest != _digest(message):
            return None
        return kept.data

    def succeed(self, now: float, request: AuthenticRequest, attributes: list[tuple[int, bytes]]) -> bytes:
        """Build the success for a request, and keep it."""
        transaction_id = request.message.transaction_id
        answer = build_message(
            request.message.method,
            MessageClass.SUCCESS,
            transaction_id,
            attributes,
            integrity_key=request.key,
            integrity_kind=request.integrity_kind,
        )
        self._kept[request.client, transaction_id] = _Kept(now + ANSWER_LIFETIME_S, _digest(request.message), answer)
        if len(self._kept) > MAX_ANSWERS:
            self._kept.popitem(last=False)
        return answer


def build_refusal(message: Message, request: AuthenticRequest | None, refused: TurnError) -> bytes:
    """The error for a request; it is signed if the client has authenticated itself."""
    attributes = [(AttributeType.ERROR_CODE, build_error_code(refused.code, refused.reason))]
    return build_message(
        message.method,
        MessageClass.ERROR,
        message.transaction_id,
        [*attributes, *refused.attributes],
        integrity_key=None if request is None else request.key,
        integrity_kind=AttributeType.MESSAGE_INTEGRITY if request is None else request.integrity_kind,
    )


def _digest(message: Message) -> bytes:
    return hashlib.sha256(message.raw).digest()
