"""A plain streaming proxy: Starlette in front, one pooled httpx.AsyncClient behind, over HTTP/2 by default.

The shape is that of HTTPX's page "Async Support", section "Streaming responses": ``send(stream=True)``, a
StreamingResponse over the raw bytes. That page closes the answer in a background task, which is left out when the
client is gone; here the generator does it, which ends then too. Imports nothing of Penstock.

Runs on: uvicorn's loop.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

UPSTREAM = httpx.URL(os.environ["PEER_UPSTREAM"])
HOP_BY_HOP = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
NOT_PASSED_ON = HOP_BY_HOP | {b"host"}
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One client for the whole process."""
    async with httpx.AsyncClient(
        http2=os.environ.get("PEER_HTTP2", "true") == "true",
        verify=ssl.create_default_context(cafile=os.environ["PEER_CA"]),
        limits=httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=60),
        timeout=httpx.Timeout(600, connect=5),
        follow_redirects=False,
        trust_env=False,
    ) as client:
        app.state.client = client
        yield


async def pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes as they come, undecoded; the answer is closed at their end, or when they are left early."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


async def proxy(request: Request) -> StreamingResponse:
    """Any method, any path: body up, bytes down as they come."""
    client: httpx.AsyncClient = request.app.state.client
    path, query = request.scope["raw_path"], request.scope["query_string"]
    upstream = httpx.Request(  # not build_request: that would ask for encodings the caller has not asked for
        request.method,
        UPSTREAM.copy_with(raw_path=path + b"?" + query if query else path),
        headers=[(name, value) for name, value in request.headers.raw if name not in NOT_PASSED_ON],
        content=await request.body(),
    )
    answer = await client.send(upstream, stream=True)
    response = StreamingResponse(pieces(answer), answer.status_code)
    pairs = [(name.lower(), value) for name, value in answer.headers.raw]
    response.raw_headers = [pair for pair in pairs if pair[0] not in HOP_BY_HOP]
    return response


app = Starlette(routes=[Route("/{path:path}", proxy, methods=METHODS)], lifespan=lifespan)
