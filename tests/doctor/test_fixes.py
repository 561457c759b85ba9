"""The change that is named is the change: it is applied as it was printed, and the doctor then passes."""

from __future__ import annotations

from pathlib import Path

from relay.doctor.report import Area, Report, Status, Verdict
from tests.support.network.doctors_worlds import needs_namespaces, reports_of
from tests.support.peers.squid import needs_squid


def codes(report: Report) -> set[str]:
    # How voice sounds depends on how busy this machine is.
    return {finding.code for finding in report.findings} - {"VOICE-QUALITY"}


def status_of(report: Report, check: str) -> list[Status]:
    return [item.status for item in report.items if item.check == check]


@needs_namespaces
async def test_the_rules_of_a_firewall(tmp_path: Path) -> None:
    blocked, stun_open, all_open = await reports_of("firewall", tmp_path)
    assert codes(blocked) == {"UDP-STUN"}
    assert status_of(blocked, "UDP-HIGH-PORTS") == [Status.NOT_TESTED]
    assert blocked.verdicts[Area.VOICE_UDP] is Verdict.NOT_READY
    assert codes(stun_open) == {"UDP-HIGH-PORTS"}
    assert stun_open.verdicts[Area.VOICE_UDP] is Verdict.NOT_READY
    assert codes(all_open) == set()
    assert status_of(all_open, "UDP-HIGH-PORTS") == [Status.OK]


@needs_namespaces
@needs_squid
async def test_the_rule_of_a_web_proxy(tmp_path: Path) -> None:
    refused, allowed = await reports_of("proxy", tmp_path)
    assert codes(refused) == {"PROXY-REFUSES"}
    assert refused.verdicts[Area.SIGNALING] is Verdict.NOT_READY
    assert codes(allowed) == set()
    assert allowed.verdicts[Area.SIGNALING] is Verdict.READY
