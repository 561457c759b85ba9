"""A client's messages as their models, and what it is told of one that is wrong."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from relay.emulator.http.fields import first_wrong
from relay.emulator.signaling.messages import FROM_CLIENT, ErrorCode, Event
from relay.emulator.signaling.state import Refusal

_MODELS: dict[str, type[Event]] = {model.event: model for model in FROM_CLIENT}


def refused(refusal: Refusal) -> dict[str, Any]:
    """The acknowledgement of a message that changed nothing."""
    return {"ok": False, "error": refusal.info.model_dump(mode="json")}


def parse(event: str, payload: object) -> Event:
    """A client's message as its model. Raises Refusal."""
    model = _MODELS.get(event)
    if model is None:
        raise Refusal(ErrorCode.UNKNOWN_EVENT, "There is no such event.", f"one of: {', '.join(_MODELS)}")
    try:
        return model.model_validate({} if payload is None else payload)
    except ValidationError as error:
        wrong = first_wrong(error, model)
        is_one_field = bool(wrong.where) and wrong.code not in {"missing", "extra_forbidden"}
        raise Refusal(
            ErrorCode.BAD_MESSAGE,
            f"{wrong.where}: {wrong.message}" if wrong.where else wrong.message,
            f"{wrong.where}: {wrong.expected}" if is_one_field else shape(model),
        ) from None


def shape(model: type[Event]) -> str:
    """A message's fields, for a client that sent it wrongly."""
    fields = [name if known.is_required() else f"{name} (optional)" for name, known in model.model_fields.items()]
    return f"{model.event} with {', '.join(fields) or 'no fields'}"
