"""Contract: all transports also serve httpx itself.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from app.upstream.transport_h2 import H2Transport
from app.upstream.transport_httpcore import HttpcoreTransport
from app.upstream.transport_reqwest import ReqwestTransport


@pytest.fixture
def make(lab: Any) -> Callable[..., httpx.AsyncBaseTransport]:
    """The transport under test, for the simulator or another origin."""

    def made(origin: str = "") -> httpx.AsyncBaseTransport:
        if lab.name == "h2":
            return H2Transport(origin or lab.sim.tls_url, ca_pem=lab.ca)
        if lab.name == "reqwest":
            return ReqwestTransport(ca_pem=lab.ca)
        return HttpcoreTransport(ca_pem=lab.ca, max_connections=600)

    return made


def test_json_stream_and_upload_through_an_async_client(lab: Any, run: Any, make: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 10_000

    async def work() -> None:
        async with httpx.AsyncClient(transport=make(), base_url=lab.sim.tls_url) as client:
            seen = (await client.post("/v1/echo", json={"a": 1}, headers={"x-a": "b"})).json()
            assert ["x-a", "b"] in seen["headers"]
            assert seen["body_bytes"] == len(json.dumps({"a": 1}, separators=(",", ":")))
            seen = (await client.post("/v1/files", content=pieces())).json()
            assert seen["received_bytes"] == 100_000
            body = {"model": "claude-sim-stream-5x10ms", "max_tokens": 1, "stream": True}
            async with client.stream("POST", "/v1/messages", json=body) as answer:
                assert answer.http_version in ("HTTP/2", "HTTP/1.1")
                text = "".join([line async for line in answer.aiter_text()])
            assert "message_stop" in text
            body["model"] = "claude-sim-golden"
            body["stream"] = False
            answer = await client.post("/v1/messages", json=body, headers={"accept-encoding": "gzip"})
            assert answer.headers["content-encoding"] == "gzip"
            assert answer.json()["model"].endswith("golden")

    run(work)


def test_errors_carry_the_request(lab: Any, run: Any, make: Any) -> None:
    async def work() -> None:
        async with httpx.AsyncClient(transport=make("https://localhost:1")) as client:
            with pytest.raises(httpx.ConnectError) as caught:
                await client.get("https://localhost:1/")
            assert caught.value.request.url.port == 1

    run(work)


def test_500_cancels_through_the_transport_alone(lab: Any, run: Any, make: Any) -> None:
    async def work() -> None:
        transport = make()
        body = json.dumps({"model": "claude-sim-hang", "max_tokens": 1}).encode()
        count = 500 if lab.name == "httpcore" else 90  # one client is one lane

        async def one() -> httpx.Response:
            request = httpx.Request("POST", f"{lab.sim.tls_url}/v1/messages", content=body)
            response: httpx.Response = await transport.handle_async_request(request)
            return response

        tasks = [asyncio.create_task(one()) for _ in range(count)]
        assert (await lab.until(lambda seen: seen["open_streams"] == count))["open_streams"] == count
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stats = await lab.until(lambda seen: not seen["open_streams"], 1.0)
        assert (stats["client_aborts"], stats["open_streams"]) == (count, 0)
        await transport.aclose()

    run(work)
