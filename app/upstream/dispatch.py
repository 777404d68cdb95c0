"""Take one plan from the crossing to the upstream and its answer back: head once, then bytes, within the deadline.

    plan.deadline_at   covers everything up to the head, and the body too unless it is a stream or a transfer
    plan.silence_s     longest silence inside a stream or transfer

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

import httpx

from app.bridge.call import Crossing
from app.bridge.loop import BackgroundLoop
from app.bridge.stream import LIMIT_BYTES
from app.errors import StreamBroken
from app.exchange import Plan, Reply
from app.upstream.attempts import Attempts, in_body
from app.upstream.pool import Pool, PoolStats
from app.upstream.transport_base import Inbound
from app.wire.headers import first

STALLED_AFTER_S = 0.25


class Port(Protocol):
    """The loop's side of a crossing."""

    @property
    def crowded(self) -> bool:
        """The reader is more than half a pipe behind."""

    def send_head(self, head: object, *, hold: bool = False) -> None:
        """Hand up the head."""

    async def send(self, data: bytes) -> float:
        """Hand up bytes, waiting for credit; returns the seconds waited."""


class Dispatcher:
    """All upstreams of one loop. Lives on that loop; made by the first exchange or by warm-up.

    Args:
        make_pool: Makes the pool of an origin.
    """

    def __init__(self, make_pool: Callable[[str], Pool]) -> None:
        self._make_pool = make_pool
        self._pools: dict[str, Pool] = {}

    def pool(self, origin: str) -> Pool:
        """The pool of ``origin``; made at the first call."""
        found = self._pools.get(origin)
        if found is None:
            found = self._pools[origin] = self._make_pool(origin)
        return found

    def stats(self) -> tuple[PoolStats, ...]:
        """Snapshot of every pool."""
        return tuple(pool.stats() for pool in self._pools.values())

    async def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.close()
        self._pools.clear()

    async def serve(self, port: Port, plan: Plan, upload: AsyncIterator[bytes] | None) -> None:
        """Send ``plan`` and hand its answer up through ``port``.

        Args:
            port: Where the answer goes.
            plan: What to send.
            upload: The body where it is streamed; ``plan.body`` otherwise.

        Raises:
            GatewayError: Refused or UpstreamError; StreamBroken only after the head was handed up.
        """
        attempts = Attempts(self.pool(plan.origin), plan)
        inbound: Inbound | None = None
        try:
            async with asyncio.timeout(plan.deadline_at - time.monotonic()) as limit:
                inbound = await attempts.send(upload if upload is not None else plan.body)
                reply = _reply(inbound, attempts)
                length = first(inbound.headers, "content-length")
                short = length is not None and length.isdigit() and int(length) <= LIMIT_BYTES
                port.send_head(reply, hold=short and not reply.stream)
                silence_s = plan.silence_s if reply.stream or not plan.whole else None
                await _relay(inbound, port, limit, silence_s)
        except TimeoutError:
            if inbound is None:
                raise attempts.out_of_time() from None
            raise StreamBroken("The upstream's answer stopped arriving in time.") from None
        except httpx.TransportError as exc:
            raise in_body(exc) from exc
        finally:
            if inbound is not None:
                await inbound.aclose()  # shielded inside: cancelling cannot leak the connection


def _reply(inbound: Inbound, attempts: Attempts) -> Reply:
    kind = (first(inbound.headers, "content-type") or "").lower()
    return Reply(
        status=inbound.status,
        headers=tuple(inbound.headers),
        stream=kind.startswith("text/event-stream"),
        http_version=inbound.http_version,
        attempts=tuple(attempts.made),
        sent_at=attempts.sent_at,
        head_at=time.monotonic(),
    )


async def _relay(inbound: Inbound, port: Port, limit: asyncio.Timeout, silence_s: float | None) -> None:
    """Body bytes, as they come; the reader's credit slows this stream alone."""
    loop = asyncio.get_running_loop()
    moved_at, step_s = 0.0, min(1.0, (silence_s or 0.0) / 20)
    async for chunk in inbound:
        if port.crowded:
            waited_s = await _send_slowly(inbound, port, chunk)
        else:
            waited_s = await port.send(chunk)
        if silence_s is not None:
            now = loop.time()
            if now - moved_at > step_s or waited_s:  # moving the timer on every chunk costs more than it tells
                moved_at = now
                limit.reschedule(now + silence_s + step_s)


async def _send_slowly(inbound: Inbound, port: Port, chunk: bytes) -> float:
    """Hand up ``chunk`` to a reader that is behind; the pool learns of it once it has been so for a while."""
    stalled = asyncio.get_running_loop().call_later(STALLED_AFTER_S, inbound.stalled, True)
    try:
        return await port.send(chunk)
    finally:
        stalled.cancel()
        inbound.stalled(False)


def serving(
    dispatcher: Callable[[BackgroundLoop], Dispatcher], plan: Plan, streamed: bool
) -> Callable[[Crossing], Coroutine[Any, Any, None]]:
    """What the bridge runs for one plan: on whichever loop it picks, through that loop's dispatcher."""

    async def serve(crossing: Crossing) -> None:
        upload = aiter(crossing.upload) if streamed else None
        await dispatcher(crossing.home).serve(crossing, plan, upload)

    return serve


def warming(
    dispatcher: Callable[[BackgroundLoop], Dispatcher], origin: str
) -> Callable[[Crossing], Coroutine[Any, Any, None]]:
    """What the bridge runs to open a connection to ``origin``; its head is True if that worked."""

    async def warm(crossing: Crossing) -> None:
        opened = await dispatcher(crossing.home).pool(origin).warm_up()
        crossing.send_head(bool(opened[0]))

    return warm
