"""API keys of a firm. A secret is shown once, when its key is made."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable
from typing import Annotated, Any

from aiohttp import web
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from relay.emulator.names import Api
from relay.emulator.portal import firms
from relay.emulator.portal.forms import VERSION, Form, FormView, check, conflicts, differences, version_of
from relay.emulator.portal.pages import ROOT, not_found, see_other
from relay.emulator.portal.parts import Parts
from relay.emulator.portal.visits import Visit, Visits
from relay.emulator.store.store import audit
from relay.emulator.store.tables import ApiKey

KEYS = f"{ROOT}keys"
# A firm's programs run in a few data centres.
MAX_NETWORKS = 50
_ON = "on"
_LOOPBACK = "127.0.0.0/8\n::1/128"


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"{error}. Expected networks such as 10.1.2.0/24 or 192.0.2.7, one a line.") from None


class KeyEdit(BaseModel):
    """What an administrator changes of a key."""

    name: firms.Name
    networks: Annotated[
        list[Annotated[str, AfterValidator(_network)]],
        Field(min_length=1, max_length=MAX_NETWORKS, description=f"1 to {MAX_NETWORKS} networks, one a line"),
    ]
    apis: Annotated[list[Api], Field(min_length=1, description="at least one API")]
    enabled: bool = True


class ApiKeys:
    """The pages below ``/portal/keys``."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._clock = parts.clock

    def routes(self, visits: Visits) -> Iterable[tuple[str, str, Any]]:
        """Method, path and handler of each page."""
        yield "GET", KEYS, visits.reading(self._list, admin=True)
        yield "GET", f"{KEYS}/new", visits.reading(self._new, admin=True)
        yield "POST", f"{KEYS}/new", visits.changing(self._add, admin=True)
        yield "GET", f"{KEYS}/{{key}}", visits.reading(self._show, admin=True)
        yield "POST", f"{KEYS}/{{key}}", visits.changing(self._save, admin=True)

    async def _list(self, visit: Visit) -> web.StreamResponse:
        async with self._store.reading() as session:
            found = (
                select(ApiKey).where(ApiKey.firm_id == visit.who.firm_id).order_by(ApiKey.created_at, ApiKey.api_key)
            )
            keys = (await session.scalars(found.limit(firms.MAX_KEYS))).all()
        return visit.render("keys.html", {"keys": keys})

    async def _show(self, visit: Visit) -> web.StreamResponse:
        return await self._page(visit, None)

    async def _page(self, visit: Visit, form: FormView | None, *, status: int = 200) -> web.Response:
        async with self._store.reading() as session:
            key = await _key_of(session, visit.who.firm_id, visit.path("key"))
        if form is None:
            form = FormView(_values(key), version=version_of(_values(key)))
        return visit.render("key.html", {"key": key, "form": form, "apis": list(Api)}, status=status)

    async def _save(self, visit: Visit) -> web.StreamResponse:
        values, errors = _typed(visit.form), dict[str, str]()
        wanted = check(KeyEdit, _parted(values), errors)
        async with visit.writing() as session:
            key = await _key_of(session, visit.who.firm_id, visit.path("key"))
            stored = _values(key)
            differing = conflicts(stored, values, visit.form.text(VERSION))
            if wanted is not None and not differing:
                _apply(key, wanted)
                if changes := differences(stored, _values(key)):
                    audit(session, key.firm_id, visit.who.user_id, "API key changed", key.api_key, changes=changes)
        if errors or differing:
            form = FormView(values, errors, differing, version_of(stored))
            return await self._page(visit, form, status=422 if errors else 409)
        return see_other(f"{KEYS}/{key.api_key}?done=saved")

    async def _new(self, visit: Visit) -> web.StreamResponse:
        values = {"name": "", "networks": _LOOPBACK, "apis": " ".join(Api), "enabled": _ON}
        return self._new_page(visit, FormView(values))

    def _new_page(self, visit: Visit, form: FormView, *, status: int = 200) -> web.Response:
        return visit.render("key_new.html", {"form": form, "apis": list(Api)}, status=status)

    async def _add(self, visit: Visit) -> web.StreamResponse:
        values, errors = {**_typed(visit.form), "enabled": _ON}, dict[str, str]()
        wanted = check(KeyEdit, _parted(values), errors)
        name, secret = f"{visit.who.firm_id[:40]}-{secrets.token_hex(6)}", secrets.token_urlsafe(32)
        async with visit.writing() as session:
            owned = select(func.count()).select_from(ApiKey).where(ApiKey.firm_id == visit.who.firm_id)
            if (await session.scalar(owned) or 0) >= firms.MAX_KEYS:
                errors["name"] = f"The firm has {firms.MAX_KEYS} keys, and cannot have more."
            if wanted is not None and not errors:
                key = ApiKey(api_key=name, secret=secret, firm_id=visit.who.firm_id, created_at=self._clock())
                _apply(key, wanted)
                session.add(key)
                audit(session, visit.who.firm_id, visit.who.user_id, "API key added", name, **_values(key))
        if wanted is None or errors:
            return self._new_page(visit, FormView(values, errors), status=422)
        context = {
            "title": "New API key",
            "of": wanted.name,
            "name": name,
            "what": "secret",
            "secret": secret,
            "back": f"{KEYS}/{name}",
        }
        return visit.render("secret.html", context)


def _typed(form: Form) -> dict[str, str]:
    return {
        "name": form.text("name"),
        "networks": form.block("networks"),
        "apis": " ".join(sorted(set(form.many("apis")))),
        "enabled": form.text("enabled"),
    }


def _parted(values: dict[str, str]) -> dict[str, Any]:
    return {
        "name": values["name"],
        "networks": values["networks"].replace(",", " ").split(),
        "apis": values["apis"].split(),
        "enabled": values["enabled"] == _ON,
    }


def _values(key: ApiKey) -> dict[str, str]:
    """A key as the form shows it, without its secret."""
    return {
        "name": key.name,
        "networks": "\n".join(key.networks),
        "apis": " ".join(sorted(key.apis)),
        "enabled": _ON if key.enabled else "",
    }


def _apply(key: ApiKey, wanted: KeyEdit) -> None:
    key.name, key.networks, key.enabled = wanted.name, list(dict.fromkeys(wanted.networks)), wanted.enabled
    key.apis = [api.value for api in wanted.apis]


async def _key_of(session: AsyncSession, firm_id: str, name: str) -> ApiKey:
    key = await session.get(ApiKey, name) if firms.is_name(name) else None
    if key is None or key.firm_id != firm_id:
        raise not_found()
    return key
