"""``relay doctor`` as people use it: on an emulated cloud with a relay, explain, diff, and mistakes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from relay.addresses import Address
from relay.doctor import targets
from relay.doctor.asked import status_of
from relay.doctor.checks import ALL
from relay.doctor.examine import examine
from relay.doctor.explain import page
from relay.doctor.plan import Kind, Limits
from relay.doctor.report import Area, Item, Report, Status, Verdict, to_json
from relay.emulator.faults.kinds import FaultSetting, Hop
from relay.emulator.faults.kinds import Kind as Fault
from relay.errors import OperatorError
from tests.support.benches.commands import run_here
from tests.support.benches.doctor import CATALOG, LIMITS
from tests.support.benches.floor import running_floor
from tests.support.network.ports import reserved_address

DOCS = Path(__file__).parents[2] / "docs"
FEW = targets.Wishes(CATALOG, quick=True)
LONG = dataclasses.replace(LIMITS, voice_s=0.4)


def test_the_page_of_the_documentation_is_made_of_the_same_text() -> None:
    text = (DOCS / "doctor.md").read_text()
    assert page() in text


def test_explain_one_and_all() -> None:
    status, text, _ = run_here("doctor", "explain", "udp-high-ports")
    assert status == 0
    assert text.startswith("UDP-HIGH-PORTS: UDP 16384-65535 is open")
    assert "Change:" in text
    status, text, _ = run_here("doctor", "explain")
    assert [line.partition(":")[0] for line in text.splitlines()] == [check.code for check in ALL]
    status, _, told = run_here("doctor", "explain", "NOTHING")
    assert status == 2
    assert "expected one of NAME-NOT-FOUND" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--emulator", "nowhere"], "relay emulate --with-relay"),
        (["--live", "--emulator", "nowhere"], "--live: not with --emulator"),
        (["--relay", "a:b:c"], "--relay"),
        (["--relay", "a.example", "--ca", "nowhere.pem"], "nowhere.pem"),
        (["--relay", "a.example", "--proxy", "socks://a:1"], "--proxy: expected a proxy such as"),
        (["--relay", "a.example", "--proxy", "http://me:secret@a:1"], "--proxy-login FILE"),
        (["--relay", "a.example", "--proxy-login", "nowhere"], "nowhere: No such file"),
        (["--relay", "a.example", "--turn-host", "a"], "--turn-host"),
        (["diff", "nowhere", "nowhere"], "nowhere: No such file"),
    ],
)
def test_mistakes_end_with_2_and_a_line(arguments: list[str], words: str) -> None:
    status, out, told = run_here("doctor", *arguments)
    assert (status, out) == (2, "")
    assert words in told
    assert "secret" not in told
    assert "Traceback" not in told


def test_a_file_of_one_line_is_not_a_login(tmp_path: Path) -> None:
    path = tmp_path / "login"
    path.write_text("only-a-secret\n")
    status, _, told = run_here("doctor", "--relay", "a.example", "--turn-credentials", path)
    assert status == 2
    assert "expected two lines" in told
    assert "only-a-secret" not in told


def test_diff_says_what_has_changed(tmp_path: Path) -> None:
    def written(name: str, status: Status) -> Path:
        item = Item("UDP-STUN", "region use1", (Area.VOICE_UDP,), status, "")
        path = tmp_path / name
        path.write_text(to_json(Report("a test", "relay", "2026-11", 0.0, 1.0, (item,), ())))
        return path

    bad, good = written("bad", Status.FAILED), written("good", Status.OK)
    better = "+ voice over UDP: not ready -> ready\n+ UDP-STUN region use1: failed -> ok\n"
    assert run_here("doctor", "diff", bad, good) == (0, better, "")
    assert run_here("doctor", "diff", good, bad)[0] == 1
    assert run_here("doctor", "diff", good, good) == (0, "", "")


@pytest.mark.parametrize(
    ("status", "ends"), [(Status.OK, 0), (Status.WARNING, 0), (Status.FAILED, 1), (Status.NOT_TESTED, 3)]
)
def test_the_exit_status_follows_from_the_verdict(status: Status, ends: int) -> None:
    item = Item("UDP-STUN", "region use1", (Area.VOICE_UDP,), status, "")
    assert status_of(Report("a test", "relay", "2026-11", 0.0, 1.0, (item,), ())) == ends


def test_without_live_no_plan_has_a_host_of_the_vendors(tmp_path: Path) -> None:
    wishes = dataclasses.replace(FEW, relay=Address("voice.firm.example", 443))
    plan = targets.of_relay(wishes)
    assert (plan.sites, plan.turn) == ((), ())
    live = targets.of_vendor(targets.Wishes(CATALOG))
    assert live.kind is Kind.LIVE
    assert {host.name for host in CATALOG.hosts if host.status == "active"} == {site.name for site in live.sites}
    assert not {host.name for host in CATALOG.hosts if host.status != "active"} & {site.name for site in live.sites}


async def test_a_relay_that_is_not_there_is_not_ready() -> None:
    """By the command's own way, in a process of its own."""
    with reserved_address() as nobody:
        status, out, told = await asyncio.to_thread(run_here, "doctor", "--relay", str(nobody), "--quick", "--json")
    report = json.loads(out)
    assert (status, told) == (1, "")
    assert report["verdicts"]["voice over web proxy"] == "not ready"
    (finding,) = [one for one in report["findings"] if one["code"] == "TCP-443"]
    assert f"ip daddr 127.0.0.1/32 tcp dport {{ {nobody.port} }} accept" in finding["rules"][0]["text"]


async def test_a_whole_floor_is_ready_and_a_blocked_line_is_found(tmp_path: Path) -> None:
    async with running_floor(tmp_path, udp_hop_port=0) as floor, targets.emulator_login(tmp_path) as credentials:
        wishes = dataclasses.replace(FEW, credentials=credentials)
        plan = dataclasses.replace(targets.of_emulator(tmp_path, wishes, with_relay=True), limits=LONG)
        report = await examine(plan)
        # How voice sounds depends on how busy this machine is.
        assert [one for one in report.findings if one.code != "VOICE-QUALITY"] == []
        assert [one for one in report.items if one.status is Status.NOT_TESTED and one.check != "VOICE-QUALITY"] == []
        assert {one.check for one in report.items} >= {
            "UDP-HIGH-PORTS",
            "SOCKETIO-POLLING",
            "WEBSOCKET-FRAMES",
            "CARRIERS",
        }
        assert {one.path for one in report.voice} >= {"TURN/TLS", "WebSocket", "session", "CONNECT-UDP"}
        assert all(one.lost_percent == 0 for one in report.voice)

        floor.client.cloud.faults.board.put(Hop.DESK_UDP, Fault.UDP_BLOCKED, FaultSetting())
        short = dataclasses.replace(LONG, probe_s=5.0, voice_s=0.1)
        blocked = await examine(dataclasses.replace(plan, limits=short, relay=None))
        assert blocked.verdicts[Area.VOICE_UDP] is Verdict.NOT_READY
        assert {one.code for one in blocked.findings} - {"VOICE-QUALITY"} == {"UDP-STUN"}
        assert blocked.verdicts[Area.API] is Verdict.READY


async def test_a_user_whom_the_emulator_does_not_know_has_no_credentials(tmp_path: Path) -> None:
    async with running_floor(tmp_path) as floor:
        async with targets.emulator_login(tmp_path, "nobody") as credentials:
            assert credentials is None
        await floor.client.cloud.stop()
        with pytest.raises(OperatorError, match="Does it run"):
            async with targets.emulator_login(tmp_path):
                pass


async def test_what_has_not_ended_at_the_deadline_was_not_tested(tmp_path: Path) -> None:
    async with running_floor(tmp_path) as _:
        plan = targets.of_emulator(tmp_path, FEW, with_relay=False)
        report = await examine(dataclasses.replace(plan, limits=Limits(total_s=0.0)))
    assert set(report.verdicts.values()) == {Verdict.NOT_TESTED}
    assert report.worst is Verdict.NOT_TESTED
