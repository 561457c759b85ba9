"""What ``relay loadtest run`` gives to Locust: the users of the profile, and its shape.

The master and each worker load this file. What they are to do is ``plan.work.current``.
"""

from __future__ import annotations

from loadtest.plan.work import current
from loadtest.shapefile import ProfileShape
from loadtest.users import kinds

__all__ = ["ProfileShape", "ProfileUser"]

_work = current()
assert _work is not None
# Locust finds users and shapes by looking for classes in this module.
ProfileUser = kinds.user_class(_work.profile.kind)
