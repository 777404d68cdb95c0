"""Memory stays flat over many streams, and none is left behind upstream (B52)."""

from __future__ import annotations

from app.simulator.running import Running
from tests.e2e.servers import Measured, Server, until
from tests.e2e.wire import USUAL, Raw, message, opened, request

STREAMS = 2000
BOUND_BYTES = 6 << 20


def _streams(port: int, count: int) -> None:
    """``count`` short streams on four kept connections; every tenth client leaves in the middle."""
    raws = [Raw(port) for _ in range(4)]
    asked = request("/v1/messages", message("burst-20", stream=True), USUAL)
    for turn in range(count // len(raws)):
        for raw in raws:
            raw.send(asked)
        for raw in raws:
            assert raw.answer().body.count(b"text_delta") == 20
        if turn % 10 == 9:
            opened(port, "stream-1000x10ms")[0].close()
    for raw in raws:
        raw.close()


def test_2000_streams(server: Server, simulator: Running, measured: Measured) -> None:
    _streams(server.port, 400)
    before = server.rss_bytes()
    _streams(server.port, STREAMS)
    grown = server.rss_bytes() - before
    measured("rss_mib", [before / (1 << 20), grown / (1 << 20)])
    assert grown < BOUND_BYTES, f"{grown / STREAMS:.0f} bytes a stream"
    until(lambda: simulator.stats()["open_streams"] == 0)
    assert simulator.stats()["tls_handshakes"] <= 4
