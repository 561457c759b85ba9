"""The story: the same sentence over three ways at the same time, and for each what one would have heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from relay.demo.wan import sentence
from relay.demo.wan.call import Conversation, Heard, place_call
from relay.demo.wan.concealment import conceal
from relay.demo.wan.playout import delays_of, play_out
from relay.demo.wan.real import real_ways
from relay.demo.wan.simulated import simulated_ways
from relay.demo.wan.sound import build_wav, decode
from relay.quality.playout import Playout, play

PACKETS_PER_SECOND = 50


@dataclass(frozen=True)
class Told:
    """What became of a call: its score each way, and the sound that the trader heard, as a WAV file.

    ``path_lost`` counts what the path has lost on the way to the trader, among it what TCP has sent again.
    """

    way: str
    trader: Playout
    other: Playout
    wrong: int
    path_lost: int
    wav: bytes


@dataclass(frozen=True)
class Story:
    """All calls. ``simulated`` says why the path was not a real one, or is None."""

    calls: tuple[Told, ...]
    simulated: str | None

    @property
    def authentic(self) -> bool:
        """True if everything that came was what had been said."""
        return not any(call.wrong for call in self.calls)


def packets_for(seconds: float | None) -> int:
    """How many packets are said: the sentence once, or as often as comes closest to this many seconds."""
    packets = len(sentence.load())
    return packets * max(1, round((seconds or 0) * PACKETS_PER_SECOND / packets))


async def tell(packets: int, simulated: str | None, on_tick: Callable[[], None]) -> Story:
    """Place the calls. ``simulated`` is why the path cannot be real, if so (``real.why_not``).

    ``on_tick`` is called for each 20 ms of each call, in any thread. If one call fails, the others end, too. Raises
    RelayError.
    """
    payloads = sentence.load()
    opened = real_ways() if simulated is None else simulated_ways()
    async with opened as ways:
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(place_call(way, payloads, packets, on_tick)) for way in ways]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
    return Story(tuple(judge(call.result()) for call in running), simulated)


def judge(call: Conversation) -> Told:
    """Score a call, and render what the trader heard."""
    wrong = call.trader.wrong + call.other.wrong
    return Told(call.way, _score(call.trader), _score(call.other), wrong, call.path_lost, render(call.trader))


def _score(heard: Heard) -> Playout:
    return play(delays_of(heard.arrivals, heard.sent))


def render(heard: Heard) -> bytes:
    """What one hears: through a jitter buffer, with holes concealed. As long as what was said."""
    frames = play_out(heard.arrivals, heard.sent)
    return build_wav(conceal(None if payload is None else decode(payload) for payload in frames))
