"""Runs a simulator on a thread of this process: quicker to start than a process, but it shares the interpreter.

Runs on: the caller's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator

from app.simulator.options import Options
from app.simulator.running import Running
from app.simulator.server import Simulator, new_event_loop

_START_S = 10.0


@contextlib.contextmanager
def running_in_thread(options: Options | None = None) -> Iterator[Running]:
    """A simulator on a thread with its own loop until the block is left.

    Raises:
        RuntimeError: It could not start; the cause is kept.
    """
    simulator = Simulator(options)
    ready = threading.Event()
    stop: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    failed: list[OSError] = []

    async def main() -> None:
        ended = asyncio.Event()
        try:
            await simulator.start()
        except OSError as fault:
            failed.append(fault)
            return
        finally:
            stop.append((asyncio.get_running_loop(), ended))
            ready.set()
        await ended.wait()
        await simulator.stop()

    def run() -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, name="simulator", daemon=True)
    thread.start()
    ready.wait(_START_S)
    if failed:
        thread.join(_START_S)
        raise RuntimeError("the simulator could not start") from failed[0]
    try:
        yield Running(simulator.plain_url, simulator.tls_url, simulator.ca_path, os.getpid())
    finally:
        loop, ended = stop[0]
        loop.call_soon_threadsafe(ended.set)
        thread.join(_START_S)
