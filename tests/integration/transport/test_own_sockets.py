"""Own connections, told by their keep-alive interval.

Runs on: worker.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from app.upstream.sockets import Sockets, give_mark, take_mark


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
