"""Our HTTP/2 client on every loop it may find itself on: a native thread beside gevent's hub, asyncio's own.

Runs on: loop.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.upstream.transport_base import Inbound
from app.upstream.transport_h2 import H2Transport
from app.upstream.trust import trust

Read = Callable[[Inbound], Awaitable[bytes]]
ROOT = Path(__file__).resolve().parents[3]

BESIDE_GEVENT = """
import gevent.monkey
gevent.monkey.patch_all()
import asyncio, sys, gevent, uvloop
from pathlib import Path
from app.exchange import Outbound
from app.upstream.transport_h2 import H2Transport

url, ca, done = sys.argv[1], Path(sys.argv[2]).read_bytes(), []

async def work():
    one = H2Transport(url, ca_pem=ca)
    async def whole():
        answer = await one.send(Outbound("POST", url, "/v1/messages", (), b'{"model": "claude-sim-json-0ms"}'))
        return b"".join([piece async for piece in answer])
    bodies = await asyncio.gather(*(whole() for _ in range(200)))
    await one.aclose()
    return len(bodies), one.handshakes

def run():
    try:
        done.append(uvloop.new_event_loop().run_until_complete(work()))
    except BaseException as error:
        done.append(repr(error))

gevent.monkey.get_original("_thread", "start_new_thread")(run, ())
while not done:
    gevent.sleep(0.01)
print(done[0])
"""


@pytest.fixture
def name() -> str:
    """The transport under test."""
    return "h2"


def test_in_a_native_thread_beside_gevents_hub(lab: Any) -> None:
    argv = [sys.executable, "-c", BESIDE_GEVENT, lab.sim.tls_url, lab.sim.ca_path]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (ran.stdout.strip(), ran.returncode) == ("(200, 1)", 0), ran.stderr
    assert lab.sim.stats()["tls_handshakes"] == 1


def test_on_asyncios_own_loop(lab: Any, read: Read) -> None:
    async def work() -> None:
        one = H2Transport(lab.sim.tls_url, context=trust(lab.ca))
        for _ in range(3):
            assert b"message_stop" in await read(await one.send(lab.message("stream-20x1ms", stream=True)))
        total = 0
        async for piece in await one.send(lab.message("big-5000k")):
            total += len(piece)
        assert total == 5_120_000
        assert one.handshakes == 1
        await one.aclose()

    asyncio.run(asyncio.wait_for(work(), 30))
