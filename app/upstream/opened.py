"""An answer some of whose body has been read ahead, so that it can be judged before it is handed up.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.exchange import Headers
from app.upstream.transport_base import Inbound


class Opened:
    """One answer, its head there.

    Args:
        inbound: As the transport gave it.

    Attributes:
        status: HTTP status.
        headers: Pairs as received.
        stream: The body is ``text/event-stream``.
        over: Nothing follows what has been read ahead.
    """

    __slots__ = ("_ahead", "_pending", "headers", "inbound", "over", "status", "stream")

    def __init__(self, inbound: Inbound) -> None:
        self.inbound = inbound
        self.status = inbound.status
        self.headers: Headers = tuple(inbound.headers)
        self.stream = (inbound.field("content-type") or "").lower().startswith("text/event-stream")
        self._ahead: list[bytes] = []
        self._pending: asyncio.Task[bytes | None] | None = None
        self.over = False

    async def read_ahead(self, enough: Callable[[bytes], bool], limit_bytes: int, limit_s: float) -> bytes:
        """Read until ``enough`` says so, the body is over or broken, or a limit is reached; nothing is lost by it.

        Returns:
            What has been read so far.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        data = b"".join(self._ahead)
        while not self.over and len(data) < limit_bytes and not enough(data):
            if self._pending is None:
                if there := self.inbound.take():
                    self._ahead.append(there)
                    data += there
                    continue
                if self.inbound.over:
                    self.over = True
                    break
                self._pending = loop.create_task(self._next())
            done, _ = await asyncio.wait((self._pending,), timeout=max(0.0, until - loop.time()))
            if not done or self._pending.exception() is not None:
                break  # the reader of the rest finds it as it is
            piece = self._pending.result()
            self._pending = None
            if piece is None:
                self.over = True
            else:
                self._ahead.append(piece)
                data += piece
        return data

    async def _next(self) -> bytes | None:
        try:
            return await anext(self.inbound)
        except StopAsyncIteration:
            return None

    @property
    def peeked(self) -> bool:
        """Something was read ahead, or is being read."""
        return bool(self._ahead) or self._pending is not None

    @property
    def settled(self) -> bool:
        """It was read to its end, and there is nothing to let go."""
        return self._pending is None and self.inbound.over

    async def ahead(self) -> list[bytes]:
        """What has been read ahead, to be passed on in front of the rest of ``inbound``.

        Raises:
            httpx.TransportError: The body broke off.
        """
        if self._pending is not None:
            piece = await self._pending
            self._pending = None
            if piece is None:
                self.over = True
            else:
                self._ahead.append(piece)
        ahead, self._ahead = self._ahead, []
        return ahead

    async def aclose(self) -> None:
        """Let go of it; an unfinished upstream stream is reset."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await self.inbound.aclose()
