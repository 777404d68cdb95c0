"""What a connection of httpcore's says of itself.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httpcore
import pytest

from app.upstream.transport_streams import Stream, _Reader


class Writer:
    """A stream writer without a socket."""

    def __init__(self) -> None:
        self.closing = False
        self.fails = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        assert not self.closing

    async def drain(self) -> None:
        if self.fails:
            raise BrokenPipeError


def test_what_was_handed_over_is_counted_also_when_it_fails_later() -> None:
    async def test() -> None:
        writer = Writer()
        stream = Stream(_Reader(), cast(asyncio.StreamWriter, writer))
        assert stream.get_extra_info("handed") == 0
        await stream.write(b"1234")
        assert stream.get_extra_info("handed") == 4
        writer.fails = True
        with pytest.raises(httpcore.WriteError):
            await stream.write(b"56")
        assert stream.get_extra_info("handed") == 6

    asyncio.run(test())


def test_what_a_closing_connection_would_swallow_is_not_handed_over() -> None:
    async def test() -> None:
        writer = Writer()
        stream = Stream(_Reader(), cast(asyncio.StreamWriter, writer))
        writer.closing = True
        with pytest.raises(httpcore.WriteError):
            await stream.write(b"1234")
        assert (stream.get_extra_info("handed"), stream.get_extra_info("is_closed")) == (0, True)

    asyncio.run(test())
