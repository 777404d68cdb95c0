"""A client that reads slowly slows its own upstream stream, costs little memory, and nobody else notices (B24)."""

from __future__ import annotations

import contextlib
import time

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Server, until
from tests.e2e.wire import USUAL, Raw, message, opened, post, request

MIB = 1 << 20


def _settled(simulator: Running) -> int:
    """Bytes sent by the upstream once they no longer grow."""
    last = -1

    def same() -> bool:
        nonlocal last
        before, last = last, sum(stream["bytes_sent"] for stream in simulator.stats()["streams"])
        time.sleep(0.15)
        return last == before

    until(same, 10, "an upstream that stops")
    return last


@pytest.mark.parametrize(
    ("target", "scenario"),
    [("/v1/messages", "stream-100000x0ms-2000b"), ("/v1/files/file_sim_400000000/content", "")],
    ids=["stream", "download"],
)
def test_a_reader_that_stops(server: Server, simulator: Running, target: str, scenario: str) -> None:
    post(server.port, "golden", stream=True)
    before = server.rss_bytes()
    with Raw(server.port, receive_buffer_bytes=4096) as raw:
        raw.send(request(target, message(scenario, stream=True) if scenario else None, USUAL))
        head = raw.head()
        sent = _settled(simulator)
        assert sent < 32 * MIB  # sockets' buffers and HTTP/2 windows, not the 200 or 400 MB there are
        assert server.rss_bytes() - before < 24 * MIB
        for _ in range(3):
            assert post(server.port, "golden", stream=True).status == 200
        neighbour, other = opened(server.port, "stream-20x10ms")
        with neighbour:
            assert neighbour.body(other).count(b"text_delta") == 20
        pieces = raw.pieces(head)  # it reads on: the rest comes
        got = 0
        while got < sent + MIB:
            got += len(next(pieces))
    until(lambda: simulator.stats()["open_streams"] == 0)


def test_ten_readers_that_stop(server: Server, simulator: Running) -> None:
    """Each holds at most 64 KiB in the gateway; twenty of them at once are nothing."""
    post(server.port, "golden", stream=True)
    before = server.rss_bytes()
    raws = [opened(server.port, "stream-100000x0ms-2000b", receive_buffer_bytes=4096)[0] for _ in range(10)]
    try:
        _settled(simulator)
        assert server.rss_bytes() - before < 40 * MIB
        assert post(server.port, "golden", stream=True).status == 200
        assert post(server.port, "json-0ms").status == 200
    finally:
        for raw in raws:
            raw.close()
    until(lambda: simulator.stats()["open_streams"] == 0)


def test_an_upstream_that_reads_slowly_slows_the_upload(server: Server, simulator: Running) -> None:
    """The same pipe the other way: a large upload is not gathered in the gateway."""
    before = server.rss_bytes()
    option = (*USUAL, ("x-sim-scenario", "slowread-4000"), ("content-length", str(200 * MIB)))
    with Raw(server.port) as raw:
        raw.send(request("/v1/files", None, option, "POST"))
        raw.sock.settimeout(0.5)
        sent, ends_at = 0, time.monotonic() + 1.5
        while sent < 100 * MIB and time.monotonic() < ends_at:
            with contextlib.suppress(TimeoutError):
                sent += raw.sock.send(b"u" * 65536)
        assert sent < 40 * MIB  # 6 MB were read by then; the rest waits in sockets
        assert server.rss_bytes() - before < 16 * MIB
    until(lambda: simulator.stats()["open_streams"] == 0, 15)
