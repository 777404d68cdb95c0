"""bridge/stream: the two bounded pipes. At most 64 KiB wait, in order, nothing lost, the end exactly once (B24).

Runs on: worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.bridge.stream import LIMIT_BYTES, Down, Up


class Ends:
    """What a pipe calls: work posted to the loop (run at once), and wakes of the worker (counted)."""

    def __init__(self) -> None:
        self.wakes = 0
        self.posted = 0

    def post(self, work: Callable[..., object], *args: Any) -> None:
        self.posted += 1
        work(*args)

    def wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def ends() -> Ends:
    """The other ends."""
    return Ends()


@pytest.fixture
def up(ends: Ends) -> Up:
    """A pipe up."""
    return Up(ends.post, ends.wake)


@pytest.fixture
def down(ends: Ends) -> Down:
    """A pipe down."""
    return Down(ends.post, ends.wake)


async def turns(count: int = 5) -> None:
    """Let the other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


# ---------------------------------------------------------------------- up
def test_the_head_is_seen_at_once_and_wakes(up: Up, ends: Ends) -> None:
    seen = [up.head]
    up.send_head("head", hold=False)
    seen.append(up.head)
    assert (seen, ends.wakes) == ([None, "head"], 1)


def test_a_held_head_comes_with_the_whole_body_in_one_wake(up: Up, ends: Ends) -> None:
    seen: list[tuple[object, int]] = []

    async def answer() -> None:
        up.send_head("head", hold=True)
        await up.send(b"a")
        await up.send(b"b")
        seen.append((up.head, ends.wakes))
        up.finish(None)

    asyncio.run(answer())
    assert seen == [(None, 0)]
    assert (up.head, up.take(), ends.wakes, up.ended) == ("head", [b"a", b"b"], 1, True)
    assert up.ended_at > 0.0


def test_a_held_head_is_dropped_for_an_error(up: Up) -> None:
    async def answer() -> None:
        up.send_head("head", hold=True)
        await up.send(b"half")
        up.finish(ValueError("broke"))

    asyncio.run(answer())
    assert (up.head, up.take(), str(up.error)) == (None, [], "broke")


def test_bytes_before_an_error_stay_when_the_head_was_seen(up: Up) -> None:
    async def answer() -> None:
        up.send_head("head", hold=False)
        await up.send(b"half")
        up.finish(ValueError("broke"))

    asyncio.run(answer())
    assert (up.head, up.take(), str(up.error)) == ("head", [b"half"], "broke")


def test_take_takes_everything_that_waits(up: Up) -> None:
    async def answer() -> None:
        for number in range(100):
            await up.send(bytes([number]))

    asyncio.run(answer())
    assert up.readable()
    assert b"".join(up.take()) == bytes(range(100))
    assert not up.readable()
    assert up.take() == []


def test_b24_never_more_than_the_limit_waits(up: Up, ends: Ends) -> None:
    """B24: the producer sleeps at 64 KiB; a piece over the limit goes in parts; all of it comes, in order."""
    data = bytes(range(256)) * 1024  # 256 KiB in one piece

    async def both() -> tuple[list[int], bytes, float]:
        sender = asyncio.create_task(up.send(data))
        most, got = [], b""
        while not sender.done() or up.readable():
            await turns()
            pieces = up.take()
            most.append(sum(map(len, pieces)))
            got += b"".join(pieces)
        return most, got, await sender

    most, got, waited_s = asyncio.run(both())
    assert got == data
    assert max(most) == LIMIT_BYTES
    assert waited_s > 0.0
    assert ends.posted >= 3  # each take handed credit back


def test_b24_a_full_pipe_lets_go_of_a_held_head(up: Up) -> None:
    async def both() -> None:
        up.send_head("head", hold=True)
        await up.send(b"x" * LIMIT_BYTES)
        assert up.head is None
        sender = asyncio.create_task(up.send(b"y"))
        await turns()
        assert up.head == "head"
        assert up.starved
        up.take()
        await sender
        assert not up.starved

    asyncio.run(both())


def test_a_reader_that_takes_just_before_the_sleep_is_not_waited_for(up: Up) -> None:
    """The flag goes up first, then the pipe is looked at again: no lost wake-up."""

    async def both() -> None:
        await up.send(b"x" * LIMIT_BYTES)

        def taken_in_between() -> None:
            up.take()

        up._hold = True  # the wake that lifts it is the last thing before the future is made
        up._wake = taken_in_between
        assert await up.send(b"y") >= 0.0
        assert not up.starved

    asyncio.run(both())


def test_crowded_is_more_than_half_the_limit(up: Up) -> None:
    async def answer() -> None:
        await up.send(b"x" * (LIMIT_BYTES // 2))
        assert not up.crowded
        await up.send(b"x")
        assert up.crowded

    asyncio.run(answer())


def test_an_offer_is_taken_at_once_as_long_as_nobody_gets_crowded(up: Up, ends: Ends) -> None:
    assert up.offer(b"x" * (LIMIT_BYTES // 2))
    assert not up.offer(b"y"), "whoever has to wait sends"
    assert (up.take(), ends.wakes) == ([b"x" * (LIMIT_BYTES // 2)], 1)
    assert up.offer(b"y") and up.take() == [b"y"]


def test_an_offer_behind_a_held_head_wakes_nobody(up: Up, ends: Ends) -> None:
    up.send_head("head", hold=True)
    assert up.offer(b"body")
    assert (up.head, ends.wakes) == (None, 0)
    up.finish(None)
    assert (up.head, up.take(), ends.wakes) == ("head", [b"body"], 1)


def test_credit_given_twice_or_after_a_cancel_is_harmless(up: Up) -> None:
    async def both() -> None:
        up._settle()  # nobody has waited yet
        await up.send(b"x" * LIMIT_BYTES)
        sender = asyncio.create_task(up.send(b"y"))
        await turns()
        sender.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sender
        up.take()  # settles a cancelled future

    asyncio.run(both())


# -------------------------------------------------------------------- down
async def drain(pipe: Down) -> list[bytes]:
    """All of an upload."""
    return [piece async for piece in aiter(pipe)]


def test_an_upload_put_before_anybody_reads_comes_joined(down: Down) -> None:
    down.put(b"a")
    down.put(b"b")
    down.end()
    assert asyncio.run(drain(down)) == [b"ab"]


def test_one_piece_passes_without_a_copy(down: Down) -> None:
    piece = b"piece" * 10
    down.put(piece)
    down.end()
    assert asyncio.run(drain(down))[0] is piece


def test_an_upload_reader_sleeps_until_there_is_something(down: Down, ends: Ends) -> None:
    async def both() -> list[bytes]:
        reader = asyncio.create_task(drain(down))
        for piece in (b"1", b"2"):
            await turns()
            down.put(piece)
        await turns()
        down.end()
        return await reader

    assert asyncio.run(both()) == [b"1", b"2"]
    assert ends.posted == 3


def test_an_empty_upload_ends(down: Down) -> None:
    down.end()
    assert asyncio.run(drain(down)) == []


@pytest.mark.parametrize("asleep", [True, False])
def test_an_aborted_upload_raises_where_it_is_read(down: Down, asleep: bool) -> None:
    async def both() -> None:
        reader = asyncio.create_task(drain(down))
        if asleep:
            await turns()
        down.put(b"half")
        down.abort(ValueError("client stalled"))
        with pytest.raises(ValueError, match="client stalled"):
            await reader

    asyncio.run(both())


def test_b24_room_is_what_is_left_of_the_limit(down: Down, ends: Ends) -> None:
    """B24: credit downwards; a starved feeder is woken by the next take, and only then."""

    async def both() -> None:
        down.put(b"x" * (LIMIT_BYTES - 1))
        assert down.room == 1
        down.put(b"x")
        assert down.room == 0
        down.starved = True
        reader: AsyncIterator[bytes] = aiter(down)
        assert len(await anext(reader)) == LIMIT_BYTES
        assert (down.room, ends.wakes, down.starved) == (LIMIT_BYTES, 1, False)
        down.put(b"y")
        await anext(reader)
        assert ends.wakes == 1

    asyncio.run(both())


def test_a_put_between_look_and_sleep_is_not_slept_over(down: Down) -> None:
    """The reader raises its flag, then looks again."""

    async def both() -> bytes:
        reader: AsyncIterator[bytes] = aiter(down)
        loop = asyncio.get_running_loop()
        make = loop.create_future

        def with_a_put_in_between() -> Any:
            down.put(b"just in time")
            return make()

        loop.create_future = with_a_put_in_between  # type: ignore[method-assign]
        try:
            return await anext(reader)
        finally:
            loop.create_future = make  # type: ignore[method-assign]

    assert asyncio.run(both()) == b"just in time"


def test_a_reader_that_was_cancelled_is_not_woken(down: Down) -> None:
    async def both() -> None:
        down._settle()  # nobody has slept yet
        reader = asyncio.create_task(drain(down))
        await turns()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        down.put(b"late")

    asyncio.run(both())
