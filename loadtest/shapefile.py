"""The shape of a profile, for Locust: it is loaded beside a locustfile of your own, or by ours."""

from __future__ import annotations

from locust import LoadTestShape

from loadtest.plan.work import current
from loadtest.users import hooks

_work = current()
if _work is None:
    raise SystemExit("loadtest/shapefile.py: expected to be started by `relay loadtest run`")
assert hooks


class ProfileShape(LoadTestShape):
    """How many users there are at each second."""

    def tick(self) -> tuple[int, float] | None:
        """How many there are to be, and how many may come in a second."""
        assert _work is not None
        users = _work.profile.shape.users_at(self.get_run_time(), _work.profile.users)
        return None if users is None else (users, _work.profile.shape.rate_at(_work.profile.users))
