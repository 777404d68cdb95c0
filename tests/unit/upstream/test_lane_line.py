"""The line of those who wait for a slot: order, kinds, and what becomes of a slot granted in vain.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import httpx
import pytest

from app.upstream.lane_line import LaneLine
from app.upstream.lanes import Kind
from app.upstream.transport_base import Transport
from app.upstream.transport_lane import LiveLane

LONG_S = 60.0


def lane(kind: Kind = "h2") -> LiveLane:
    return LiveLane(1, kind, cast(Transport, None), 0, None)


def free(*lanes: LiveLane) -> Callable[[Kind], LiveLane | None]:
    """What a pool with these slots answers."""
    left = list(lanes)

    def take(kind: Kind) -> LiveLane | None:
        found = next((one for one in left if one.kind == kind), None)
        if found is not None:
            left.remove(found)
        return found

    return take


async def standing(line: LaneLine, *kinds: Kind) -> list[asyncio.Task[LiveLane | None]]:
    tasks = [asyncio.create_task(line.stand(kind, LONG_S)) for kind in kinds]
    await asyncio.sleep(0)
    assert len(line.standing) == len(kinds)
    return tasks


def play(work: Callable[[LaneLine, list[LiveLane]], Coroutine[Any, Any, None]]) -> None:
    """Run ``work`` with a line and the list of what was given back to its pool."""
    back: list[LiveLane] = []
    asyncio.run(work(LaneLine(back.append), back))


def test_first_come_first_served_and_another_kind_is_not_held_up() -> None:
    async def work(line: LaneLine, back: list[LiveLane]) -> None:
        first, second, third = await standing(line, "h2", "h2", "h1")
        here, there = lane("h2"), lane("h1")
        line.serve(free(here, there))
        assert (await first, await third) == (here, there)
        assert not second.done()
        line.serve(free(other := lane()))
        assert await second is other
        assert (len(line.standing), back) == (0, [])

    play(work)


def test_turned_away_are_those_of_the_kind() -> None:
    async def work(line: LaneLine, back: list[LiveLane]) -> None:
        ours, other = await standing(line, "h2", "h1")
        line.turn_away("h2")
        assert await ours is None
        assert not other.done()
        line.serve(free(there := lane("h1")))
        assert await other is there

    play(work)


def test_who_waited_too_long_leaves_the_line() -> None:
    async def work(line: LaneLine, back: list[LiveLane]) -> None:
        with pytest.raises(TimeoutError):
            await line.stand("h2", 0.0)
        assert (len(line.standing), back) == (0, [])

    play(work)


def test_a_slot_granted_to_one_who_leaves_is_given_back() -> None:
    async def work(line: LaneLine, back: list[LiveLane]) -> None:
        (leaver,) = await standing(line, "h2")
        line.serve(free(slot := lane()))
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert back == [slot]

    play(work)


def test_one_who_leaves_in_the_turn_in_which_it_is_turned_away_gives_nothing_back() -> None:
    async def work(line: LaneLine, back: list[LiveLane]) -> None:
        (leaver,) = await standing(line, "h2")
        line.turn_away("h2")
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        assert back == []

    play(work)


def test_a_closed_pool_is_a_connect_error_and_a_cancel_stays_one() -> None:
    async def work(line: LaneLine, back: list[LiveLane]) -> None:
        waits, leaves = await standing(line, "h2", "h2")
        leaves.cancel()
        line.dissolve()
        with pytest.raises(httpx.ConnectError):
            await waits
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert len(line.standing) == 0

    play(work)
