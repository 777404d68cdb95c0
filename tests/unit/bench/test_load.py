"""How many are under way at once."""

from __future__ import annotations

import asyncio
import json

import pytest

from app.bench.load import body, closed, on_a_loop, spread


class Counted:
    """Notes how many are under way."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.sent: list[int] = []

    async def send(self, index: int) -> int:
        self.sent.append(index)
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await asyncio.sleep(0)
        self.now -= 1
        return index * 10


@pytest.mark.parametrize(("count", "concurrency", "most"), [(20, 4, 4), (3, 10, 3), (5, 1, 1)])
def test_a_closed_load_keeps_as_many_under_way_as_it_may(count: int, concurrency: int, most: int) -> None:
    counted = Counted()
    found = on_a_loop(closed(count, concurrency, counted.send))
    assert sorted(found) == [index * 10 for index in range(count)]
    assert counted.sent == list(range(count))
    assert counted.most == most


def test_a_spread_load_does_not_wait_for_answers() -> None:
    counted = Counted()
    found = on_a_loop(spread(30, 0.0, counted.send))
    assert found == [index * 10 for index in range(30)]
    assert counted.sent == list(range(30))
    assert counted.most == 30


def test_a_body_is_a_conversation_of_its_own() -> None:
    data = json.loads(body("m", "text"))
    assert (data["model"], data["messages"][0]["content"]) == ("m", "text")
