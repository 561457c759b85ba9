"""The cluster: what several relays share, and the Redis in which they share it."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from relay.addresses import Address
from relay.config.values import FilePath, KeyedError, Name, RedisUrl, Secret, Section
from relay.errors import OperatorError

DEFAULT_PORT = 6379
# A password has some tens of characters.
MAX_PASSWORD_FILE_BYTES = 4096
# Without ``redis`` these would be of no use.
_NEED_REDIS = ("username", "password", "password_file", "ca_file", "secret", "name")


class ClusterSettings(Section):
    """``[cluster]``: what this relay shares with others. Without ``redis`` that is nothing."""

    # redis://host:port/database, or rediss:// for TLS.
    redis: RedisUrl | None = None
    # For a Redis with users (ACL). Without a name the password is that of its default user.
    username: Name | None = None
    # One of these: the password itself, or a file whose first line it is.
    password: Secret | None = None
    password_file: FilePath | None = None
    # PEM file of the authorities that a rediss:// server is checked against; the system's unless given.
    ca_file: FilePath | None = None
    # With which names of users and ids of sessions are hashed before Redis sees them; the same at all relays. Without
    # it whoever reads Redis can try names.
    secret: Secret | None = None
    # What this relay is called in lists; the machine's name unless given.
    name: Name | None = None
    # In front of all keys: relays with another prefix are another cluster.
    prefix: Name = "cloud9-relay"
    # For each question. A Redis nearby answers within a millisecond. Whoever places a call waits for two of them at
    # most, and what is slower than this counts as away.
    timeout_s: float = Field(default=0.25, strict=True, gt=0, le=1)
    # What a relay has in Redis ends this long after it has died. It is renewed four times as often. A session of a dead
    # relay tries for ten seconds to go on at another one, and until then its call counts still.
    lease_s: float = Field(default=6.0, strict=True, ge=1, le=15)

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        for key in _NEED_REDIS:
            if self.redis is None and getattr(self, key) is not None:
                raise KeyedError("redis", f"expected redis://host:port/database, because of {key}")
        if self.password is not None and self.password_file is not None:
            raise KeyedError("password_file", "expected either password or password_file, not both")
        if self.username is not None and self.password is None and self.password_file is None:
            raise KeyedError("username", "expected password_file, or password, as well")
        if self.ca_file is not None and not self.has_tls:
            raise KeyedError("ca_file", "expected a rediss:// URL as well, because redis:// is without TLS")
        return self

    @property
    def has_tls(self) -> bool:
        """True if Redis is asked over TLS."""
        return self.redis is not None and self.redis.startswith("rediss:")

    @property
    def address(self) -> Address:
        """Where Redis is."""
        parts = urlsplit(self.redis or "")
        return Address(parts.hostname or "", parts.port or DEFAULT_PORT)

    @property
    def database(self) -> int:
        """The number of the database there."""
        return int(urlsplit(self.redis or "").path.strip("/") or 0)

    def read_password(self) -> str | None:
        """The password; None if there is none. Raises OperatorError for a file that cannot be used."""
        if self.password_file is not None:
            return _first_line(self.password_file)
        return None if self.password is None else self.password.get_secret_value()


def _first_line(path: Path) -> str:
    where = f"{path} (cluster.password_file)"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PASSWORD_FILE_BYTES + 1)
    except OSError as error:
        raise OperatorError(f"{where}: {(error.strerror or str(error)).lower()}") from None
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        lines = []
    if len(content) > MAX_PASSWORD_FILE_BYTES or not lines or not lines[0]:
        raise OperatorError(f"{where}: expected a password in its first line")
    return lines[0]
