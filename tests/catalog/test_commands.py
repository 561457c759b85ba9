"""``relay allowlist`` and ``relay catalog``: what they print, and how they end."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from relay import catalog
from relay.catalog import Format, render_allowlist
from relay.demo.authority import Authority
from tests.support.benches.commands import run_here

CATALOG = catalog.load()


def other_catalog(path: Path) -> Path:
    tree = json.loads(render_allowlist(CATALOG, Format.JSON))
    tree["as_of"] = "2027-01"
    del tree["hosts"][-1]
    path.write_text(json.dumps(tree))
    return path


def test_allowlist_on_stdout_and_in_a_file(tmp_path: Path) -> None:
    assert run_here("allowlist", "--format", "squid") == (0, render_allowlist(CATALOG, Format.SQUID), "")
    path = tmp_path / "cloud9.csv"
    path.write_text("what was there before")
    newer = other_catalog(tmp_path / "newer.json")
    written = run_here("allowlist", "--format", "csv", "--catalog", newer, "--hosts-only", "-o", path)
    assert written == (0, f"{path}: csv, 84 lines, as of 2027-01\n", "")
    assert path.read_text() == render_allowlist(catalog.load(newer), Format.CSV, hosts_only=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cloud9.csv", "newer.json"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_a_pac_without_a_proxy_says_so() -> None:
    status, pac, told = run_here("allowlist", "--format", "pac")
    assert (status, told) == (0, "relay: the PAC names relay.example.com:3128: give your own proxy with --proxy\n")
    assert '"PROXY relay.example.com:3128"' in pac
    assert run_here("allowlist", "--format", "pac", "--proxy", "relay.firm.example:3128")[2] == ""


def test_diff_ends_with_0_1_or_2(tmp_path: Path) -> None:
    newer = other_catalog(tmp_path / "newer.json")
    assert run_here("catalog", "diff", "2026-11", "2026-11") == (0, "", "")
    gone = CATALOG.hosts[-1]
    assert run_here("catalog", "diff", "2026-11", newer) == (
        1,
        f"- host {gone.name}: media, {gone.region}, not_yet\n",
        "",
    )
    missing = tmp_path / "gone.toml"
    assert run_here("catalog", "diff", "2026-11", missing) == (2, "", f"relay: {missing}: No such file or directory\n")


def test_check_config_reads_the_catalog(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("relay.test")
    path, bad = tmp_path / "relay.toml", tmp_path / "bad.toml"
    path.write_text(
        f'[[certificates]]\ncertificate = "{issued.chain}"\nprivate_key = "{issued.private_key}"\n'
        '[[upstreams]]\nname = "a"\naddress = "192.0.2.1:3478"\n[limits]\nconnections = 9\n'
        '[catalog]\npath = "bad.toml"\n'
    )
    assert run_here("check-config", path) == (2, "", f"relay: {bad} (catalog.path): No such file or directory\n")
    bad.write_text("as_of = 5\ndomains = []\n")
    status, stdout, stderr = run_here("check-config", path)
    assert (status, stdout) == (2, "")
    assert stderr.startswith(f"relay: {bad}: as_of: 5: expected a month or a day")
    assert stderr.count("\n") == 5
    other_catalog(tmp_path / "newer.json")
    path.write_text(path.read_text().replace("bad.toml", "newer.json"))
    assert run_here("check-config", path) == (0, f"{path}: ok (1 upstream, 0 routes)\n", "")


def test_show_names_everything() -> None:
    status, shown, told = run_here("catalog", "show")
    assert (status, told) == (0, "")
    things = [*(host.name for host in CATALOG.hosts), *(str(each.network) for each in CATALOG.networks)]
    assert [thing for thing in things if thing not in shown] == []
    assert "UDP 16384-65535" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("allowlist", "--format", "nftables", "--hosts-only"), "nftables: has only addresses"),
        (("allowlist", "--format", "csv", "--proxy", "a:1"), "csv: only a PAC names a proxy"),
        (("allowlist", "--format", "csv", "-o", "/dev/null"), "/dev/null: expected a file"),
        (("allowlist", "--format", "csv", "-o", "/nowhere/a"), "/nowhere/a: No such file"),
        (("catalog", "show", "1999-01"), "1999-01: no such version"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], told: str) -> None:
    status, stdout, stderr = run_here(*arguments)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"relay: {told}")
