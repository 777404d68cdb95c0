"""upstream/h2_stream: a stream that flows gives its sink everything, in order, and its reader the rest.

Runs on: loop.
"""

from __future__ import annotations

import asyncio

import pytest

from app.upstream.h2_stream import REFILL, H2Failure, Reset
from app.wire import h2_frames as h2
from tests.unit.upstream.scripted import run
from tests.unit.upstream.test_h2_faults import STATUS, Line

CANCELLED = h2.rst_stream(1, h2.CANCEL)


def data(piece: bytes, end: bool = False, stream_id: int = 1) -> bytes:
    return h2.frame(h2.DATA, h2.END_STREAM if end else 0, stream_id, piece)


class Flowing:
    """Stream 1 of a line, its head there, flowing into a sink that takes so many pieces."""

    def __init__(self, takes: int) -> None:
        self.line = Line()
        self.line.feed(h2.headers(1, STATUS, False, 16384), h2.headers(3, STATUS, False, 16384))
        self.stream = self.line.streams[0]
        self.takes = takes
        self.sunk: list[bytes] = []
        self.read: list[bytes] = []
        self.task = asyncio.get_running_loop().create_task(self._work())

    def sink(self, piece: bytes) -> bool:
        if len(self.sunk) >= self.takes:
            return False
        self.sunk.append(piece)
        return True

    async def _work(self) -> None:
        await self.stream.flow(self.sink)
        async for piece in self.stream:
            self.read.append(piece)
            await self.stream.flow(self.sink)


async def flowing(takes: int) -> Flowing:
    made = Flowing(takes)
    await asyncio.sleep(0)
    return made


def test_what_one_read_brought_is_one_piece_and_costs_no_turn() -> None:
    async def scene() -> None:
        one = await flowing(100)
        one.line.feed(data(b"a"), data(b"x", stream_id=3), data(b"b"))
        one.line.feed(data(b"c"))
        assert one.sunk == [b"ab", b"c"], "without a turn of the loop"
        one.line.feed(data(b"d"), data(b"e", end=True))
        assert one.sunk == [b"ab", b"c", b"de"]
        await one.task
        assert one.read == [] and one.stream.over

    run(scene)


def test_what_the_sink_does_not_take_is_read_and_then_it_flows_again() -> None:
    async def scene() -> None:
        one = await flowing(1)
        one.line.feed(data(b"a"))
        one.line.feed(data(b"b"))
        one.line.feed(data(b"c"))
        assert one.sunk == [b"a"]
        for _ in range(3):
            await asyncio.sleep(0)
        assert one.read == [b"bc"]
        one.takes = 2
        one.line.feed(data(b"d"))
        assert one.sunk == [b"a", b"d"]
        one.line.feed(data(b"", end=True))
        await one.task
        assert one.read == [b"bc"]

    run(scene)


def test_a_failure_comes_after_what_had_come() -> None:
    async def scene() -> None:
        one = await flowing(100)
        one.line.feed(data(b"a"), CANCELLED)
        assert one.sunk == [b"a"]
        with pytest.raises(Reset):
            await one.task
        assert one.read == []

    run(scene)


def test_a_sink_that_takes_nothing_loses_nothing_to_a_failure() -> None:
    async def scene() -> None:
        one = await flowing(0)
        one.line.feed(data(b"a"), CANCELLED)
        with pytest.raises(H2Failure):
            await one.task
        assert (one.sunk, one.read) == ([], [b"a"])

    run(scene)


def test_a_cancel_resets_the_stream_and_the_sink_gets_no_more() -> None:
    async def scene() -> None:
        one = await flowing(100)
        one.task.cancel()
        await asyncio.wait([one.task])
        assert one.task.cancelled()
        assert [(kind, number) for kind, _, number, _ in one.line.feed()] == [(h2.RST_STREAM, 1)]
        one.line.feed(data(b"late"))
        assert one.sunk == []

    run(scene)


def test_the_window_opens_as_the_sink_takes() -> None:
    async def scene() -> None:
        one = await flowing(100)
        answers = one.line.feed(data(b"x" * (REFILL // 2)), data(b"y" * (REFILL // 2)))
        assert answers == [(h2.WINDOW_UPDATE, 0, 1, REFILL.to_bytes(4, "big"))]
        stuck = await flowing(0)
        assert stuck.line.feed(data(b"x" * (REFILL // 2)), data(b"y" * (REFILL // 2))) == []
        for made in (one, stuck):
            made.task.cancel()
            await asyncio.wait([made.task])

    run(scene)


def test_what_is_over_or_has_come_already_does_not_flow() -> None:
    async def scene() -> None:
        line = Line()
        line.feed(h2.headers(1, STATUS, False, 16384), data(b"there", end=True))
        sunk: list[bytes] = []

        def sink(piece: bytes) -> bool:
            sunk.append(piece)
            return True

        await line.streams[0].flow(sink)
        assert [piece async for piece in line.streams[0]] == [b"there"] and sunk == []
        await line.streams[0].aclose()
        await line.streams[0].flow(sink)

    run(scene)


def test_padding_alone_is_no_piece() -> None:
    async def scene() -> None:
        one = await flowing(100)
        one.line.feed(h2.frame(h2.DATA, h2.PADDED, 1, b"\x02\0\0"))
        assert one.sunk == []
        one.line.feed(data(b"a", end=True))
        await one.task
        assert (one.sunk, one.read) == ([], [b"a"]), "what ends the answer ends the flow"

    run(scene)
