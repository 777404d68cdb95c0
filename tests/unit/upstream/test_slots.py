"""upstream/slots: waiting for a slot, and never losing one, whoever is cancelled when (B36).

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from app.errors import QueueFull
from app.upstream.slots import Slot, Slots, SlotStats

Tasks = list["asyncio.Task[Slot]"]


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(bounded())


async def turn() -> None:
    """Let everything that is ready run, once."""
    await asyncio.sleep(0)


async def in_line(slots: Slots, *callers: str) -> Tasks:
    tasks = [asyncio.create_task(slots.enter(caller)) for caller in callers]
    await turn()
    assert not any(task.done() for task in tasks)
    return tasks


def counts(slots: Slots) -> tuple[int, int]:
    stats = slots.stats(0.0)
    return stats.running, stats.waiting


def test_a_free_slot_is_given_without_a_turn_of_the_loop() -> None:
    slots = Slots(1, 1, drop=False)
    entering = slots.enter("a")
    with pytest.raises(StopIteration) as given:
        entering.send(None)  # outside of any loop: neither a future nor a task can have been made
    slot = given.value.value
    assert (slot.waited_s, counts(slots)) == (0.0, (1, 0))
    slot.release()
    assert counts(slots) == (0, 0)


def test_one_that_waits_gets_the_slot_that_is_given_back() -> None:
    async def test() -> None:
        clock = Clock()
        slots = Slots(1, 9, drop=False, clock=clock)
        held = await slots.enter("a")
        (waiting,) = await in_line(slots, "b")
        clock.now += 2.5
        held.release()
        assert counts(slots) == (1, 0), "it is the next one's from this moment"
        assert (await waiting).waited_s == 2.5

    run(test)


def test_nobody_who_comes_in_takes_a_slot_that_was_handed_over() -> None:
    async def test() -> None:
        slots = Slots(1, 9, drop=False)
        held = await slots.enter("a")
        (first,) = await in_line(slots, "b")
        held.release()
        (second,) = await in_line(slots, "c")
        (await first).release()
        (await second).release()
        assert counts(slots) == (0, 0)

    run(test)


def test_releasing_twice_gives_back_one_slot() -> None:
    async def test() -> None:
        slots = Slots(1, 9, drop=False)
        held = await slots.enter("a")
        first, second = await in_line(slots, "b", "c")
        held.release()
        held.release()
        await turn()
        assert first.done() and not second.done()
        (await first).release()
        (await second).release()

    run(test)


def test_callers_are_served_in_turn() -> None:
    async def test() -> None:
        slots = Slots(1, 9, drop=False)
        held = await slots.enter("x")
        served: list[str] = []

        async def work(name: str) -> None:
            slot = await slots.enter(name[0])
            served.append(name)
            slot.release()

        tasks = [asyncio.create_task(work(name)) for name in ("a1", "a2", "a3", "b1", "b2", "c1")]
        await turn()
        held.release()
        await asyncio.gather(*tasks)
        assert served == ["a1", "b1", "c1", "a2", "b2", "a3"]

    run(test)


def test_one_that_gives_up_leaves_nothing_behind() -> None:
    async def test() -> None:
        slots = Slots(1, 9, drop=False)
        held = await slots.enter("a")
        gone, stays = await in_line(slots, "b", "c")
        gone.cancel()
        await asyncio.wait([gone])
        assert gone.cancelled() and counts(slots) == (1, 1)
        held.release()
        (await stays).release()
        assert counts(slots) == (0, 0)

    run(test)


@pytest.mark.parametrize("first", ["hand over, then cancel", "cancel, then hand over"])
def test_one_cancelled_in_the_turn_it_was_given_the_slot_passes_it_on(first: str) -> None:
    async def test() -> None:
        slots = Slots(1, 9, drop=False)
        held = await slots.enter("a")
        gone, following = await in_line(slots, "b", "c")
        if first == "hand over, then cancel":
            held.release()
            gone.cancel()
        else:
            gone.cancel()
            held.release()
        slot = await following
        assert gone.cancelled()
        assert counts(slots) == (1, 0)
        slot.release()
        assert counts(slots) == (0, 0)

    run(test)


def test_a_whole_line_cancelled_in_the_turn_of_the_hand_over_leaves_the_slot_free() -> None:
    async def test() -> None:
        slots = Slots(2, 9, drop=False)
        held = [await slots.enter("a"), await slots.enter("a")]
        tasks = await in_line(slots, *"bcbcd")
        for task in tasks[::2]:
            task.cancel()
        for slot in held:
            slot.release()
        for task in tasks[1::2]:
            task.cancel()
        await asyncio.wait(tasks)
        assert counts(slots) == (0, 0)

    run(test)


def test_a_deadline_ends_the_wait() -> None:
    async def test() -> None:
        slots = Slots(1, 9, drop=False)
        held = await slots.enter("a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await slots.enter("b")
        assert (counts(slots), slots.stats(0.0).waited) == ((1, 0), 1)
        held.release()
        assert counts(slots) == (0, 0)

    run(test)


def test_a_larger_share_lets_those_in_line_in() -> None:
    async def test() -> None:
        slots = Slots(1, 9, drop=False)
        held = await slots.enter("a")
        tasks = await in_line(slots, "b", "b", "c")
        tasks[0].cancel()
        slots.resize(3, 9)
        given = [await tasks[1], await tasks[2]]
        assert tasks[0].cancelled() and counts(slots) == (3, 0)
        for slot in (held, *given):
            slot.release()
        assert counts(slots) == (0, 0)

    run(test)


def test_a_smaller_share_lets_nobody_in_until_enough_have_left() -> None:
    async def test() -> None:
        slots = Slots(2, 9, drop=False)
        first, second = await slots.enter("a"), await slots.enter("a")
        (waiting,) = await in_line(slots, "b")
        slots.resize(1, 9)
        first.release()
        await turn()
        assert not waiting.done()
        second.release()
        (await waiting).release()

    run(test)


def test_b36_of_500_at_once_75_are_served_and_425_are_refused_at_once() -> None:
    async def test() -> None:
        slots = Slots(50, 75, drop=True)
        served, most, now = 0, 0, 0
        open_up = asyncio.Event()

        async def exchange(number: int) -> None:
            nonlocal served, most, now
            slot = await slots.enter(str(number % 7))
            now += 1
            most = max(most, now)
            await open_up.wait()
            now -= 1
            served += 1
            slot.release()

        tasks = [asyncio.create_task(exchange(number)) for number in range(500)]
        await turn()
        refused = [task for task in tasks if task.done()]
        assert len(refused) == 425, "refused in the same turn"
        assert all(isinstance(task.exception(), QueueFull) for task in refused)
        open_up.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (served, most) == (75, 50)
        stats = slots.stats(0.0)
        assert (stats.running, stats.waiting, stats.dropped, stats.admitted, stats.waited) == (0, 0, 425, 75, 25)

    run(test)


def test_b36_a_refusal_says_what_and_when_to_come_back() -> None:
    async def test() -> None:
        slots = Slots(1, 1, drop=True)
        await slots.enter("a")
        with pytest.raises(QueueFull, match=r"^request dropped: queue is full$") as refused:
            await slots.enter("b")
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1.0)
        assert refused.value.__suppress_context__, "the room's own signal is not part of the story"

    run(test)


def test_the_figures() -> None:
    async def test() -> None:
        clock = Clock()
        slots = Slots(1, 3, drop=True, clock=clock)
        held = await slots.enter("a")
        (first,) = await in_line(slots, "b")
        clock.now += 3
        (second,) = await in_line(slots, "a")
        with pytest.raises(QueueFull):
            await slots.enter("c")
        clock.now += 1
        assert slots.stats(clock.now) == SlotStats(
            concurrency=1,
            buffer_size=3,
            running=1,
            waiting=2,
            dropped=1,
            admitted=1,
            waited=2,
            oldest_wait_s=4.0,
            drop=True,
        )
        held.release()
        assert slots.stats(clock.now).oldest_wait_s == 1.0, "only those still in line count"
        second.cancel()
        (await first).release()
        stats = slots.stats(clock.now)
        assert (stats.oldest_wait_s, stats.admitted, stats.waited, stats.waiting) == (0.0, 2, 2, 0)

    run(test)


class Crowd:
    """Exchanges that come, are cancelled, fail and end in any order; in the end nobody holds anything."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311
        self.slots = Slots(5, 40, drop=seed % 2 == 1)
        self.now = 0
        self.served = 0

    async def exchange(self, caller: str) -> None:
        slot = await self.slots.enter(caller)
        self.now += 1
        assert self.now <= 8, "the largest share in this test"
        try:
            for _ in range(self.chance.randrange(4)):
                await turn()
            if self.chance.random() < 0.2:
                raise ConnectionError
            self.served += 1
        finally:
            self.now -= 1
            slot.release()

    async def come_and_go(self) -> None:
        live: list[asyncio.Task[None]] = []
        for step in range(300):
            new = self.chance.choice([0, 1, 1, 2, 6])
            live += [asyncio.create_task(self.exchange(self.chance.choice("abc"))) for _ in range(new)]
            for task in self.chance.sample(live, len(live) // 12):
                task.cancel()
            if step % 50 == 25:
                self.slots.resize(self.chance.randrange(1, 9), 40)
            if self.chance.random() < 0.7:
                await turn()
            stats = self.slots.stats(0.0)
            assert not stats.waiting or stats.running >= stats.concurrency, "a slot is free while somebody waits"
        ends = await asyncio.gather(*live, return_exceptions=True)
        assert not [end for end in ends if isinstance(end, AssertionError)]


@pytest.mark.parametrize("seed", range(25))
def test_no_slot_is_lost_however_many_are_cancelled_when(seed: int) -> None:
    crowd = Crowd(seed)
    run(crowd.come_and_go)
    stats = crowd.slots.stats(1e9)
    assert (crowd.now, stats.running, stats.waiting, stats.oldest_wait_s) == (0, 0, 0, 0.0)
    assert crowd.served > 50
