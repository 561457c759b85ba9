"""The pages that people read: links lead somewhere, the index has every page, and lists have what the code has."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import pytest

from relay.catalog import Format
from relay.gateway.balancers import Check, HeaderFault
from relay.gateway.entitlement.verdicts import VerdictOutcome
from relay.gateway.routing.flows import UpgradeOutcome
from relay.gateway.signaling.refusals import RefusalReason
from relay.gateway.web_proxy.http import ProxyOutcome
from relay.plane.api import CloseReason, DropReason
from relay.plane.certificates import HandshakeFailure

PROJECT = Path(__file__).parent.parent
DOCS = sorted((PROJECT / "docs").glob("*.md"))
SECURITY = PROJECT / "deploy" / "SECURITY.md"
PAGES = [*sorted(PROJECT.glob("*.md")), *DOCS, SECURITY, *sorted((PROJECT / "loadtest").rglob("*.md"))]


def links_of(page: Path) -> list[str]:
    """The targets of all links to files, without code and without addresses on the web."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_each_link_leads_to_a_file(page: Path) -> None:
    broken = [link for link in links_of(page) if not (page.parent / link.partition("#")[0]).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_no_merge_has_left_its_marks(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if re.match(r"(<{7}|={7}$|>{7})", line)] == []


def headings_of(page: Path) -> set[str]:
    """The headings of a page, as links name them: in lower case, with hyphens for spaces, without punctuation."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_each_link_to_a_heading_finds_it(page: Path) -> None:
    targets = [link.partition("#") for link in links_of(page) if "#" in link]
    broken = [link for link, _, heading in targets if heading not in headings_of(page.parent / link if link else page)]
    assert broken == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_each_page_says_first_what_it_is_for(page: Path) -> None:
    title, blank, first = page.read_text().splitlines()[:3]
    assert title.startswith("# ")
    assert blank == ""
    assert first.startswith("This page ")


def test_the_index_lists_every_page() -> None:
    linked = {(PROJECT / link.partition("#")[0]).resolve() for link in links_of(PROJECT / "README.md")}
    assert set(DOCS) - linked <= {PROJECT / "docs" / "README.md"}


def test_the_folder_leads_to_the_index() -> None:
    assert "../README.md#read-on" in links_of(PROJECT / "docs" / "README.md")


@pytest.mark.parametrize(
    ("name", "heading", "members"),
    [
        ("troubleshooting.md", "Why a connection ended", CloseReason),
        ("troubleshooting.md", "Why a TLS handshake failed", HandshakeFailure),
        ("balancers.md", "Health checks", Check),
        ("balancers.md", "When a header is refused", HeaderFault),
        ("troubleshooting.md", "Why a packet was dropped", DropReason),
        ("entitlement.md", "What operators see", VerdictOutcome),
        ("signaling.md", "What operators see", RefusalReason),
        ("web-proxy.md", "What operators see", ProxyOutcome),
        ("carriers.md", "When the relay refuses an upgrade", UpgradeOutcome),
    ],
)
def test_the_reasons_are_explained(name: str, heading: str, members: type[StrEnum]) -> None:
    page = (PROJECT / "docs" / name).read_text()
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    first_columns = re.findall(r"^\| (`[^|]*`) \| ", section, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(first_columns)) == list(members)


def test_the_formats_of_allow_lists_are_named() -> None:
    page = (PROJECT / "docs" / "operating.md").read_text()
    section = page.partition("\n## 5. ")[2].partition("\n```")[0]
    assert re.findall(r"`([a-z-]+)`", section) == list(Format)


def test_a_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](a.md), [b](../b.toml#part), `[c](c.md)`, [d](https://example.com/d.md)\n```\n[e](e.md)\n```\n")
    assert links_of(page) == ["a.md", "../b.toml#part"]


def test_a_heading_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n## 2. Who may, and `who` may not\n\n```sh\n# no heading\n```\n")
    assert headings_of(page) == {"title", "2-who-may-and-who-may-not"}


def test_the_proof_of_each_threat_is_a_test() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", SECURITY.read_text())
    rows = [line for line in SECURITY.read_text().splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) > 20
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (PROJECT / file).is_file() or not re.search(rf"(?m)^(async )?def {test}\(", (PROJECT / file).read_text())
    ]
    assert missing == []
    assert all(len(row.split(" | ")) == 3 for row in rows)
