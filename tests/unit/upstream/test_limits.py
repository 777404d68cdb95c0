"""upstream/limits: one timer for all deadlines; a cancel that is not theirs stays one.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import pytest

from app.errors import DeadlinePassed
from app.upstream.limits import Limits
from tests.unit.upstream.scripted import NEVER, Scene, run, stream

LONG_S = 1000.0


class Bounded:
    """A task that waits for ever under a limit, and what its limit said at the end."""

    def __init__(self, limits: Limits, at: float) -> None:
        self.limits = limits
        self.alone: bool | None = None
        self.task = asyncio.get_running_loop().create_task(self._wait(at))

    async def _wait(self, at: float) -> None:
        self.limit = self.limits.begin(at)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.alone = self.limits.end(self.limit)
            assert not self.limits.end(self.limit), "only the first call counts"
            if not self.alone:
                raise


async def begun(limits: Limits, at: float) -> Bounded:
    made = Bounded(limits, at)
    await asyncio.sleep(0)
    return made


def test_an_instant_that_passes_cancels_its_task_and_no_other() -> None:
    async def scene() -> None:
        limits = Limits()
        late = await begun(limits, time.monotonic() + LONG_S)
        early = await begun(limits, time.monotonic() - 1.0)
        await early.task
        assert early.alone is True and early.task.cancelling() == 0
        assert late.alone is None and limits.next_at == late.limit.at
        late.task.cancel()
        await asyncio.wait([late.task])
        assert late.task.cancelled()

    run(scene)


@pytest.mark.parametrize("struck_first", [False, True])
def test_a_cancel_from_outside_in_the_same_turn_stays_a_cancel(struck_first: bool) -> None:
    async def scene() -> None:
        limits = Limits()
        one = await begun(limits, time.monotonic() - 1.0)
        both: list[Callable[[], object]] = [limits._look, one.task.cancel]
        for each in both if struck_first else reversed(both):
            each()
        await asyncio.wait([one.task])
        assert one.alone is False and one.task.cancelled()

    run(scene)


def test_what_ends_in_time_is_never_struck() -> None:
    async def scene() -> None:
        limits = Limits()
        limit = limits.begin(time.monotonic() - 1.0)
        assert limits.end(limit) is False
        limits._look()
        assert not limit.struck and limits.next_at == math.inf
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0

    run(scene)


def test_there_is_one_timer_and_it_fires_for_the_earliest() -> None:
    async def scene() -> None:
        limits, now = Limits(), time.monotonic()
        ats = [now + LONG_S, now + LONG_S / 2, now + 2 * LONG_S]
        begun_at = []
        limit = None
        for at in ats:
            limit = limits.begin(at)
            begun_at.append(limits.next_at)
        assert begun_at == [ats[0], ats[1], ats[1]]
        assert limit is not None
        limit.at = now + LONG_S / 4  # earlier than the timer: it has to be told
        limits.arm(limit.at)
        assert limits.next_at == limit.at
        limit.at = now + 3 * LONG_S  # later: the timer finds out by itself
        limits._look()
        assert limits.next_at == ats[1] and not limit.struck

    run(scene)


@pytest.mark.parametrize("struck_first", [False, True])
def test_a_client_that_leaves_as_the_deadline_strikes_has_left(struck_first: bool) -> None:
    async def scene() -> None:
        one = Scene([NEVER], keys=["a"])
        task = asyncio.get_running_loop().create_task(one.serve(within_s=0.0))
        await asyncio.sleep(0)
        both: list[Callable[[], object]] = [one.dispatcher._limits._look, task.cancel]
        for each in both if struck_first else reversed(both):
            each()
        await asyncio.wait([task])
        assert task.cancelled()
        stats = one.first.stats(time.monotonic())
        assert (stats.slots.running, stats.credentials[0].in_flight) == (0, 0)

    run(scene)


def test_a_deadline_alone_is_a_failure_of_the_upstream() -> None:
    async def scene() -> None:
        one = Scene([NEVER], keys=["a"])
        with pytest.raises(DeadlinePassed):
            await one.serve(within_s=0.0)
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0

    run(scene)


def test_a_stream_is_bounded_by_its_silence_from_its_first_piece_on() -> None:
    async def scene() -> None:
        one = Scene([stream(b"event: x\ndata: {}\n\n", b"more", NEVER)])
        task = asyncio.get_running_loop().create_task(one.serve(within_s=LONG_S, silence_s=5.0))
        limits = one.dispatcher._limits
        for _ in range(20):
            await asyncio.sleep(0)
        (limit,) = limits._open
        left_s = limit.at - time.monotonic()
        assert 4.0 < left_s <= 5.0 and limits.next_at <= limit.at
        task.cancel()
        await asyncio.wait([task])
        assert not limits._open

    run(scene)
