"""Recordings: who may hear which, in whole and in parts; and the calls of the overview."""

from __future__ import annotations

import re

import pytest

from relay.emulator.lines import LineKind
from relay.emulator.signaling.messages import LineStatus
from relay.emulator.store.tables import Call
from relay.errors import UpstreamError
from tests.support.benches.portal import ADMIN, OTHER_ADMIN, TRADER, MadeUpPortal, Reply, made_up_portal

MEDIA = bytes(range(256)) * 40


def media_of(page: Reply) -> list[str]:
    return re.findall(r'<audio[^>]* src="([^"]+)"', page.text)


async def some(portal: MadeUpPortal) -> dict[str, str]:
    """One of Anna, one of Ben, one of Fay, and one that has not arrived."""
    return {
        "anna": await portal.record(1, "anna", "atlas", MEDIA),
        "ben": await portal.record(100_000, "ben", "atlas", MEDIA),
        "fay": await portal.record(3, "fay", "borealis", MEDIA),
        "part": await portal.record(4, "anna", "atlas", None, media_bytes=5000, received_bytes=2000),
    }


async def test_each_hears_what_they_may() -> None:
    async with made_up_portal() as portal:
        ids = await some(portal)
        expected = {ADMIN: {"anna", "ben"}, TRADER: {"anna"}, OTHER_ADMIN: {"fay"}, ("ben", "trader"): {"ben"}}
        for login, heard in expected.items():
            async with portal.visitor(*login) as visitor:
                page = await visitor.get("/portal/recordings")
                assert {url.split("/")[3] for url in media_of(page)} == {ids[name] for name in heard}
                for name, recording_id in ids.items():
                    answer = await visitor.get(f"/portal/recordings/{recording_id}/media")
                    assert (login, name, answer.status) == (login, name, 200 if name in heard else 404)
                    assert (answer.body == MEDIA) == (name in heard)


async def test_media_in_parts() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna:
        ids = await some(portal)
        url = f"/portal/recordings/{ids['anna']}/media"
        answer = await anna.get(url)
        assert (answer.headers["Content-Type"], answer.headers["Accept-Ranges"]) == ("audio/ogg", "bytes")
        assert answer.headers["Content-Disposition"] == f'inline; filename="{ids["anna"]}.ogg"'
        assert answer.headers["Cache-Control"] == "no-store"
        answer = await anna.get(url, headers={"Range": "bytes=100-299"})
        assert (answer.status, answer.body) == (206, MEDIA[100:300])
        assert answer.headers["Content-Range"] == f"bytes 100-299/{len(MEDIA)}"
        answer = await anna.get(url, headers={"Range": "bytes=-5"})
        assert (answer.status, answer.body) == (206, MEDIA[-5:])
        assert (await anna.get(url, headers={"Range": f"bytes={len(MEDIA)}-"})).status == 416


@pytest.mark.parametrize("media_type", ["text/html", "image/svg+xml", None, "audio/ogg\r\nX: y"])
async def test_a_strange_type_is_only_a_file(media_type: str | None) -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna:
        recording_id = await portal.record(1, "anna", "atlas", b"<script>", media_type=media_type)
        answer = await anna.get(f"/portal/recordings/{recording_id}/media")
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Content-Disposition"].startswith("attachment")


async def test_media_whose_file_is_gone() -> None:
    async with made_up_portal() as portal, portal.visitor(*TRADER) as anna:
        recording_id = await portal.record(1, "anna", "atlas", MEDIA)
        (portal.folder / recording_id).unlink()
        answer = await anna.get(f"/portal/recordings/{recording_id}/media")
        assert (answer.status, "has not arrived" in answer.words) == (404, True)


async def test_the_filter() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        ids = await some(portal)
        call = {"call_id": "c1", "line": "sPK-1", "kind": "ringdown", "region": "use1", "reason": "released"}
        async with portal.store.writing() as session:
            session.add(Call(**call, started_at=1.0, answered_at=None, ended_at=2.0))
        await portal.record(5, "anna", "atlas", MEDIA, call_id="c1")
        for query, count in (
            ("user=anna", 3),
            ("user=fay", 0),
            ("line=sPK-1", 1),
            ("from=2026-11-27", 3),
            ("to=2026-11-26", 1),
            ("from=2026-11-26&to=2026-11-26", 1),
            ("user=anna&line=sPK-1&from=2026-11-27&to=2026-11-27", 1),
            ("user=%27%20OR%201=1", 0),
        ):
            page = await admin.get(f"/portal/recordings?{query}")
            assert (query, page.status, len(re.findall(r'<td data-label="Listen"', page.text))) == (query, 200, count)
        page = await admin.get("/portal/recordings?from=yesterday")
        assert (page.status, "“yesterday” is not a day." in page.words) == (422, True)
        assert (await admin.get("/portal/recordings?to=9999-12-31")).status == 200
        assert ids


# Calls


async def test_the_calls_of_a_firm_without_the_names_of_others() -> None:
    async with made_up_portal() as portal:
        portal.call("sPK-10000001-100002", ["anna", "fay"], label="Atlas - Borealis", members=["ben"])
        portal.call("sPK-10000001-100001", ["anna", "ben"], label="Anna - Ben")
        portal.call("sPK-10000005-100002", ["fay", "chen"], label="Dialled", kind=LineKind.DIAL_TONE, guests=["chen"])
        portal.call("sPK-10000009-100001", ["gus"], label="Of Borealis alone")
        async with portal.visitor(*ADMIN) as admin:
            for path in ("/portal/", "/portal/calls"):
                page = await admin.get(path)
                assert (
                    "Atlas - Borealis ringdown connected 1 min 20 s Anna Keller talks , 1 of another firm" in page.words
                )
                assert "Anna Keller talks , Ben Osei" in page.words
                assert "Dialled dial tone connected 1 min 20 s Chen Wei , 1 of another firm" in page.words
                assert not {"Fay", "Martin", "Gus", "alone"} & set(page.words.split())
        async with portal.visitor(*OTHER_ADMIN) as admin:
            page = await admin.get("/portal/calls")
            assert ("Fay Martin" in page.words, "Anna Keller" in page.words) == (True, False)
        async with portal.visitor("ben", "trader") as ben:
            # Ben has both lines, and is told of both.
            page = await ben.get("/portal/calls")
            assert ("Atlas - Borealis" in page.words, "Dialled" in page.words) == (True, False)
        async with portal.visitor("chen", "trader") as chen:
            assert "Dialled" in (await chen.get("/portal/calls")).words
        async with portal.visitor("emil", "trader") as emil:
            assert "No calls now." in (await emil.get("/portal/")).words


async def test_a_crowd_is_counted() -> None:
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        others = [f"other{number}" for number in range(700)]
        crowd = ["emil", "anna", "ben", "chen", "dora", "atlas-admin", *others]
        for _ in range(130):
            portal.call("sPK-10000003-100001", crowd, kind=LineKind.HOOT, status=LineStatus.TALKING)
        page = await admin.get("/portal/calls")
        assert "hoot talking 1 min 20 s Emil Novak talks , Anna Keller ," in page.words
        assert "700 of another firm" in page.words
        assert "And 30 more calls." in page.words
        assert len(page.body) < 100_000


async def test_signaling_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: MadeUpPortal) -> None:
        raise UpstreamError("Redis does not answer")

    monkeypatch.setattr(MadeUpPortal, "live_lines", fail)
    async with made_up_portal() as portal, portal.visitor(*ADMIN) as admin:
        page = await admin.get("/portal/")
        assert (page.status, "Redis does not answer" in page.words) == (503, True)
        # The other pages do not need it.
        assert (await admin.get("/portal/users")).status == 200
