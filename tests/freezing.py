"""A TCP forwarder whose connections can be frozen: they stay open, and nothing passes any more; new ones work.

Runs on: a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any


class Forwarder:
    """Between a client and a server on 127.0.0.1.

    Args:
        port: The server's.

    Attributes:
        port: Its own.
        accepted: Connections so far.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._loop = asyncio.new_event_loop()
        self._gates: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0
        self.accepted = 0

    def freeze(self) -> None:
        """Nothing passes on the connections that are open now."""
        self._run(self._turn(asyncio.Event.clear))

    def thaw(self) -> None:
        """What was held back passes, and whatever comes next."""
        self._run(self._turn(asyncio.Event.set))

    async def _turn(self, how: Callable[[asyncio.Event], None]) -> None:
        for gate in self._gates:
            how(gate)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._run(self._listen())

    def stop(self) -> None:
        """Close everything."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        gate = asyncio.Event()
        gate.set()
        self._gates.append(gate)
        self._writers.append(writer)
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers.append(ours)
        for source, sink in ((reader, ours), (theirs, writer)):
            task = asyncio.get_running_loop().create_task(_pass_on(source, sink, gate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                await gate.wait()
                sink.write(data)
                await sink.drain()
            await gate.wait()
    finally:
        sink.transport.abort()


@contextlib.contextmanager
def forwarding(port: int) -> Iterator[Forwarder]:
    """A forwarder to the server at ``port``."""
    made = Forwarder(port)
    made.start()
    try:
        yield made
    finally:
        made.stop()
