"""Load testing: Locust in front, a packet engine behind, an answer at the end.

    relay loadtest run desk          a profile against a relay that is started here; exits with 0 if all is well

A **profile** says what users do, how many there are, and what must hold. A **target** is where the load goes. A user
has a **call**: two **lines**, its own and a colleague's, and **streams** between them. Each second is an **interval**;
all of them are the **record**, which is judged: the **result**.

plan        what is to be done, checked before anything starts
profiles    the profiles that come with it, as TOML
engine      simulated calls in a native thread of their own; Python sees no packet
figures     what was measured, as values that add up across processes
direct      HTTP to exactly the host that was checked
verdict     what was measured becomes an answer: result, report, comparison
users       Locust's side: the classes of users, and the collector
shapefile   the shape of a profile, for Locust
locustfile  the users of a profile, for Locust
demo_target  a cloud and a relay to test against, in a process of their own
running     Locust in processes of its own, and everything after it, whatever becomes of them
commands    ``relay loadtest``
bench       what a relay costs beside other servers, as programs to run

A locustfile of your own has ``from loadtest import MediaUser``; see the README beside this file.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadtest.plan.profile import Media as Media
    from loadtest.plan.target import Target as Target
    from loadtest.users.calls import CallUser as CallUser
    from loadtest.users.media import MediaUser as MediaUser
    from loadtest.users.recording import RecordingUser as RecordingUser
    from loadtest.users.signaling import SignalingUser as SignalingUser
    from loadtest.users.storm import StormUser as StormUser

_PLACES = {
    "CallUser": "loadtest.users.calls",
    "Media": "loadtest.plan.profile",
    "MediaUser": "loadtest.users.media",
    "RecordingUser": "loadtest.users.recording",
    "SignalingUser": "loadtest.users.signaling",
    "StormUser": "loadtest.users.storm",
    "Target": "loadtest.plan.target",
}
_USERS = "loadtest.users"


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for: only users need Locust, which replaces much of Python's own modules."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _PLACES[name].startswith(_USERS):
        importlib.import_module("loadtest.users.hooks")
    return getattr(importlib.import_module(_PLACES[name]), name)
