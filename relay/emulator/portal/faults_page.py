"""Faults on demand: what can go wrong, what does, and how to change that. They concern all firms of the emulator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from relay.emulator.faults.board import FaultBoard
from relay.emulator.faults.kinds import KINDS, BadSetting, FaultSetting, Hop, Kind, Target, takes_target
from relay.emulator.http.fields import wrong_fields
from relay.emulator.portal.forms import MAX_SHOWN, FormView
from relay.emulator.portal.pages import ROOT, PageError, see_other
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.store import audit

FAULTS = f"{ROOT}faults"
_FIGURES = tuple(FaultSetting.model_fields)
_PLACE = "place"
_LABELS = {
    "seconds": "Seconds (empty: until it is taken off)",
    "percent": "Percent of the packets",
    "delay_ms": "Milliseconds, each way",
    "idle_s": "Idle seconds",
    "answer_after_s": "Seconds before it looks at a request",
    "username": "Name",
    "password": "Password",
}
_TARGET_LABELS = {
    Target.REGION_OR_HOST: "Region or host (empty: all)",
    Target.REGION: "Region",
    Target.HOST: "Host",
}


class FaultsPage:
    """The page ``/portal/faults``."""

    def __init__(self, board: FaultBoard) -> None:
        self._board = board

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", FAULTS, visits.reading(self._show, admin=True)
        yield "POST", FAULTS, visits.changing(self._turn_on, admin=True)
        yield "POST", f"{FAULTS}/off", visits.changing(self._turn_off, admin=True)

    async def _show(self, visit: Visit) -> web.StreamResponse:
        return self._page(visit, FormView({}), "")

    def _page(self, visit: Visit, form: FormView, place: str, *, status: int = 200) -> web.Response:
        """The page. ``form`` is what somebody has sent for the fault at ``place``."""
        active = [(fault, _figures(fault.setting), self._board.remaining_s(fault)) for fault in self._board.active]
        kinds = [
            (f"{hop}/{kind}", hop, kind, spec, _fields(hop, kind)) for kind, spec in KINDS.items() for hop in spec.hops
        ]
        context = {"active": active, "kinds": kinds, "labels": _LABELS, "form": form, "place": place}
        context |= {"target_labels": _TARGET_LABELS, "targets": self._targets()}
        return visit.render("faults.html", context, status=status)

    def _targets(self) -> dict[Target, list[str]]:
        """What one may choose for each kind of target."""
        regions = self._board.regions
        # What is limited to a region or a host is the line over UDP, which leads to TURN hosts only.
        either = regions + self._board.turn_hosts
        return {Target.REGION: regions, Target.HOST: self._board.hosts, Target.REGION_OR_HOST: either}

    async def _turn_on(self, visit: Visit) -> web.StreamResponse:
        hop, kind = _place_in(visit)
        values, errors = visit.form.texts(*_FIGURES), dict[str, str]()
        try:
            setting = FaultSetting.model_validate({name: value for name, value in values.items() if value})
            async with visit.writing() as session:
                fault = self._board.put(hop, kind, setting)
                figures = dict(_figures(fault.setting))
                audit(session, visit.who.firm_id, visit.who.user_id, "fault on", f"{hop}/{kind}", figures=figures)
            return see_other(f"{FAULTS}?done=fault-on")
        except ValidationError as invalid:
            for wrong in wrong_fields(invalid, FaultSetting):
                errors[wrong.where] = f"“{values[wrong.where][:MAX_SHOWN]}” does not fit. Expected {wrong.expected}."
        except BadSetting as bad:
            errors[bad.where.rpartition(".")[2]] = f"{bad.message} Expected {bad.expected}."
        return self._page(visit, FormView(values, errors), f"{hop}/{kind}", status=422)

    async def _turn_off(self, visit: Visit) -> web.StreamResponse:
        async with visit.writing() as session:
            if visit.form.text(_PLACE) == "all":
                removed, where = self._board.clear(), "all"
            else:
                hop, kind = _place_in(visit)
                removed, where = self._board.remove(hop, kind), f"{hop}/{kind}"
            if removed:
                audit(session, visit.who.firm_id, visit.who.user_id, "fault off", where, faults=removed)
        return see_other(f"{FAULTS}?done=fault-off")


def _place_in(visit: Visit) -> tuple[Hop, Kind]:
    hop, _, kind = visit.form.text(_PLACE).partition("/")
    if hop in set(Hop) and kind in set(Kind) and hop in KINDS[Kind(kind)].hops:
        return Hop(hop), Kind(kind)
    raise PageError(404, "No such fault", "There is no such fault. Nothing was changed.")


def _fields(hop: Hop, kind: Kind) -> list[tuple[str, str, bool]]:
    """The figures that this fault takes: name, default, and whether it must be given."""
    spec = KINDS[kind]
    fields = [("seconds", str(spec.defaults.get("seconds", "")), False)]
    if takes_target(hop, spec):
        fields.append(("target", "", spec.target is not Target.REGION_OR_HOST))
    return fields + [(name, str(value), False) for name, value in spec.defaults.items() if name != "seconds"]


def _figures(setting: FaultSetting) -> list[tuple[str, Any]]:
    """What is shown of a setting. Only the user who set a password needs to know it."""
    return [(name, value) for name, value in setting if value is not None and name != "password"]
