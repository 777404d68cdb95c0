"""Contract: uploads are streamed in bounded memory, and never end as if complete when they are not.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.exchange import Headers, Outbound
from app.upstream.transport_base import Inbound

Read = Callable[[Inbound], Awaitable[bytes]]
SLOW = {"initial_window_size": 1_000_000}
"""A simulator of their own for the slow tests: an HTTP/1.1 request it does not read stays open there for long."""
PIECE = bytes(range(256)) * 256  # 64 KiB
OCTETS: Headers = (("accept", "*/*"), ("content-type", "application/octet-stream"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Upload:
    """A body of pieces; remembers how far it was asked for, and the most memory seen meanwhile."""

    def __init__(self, pieces: int, fail_at: int = -1) -> None:
        self.pieces = pieces
        self.fail_at = fail_at
        self.asked = 0
        self.peak_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number in range(1, self.pieces + 1):
            self.asked = number
            if self.asked - 1 == self.fail_at:
                raise ConnectionResetError("the client left")
            if self.asked % 50 == 0:
                self.peak_bytes = max(self.peak_bytes, resident_bytes())
            yield PIECE


def files(lab: Any, upload: Upload, headers: Headers = OCTETS, path: str = "/v1/files") -> Outbound:
    return Outbound("POST", lab.sim.tls_url, path, headers, aiter(upload))


async def seen_to_abort(lab: Any) -> None:
    """No stream is left over HTTP/2. Over HTTP/1.1 the simulator cannot notice while it does not read."""

    def over(seen: dict[str, Any]) -> bool:
        return not [stream for stream in seen["streams"] if stream["protocol"] == "h2"]

    assert over(await lab.until(over, 1.0))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("declared", [True, False])
def test_50_mib_go_up_in_bounded_memory(lab: Any, run: Any, read: Read, streaming: bool, declared: bool) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            before = resident_bytes()
            upload = Upload(800)
            headers = (*OCTETS, ("content-length", str(800 * len(PIECE)))) if declared else OCTETS
            seen = json.loads(await read(await pool.send(files(lab, upload, headers), streaming=streaming)))
            assert seen["received_bytes"] == 800 * len(PIECE)
            assert seen["received_sha256"] == hashlib.sha256(PIECE * 800).hexdigest()
            assert upload.peak_bytes - before < 16 * 1024 * 1024

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_slow_upstream_slows_the_source(lab_with: Any, run: Any, streaming: bool) -> None:
    lab = lab_with(**SLOW)

    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            upload = Upload(1600)
            headers = (*OCTETS, ("x-sim-scenario", "slowread-64"))
            sending = asyncio.create_task(pool.send(files(lab, upload, headers), streaming=streaming))
            await asyncio.sleep(1.0)
            assert not sending.done()
            assert upload.asked * len(PIECE) < 24 * 1024 * 1024, "the upload was swallowed whole"
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            assert pool.stats().in_flight == 0
            await seen_to_abort(lab)

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("fail_at", [0, 3])
def test_a_source_that_fails_aborts_the_request(
    lab: Any, run: Any, streaming: bool, declared: bool, fail_at: int
) -> None:
    async def work() -> None:
        async with lab.pool() as pool:
            await pool.warm_up()
            headers = (*OCTETS, ("content-length", str(10 * len(PIECE)))) if declared else OCTETS
            with pytest.raises(httpx.WriteError) as caught:
                await pool.send(files(lab, Upload(10, fail_at), headers), streaming=streaming)
            assert isinstance(caught.value.__cause__, ConnectionResetError)
            stats = await lab.until(lambda seen: not seen["open_streams"])
            assert stats["open_streams"] == 0
            last = lab.sim.last()  # of the warm-up, where that sends anything
            assert last is None if lab.name == "h2" else last["method"] == "HEAD", "taken for complete"
            assert pool.stats().in_flight == 0

    run(work)


@pytest.mark.parametrize("streaming", [True, False])
def test_an_upstream_that_takes_nothing_is_a_write_timeout(lab_with: Any, run: Any, streaming: bool) -> None:
    lab = lab_with(**SLOW)

    async def work() -> None:
        async with lab.pool(write_timeout_s=0.5) as pool:
            await pool.warm_up()
            headers = (*OCTETS, ("x-sim-scenario", "slowread-1"))
            with pytest.raises(httpx.WriteTimeout):
                await pool.send(files(lab, Upload(1600), headers), streaming=streaming)
            assert pool.stats().in_flight == 0
            await seen_to_abort(lab)

    run(work)
