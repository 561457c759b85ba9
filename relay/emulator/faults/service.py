"""The API of the board: what can go wrong, what does, and how to change it. Nothing of it is the vendor's."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from relay.emulator.faults.board import Fault, FaultBoard
from relay.emulator.faults.kinds import KINDS, BadSetting, FaultSetting, Hop, Kind, Target, takes_target
from relay.emulator.http.endpoints import Call, Endpoint
from relay.emulator.http.errors import ApiError
from relay.emulator.http.site import Site
from relay.emulator.marks import Mark
from relay.emulator.names import HostRole

PATH = "/emulator/v1/faults"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Place(_Model):
    """Which fault."""

    hop: Hop
    kind: Kind


class HopView(_Model):
    """Where a fault can be."""

    hop: Hop
    description: str
    takes_target: bool


class KindView(_Model):
    """What can go wrong."""

    kind: Kind
    mark: Mark
    mark_means: str
    description: str
    symptom: str = Field(description="What a user sees then.")
    hops: list[HopView]
    target: Target
    defaults: FaultSetting = Field(description="The figures that this kind takes.")


class FaultView(_Model):
    """A fault that is on."""

    hop: Hop
    kind: Kind
    setting: FaultSetting
    remaining_s: float | None = Field(description="None: until it is taken off.")


class Faults(_Model):
    """The whole board."""

    kinds: list[KindView]
    active: list[FaultView]


class Removed(_Model):
    """How many faults were taken off."""

    removed: int


def kind_view(kind: Kind) -> KindView:
    """A kind as readers see it."""
    spec = KINDS[kind]
    return KindView(
        kind=kind,
        mark=spec.mark,
        mark_means=spec.mark.sentence,
        description=spec.description,
        symptom=spec.symptom,
        hops=[HopView(hop=hop, description=hop.sentence, takes_target=takes_target(hop, spec)) for hop in spec.hops],
        target=spec.target,
        defaults=FaultSetting(**spec.defaults),
    )


class FaultService:
    """Answers for one board."""

    def __init__(self, board: FaultBoard) -> None:
        self._board = board

    def register(self, site: Site) -> None:
        """Add the endpoints."""
        one, invented = PATH + "/{hop}/{kind}", Mark.INVENTED
        role = HostRole.EMULATOR
        wrong = {422: "The kind has no such field or target.", 404: "The kind does not happen at this hop."}
        site.add(
            Endpoint(role, "GET", PATH, invented, "What can go wrong, and what does", self._list, answer=Faults),
            Endpoint(
                role,
                "PUT",
                one,
                invented,
                "Turn a fault on, or change it",
                self._put,
                body=FaultSetting,
                path_model=Place,
                answer=FaultView,
                errors=wrong,
            ),
            Endpoint(role, "DELETE", one, invented, "Turn a fault off", self._delete, path_model=Place, answer=Removed),
            Endpoint(role, "DELETE", PATH, invented, "Turn all faults off", self._clear, answer=Removed),
        )

    async def _list(self, call: Call) -> Faults:
        return Faults(
            kinds=[kind_view(kind) for kind in Kind], active=[self._view(each) for each in self._board.active]
        )

    async def _put(self, call: Call) -> FaultView:
        try:
            return self._view(self._board.put(call.path.hop, call.path.kind, call.body))
        except BadSetting as bad:
            status = 404 if bad.where == "path.hop" else 422
            raise ApiError(status, "bad_fault", bad.message, where=bad.where, expected=bad.expected) from None

    async def _delete(self, call: Call) -> Removed:
        return Removed(removed=self._board.remove(call.path.hop, call.path.kind))

    async def _clear(self, call: Call) -> Removed:
        return Removed(removed=self._board.clear())

    def _view(self, fault: Fault) -> FaultView:
        # Only the user who set a password needs to know it.
        shown = fault.setting.model_copy(update={"password": None})
        left_s = self._board.remaining_s(fault)
        # Sums of clock times can be longer than what was asked for, by less than a nanosecond.
        remaining = None if left_s is None else round(left_s, 6)
        return FaultView(hop=fault.hop, kind=fault.kind, setting=shown, remaining_s=remaining)
