"""Every endpoint and message is described and marked: in the docs, and in the API's own description."""

from __future__ import annotations

from pathlib import Path

from relay.emulator.marks import Mark
from tests.support.benches.cloud import running_cloud

DOCS = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text(encoding="utf-8")


async def test_the_docs_name_every_endpoint(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        endpoints = client.cloud.site.endpoints
        assert len(endpoints) > 20
        missing = [f"{each.method} {each.path}" for each in endpoints if f"{each.method} {each.path}" not in DOCS]
        assert missing == []


async def test_every_operation_has_its_mark_in_the_description(tmp_path: Path) -> None:
    async with running_cloud(tmp_path) as client:
        status, described, _ = await client.ask("GET", "/openapi.json")
        assert status == 200
        operations = {
            (method.upper(), path): operation["x-mark"]
            for path, methods in described["paths"].items()
            for method, operation in methods.items()
        }
        assert operations == {(each.method, each.path): each.mark for each in client.cloud.site.endpoints}
        assert set(operations.values()) <= set(Mark)
        assert all(mark.sentence in described["info"]["description"] for mark in Mark)


def test_the_docs_say_what_the_marks_mean() -> None:
    for mark in Mark:
        assert f"| {mark} | {mark.sentence} |" in DOCS
