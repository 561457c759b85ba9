"""The pages that people read: each link leads somewhere, each page says what it is for, and the index has them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
DOCS = sorted((PROJECT / "docs").glob("*.md"))
PAGES = [*sorted(PROJECT.glob("*.md")), *DOCS, *sorted((PROJECT / "loadtest").rglob("*.md"))]


def links_of(page: Path) -> list[str]:
    """The targets of all links to files, without code and without addresses on the web."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_each_link_leads_to_a_file(page: Path) -> None:
    broken = [link for link in links_of(page) if not (page.parent / link.partition("#")[0]).exists()]
    assert broken == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_each_page_says_first_what_it_is_for(page: Path) -> None:
    title, blank, first = page.read_text().splitlines()[:3]
    assert title.startswith("# ")
    assert blank == ""
    assert first.startswith("This page ")


def test_the_index_lists_every_page() -> None:
    assert {page.name for page in DOCS} - {"README.md"} <= set(links_of(PROJECT / "docs" / "README.md"))


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(PROJECT / link).resolve() for link in links_of(PROJECT / "README.md")}
    assert set(DOCS) - linked <= {PROJECT / "docs" / "README.md"}


def test_a_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](a.md), [b](../b.toml#part), `[c](c.md)`, [d](https://example.com/d.md)\n```\n[e](e.md)\n```\n")
    assert links_of(page) == ["a.md", "../b.toml#part"]
