"""What the bridge tests play, each in a process of its own: ``python scenes.py <world> <scene>``.

    plain    threads, gevent never imported
    gevent   patched before anything else is imported
    late     patched after the bridge was imported (an application that patches late)

A scene returns what it saw; it goes to stdout as one JSON line. ``threading.Thread`` is a greenlet where gevent
has patched, so most scenes need not know their world.

Runs on: worker.
"""

# ruff: noqa: E402

from __future__ import annotations

import sys

WORLD = sys.argv[1] if len(sys.argv) > 1 else "plain"

if WORLD == "gevent":
    from gevent import monkey

    monkey.patch_all()

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from app.bridge.call import Bridge, Crossing, get_bridge
from app.bridge.loop import BackgroundLoop
from app.bridge.stream import LIMIT_BYTES
from app.bridge.wait import new_waiter, original
from app.errors import ClientGone, GatewayError, ProtocolBroken

if WORLD == "late":
    from gevent import monkey

    monkey.patch_all()

LONG_S = 15.0
Seen = dict[str, Any]


def patience() -> None:
    """A tick that never gives up."""


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """``work(0..count-1)`` in threads or greenlets; results in that order."""
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            results[number] = work(number)
        except Exception as exc:  # noqa: BLE001 - a result like any other
            results[number] = repr(exc)

    workers = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LONG_S)
    return results


def until(true: Callable[[], object]) -> bool:
    """Wait for it; False when time is up."""
    end = time.monotonic() + LONG_S
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def exchange(body: bytes = b"body", pause_s: float = 0.0) -> bytes:
    """One head and body through the bridge."""

    async def make(crossing: Crossing) -> None:
        await asyncio.sleep(pause_s)
        crossing.send_head("head")
        await crossing.send(body)

    return whole(get_bridge().open(make))


def whole(crossing: Crossing) -> bytes:
    """Head, body, close."""
    try:
        assert crossing.head(patience, LONG_S) == "head"
        data = b""
        while pieces := crossing.take(patience, LONG_S):
            data += b"".join(pieces)
        return data
    finally:
        crossing.close()


class Hanging:
    """A task that hangs and counts its cancels."""

    def __init__(self, head: object = None) -> None:
        self.head = head
        self.begun = False
        self.over = False
        self.cancels = 0

    async def __call__(self, crossing: Crossing) -> None:
        if self.head is not None:
            crossing.send_head(self.head)
        self.begun = True
        try:
            while True:
                try:
                    await asyncio.sleep(LONG_S)
                except asyncio.CancelledError:
                    self.cancels += 1
                    await asyncio.sleep(0.02)  # a second cancel would strike here
                    raise
        except asyncio.CancelledError:
            self.cancels += self.over
            raise
        finally:
            self.over = True


# -------------------------------------------------------------------- scenes
def first_twenty() -> Seen:
    """facts 8a: the first requests come at once."""
    made: list[str] = []
    init = BackgroundLoop.__init__

    def counted(self: BackgroundLoop, name: str, events: Any) -> None:
        made.append(name)
        init(self, name, events)

    BackgroundLoop.__init__ = counted  # type: ignore[method-assign]
    bridges: list[Bridge] = []

    def first(number: int) -> str:
        bridge = get_bridge()
        bridges.append(bridge)
        return exchange(b"%d" % number).decode()

    results = together(20, first)
    return {"loops": made, "bridges": len({id(b) for b in bridges}), "results": results}


def overlap() -> Seen:
    """facts 1: fifty exchanges of 0.3 s each, at once."""
    exchange()
    began = time.monotonic()
    results = together(50, lambda n: exchange(b"%d" % n, 0.3).decode())
    return {"results": results, "took_s": time.monotonic() - began, "in_flight": get_bridge().main.in_flight}


def burst() -> Seen:
    """facts 6: 3,000 events; the consumer takes all that waits."""
    sent = [b'event: x\ndata: {"n": %d}\n\n' % n for n in range(3000)]

    async def make(crossing: Crossing) -> None:
        crossing.send_head("head")
        for piece in sent:
            await crossing.send(piece)
            await asyncio.sleep(0)

    crossing = get_bridge().open(make)
    got = whole(crossing)
    return {"same": got == b"".join(sent), "wakes": crossing.wakes, "wakeups": get_bridge().main.wakeups}


def slow_reader() -> Seen:
    """B24 upwards: a reader that naps; its neighbour is not held up."""
    exchange()
    size = 40 * LIMIT_BYTES
    most = 0
    done = False

    async def make(crossing: Crossing) -> None:
        nonlocal most, done
        crossing.send_head("head")
        for _ in range(size // 1000):
            await crossing.send(b"x" * 1000)
            most = max(most, sum(map(len, crossing.up._chunks)))
        done = True

    crossing = get_bridge().open(make)
    crossing.head(patience, LONG_S)
    neighbours: list[float] = []

    def neighbour(_: int) -> None:
        for _ in range(100):
            began = time.monotonic()
            exchange(b"y" * 1000)
            neighbours.append(time.monotonic() - began)

    beside = threading.Thread(target=together, args=(1, neighbour))
    beside.start()
    got = 0
    early_end = False
    while pieces := crossing.take(patience, LONG_S):
        got += sum(map(len, pieces))
        early_end |= done and got < size - 2 * LIMIT_BYTES
        time.sleep(0.02)
    crossing.close()
    beside.join(LONG_S)
    return {
        "got": got,
        "size": size // 1000 * 1000,
        "most": most,
        "early_end": early_end,
        "neighbours": len(neighbours),
        "neighbour_worst_s": max(neighbours),
        "neighbours_took_s": sum(neighbours),
    }


def slow_upstream() -> Seen:
    """B24 downwards: an upload that the loop takes slowly."""
    data = os.urandom(1 << 20)
    most = 0

    async def make(crossing: Crossing) -> None:
        got = []
        async for piece in aiter(crossing.upload):
            got.append(piece)
            await asyncio.sleep(0.005)
        crossing.send_head("head")
        await crossing.send(b"same" if b"".join(got) == data else b"different")

    crossing = get_bridge().open(make)
    for start in range(0, len(data), 30_000):
        crossing.feed(data[start : start + 30_000], patience, LONG_S)
        most = max(most, crossing.upload._put - crossing.upload._taken)
    crossing.upload.end()
    return {"result": whole(crossing).decode(), "most": most}


def abort_upload() -> Seen:
    """The client stops in the middle of its upload."""
    reached: list[str] = []

    async def make(crossing: Crossing) -> None:
        try:
            async for _ in aiter(crossing.upload):
                pass
        except GatewayError as exc:
            reached.append(exc.slug)
            raise

    crossing = get_bridge().open(make)
    crossing.feed(b"half", patience, LONG_S)
    time.sleep(0.05)
    crossing.upload.abort(ClientGone())
    try:
        crossing.head(patience, LONG_S)
    except ClientGone:
        reached.append("worker")
    crossing.close()
    return {"reached": reached}


def cancels() -> Seen:
    """B21, facts 7: closed before the head, after it, before the task began, twice each, 50 at once."""

    def leave(number: int) -> int:
        task = Hanging("head" if number % 3 == 0 else None)
        crossing = get_bridge().open(task)
        if number % 3 == 0:
            crossing.head(patience, LONG_S)
        elif number % 3 == 1:
            until(lambda: task.begun)
        crossing.close()
        crossing.close()
        if task.begun or number % 3 != 2:
            until(lambda: task.over)
        return task.cancels

    exchange()
    together(2, lambda n: exchange())
    counts = together(50, leave)
    time.sleep(0.1)
    bridge = get_bridge()
    left = bridge.call(lambda loop: len(asyncio.all_tasks(loop.loop)), LONG_S)
    return {
        "after": counts[0::3],
        "before": counts[1::3],
        "at_once": counts[2::3],
        "in_flight": bridge.main.in_flight,
        "tasks_left": left,
        "events": list(bridge.events),
    }


def alone() -> Seen:
    """facts 5: the only greenlet waits, longer than a tick, and the hub has nothing else."""
    return {"body": exchange(b"alone", 0.9).decode()}


def fails() -> Seen:
    """A library raises; the loop's own exception handler is called."""

    async def make(crossing: Crossing) -> None:
        def callback() -> None:
            raise ValueError("in a callback")

        asyncio.get_running_loop().call_soon(callback)
        lost = asyncio.get_running_loop().create_future()
        lost.set_exception(OSError("never retrieved"))
        del lost
        await asyncio.sleep(0.01)
        raise KeyError("in the task")

    crossing = get_bridge().open(make)
    try:
        crossing.head(patience, LONG_S)
        said = ""
    except ProtocolBroken as exc:
        said = repr(exc.__cause__)
    finally:
        crossing.close()
    return {"said": said, "events": list(get_bridge().events), "after": exchange(b"goes on").decode()}


def fork() -> Seen:
    """Preload: the parent has used its bridge already; the child makes its own, the parent keeps its own."""
    exchange()
    before = get_bridge()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        told = {"body": exchange(b"child").decode(), "own": get_bridge() is not before}
        told["pid"] = get_bridge().main.pid == os.getpid()
        together(5, lambda n: exchange())
        os.write(write, json.dumps(told).encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(pid, 0)  # before the read, which would block the whole hub under gevent
    child = os.read(read, 4096)
    return {
        "child": json.loads(child),
        "status": status,
        "parent": exchange(b"parent").decode(),
        "same": get_bridge() is before,
    }


def own_thread() -> Seen:
    """Called on the loop's own thread: no deadlock."""
    bridge = get_bridge()

    async def make(crossing: Crossing) -> None:
        crossing.send_head("head")
        await crossing.send(exchange(b"from the pool"))

    body = whole(bridge.open(make))
    return {"body": body.decode(), "fallbacks": bridge.fallbacks, "degraded": bridge.check()}


def in_somebodys_loop() -> Seen:
    """A call from inside the caller's own running loop (an async view)."""

    async def view() -> str:
        first = exchange(b"async view").decode()
        await asyncio.sleep(0)
        return first

    return {"bodies": [asyncio.run(view()), asyncio.run(view())], "fallbacks": get_bridge().fallbacks}


def _dead(kill: Callable[[Bridge], None]) -> Seen:
    bridge = get_bridge()
    exchange()
    hanging = bridge.open(Hanging())
    kill(bridge)
    until(lambda: not bridge.main.alive)
    try:
        hanging.head(patience, LONG_S)
        in_flight = ""
    except ProtocolBroken as exc:
        in_flight = exc.message
    hanging.close()
    results = together(10, lambda n: exchange(b"pool").decode())
    return {
        "in_flight": in_flight,
        "results": results,
        "degraded": bridge.degraded,
        "fallbacks": bridge.fallbacks,
        "events": [e["event"] for e in bridge.events],
        "pool": len(bridge._pool),
    }


def dies() -> Seen:
    """B51: something raises through the loop."""

    def kill(bridge: Bridge) -> None:
        async def make(crossing: Crossing) -> None:
            raise SystemExit("out of order")

        bridge.open(make)

    return _dead(kill)


def stopped() -> Seen:
    """B51: somebody stops the loop."""
    return _dead(lambda bridge: bridge.main.stop())


def wedged() -> Seen:
    """B51: the loop is blocked for longer than two seconds, then goes on."""
    bridge = get_bridge()
    exchange()
    sleep = original("time", "sleep")
    bridge.main.post(sleep, 3.2)
    early = bridge.open(Hanging())
    time.sleep(2.3)
    began = time.monotonic()
    served = together(5, lambda n: exchange(b"pool").decode())
    took_s = time.monotonic() - began
    why = bridge.degraded
    early.close()
    recovered = until(lambda: bridge.check() == "")
    fallbacks = bridge.fallbacks
    after = exchange(b"main").decode()
    return {
        "served": served,
        "took_s": took_s,
        "why": why,
        "recovered": recovered,
        "after": after,
        "same_after": bridge.fallbacks == fallbacks,
        "events": [(e["event"], e.get("reason")) for e in bridge.events],
    }


def deque_hand_over() -> Seen:
    """facts 3, done right: records of a native thread go up as data; a greenlet and the keeper log them."""
    import logging
    from collections import deque

    target = logging.getLogger("heavy")
    target.propagate = False
    target.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115, PTH123
    target.setLevel(logging.INFO)
    records: deque[int] = deque()
    lines = 20_000
    waiter = new_waiter()

    def native() -> None:
        for number in range(lines):
            records.append(number)
            if number % 500 == 0:
                waiter.wake()
        waiter.wake()

    original("_thread", "start_new_thread")(native, ())
    done = [0, 0]

    def greenlet(_: int) -> None:
        for number in range(lines):
            target.info("worker %d", number)
            done[0] += 1
            if number % 50 == 0:
                time.sleep(0)

    worker = threading.Thread(target=greenlet, args=(0,))
    worker.start()
    began = time.monotonic()
    while done[1] < lines and time.monotonic() - began < LONG_S:
        while records:
            target.info("loop %d", records.popleft())
            done[1] += 1
        waiter.wait(0.1)
    worker.join(LONG_S)
    return {"done": done, "took_s": time.monotonic() - began}


def logging_on_both_sides() -> Seen:
    """facts 3, done wrong: a native thread and a greenlet share a logger. Usually stops within 3 s."""
    import logging

    target = logging.getLogger("heavy")
    target.propagate = False
    target.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115, PTH123
    target.setLevel(logging.INFO)
    done = [0, 0]

    def log(side: int) -> None:
        for number in range(20_000):
            target.info("%d %d", side, number)
            done[side] += 1
            if side == 0 and number % 50 == 0:
                time.sleep(0)

    def tell() -> None:
        sleep = original("time", "sleep")
        for _ in range(60):
            sleep(0.05)
            if done == [20_000, 20_000]:
                break
        os.write(1, json.dumps({"done": done, "finished": done == [20_000, 20_000]}).encode() + b"\n")
        os._exit(0)

    start = original("_thread", "start_new_thread")
    start(tell, ())
    start(log, (1,))
    worker = threading.Thread(target=log, args=(0,))
    worker.start()
    worker.join(LONG_S)
    time.sleep(LONG_S)
    return {}


SCENES: dict[str, Callable[[], Seen]] = {
    scene.__name__: scene
    for scene in (
        first_twenty,
        overlap,
        burst,
        slow_reader,
        slow_upstream,
        abort_upload,
        cancels,
        alone,
        fails,
        fork,
        own_thread,
        in_somebodys_loop,
        dies,
        stopped,
        wedged,
        deque_hand_over,
        logging_on_both_sides,
    )
}


if __name__ == "__main__":
    seen = SCENES[sys.argv[2]]()
    seen["gevent"] = "gevent" in sys.modules
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
