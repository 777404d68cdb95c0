"""Our HTTP/2 client's choice of a connection, without sockets.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import httpx
import pytest

from app.exchange import Outbound
from app.upstream import transport_h2
from app.upstream.h2_connect import Closed, Opened
from app.upstream.h2_connection import H2Connection
from app.upstream.transport_h2 import H2Transport
from app.wire import h2_frames as h2

ORIGIN = "https://upstream.test"
REQUEST = Outbound("POST", ORIGIN, "/", (), b"{}")


def test_a_new_connection_that_is_closed_at_once_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[H2Connection] = []

    async def connect(host: str, port: int, context: Any, limit_s: float, closed: Any, capacity: int) -> Any:
        connection = H2Connection(asyncio.get_running_loop(), closed, capacity)
        made.append(connection)
        connection.loop.call_soon(connection.retire, "GOAWAY at once.")
        return connection, Opened(1.0, 1.0, 1.0)

    monkeypatch.setattr(transport_h2, "connect", connect)

    async def work() -> None:
        one = H2Transport(ORIGIN, context=ssl.create_default_context())
        with pytest.raises(httpx.ConnectError, match=r"GOAWAY at once\."):
            await one.send(REQUEST)
        assert (len(made), one.in_flight, one.connections) == (1, 0, 0)

    asyncio.run(asyncio.wait_for(work(), 5))


def test_who_asks_for_calm_is_asked_half_as_often_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[H2Connection] = []
    told: list[Closed] = []

    async def connect(host: str, port: int, context: Any, limit_s: float, closed: Any, capacity: int) -> Any:
        connection = H2Connection(asyncio.get_running_loop(), closed, capacity)
        connection.data_received(h2.settings(()))
        made.append(connection)
        return connection, Opened(1.0, 1.0, 1.0)

    monkeypatch.setattr(transport_h2, "connect", connect)

    async def work() -> None:
        one = H2Transport(ORIGIN, context=ssl.create_default_context(), ping_interval_s=10.0, closed=told.append)
        for code, interval_s in ((h2.NO_ERROR, 10.0), (h2.ENHANCE_YOUR_CALM, 20.0), (h2.NO_ERROR, 20.0)):
            await one.connect()
            assert not one.opening
            made[-1].data_received(h2.frame(h2.GOAWAY, 0, 0, b"\0\0\0\0" + code.to_bytes(4, "big")))
            assert one._watch.ping_interval_s == interval_s
        assert [how.unresponsive for how in told] == [False] * 3

    asyncio.run(asyncio.wait_for(work(), 5))
