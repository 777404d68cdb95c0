"""Clients that leave: the upstream is told at once, so that nobody pays for what nobody reads (B21)."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Measured, Server, until
from tests.e2e.wire import USUAL, Raw, message, opened, post, request

LIMIT_S = 5.0
"""B21 says one second; a busy machine is given more, and the latencies are recorded."""


def _latency(simulator: Running, left_at: float, count: int = 1) -> list[float]:
    """Seconds from leaving to each of the ``count`` aborts, by the simulator's clock (the same machine's)."""
    until(lambda: simulator.stats()["client_aborts"] >= count, LIMIT_S, f"{count} aborts upstream")
    stats = simulator.stats()
    assert stats["client_aborts"] == count
    assert stats["open_streams"] == 0
    return sorted(abort["at_ns"] / 1e9 - left_at for abort in stats["aborts"])


def _waiting(port: int, scenario: str, *, stream: bool) -> Raw:
    raw = Raw(port)
    raw.send(request("/v1/messages", message(scenario, stream=stream), USUAL))
    return raw


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_before_the_head(server: Server, simulator: Running, stream: bool, measured: Measured) -> None:
    raw = _waiting(server.port, "hang", stream=stream)
    until(lambda: simulator.stats()["open_streams"] == 1)
    left_at = time.monotonic()
    raw.close()
    measured("cancel_s", _latency(simulator, left_at))
    until(lambda: any(row["client_left"] for row in server.lines()))


@pytest.mark.parametrize("scenario", ["stream-10000x20ms", "stall-3", "halfevent-3"])
def test_after_some_events(server: Server, simulator: Running, scenario: str, measured: Measured) -> None:
    """Also when nothing more comes that could fail to be written."""
    raw, head = opened(server.port, scenario)
    got = b""
    for piece in raw.pieces(head):
        got += piece
        if got.count(b"text_delta") >= 3:
            break
    left_at = time.monotonic()
    raw.close()
    measured("cancel_s", _latency(simulator, left_at))
    sent = simulator.stats()["events_sent"]
    time.sleep(0.2)
    assert simulator.stats()["events_sent"] == sent


@pytest.mark.parametrize("scenario", ["hang", "stream-10000x20ms"])
def test_twenty_at_once(server: Server, simulator: Running, scenario: str, measured: Measured) -> None:
    """None is missed, none of the others is touched."""
    stays, head = opened(server.port, "stream-60x20ms")
    raws = [_waiting(server.port, scenario, stream=True) for _ in range(20)]
    until(lambda: simulator.stats()["open_streams"] == 21)
    left_at = time.monotonic()
    for raw in raws:
        raw.close()
    until(lambda: simulator.stats()["client_aborts"] == 20, LIMIT_S, "20 aborts upstream")
    late = [abort["at_ns"] / 1e9 - left_at for abort in simulator.stats()["aborts"]]
    measured("cancel_s", [min(late), max(late)])
    with stays:
        assert stays.body(head).count(b"text_delta") == 60
    assert simulator.stats()["client_aborts"] == 20


def test_a_connection_that_breaks(server: Server, simulator: Running) -> None:
    """A TCP reset instead of an orderly close."""
    raw, _ = opened(server.port, "stall-1")
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()
    _latency(simulator, 0.0)


def test_one_who_only_stops_sending_is_taken_for_gone(server: Server, simulator: Running) -> None:
    """A half-close cannot be told from a departure before the answer is over; no SDK does it."""
    raw, _ = opened(server.port, "stream-10000x20ms")
    raw.sock.shutdown(socket.SHUT_WR)
    _latency(simulator, 0.0)
    raw.close()


def test_during_an_upload(server: Server, simulator: Running) -> None:
    raw = Raw(server.port)
    raw.send(b"POST /v1/files HTTP/1.1\r\nHost: g\r\nContent-Length: 50000000\r\n\r\n" + b"x" * 3_000_000)
    until(lambda: simulator.stats()["open_streams"] == 1)
    raw.close()
    until(lambda: simulator.stats()["open_streams"] == 0, LIMIT_S)
    assert simulator.stats()["client_aborts"] == 1
    assert post(server.port, "json-0ms").status == 200


def test_during_a_download(server: Server, simulator: Running) -> None:
    with Raw(server.port) as raw:
        raw.send(request("/v1/files/file_sim_500000000/content", None, USUAL))
        head = raw.head()
        next(raw.pieces(head))
    until(lambda: simulator.stats()["open_streams"] == 0, LIMIT_S)
    assert simulator.stats()["client_aborts"] == 1
