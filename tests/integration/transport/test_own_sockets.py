"""Own sockets: connections told by their keep-alive interval, what the kernel knows of them and is told to do.

Runs on: worker.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
import uvloop

from app.upstream.h2_connection import H2Connection
from app.upstream.sockets import HIGHEST, LOWEST, Sockets, give_mark, take_mark, taken_bytes
from app.upstream.transport_streams import Backend


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def connected(listener: socket.socket, interval_s: int | None) -> tuple[socket.socket, socket.socket]:
    client = socket.socket()
    if interval_s is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
    client.connect(listener.getsockname())
    return client, listener.accept()[0]


def test_marked_connections_are_found_and_others_are_not(listener: socket.socket) -> None:
    table = Sockets()
    assert table.supported
    before = table.scan()
    mark = take_mark()
    mine, theirs = connected(listener, mark)
    plain, other = connected(listener, None)
    common, last = connected(listener, 75)
    unconnected = socket.socket()
    unconnected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    unconnected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, mark)
    try:
        found = {inode: owner for inode, owner in table.scan().items() if inode not in before}
        assert list(found.values()) == [mark]
        unconnected.connect(listener.getsockname())
        assert list(table.scan().values()).count(mark) == 2, "looked at again once it is connected"
        assert not table.answered(mark)
        theirs.sendall(b"hello")
        mine.recv(5)
        assert table.answered(mark)
    finally:
        for sock in (mine, theirs, plain, other, common, last, unconnected):
            sock.close()
    assert mark not in table.scan().values()
    give_mark(mark)


def test_a_descriptor_that_is_used_again_is_looked_at_again(listener: socket.socket) -> None:
    table, mark = Sockets(), take_mark()
    first, peer = connected(listener, None)
    number = first.fileno()
    table.scan()
    first.close()
    second, other = connected(listener, mark)
    assert second.fileno() == number, "the kernel hands out the lowest free descriptor"
    assert mark in table.scan().values()
    for sock in (peer, second, other):
        sock.close()
    give_mark(mark)


def test_marks_are_distinct_and_given_back() -> None:
    one, other = take_mark(), take_mark()
    assert one != other
    assert {one, other}.isdisjoint({75, 30, 60})
    give_mark(one)
    assert take_mark() == one
    give_mark(one)
    give_mark(other)


def test_elsewhere_nothing_is_counted(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    table = Sockets()
    mine, theirs = connected(listener, take_mark())
    assert not table.supported
    assert table.scan() == {}
    mine.close()
    theirs.close()


def test_what_the_peers_kernel_took_is_known(listener: socket.socket) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        ours = H2Connection(loop, lambda why: None)
        assert ours.taken_bytes() == 0, "not connected yet"
        transport, _ = await loop.create_connection(asyncio.Protocol, *listener.getsockname())
        theirs = listener.accept()[0]
        ours.attach(transport)
        try:
            async with asyncio.timeout(5):
                while ours.taken_bytes() < 24:  # the preface
                    await asyncio.sleep(0.01)
        finally:
            transport.abort()
            theirs.close()
        async with asyncio.timeout(5):
            while ours.taken_bytes():
                await asyncio.sleep(0.01)

    for runner in (uvloop.run, asyncio.run):
        runner(work())


def test_elsewhere_nobody_knows_what_was_taken(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    mine, theirs = connected(listener, None)
    mine.sendall(b"hello")
    theirs.recv(5)
    assert taken_bytes(mine.fileno()) >= 5
    monkeypatch.setattr("sys.platform", "darwin")
    assert taken_bytes(mine.fileno()) == 0
    mine.close()
    theirs.close()


@pytest.mark.parametrize(
    ("asked", "idle_s", "every_s", "times", "taken_ms"),
    [
        ((15.0, 10.0, 25.0), 15, 3, 3, 25_000),
        ((1.0, 0.1, 15.0), 1, 1, 1, 15_000),
        ((600.0, 120.0, 720.0), 600, LOWEST - 1, 6, 720_000),
        ((0.0, 10.0, 15.0), 15, None, None, 0),
    ],
)
def test_httpcores_connections_are_probed_by_the_kernel(
    listener: socket.socket,
    asked: tuple[float, float, float],
    idle_s: int,
    every_s: int | None,
    times: int | None,
    taken_ms: int,
) -> None:
    """And never look like the Rust client's."""
    found: list[tuple[int, int, int, int]] = []

    async def work() -> None:
        stream = await Backend(*asked).connect_tcp("127.0.0.1", listener.getsockname()[1], timeout=5)
        theirs = listener.accept()[0]
        sock = stream._writer.get_extra_info("socket")  # type: ignore[attr-defined]

        def told(name: str) -> int:
            return int(sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)))

        kept = told("TCP_KEEPIDLE"), told("TCP_KEEPINTVL"), told("TCP_KEEPCNT"), told("TCP_USER_TIMEOUT")
        found.append(kept)
        await stream.aclose()  # a loop that is left with a connection open never closes
        await asyncio.sleep(0)
        theirs.close()

    uvloop.run(work())
    ((idle, every, times_, taken),) = found
    assert (idle, taken) == (idle_s, taken_ms)
    if every_s is not None:
        assert (every, times_) == (every_s, times)
        assert not LOWEST <= every <= HIGHEST
