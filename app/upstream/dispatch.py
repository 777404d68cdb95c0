"""Take one plan from the crossing to the upstream and its answer back: head once, then bytes, within the deadline.

    serve -> attempts.send (slot, gates, tries) -> head up -> bytes up -> slot and key given back

    plan.deadline_at   covers everything up to the head, and the body too unless it is a stream or a transfer
    plan.silence_s     longest silence inside a stream or transfer

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from app.bridge.call import Crossing
from app.bridge.loop import BackgroundLoop
from app.bridge.stream import LIMIT_BYTES
from app.errors import GatewayError, StreamBroken
from app.exchange import Plan, Reply
from app.policy.retry import Budget
from app.store.facts import Fact
from app.upstream.attempts import Attempts, Patience
from app.upstream.failures import in_body
from app.upstream.limits import Limit, Limits
from app.upstream.opened import Opened
from app.upstream.target import Target, TargetStats
from app.upstream.transport_base import Inbound

STALLED_AFTER_S = 0.25


class Port(Protocol):
    """The loop's side of a crossing."""

    @property
    def crowded(self) -> bool:
        """The reader is more than half a pipe behind."""

    def send_head(self, head: object, *, hold: bool) -> None:
        """Hand up the head."""

    def offer(self, data: bytes) -> bool:
        """Hand up bytes at once, unless the reader is, or would be, crowded."""

    async def send(self, data: bytes) -> float:
        """Hand up bytes, waiting for credit; returns the seconds waited."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is known of one loop's traffic (B37).

    Attributes:
        targets: Every target, the first one first.
        retries_left: What the retry budget would still allow now.
    """

    targets: tuple[TargetStats, ...]
    retries_left: int


class Dispatcher:
    """All upstreams of one loop. Lives on that loop; made by the first exchange or by warm-up.

    Args:
        targets: By name; the fallbacks each names are among them.
        patience: How often and how long an exchange is tried.
        budget: Of retries.
        news: What other workers have found out since the last call.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        patience: Patience,
        budget: Budget,
        news: Callable[[], Sequence[Fact]] = tuple,
    ) -> None:
        self.targets = {target.name: target for target in targets}
        self._places = {target.place: target for target in targets}
        self._courses = {target.name: self._course(target) for target in targets}
        self._patience = patience
        self._budget = budget
        self._news = news
        self._limits = Limits()

    def traffic(self) -> Traffic:
        """Snapshot of slots, breakers and keys."""
        now = time.monotonic()
        self.hear(self._news())
        targets = tuple(target.stats(now) for target in self.targets.values())
        return Traffic(targets, self._budget.left(now))

    def hear(self, facts: Sequence[Fact]) -> None:
        """What others found out."""
        now = time.monotonic()
        for fact in facts:
            target = self._places.get(fact.provider)
            if target is not None:
                target.learn(fact, now)

    async def close(self) -> None:
        """Close all connections."""
        for target in self.targets.values():
            await target.pool.close()

    async def warm_up(self, slots: int) -> bool:
        """Open what the first ``slots`` exchanges of every target will need; whether all could be opened."""
        opened = await asyncio.gather(*(target.pool.warm_up(slots) for target in self.targets.values()))
        return all(ok for ok, _ in opened)

    async def serve(self, port: Port, plan: Plan, upload: AsyncIterator[bytes] | None) -> None:
        """Send ``plan`` and hand its answer up through ``port``.

        Args:
            port: Where the answer goes.
            plan: What to send.
            upload: The body where it is streamed; ``plan.body`` otherwise.

        Raises:
            GatewayError: Refused or UpstreamError; StreamBroken only after the head was handed up.
        """
        if news := self._news():
            self.hear(news)
        attempts = Attempts(self._courses[plan.provider], plan, upload, self._patience, self._budget)
        opened: Opened | None = None
        limit = self._limits.begin(plan.deadline_at)
        try:
            opened = await attempts.send()
            length = opened.inbound.field("content-length")
            short = length is not None and length.isdigit() and int(length) <= LIMIT_BYTES
            port.send_head(_reply(opened, attempts), hold=short and not opened.stream)
            silence_s = plan.silence_s if opened.stream or not plan.whole else None
            await self._relay(opened, port, limit, silence_s)
        except asyncio.CancelledError:
            if not self._limits.end(limit):
                raise
            if opened is None:
                raise _with_journey(attempts.out_of_time(), attempts) from None
            attempts.broke()
            raise StreamBroken("The upstream's answer stopped arriving in time.") from None
        except httpx.TransportError as exc:
            attempts.broke()
            raise in_body(exc) from exc
        except GatewayError as exc:
            raise _with_journey(exc, attempts) from exc.__cause__
        finally:
            self._limits.end(limit)
            try:
                if opened is not None and not opened.settled:
                    await opened.aclose()  # shielded inside: cancelling cannot leak the connection
            finally:
                attempts.leave()
                if attempts.kept is not None:
                    await attempts.drop_kept()

    async def _relay(self, opened: Opened, port: Port, limit: Limit, silence_s: float | None) -> None:
        """Body bytes, as they come; the reader's credit slows this stream alone."""
        inbound = opened.inbound
        if opened.peeked:
            if ahead := await opened.ahead():
                await port.send(b"".join(ahead))
                self._moved(limit, silence_s)
            if opened.over:
                return
        if chunk := inbound.take():  # what came with the head costs no turn of the loop
            await (_send_slowly(inbound, port, chunk) if port.crowded else port.send(chunk))
            self._moved(limit, silence_s)
        if inbound.over:
            return
        sink = self._sink(port, limit, silence_s)
        await inbound.flow(sink)
        async for chunk in inbound:
            await (_send_slowly(inbound, port, chunk) if port.crowded else port.send(chunk))
            self._moved(limit, silence_s)
            await inbound.flow(sink)

    def _sink(self, port: Port, limit: Limit, silence_s: float | None) -> Callable[[bytes], bool]:
        """What hands up pieces at once, as long as the reader keeps up."""
        limits, clock, offer = self._limits, time.monotonic, port.offer
        if silence_s is None:
            return offer
        lasts_s = silence_s

        def sink(piece: bytes) -> bool:
            if not offer(piece):
                return False
            limit.at = at = clock() + lasts_s
            if at < limits.next_at:
                limits.arm(at)
            return True

        return sink

    def _moved(self, limit: Limit, silence_s: float | None) -> None:
        """From now on the silence counts, where it does."""
        if silence_s is not None:
            limit.at = at = time.monotonic() + silence_s
            if at < self._limits.next_at:
                self._limits.arm(at)

    def _course(self, target: Target) -> tuple[Target, ...]:
        """The target and its fallbacks, theirs after them, each once."""
        found = [target]
        for one in found:
            found += [self.targets[name] for name in one.options.fallbacks if self.targets[name] not in found]
        return tuple(found)


def _with_journey(error: GatewayError, attempts: Attempts) -> GatewayError:
    error.journey = attempts.journey()
    return error


def _reply(opened: Opened, attempts: Attempts) -> Reply:
    return Reply(
        status=opened.status,
        headers=opened.headers,
        stream=opened.stream,
        http_version=opened.inbound.http_version,
        journey=attempts.journey(),
        sent_at=attempts.sent_at,
        head_at=attempts.head_at,
        judged_at=attempts.judged_at,
    )


async def _send_slowly(inbound: Inbound, port: Port, chunk: bytes) -> None:
    """Hand up ``chunk`` to a reader that is behind; the pool learns of it once it has been so for a while."""
    stalled = asyncio.get_running_loop().call_later(STALLED_AFTER_S, inbound.stalled, True)
    try:
        await port.send(chunk)
    finally:
        stalled.cancel()
        inbound.stalled(False)


def serving(
    dispatcher: Callable[[BackgroundLoop], Dispatcher], plan: Plan, streamed: bool
) -> Callable[[Crossing], Coroutine[Any, Any, None]]:
    """What the bridge runs for one plan: on whichever loop it picks, through that loop's dispatcher."""

    def serve(crossing: Crossing) -> Coroutine[Any, Any, None]:
        upload = aiter(crossing.upload) if streamed else None
        return dispatcher(crossing.home).serve(crossing.up, plan, upload)

    return serve


def warming(
    dispatcher: Callable[[BackgroundLoop], Dispatcher], slots: int = 1
) -> Callable[[Crossing], Coroutine[Any, Any, None]]:
    """What the bridge runs to open connections for ``slots`` exchanges; its head is True if that worked."""

    async def warm(crossing: Crossing) -> None:
        crossing.send_head(await dispatcher(crossing.home).warm_up(slots))

    return warm
