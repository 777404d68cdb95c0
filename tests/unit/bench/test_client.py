"""The load client against a transport that is a list of bytes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.bench.client import Answer, Client, Connection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\n\r\nhi"


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 50_000)


def _connected() -> tuple[Connection, Wire]:
    connection, wire = Connection(), Wire()
    connection.connection_made(cast("asyncio.Transport", wire))
    return connection, wire


async def _answered(connection: Connection, *pieces: bytes, timeout_s: float = 30.0) -> Answer:
    task = asyncio.ensure_future(connection.exchange(b"GET / HTTP/1.1\r\n\r\n", timeout_s))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    return await task


@pytest.mark.parametrize("size", [1, 7, len(OK)])
def test_an_answer_is_whole_however_it_is_cut(size: int) -> None:
    async def main() -> None:
        connection, wire = _connected()
        for _ in range(2):
            answer = await _answered(connection, *(OK[at : at + size] for at in range(0, len(OK), size)))
            assert (answer.status, answer.body, answer.headers["x-a"]) == (200, b"hi", "1")
            assert answer.sent_s <= answer.first_s <= answer.done_s
        assert (connection.usable, connection.port, len(wire.written)) == (True, 50_000, 2)

    asyncio.run(main())


def test_chunks_and_interim_answers() -> None:
    async def main() -> None:
        connection, _ = _connected()
        chunked = b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        answer = await _answered(connection, b"HTTP/1.1 100 Continue\r\n\r\n", chunked)
        assert (answer.status, answer.body) == (503, b"abcde")

    asyncio.run(main())


def test_only_the_first_of_a_long_body_is_kept() -> None:
    async def main() -> None:
        connection, _ = _connected()
        answer = await _answered(
            connection, b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b"x" * 5000, b"y" * 4000
        )
        assert answer.body == b"x" * 4096

    asyncio.run(main())


def test_a_connection_that_the_server_closes_is_used_no_more() -> None:
    async def main() -> None:
        connection, _ = _connected()
        answer = await _answered(connection, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        assert answer.status == 200
        assert not connection.usable
        assert (await connection.exchange(b"", 1)).fault == "the connection is closed"

    asyncio.run(main())


@pytest.mark.parametrize("error", [None, ConnectionResetError("reset")])
def test_a_broken_exchange_has_status_0(error: Exception | None) -> None:
    async def main() -> None:
        connection, _ = _connected()
        task = asyncio.ensure_future(connection.exchange(b"GET", 30))
        await asyncio.sleep(0)
        connection.data_received(OK[:20])
        connection.connection_lost(error)
        answer = await task
        assert answer.status == 0
        assert ("reset" if error else "closed before") in answer.fault
        assert not connection.usable

    asyncio.run(main())


def test_what_is_not_http_is_a_fault() -> None:
    async def main() -> None:
        connection, wire = _connected()
        answer = await _answered(connection, b"220 mail.example ESMTP\r\n")
        assert (answer.status, answer.fault[:8], wire.aborted) == (0, "not HTTP", True)

    asyncio.run(main())


def test_silence_ends_an_exchange_and_its_connection() -> None:
    async def main() -> None:
        connection, wire = _connected()
        answer = await _answered(connection, timeout_s=0)
        assert (answer.status, answer.fault, wire.aborted) == (0, "silent for 0 s", True)
        assert not connection.usable

    asyncio.run(main())


def test_a_cancelled_exchange_leaves_no_connection_that_could_answer_another() -> None:
    async def main() -> None:
        connection, wire = _connected()
        task = asyncio.ensure_future(connection.exchange(b"GET", 30))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert wire.aborted
        assert not connection.usable

    asyncio.run(main())


class Pool(Client):
    """A client whose connections answer by themselves."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("http://127.0.0.1:1")
        self.answer = answer
        self.wires: list[Wire] = []

    async def connect(self) -> Connection:
        if not self.answer:
            raise ConnectionRefusedError("refused")
        connection, wire = _connected()
        self.wires.append(wire)
        write = wire.write

        def answering(data: bytes) -> None:
            write(data)
            asyncio.get_running_loop().call_soon(connection.data_received, self.answer)

        wire.write = answering  # type: ignore[method-assign]
        return connection


def test_connections_are_kept_and_requests_are_whole() -> None:
    async def main() -> None:
        async with Pool(OK) as client:
            await client.open(2)
            for _ in range(3):
                assert (await client.request("POST", "/v1/messages", {"x-api-key": "k"}, b"{}")).status == 200
            both = await asyncio.gather(*(client.request("GET", "/", {}) for _ in range(3)))
            assert [answer.status for answer in both] == [200] * 3
            assert len(client.wires) == 3
            assert [len(wire.written) for wire in client.wires] == [3, 2, 1]  # in turn
            assert client.wires[1].written[0] == (
                b"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1:1\r\ncontent-length: 2\r\nx-api-key: k\r\n\r\n{}"
            )

    asyncio.run(main())


def test_closed_connections_are_replaced() -> None:
    async def main() -> None:
        client = Pool(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await client.open(1)
        for _ in range(2):
            assert (await client.request("GET", "/", {})).status == 200
        await client.open(1)
        client._idle[0].connection_lost(None)
        assert (await client.request("GET", "/", {})).status == 200
        assert len(client.wires) == 4

    asyncio.run(main())


def test_no_connection_is_a_sample() -> None:
    async def main() -> None:
        answer = await Pool(b"").request("GET", "/", {})
        assert (answer.status, answer.fault) == (0, "no connection: ConnectionRefusedError('refused')")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "port"), [("http://a", 80), ("https://a", 443), ("http://a:81", 81), ("https://a:444", 444)]
)
def test_where_no_port_is_given_it_is_the_schemes(url: str, port: int) -> None:
    assert Client(url)._port == port


def test_the_first_byte_is_the_one_of_this_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(float(number) for number in range(1, 100))
    monkeypatch.setattr("app.bench.client.time", SimpleNamespace(monotonic=lambda: next(now)))

    async def main() -> None:
        connection, _ = _connected()
        first = await _answered(connection, OK[:9], OK[9:])
        second = await _answered(connection, OK[:9], OK[9:])
        for one in (first, second):  # the clock goes on whenever somebody looks at it
            assert (one.first_s - one.sent_s, one.done_s - one.first_s) == (1, 1)

    asyncio.run(main())
