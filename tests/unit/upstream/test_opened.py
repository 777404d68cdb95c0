"""upstream/opened: reading ahead loses nothing, whatever ends it.

Runs on: loop.
"""

from __future__ import annotations

import httpx
import pytest

from app.upstream.opened import Opened
from tests.unit.upstream.scripted import NEVER, Canned, run, stream


async def rest(opened: Opened) -> bytes:
    data = b"".join(await opened.ahead())
    if not opened.over:
        data += b"".join([piece async for piece in opened.inbound])
    return data


@pytest.mark.parametrize("enough_after", [1, 3, 6, 100])
@pytest.mark.parametrize("limit_bytes", [2, 1000])
def test_whatever_is_read_ahead_comes_first(enough_after: int, limit_bytes: int) -> None:
    async def scene() -> None:
        opened = Opened(stream(b"ab", b"cd", b"ef"))
        ahead = await opened.read_ahead(lambda data: len(data) >= enough_after, limit_bytes, 5.0)
        assert b"abcdef".startswith(ahead)
        assert await rest(opened) == b"abcdef"

    run(scene)


def test_a_silent_body_is_not_waited_for_beyond_the_limit() -> None:
    async def scene() -> None:
        inbound = stream(b"ab", NEVER)
        opened = Opened(inbound)
        assert await opened.read_ahead(lambda data: False, 1000, 0.01) == b"ab"
        await opened.aclose()
        assert inbound.reset

    run(scene)


def test_a_body_that_breaks_ahead_breaks_where_it_is_read() -> None:
    async def scene() -> None:
        opened = Opened(stream(b"ab", httpx.ReadError("gone")))
        assert await opened.read_ahead(lambda data: False, 1000, 5.0) == b"ab"
        with pytest.raises(httpx.ReadError):
            await rest(opened)

    run(scene)


def test_the_kind_of_body_is_read_off_its_type() -> None:
    for value, is_stream in (
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("a/b", False),
    ):
        assert Opened(Canned(200, [("Content-Type", value)], [])).stream is is_stream
    assert not Opened(Canned(200, [], [])).stream
