"""Who may have a session: the bounds for each source and user, and the policy for users.

What TURN clients ask in their Allocate, ``relay.gateway.entitlement.admission`` answers. A session asks here, before
the relay sends an Allocate for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from relay.gateway.entitlement.verdicts import Entitlement, Verdict, user_of
from relay.gateway.sessions.allocation import SessionAllocation
from relay.gateway.sessions.parking import Account, AccountKind, Parking, source_of
from relay.turn.credentials import prepared
from relay.wire.stun import ErrorCode

# Whether the session still waits for this allocation, or has ended or gone on meanwhile.
IsAwaited = Callable[[], bool]
# Takes why the user is refused; None if they may have the allocation.
Settle = Callable[[ErrorCode | None], None]


class SessionAdmission:
    """Asks for all sessions. A user is asked for once in a region: a call that runs is not judged again."""

    def __init__(self, entitlement: Entitlement, parking: Parking, is_exempt: Callable[[str], bool]) -> None:
        """For the hosts that are exempt, the bound on one source does not count."""
        self._entitlement = entitlement
        self._parking = parking
        self._is_exempt = is_exempt

    def ask(
        self,
        host: str,
        region: str,
        allocation: SessionAllocation,
        is_awaited: IsAwaited,
        settle: Settle,
        *,
        connection: str,
    ) -> None:
        """Find out whether a client may have an allocation in this region, and ``settle`` it, now or later.

        A session without credentials of its own has no name: only the pattern * matches it. ``connection`` is the id
        for the log.
        """
        allocation.verdict = None
        source = source_of(host)
        if not self._is_exempt(host) and not self._parking.has_room(allocation.seat, source):
            settle(self._too_many(source))
            return
        if not self._entitlement.asks_for_users or allocation.seat.region == region:
            allocation.seat.region = region
            settle(None)
            return
        then = functools.partial(self._on_verdict, allocation, is_awaited, settle)
        self._entitlement.ask(allocation.asked.username, region, host, connection, then)

    def _on_verdict(
        self, allocation: SessionAllocation, is_awaited: IsAwaited, settle: Settle, verdict: Verdict
    ) -> None:
        if is_awaited():
            then = functools.partial(self._on_room, allocation, is_awaited, settle)
            self._entitlement.ask_for_room(allocation.seat, verdict, then)

    def _on_room(self, allocation: SessionAllocation, is_awaited: IsAwaited, settle: Settle, verdict: Verdict) -> None:
        if not is_awaited():
            return
        if verdict.admitted:
            allocation.verdict = verdict
        settle(verdict.error)

    def grant(self, host: str, allocation: SessionAllocation, is_awaited: IsAwaited, settle: Settle) -> None:
        """Give a call that the upstream has granted its place, and ``settle`` it. Others may have taken them all."""
        verdict, allocation.verdict = allocation.verdict, None
        refusal = self._hold_accounts(host, allocation)
        if refusal is not None or verdict is None:  # it may not, or has its place already, or nobody is asked
            settle(refusal)
            return
        then = functools.partial(self._on_place, allocation, is_awaited, settle)
        self._entitlement.ask_for_grant(allocation.seat, verdict, then)

    def _on_place(self, allocation: SessionAllocation, is_awaited: IsAwaited, settle: Settle, verdict: Verdict) -> None:
        if verdict.admitted:
            allocation.seat.region = verdict.region
        if is_awaited():
            settle(verdict.error)

    def _hold_accounts(self, host: str, allocation: SessionAllocation) -> ErrorCode | None:
        # Only now is it known that the user is who they say: a stranger makes nobody's session give way.
        accounts = [] if self._is_exempt(host) else [source_of(host)]
        if user := user_of(prepared(allocation.asked.username)):
            accounts.append(Account(AccountKind.USER, user))
        for account in accounts:
            if not self._parking.has_room(allocation.seat, account):
                return self._too_many(account)
        for account in accounts:
            self._parking.hold(allocation.seat, account)
        return None

    def user_named(self, allocation: SessionAllocation) -> str:
        """The user whose traffic a granted session is; empty if the relay has asked with its own credentials."""
        return self._entitlement.user_named(allocation.asked.username)

    def release(self, allocation: SessionAllocation) -> None:
        """The call is over: its user may have another one."""
        self._entitlement.release(allocation.seat)
        self._parking.release(allocation.seat)

    def _too_many(self, account: Account) -> ErrorCode:
        """What a session is told whose source or user has too many."""
        bound = self._parking.bounds[account.kind]
        text = f"too many sessions of one {account.kind}: expected at most {bound} (limits.sessions_per_{account.kind})"
        return ErrorCode(486, text)
