"""Our HTTP/2 client: requests arrive as planned, answers come up as sent, in bounded memory both ways.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.exchange import Outbound
from app.upstream.transport_base import Inbound
from app.upstream.transport_h2 import H2Transport
from app.upstream.trust import trust

Read = Callable[[Inbound], Awaitable[bytes]]
PIECE = bytes(range(256)) * 256
MIB = 1024 * 1024
TARGETS = [
    "/v1/echo?a=1&b=%20&c=%2F%2f+x",
    "/v1/%66iles/%E2%82%AC/echo?q=%zz",
    '/v1/echo?q="<>{}|\\^`',
    "/v1/x/../echo",
    "/v1/x/%2e%2E/echo",
    "//v1/echo",
    "/v1/a;b=c/echo?x[]=1&y=~!$*(),;:@",
    "/v1/echo?",
]


@pytest.fixture
def name() -> str:
    """The transport under test."""
    return "h2"


def client(lab: Any, **options: Any) -> H2Transport:
    return H2Transport(lab.sim.tls_url, context=trust(lab.ca), **options)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


class Upload:
    """A body of pieces; remembers how far it was asked for."""

    def __init__(self, pieces: int, fail_at: int = -1) -> None:
        self.pieces = pieces
        self.fail_at = fail_at
        self.asked = 0
        self.peak_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number in range(self.pieces):
            self.asked = number
            if number == self.fail_at:
                raise ConnectionResetError("the client left")
            if number % 50 == 0:
                self.peak_bytes = max(self.peak_bytes, resident_bytes())
            yield PIECE


def files(lab: Any, upload: Upload, *headers: tuple[str, str]) -> Outbound:
    octets = ("content-type", "application/octet-stream")
    return Outbound("POST", lab.sim.tls_url, "/v1/files", (octets, *headers), aiter(upload))


def plain(seen: dict[str, Any]) -> list[list[str]]:
    return [pair for pair in seen["headers"] if not pair[0].startswith(":") and pair[0] != "host"]


def test_targets_and_headers_arrive_byte_for_byte_and_nothing_else(lab: Any, run: Any, read: Read) -> None:
    sent = (
        ("anthropic-beta", "a-2025,b-2026"),
        ("X-Api-Key", "sk-1"),
        ("anthropic-beta", "c-2027"),
        ("user-agent", "Anthropic/Python 1"),
        ("x-empty", ""),
        ("x-latin", "caf\xe9"),
        ("x-custom", "a  b"),
    )

    async def work() -> None:
        one = client(lab)
        for target in TARGETS * 2:  # the second time from memory
            seen = json.loads(await read(await one.send(Outbound("GET", lab.sim.tls_url, target, sent, b""))))
            assert seen["target"] == target
            assert plain(seen) == [[name.lower(), value] for name, value in sent]
            assert seen["authority"] == lab.sim.tls_url.partition("://")[2]
        await one.aclose()

    run(work)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("body", [b"", b'{"b":1,"a":2}', b"x" * 300_000])
def test_methods_bodies_and_lengths(lab: Any, run: Any, read: Read, method: str, body: bytes) -> None:
    async def work() -> None:
        one = client(lab)
        headers = (
            ("x-a", "1"),
            ("Connection", "close, X-B"),
            ("x-b", "2"),
            ("Content-Length", "77"),
            ("host", "z"),
        )
        seen = json.loads(await read(await one.send(lab.get("/v1/echo", headers, method, body))))
        assert (seen["method"], seen["body_bytes"]) == (method, len(body))
        assert seen["body_sha256"] == hashlib.sha256(body).hexdigest()
        framing = [["content-length", str(len(body))]] if body or method in ("POST", "PUT", "PATCH") else []
        assert plain(seen) == [["x-a", "1"], *framing]
        await one.aclose()

    run(work)


def test_raw_encodings_and_repeated_headers_come_up_as_sent(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab)
        headers = (("content-type", "application/json"), ("accept-encoding", "gzip"))
        answer = await one.send(lab.message("golden", headers=headers))
        assert ("content-encoding", "gzip") in answer.headers
        assert b"msg_01" in gzip.decompress(await read(answer))
        answer = await one.send(lab.message("repeat"))
        names = [name for name, _ in answer.headers]
        assert len(names) > len(set(names))
        await read(answer)
        answer = await one.send(lab.get("/v1/models", method="HEAD"))
        assert await read(answer) == b""
        await one.aclose()

    run(work)


def test_httpx_can_use_it(lab: Any, run: Any) -> None:
    async def work() -> None:
        one = client(lab)
        async with httpx.AsyncClient(transport=one) as api:
            answer = await api.post(f"{lab.sim.tls_url}/v1/messages", json={"model": "claude-sim-json-0ms"})
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
            with pytest.raises(httpx.LocalProtocolError) as caught:
                await api.get("https://other.example/")
            assert caught.value.request.url == "https://other.example/"

    run(work)


def test_20_mb_down_in_bounded_memory_and_no_faster_than_read(lab: Any, run: Any) -> None:
    async def work() -> None:
        one = client(lab)
        answer = await one.send(lab.message("big-20000k"))
        assert await anext(aiter(answer))
        await asyncio.sleep(0.5)
        sent = max(stream["bytes_sent"] for stream in lab.sim.stats()["streams"])
        assert sent < MIB, "the gateway swallowed the file"
        before, total, largest = resident_bytes(), 0, 0
        async for piece in answer:
            total += len(piece)
            largest = max(largest, len(piece))
        assert total > 19 * MIB
        assert largest <= 65_535
        assert resident_bytes() - before < 8 * MIB
        await one.aclose()

    run(work)


def test_ten_stalled_readers_leave_a_lively_sibling_alone(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab)
        stalled = []
        for _ in range(10):
            answer = await one.send(lab.message(f"big-{64 * 1024}k"))
            assert await anext(aiter(answer))
            stalled.append(answer)
        for _ in range(3):
            assert b"message_stop" in await read(await one.send(lab.message("stream-20x5ms", stream=True)))
            total = 0
            async for piece in await one.send(lab.message("big-20000k")):
                total += len(piece)
            assert total == 20_480_000
        streams = lab.sim.stats()["streams"]
        assert len(streams) == 10
        assert max(stream["bytes_sent"] for stream in streams) < MIB
        for answer in stalled:
            await answer.aclose()
        assert (one.in_flight, one.handshakes) == (0, 1)
        stats = await lab.until(lambda seen: not seen["open_streams"], 1.0)
        assert (stats["client_aborts"], stats["open_streams"]) == (10, 0)
        await one.aclose()

    run(work)


@pytest.mark.parametrize("declared", [True, False])
def test_20_mib_up_in_bounded_memory(lab: Any, run: Any, read: Read, declared: bool) -> None:
    async def work() -> None:
        one = client(lab)
        await one.connect()
        before, upload = resident_bytes(), Upload(320)
        length = [("content-length", str(320 * len(PIECE)))] if declared else []
        seen = json.loads(await read(await one.send(files(lab, upload, *length))))
        assert seen["received_sha256"] == hashlib.sha256(PIECE * 320).hexdigest()
        assert upload.peak_bytes - before < 8 * MIB
        await one.aclose()

    run(work)


def test_a_slow_upstream_slows_the_source_and_its_own_stream_only(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab)
        upload = Upload(1600)
        sending = asyncio.create_task(one.send(files(lab, upload, ("x-sim-scenario", "slowread-64"))))
        await asyncio.sleep(0.5)
        assert b"end_turn" in await read(await one.send(lab.message("json-0ms")))
        await asyncio.sleep(0.5)
        assert not sending.done()
        assert upload.asked * len(PIECE) < 4 * MIB, "the upload was swallowed whole"
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert (one.in_flight, one.usable) == (0, True)
        assert not (await lab.until(lambda seen: not seen["open_streams"], 1.0))["open_streams"]
        await one.aclose()

    run(work)


@pytest.mark.parametrize("declared", [0, 10])
@pytest.mark.parametrize("fail_at", [0, 3])
def test_a_source_that_fails_resets_the_request(lab: Any, run: Any, declared: int, fail_at: int) -> None:
    async def work() -> None:
        one = client(lab)
        length = [("content-length", str(declared * len(PIECE)))] if declared else []
        with pytest.raises(httpx.WriteError) as caught:
            await one.send(files(lab, Upload(10, fail_at), *length))
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        stats = await lab.until(lambda seen: seen["client_aborts"] == 1)
        assert (stats["client_aborts"], stats["open_streams"], stats["request_bytes"]) == (1, 0, 0)
        assert (one.in_flight, one.usable) == (0, True)
        await one.aclose()

    run(work)


@pytest.mark.parametrize("pieces", [2, 4])
def test_an_upload_of_another_length_than_declared_is_reset(lab: Any, run: Any, pieces: int) -> None:
    async def work() -> None:
        one = client(lab)
        with pytest.raises(httpx.WriteError):
            await one.send(files(lab, Upload(pieces), ("content-length", str(3 * len(PIECE)))))
        stats = await lab.until(lambda seen: seen["client_aborts"] == 1)
        assert (stats["client_aborts"], stats["request_bytes"]) == (1, 0)
        await one.aclose()

    run(work)


def test_an_upstream_that_takes_nothing_is_a_write_timeout(lab: Any, run: Any) -> None:
    async def work() -> None:
        one = client(lab, write_timeout_s=0.5)
        with pytest.raises(httpx.WriteTimeout):
            await one.send(files(lab, Upload(1600), ("x-sim-scenario", "slowread-1")))
        assert (one.in_flight, one.usable) == (0, True)
        assert not (await lab.until(lambda seen: not seen["open_streams"], 1.0))["open_streams"]
        await one.aclose()

    run(work)


def test_an_answer_before_the_upload_is_out_ends_the_upload(lab: Any, run: Any, read: Read) -> None:
    async def work() -> None:
        one = client(lab)
        upload = Upload(1600)
        answer = await one.send(files(lab, upload, ("x-sim-scenario", "early-413")))
        assert answer.status == 413
        await read(answer)
        await asyncio.sleep(0.05)
        asked = upload.asked
        await asyncio.sleep(0.1)
        assert upload.asked == asked < 1599
        assert (one.in_flight, one.usable) == (0, True)
        await one.aclose()

    run(work)
