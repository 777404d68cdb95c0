"""The two bounded pipes of a crossing: answer bytes up to the worker, upload bytes down to the loop.

Credit, both ways: the producer may have at most ``LIMIT_BYTES`` waiting; past that it sleeps until the consumer
has taken what waits. The consumer always takes everything that waits in one go, so a burst costs one wake-up.

No locks. Each counter has one writer; the side that is about to sleep first sets its flag and then looks again,
and the other side first publishes its change and then looks at the flag, so no wake-up is lost.

Runs on: worker and loop, as each method says.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

LIMIT_BYTES = 65536


class Down:
    """Bytes from the worker to the loop: an upload. Iterate it on the loop; feed it from the worker.

    Args:
        post: Runs a callable on the loop thread.
        wake: Wakes the worker.
    """

    __slots__ = (
        "_chunks",
        "_ended",
        "_error",
        "_post",
        "_put",
        "_ready",
        "_sleeping",
        "_taken",
        "_wake",
        "starved",
    )

    def __init__(self, post: Callable[..., None], wake: Callable[[], None]) -> None:
        self._post = post
        self._wake = wake
        self._chunks: deque[bytes] = deque()
        self._put = 0
        self._taken = 0
        self._ended = False
        self._error: BaseException | None = None
        self._sleeping = False
        self._ready: asyncio.Future[None] | None = None
        self.starved = False

    @property
    def room(self) -> int:
        """Bytes that the worker may still put. Any thread."""
        return LIMIT_BYTES - (self._put - self._taken)

    def put(self, data: bytes) -> None:
        """Hand over one piece (worker)."""
        self._chunks.append(data)
        self._put += len(data)
        self._rouse()

    def end(self) -> None:
        """The upload is complete (worker)."""
        self._ended = True
        self._rouse()

    def abort(self, error: BaseException) -> None:
        """The upload will never be complete: the consumer gets ``error`` instead of an end (worker)."""
        self._error = error
        self._rouse()

    def _rouse(self) -> None:
        if self._sleeping:
            self._sleeping = False
            self._post(self._settle)

    def _settle(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """What the worker put, joined per wake (loop)."""
        while True:
            if self._error is not None:
                raise self._error
            if self._chunks:
                yield self._take()
                continue
            if self._ended:
                return
            self._ready = asyncio.get_running_loop().create_future()
            self._sleeping = True
            if not (self._chunks or self._ended or self._error is not None):
                await self._ready
            self._sleeping = False

    def _take(self) -> bytes:
        pieces = []
        chunks = self._chunks
        while chunks:
            pieces.append(chunks.popleft())
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._taken += len(data)
        if self.starved:
            self.starved = False
            self._wake()
        return data


class Up:
    """Bytes from the loop to the worker: an answer's body, with its head and its end.

    ``hold`` keeps a short answer back until it is whole, so that head and body cost one wake-up; it is lifted by
    the end, by an error, or when the pipe is full.
    """

    __slots__ = (
        "_chunks",
        "_credit",
        "_head",
        "_hold",
        "_post",
        "_put",
        "_starved",
        "_taken",
        "_wake",
        "ended",
        "ended_at",
        "error",
    )

    def __init__(self, post: Callable[..., None], wake: Callable[[], None]) -> None:
        self._post = post
        self._wake = wake
        self._chunks: deque[bytes] = deque()
        self._put = 0
        self._taken = 0
        self._head: object = None
        self._hold = False
        self._starved = False
        self._credit: asyncio.Future[None] | None = None
        self.ended = False
        self.ended_at = 0.0
        self.error: BaseException | None = None

    # loop side
    def send_head(self, head: object, *, hold: bool) -> None:
        """Hand up the head (loop)."""
        self._hold = hold
        self._head = head
        if not hold:
            self._wake()

    async def send(self, data: bytes) -> float:
        """Hand up ``data``; waits for credit. Pieces over the limit go in parts (loop).

        Returns:
            Seconds spent waiting for the reader.
        """
        waited_s = 0.0
        start = 0
        while start < len(data):
            room = LIMIT_BYTES - (self._put - self._taken)
            if room <= 0:
                waited_s += await self._wait_for_credit()
                continue
            part = data if start == 0 and len(data) <= room else data[start : start + room]
            self._chunks.append(part)
            self._put += len(part)
            start += len(part)
            if not self._hold:
                self._wake()
        return waited_s

    def offer(self, data: bytes) -> bool:
        """Hand up ``data`` at once, unless the reader is or would be more than half the limit behind (loop)."""
        put = self._put + len(data)
        if put - self._taken > LIMIT_BYTES // 2:
            return False
        self._chunks.append(data)
        self._put = put
        if not self._hold:
            self._wake()
        return True

    @property
    def crowded(self) -> bool:
        """The reader is more than half the limit behind (loop)."""
        return self._put - self._taken > LIMIT_BYTES // 2

    async def _wait_for_credit(self) -> float:
        loop = asyncio.get_running_loop()
        if self._hold:
            self._hold = False
            self._wake()
        began = loop.time()
        self._credit = loop.create_future()
        self._starved = True
        if self._put - self._taken >= LIMIT_BYTES:
            await self._credit
        self._starved = False
        return loop.time() - began

    def finish(self, error: BaseException | None) -> None:
        """No more follows: the end, or ``error`` (loop). A head still held back is dropped for the error."""
        if self._hold and error is not None:
            self._head = None
            self._chunks.clear()
        self.error = error
        self._hold = False
        self.ended_at = time.monotonic()
        self.ended = True
        self._wake()

    def _settle(self) -> None:
        if self._credit is not None and not self._credit.done():
            self._credit.set_result(None)

    # worker side
    @property
    def head(self) -> object:
        """The head once it may be seen, else None (worker)."""
        return None if self._hold else self._head

    @property
    def starved(self) -> bool:
        """The producer waits for this reader (any thread)."""
        return self._starved

    def headed(self) -> bool:
        """The head is there, or there will be none (worker)."""
        return self.ended or (self._head is not None and not self._hold)

    def readable(self) -> bool:
        """Bytes are there to take, or no more will come (worker)."""
        return bool(self._chunks) or self.ended

    def take(self) -> list[bytes]:
        """All that waits, possibly nothing (worker)."""
        pieces: list[bytes] = []
        chunks = self._chunks
        while chunks:
            piece = chunks.popleft()
            self._taken += len(piece)
            pieces.append(piece)
        if self._starved:
            self._starved = False
            self._post(self._settle)
        return pieces
