"""The Management API: users, their buttons, and connections. The paths and the names of filters are observed.

What an answer has in it is not public, so the answers are ours. A key sees its own firm, and lines that a user of the
firm is a member of.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from sqlalchemy import Select, or_, select

from relay.emulator.apis.models import (
    MAX_NAMES,
    ApiModel,
    Email,
    Label,
    LineNumber,
    Name,
    NumberToken,
    Page,
    PageRequest,
    name_before,
    token_after,
)
from relay.emulator.apis.security import Keys, Signed
from relay.emulator.http.endpoints import Call, Endpoint
from relay.emulator.http.errors import not_found
from relay.emulator.http.site import Site
from relay.emulator.lines import LineKind, MemberRole
from relay.emulator.marks import Mark
from relay.emulator.names import Api, HostRole, UserRole
from relay.emulator.store import Store, tables

BASE = "/external/apis"


class UsersRequest(PageRequest):
    """Users who match any of the lists, or all of the firm if there is no list."""

    mark: ClassVar[Mark] = Mark.OBSERVED
    emails: Annotated[list[Email], Field(max_length=MAX_NAMES, examples=[["anna@atlas.example"]])] | None = None
    user_ids: Annotated[list[Name], Field(max_length=MAX_NAMES, examples=[["anna", "ben"]])] | None = None
    user_names: Annotated[list[Label], Field(max_length=MAX_NAMES)] | None = None


class UserItem(ApiModel):
    """A user of the firm."""

    user_id: str
    user_name: str
    email: str
    firm_id: str
    group_id: str | None
    extension: str | None
    role: UserRole
    region: str
    voice_via_web_proxy: bool
    enabled: bool


class UsersAnswer(Page):
    """A page of users, by id."""

    users: list[UserItem]


class UserPath(ApiModel):
    """The user in the path."""

    id: Annotated[Name, Field(examples=["anna"])]


class ButtonItem(ApiModel):
    """One key of a user's board."""

    position: int
    label: str
    connection_number: str
    dial: str | None


class ButtonsRequest(PageRequest):
    """All buttons of the user, in pages."""

    page_token: NumberToken = None


class ButtonsAnswer(Page):
    """A page of buttons, by position."""

    user_id: str
    buttons: list[ButtonItem]


class ConnectionsRequest(PageRequest):
    """Connections of a group's users, or with these numbers. All that the firm has if neither is given."""

    mark: ClassVar[Mark] = Mark.OBSERVED
    group_id: Annotated[Name, Field(examples=["atlas-rates"])] | None = None
    connection_numbers: Annotated[list[LineNumber], Field(max_length=MAX_NAMES)] | None = None


class ConnectionMember(ApiModel):
    """A user on a connection. Users of other firms are listed too: they share the line."""

    user_id: str
    firm_id: str
    role: MemberRole


class ConnectionItem(ApiModel):
    """A connection, which this project calls a line elsewhere."""

    connection_number: str
    kind: LineKind
    label: str
    region: str
    members: list[ConnectionMember]


class ConnectionsAnswer(Page):
    """A page of connections, by number."""

    connections: list[ConnectionItem]


class Management:
    """The endpoints."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._security = Signed(keys, Api.MANAGEMENT)

    def register(self, site: Site) -> None:
        """Serve them."""
        site.add(
            Endpoint(
                HostRole.MANAGEMENT,
                "POST",
                f"{BASE}/users",
                Mark.OBSERVED,
                "Users of the firm",
                self._users,
                body=UsersRequest,
                answer=UsersAnswer,
                security=self._security,
            ),
            Endpoint(
                HostRole.MANAGEMENT,
                "POST",
                f"{BASE}/users/{{id}}/buttons",
                Mark.OBSERVED,
                "The buttons of a user",
                self._buttons,
                body=ButtonsRequest,
                path_model=UserPath,
                answer=ButtonsAnswer,
                security=self._security,
                errors={404: "The firm has no such user."},
            ),
            Endpoint(
                HostRole.MANAGEMENT,
                "POST",
                f"{BASE}/connections",
                Mark.OBSERVED,
                "Connections that users of the firm have",
                self._connections,
                body=ConnectionsRequest,
                answer=ConnectionsAnswer,
                security=self._security,
            ),
        )

    async def _users(self, call: Call) -> UsersAnswer:
        asked: UsersRequest = call.body
        users = tables.User
        lists = ((users.email, asked.emails), (users.user_id, asked.user_ids), (users.name, asked.user_names))
        filters = [column.in_(names) for column, names in lists if names is not None]
        query = select(users).where(users.firm_id == call.caller.firm, users.user_id > name_before(asked.page_token))
        if filters:
            query = query.where(or_(*filters))
        async with self._store.reading() as session:
            found = (await session.scalars(query.order_by(users.user_id).limit(asked.page_size + 1))).all()
        shown = found[: asked.page_size]
        token = token_after(shown[-1].user_id) if len(found) > len(shown) else None
        return UsersAnswer(users=[_user(row) for row in shown], next_page_token=token)

    async def _buttons(self, call: Call) -> ButtonsAnswer:
        asked: ButtonsRequest = call.body
        buttons, user_id = tables.Button, call.path.id
        after = int(asked.page_token or 0)
        query = select(buttons).where(buttons.user_id == user_id, buttons.position > after)
        async with self._store.reading() as session:
            user = await session.get(tables.User, user_id)
            if user is None or user.firm_id != call.caller.firm:
                raise not_found(f"Your firm has no user {user_id!r}.", where="path.id", expected="a userId of /users")
            found = (await session.scalars(query.order_by(buttons.position).limit(asked.page_size + 1))).all()
        shown = found[: asked.page_size]
        token = str(shown[-1].position) if len(found) > len(shown) else None
        return ButtonsAnswer(user_id=user_id, buttons=[_button(row) for row in shown], next_page_token=token)

    async def _connections(self, call: Call) -> ConnectionsAnswer:
        asked: ConnectionsRequest = call.body
        lines, members = tables.Line, tables.LineMember
        query = _lines_of(call.caller.firm, asked).where(lines.number > name_before(asked.page_token))
        async with self._store.reading() as session:
            found = (await session.scalars(query.order_by(lines.number).limit(asked.page_size + 1))).all()
            shown = found[: asked.page_size]
            people = await session.execute(
                select(members, tables.User.firm_id)
                .join(tables.User, tables.User.user_id == members.user_id)
                .where(members.number.in_([line.number for line in shown]))
                .order_by(members.user_id)
            )
        on_line: dict[str, list[ConnectionMember]] = {line.number: [] for line in shown}
        for member, firm in people:
            on_line[member.number].append(
                ConnectionMember(user_id=member.user_id, firm_id=firm, role=MemberRole(member.role))
            )
        token = token_after(shown[-1].number) if len(found) > len(shown) else None
        items = [_connection(line, on_line[line.number]) for line in shown]
        return ConnectionsAnswer(connections=items, next_page_token=token)


def _lines_of(firm: str, asked: ConnectionsRequest) -> Select[tables.Line]:
    lines, members, users = tables.Line, tables.LineMember, tables.User
    own = select(members.number).join(users, users.user_id == members.user_id).where(users.firm_id == firm)
    if asked.group_id is not None:
        own = own.where(users.group_id == asked.group_id)
    query = select(lines).where(lines.number.in_(own))
    if asked.connection_numbers is not None:
        query = query.where(lines.number.in_(asked.connection_numbers))
    return query


def _user(row: tables.User) -> UserItem:
    return UserItem(
        user_id=row.user_id,
        user_name=row.name,
        email=row.email,
        firm_id=row.firm_id,
        group_id=row.group_id,
        extension=row.extension,
        role=UserRole(row.role),
        region=row.region,
        voice_via_web_proxy=row.voice_via_web_proxy,
        enabled=row.enabled,
    )


def _button(row: tables.Button) -> ButtonItem:
    return ButtonItem(position=row.position, label=row.label, connection_number=row.line, dial=row.dial)


def _connection(line: tables.Line, members: list[ConnectionMember]) -> ConnectionItem:
    return ConnectionItem(
        connection_number=line.number, kind=LineKind(line.kind), label=line.label, region=line.region, members=members
    )
