"""Rejections on demand: the next messages of a kind are rejected, as a firm's program has asked for."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from relay.emulator.apis.cti.messages import Rejected
from relay.emulator.apis.models import WHOLE, ApiModel, ApiRequest, Label, Name
from relay.emulator.apis.security import Keys, Signed
from relay.emulator.http.endpoints import Call, Endpoint
from relay.emulator.http.errors import ApiError
from relay.emulator.http.site import Site
from relay.emulator.marks import Mark
from relay.emulator.names import Api, HostRole

PATH = "/emulator/v1/rejections"
# Of one firm, waiting. A test sets one or two.
MAX_PLANS = 100
MAX_COUNT = 1000

MessageType = Literal["initiateCall", "releaseCall", "callStatusSnapshot", "userStatusSnapshot"]


class PlanRequest(ApiRequest):
    """Reject the next messages of this type, of this user if one is named."""

    message_type: MessageType
    rejection_code: Annotated[int, Field(ge=0, le=99_999), WHOLE]
    rejection_reason: Label
    user_id: Name | None = None
    count: Annotated[int, Field(ge=1, le=MAX_COUNT), WHOLE] = 1


class Plan(ApiModel):
    """A rejection that waits for messages. ``count`` is how many more."""

    message_type: MessageType
    rejection_code: int
    rejection_reason: str
    user_id: str | None
    count: int


class Plans(ApiModel):
    """All that wait, in the order in which they were asked for."""

    rejections: list[Plan]


class Rejections:
    """What each firm has asked for. In memory: a restart forgets it."""

    def __init__(self) -> None:
        self._of_firms: defaultdict[str, list[Plan]] = defaultdict(list)

    def check(self, firm: str, message_type: str, user_id: str | None) -> None:
        """Raises Rejected if a message is to be rejected, and uses up one of the count."""
        plans = self._of_firms.get(firm, [])
        for number, plan in enumerate(plans):
            if plan.message_type == message_type and plan.user_id in {None, user_id}:
                if plan.count > 1:
                    plans[number] = plan.model_copy(update={"count": plan.count - 1})
                else:
                    del plans[number]
                raise Rejected(plan.rejection_code, plan.rejection_reason, expected="injected by " + PATH)

    def register(self, site: Site, keys: Keys) -> None:
        """Serve the endpoints that set them, for keys of the CTI API."""
        security = Signed(keys, Api.CTI)

        site.add(
            Endpoint(
                HostRole.EMULATOR,
                "POST",
                PATH,
                Mark.INVENTED,
                "Reject the next CTI messages of a type",
                self._add,
                body=PlanRequest,
                answer=Plans,
                status=201,
                security=security,
                errors={409: f"{MAX_PLANS} rejections wait already."},
            ),
            Endpoint(
                HostRole.EMULATOR,
                "GET",
                PATH,
                Mark.INVENTED,
                "The rejections that wait",
                self._list,
                answer=Plans,
                security=security,
            ),
            Endpoint(
                HostRole.EMULATOR,
                "DELETE",
                PATH,
                Mark.INVENTED,
                "Forget all rejections that wait",
                self._clear,
                status=204,
                security=security,
            ),
        )

    async def _add(self, call: Call) -> Plans:
        plans, asked = self._of_firms[call.caller.firm], call.body
        if len(plans) >= MAX_PLANS:
            expected = f"at most {MAX_PLANS}; DELETE forgets them"
            raise ApiError(409, "too_many", f"{len(plans)} rejections wait already.", expected=expected)
        plans.append(Plan(**dict(asked)))
        return Plans(rejections=plans)

    async def _list(self, call: Call) -> Plans:
        return Plans(rejections=self._of_firms.get(call.caller.firm, []))

    async def _clear(self, call: Call) -> web.Response:
        self._of_firms.pop(call.caller.firm, None)
        return web.Response(status=204)
