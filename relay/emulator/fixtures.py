"""Fixtures: the firms, groups, users, lines, buttons and API keys that an emulator begins with, as a TOML file.

``load`` checks a file as strictly as the relay's configuration: one line for each mistake, with key and value. The
default set is ``default_fixtures.toml``.
"""

from __future__ import annotations

import functools
import ipaddress
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from relay.addresses import IpNetwork
from relay.config.reading import check_tree, read_toml
from relay.config.values import Flag, Section
from relay.emulator.lines import LineKind, MemberRole, can_have
from relay.emulator.names import Api, UserRole

REGIONS = ("use1", "euc1", "apse1", "apse2")
# Names go into TURN user names, file names and URLs, so they are short and plain.
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
# The form that the vendor's pages show.
LineNumber = Annotated[str, Field(pattern=r"^sPK-[0-9]{8}-[0-9]{6}$")]
Text = Annotated[str, Field(min_length=1, max_length=128)]
Email = Annotated[str, Field(pattern=r"^[^@\s]{1,64}@[a-z0-9.-]{1,190}$", max_length=255)]
Extension = Annotated[str, Field(pattern=r"^[0-9+*#]{1,20}$")]


def _region(value: str) -> str:
    if value not in REGIONS:
        raise ValueError(f"{value!r}: expected one of {', '.join(REGIONS)}")
    return value


Region = Annotated[str, AfterValidator(_region)]


class FirmFixture(Section):
    """``[[firms]]``."""

    id: Identifier
    name: Text
    region: Region = "use1"


class GroupFixture(Section):
    """``[[groups]]``: users who work together."""

    id: Identifier
    firm: Identifier
    name: Text


class UserFixture(Section):
    """``[[users]]``. The id is also the name for login and TURN."""

    id: Identifier
    firm: Identifier
    group: Identifier | None = None
    name: Text
    email: Email
    # What others dial to reach this user from a dial-tone line.
    extension: Extension | None = None
    password: SecretStr | None = None
    # Instead of a password: an Argon2 hash, for sets of many users.
    password_hash: SecretStr | None = None
    role: UserRole = UserRole.USER
    # Unless given, the firm's.
    region: Region | None = None
    voice_via_web_proxy: Flag = False

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if (self.password is None) == (self.password_hash is None):
            raise ValueError("expected either password or password_hash")
        if self.password is not None and not 4 <= len(self.password.get_secret_value()) <= 128:
            raise ValueError("password: expected 4 to 128 characters")
        if self.password_hash is not None and not self.password_hash.get_secret_value().startswith("$argon2id$"):
            raise ValueError("password_hash: expected an Argon2id hash, such as $argon2id$v=19$...")
        return self


class LineFixture(Section):
    """``[[lines]]``. Members see the line. Talkers may also speak on it; unless given, all members may."""

    number: LineNumber
    kind: LineKind
    label: Text
    region: Region = "use1"
    members: tuple[Identifier, ...]
    talkers: tuple[Identifier, ...] | None = None

    @model_validator(mode="after")
    def _people(self) -> Self:
        if unknown := sorted(set(self.talkers or ()) - set(self.members)):
            raise ValueError(f"talkers: {unknown[0]!r} is not a member")
        if twice := [name for name, count in Counter(self.members).items() if count > 1]:
            raise ValueError(f"members: {twice[0]!r} is given twice")
        if fault := can_have(self.kind, len(self.members), None if self.talkers is None else len(self.talkers)):
            raise ValueError(f"members: {fault}")
        return self

    def role_of(self, user: str) -> MemberRole:
        """What this member may do."""
        return MemberRole.TALKER if self.talkers is None or user in self.talkers else MemberRole.LISTENER


class ButtonFixture(Section):
    """``[[buttons]]``: one key of a user's board. It opens a line, or dials a number on a dial-tone line."""

    user: Identifier
    position: Annotated[int, Field(strict=True, ge=1, le=600)]
    label: Text
    line: LineNumber
    dial: Extension | None = None


class ApiKeyFixture(Section):
    """``[[api_keys]]``: for the signed APIs. ``networks`` are where the key may be used from."""

    key: Identifier
    secret: Annotated[SecretStr, Field(min_length=16, max_length=256)]
    firm: Identifier
    name: Text
    networks: tuple[IpNetwork, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
    apis: tuple[Api, ...] = tuple(Api)


class Fixtures(Section):
    """All of a file. Names refer to each other, and each is given once."""

    firms: Annotated[tuple[FirmFixture, ...], Field(min_length=1)]
    groups: tuple[GroupFixture, ...] = ()
    users: Annotated[tuple[UserFixture, ...], Field(min_length=1)]
    lines: tuple[LineFixture, ...] = ()
    buttons: tuple[ButtonFixture, ...] = ()
    api_keys: tuple[ApiKeyFixture, ...] = ()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        _once("firms", "id", (firm.id for firm in self.firms))
        _once("groups", "id", (group.id for group in self.groups))
        _once("users", "id", (user.id for user in self.users))
        _once("users", "email", (user.email for user in self.users))
        _once("users", "extension", (user.extension for user in self.users if user.extension is not None))
        _once("lines", "number", (line.number for line in self.lines))
        _once("buttons", "position of a user", (f"{button.user} {button.position}" for button in self.buttons))
        _once("api_keys", "key", (key.key for key in self.api_keys))
        return self

    @model_validator(mode="after")
    def _references(self) -> Self:
        firms = {firm.id for firm in self.firms}
        groups = {group.id: group.firm for group in self.groups}
        users = {user.id for user in self.users}
        lines = {line.number: line for line in self.lines}
        _known("groups", self.groups, lambda group: (group.firm,), firms, "firm")
        _known("users", self.users, lambda user: (user.firm,), firms, "firm")
        _known("users", self.users, lambda user: (user.group,) if user.group else (), groups, "group")
        _known("lines", self.lines, lambda line: line.members, users, "members")
        _known("buttons", self.buttons, lambda button: (button.user,), users, "user")
        _known("buttons", self.buttons, lambda button: (button.line,), lines, "line")
        _known("api_keys", self.api_keys, lambda key: (key.firm,), firms, "firm")
        for number, user in enumerate(self.users):
            if user.group and groups[user.group] != user.firm:
                raise ValueError(f"users.{number}.group: {user.group!r} is a group of {groups[user.group]!r}")
        for number, button in enumerate(self.buttons):
            if button.user not in lines[button.line].members:
                raise ValueError(f"buttons.{number}.line: {button.user!r} is not a member of {button.line!r}")
        return self


def _once(table: str, key: str, values: Iterable[str]) -> None:
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{table}: the {key} {twice[0]!r} is given twice")


def _known(
    table: str, rows: Sequence[Any], names: Callable[[Any], Iterable[str]], known: Iterable[str], key: str
) -> None:
    there = set(known)
    for number, row in enumerate(rows):
        if unknown := [name for name in names(row) if name not in there]:
            raise ValueError(f"{table}.{number}.{key}: {unknown[0]!r} is not in this file")


def load(path: Path) -> Fixtures:
    """Read and check a file. Raises OperatorError, with one line for each mistake."""
    return check_tree(Fixtures, read_toml(path), folder=path.parent, source=str(path))


@functools.cache
def bundled() -> Fixtures:
    """The default set: two firms, 12 users, every kind of line. It is read once."""
    text = resources.files(__package__).joinpath("default_fixtures.toml").read_text(encoding="utf-8")
    return check_tree(Fixtures, tomllib.loads(text), folder=Path(), source="default_fixtures.toml")
