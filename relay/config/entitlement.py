"""Entitlement: who may place calls through the relay, and who is asked about it. Also files of users."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from relay.config.reading import check_tree
from relay.config.values import (
    AtLeastOne,
    Count,
    EndpointUrl,
    FilePath,
    Flag,
    KeyedError,
    Name,
    Section,
    Token,
    UserPattern,
)


class EntitledUser(Section):
    """What a user may do. An exact name goes before a pattern, and a longer pattern before a shorter one."""

    # As in the USERNAME of the client's Allocate. One * matches any characters, or none. Case counts.
    user: UserPattern
    allowed: Flag = True
    # Calls at once, over all carriers; no bound unless given. 0 is refused, because allowed = false says it better.
    calls: Count | None = Field(default=None, ge=1, le=1_000_000)
    # Regions of the upstreams that the calls go to; all unless given.
    regions: AtLeastOne[Name] | None = None


class EntitledUsers(Section):
    """A list of users, in the configuration or in a file of its own. A user who is not in it may not place calls."""

    users: tuple[EntitledUser, ...] = ()

    @field_validator("users")
    @classmethod
    def _each_once(cls, users: tuple[EntitledUser, ...]) -> tuple[EntitledUser, ...]:
        seen = set[str]()
        for one in users:
            if one.user in seen:
                raise ValueError(f"the user {one.user!r} is given twice")
            seen.add(one.user)
        return users


# The key that each policy needs, and that no other policy may have.
_POLICY_KEYS = {"static": "users", "file": "file", "http": "url"}


class EntitlementSettings(EntitledUsers):
    """``[entitlement]``: who may place calls through this relay. It is "Voice via Web Proxy" for each user."""

    # "none" asks for no names, "static" is the list here, "file" is a list of its own, "http" is a service of the firm.
    policy: Literal["none", "static", "file", "http"] = "none"
    # While the file or the service cannot be used, calls are refused unless this is "open", as with any lock.
    fail: Literal["closed", "open"] = "closed"
    # Time-limited names are "expiry:user" (draft-uberti-behave-turn-rest). A number before the colon is not part of the
    # user. The upstream checks the whole name, so writing a number in front of one's own name gains nothing.
    rest_usernames: Flag = True
    # TOML, or JSON if its name ends in .json. Looked at every two seconds, and read when it has changed.
    file: FilePath | None = None
    # Asked with ?user=…&region=…&client=…
    url: EndpointUrl | None = None
    # Sent as "Authorization: Bearer …".
    token: Token | None = None
    # The CA of the service; the system's CAs unless given.
    ca: FilePath | None = None
    # From the question to the whole answer. The client waits for it, and the data plane waits for 5 s at most.
    timeout_s: float = Field(default=2.0, strict=True, gt=0, le=4)
    # An answer is used again for this long: a user's calls come in bursts, and a revocation should take effect soon.
    cache_s: float = Field(default=60.0, strict=True, ge=0, le=86_400)
    # A refusal is used again for this long: a user who has just been entitled should not have to wait.
    refused_cache_s: float = Field(default=5.0, strict=True, ge=0, le=86_400)
    # The newest answers are kept, this many. 10,000 take a few megabytes.
    cache_answers: Count = Field(default=10_000, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _keys_of_policy(self) -> Self:
        for policy, key in _POLICY_KEYS.items():
            given = bool(getattr(self, key))
            if policy == self.policy and not given:
                raise ValueError(f"policy = {policy!r} needs {key}")
            # A list that is not used would seem to keep people out.
            if policy != self.policy and given:
                raise ValueError(f"{key} belongs to policy = {policy!r}, but policy is {self.policy!r}")
        if self.token is not None and self.url is not None and not _keeps_secrets(self.url):
            raise KeyedError("token", "expected an https url, because http would send the token unencrypted")
        return self


def _keeps_secrets(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in {"localhost", "127.0.0.1", "::1"}


def parse_users(tree: object, *, source: str) -> tuple[EntitledUser, ...]:
    """Check the list of a file of users. Raises OperatorError, with one line for each mistake."""
    return check_tree(EntitledUsers, tree, folder=Path(), source=source).users
