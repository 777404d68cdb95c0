"""web/client: the rest of a body, and whether the client is still there (B16, B21).

Runs on: worker.
"""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.http.errors import ParseException

from app.errors import BodyTimeout, BodyTooLarge, InvalidRequest
from app.web import client as module
from app.web.client import WsgiClient, parse_length


class Socket:
    """A client's socket that notes its timeouts."""

    def __init__(self) -> None:
        self.timeouts: list[float | None] = []

    def gettimeout(self) -> float | None:
        return None

    def settimeout(self, value: float | None) -> None:
        self.timeouts.append(value)

    def fileno(self) -> int:
        return 7


class Input:
    """A body from a script: bytes or exceptions."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.closed = 0
        self.penstock_request = SimpleNamespace(force_close=self._close)

    def _close(self) -> None:
        self.closed += 1

    def read(self, size: int) -> bytes:
        step = self.steps.pop(0) if self.steps else b""
        if isinstance(step, BaseException):
            raise step
        data: bytes = step
        return data


def made(body: Any, environ_: dict[str, Any] | None = None, **environ: Any) -> WsgiClient:
    return WsgiClient({"wsgi.input": body, **(environ_ or {}), **environ}, 100, 3.0)


@pytest.mark.parametrize(
    ("environ", "length"),
    [({}, 0), ({"CONTENT_LENGTH": "7"}, 7), ({"HTTP_TRANSFER_ENCODING": " Chunked"}, None)],
)
def test_the_declared_length(environ: dict[str, Any], length: int | None) -> None:
    assert parse_length(environ) == length


@pytest.mark.parametrize("bad", ["-1", "x", "1 ", "\xb2", "1e3"])
def test_a_length_that_is_no_number_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_length({"CONTENT_LENGTH": bad})


def test_a_body_is_read_whole_with_a_timeout_on_its_socket() -> None:
    sock = Socket()
    client = made(Input(b"ab", b"cd"), {"gunicorn.socket": sock}, CONTENT_LENGTH="4")
    assert client.read_all() == b"abcd"
    assert sock.timeouts == [3.0, None, 3.0, None]


def test_a_chunked_body_is_read_to_its_end_and_limited() -> None:
    assert made(Input(b"ab", b"cd"), HTTP_TRANSFER_ENCODING="chunked").read_all() == b"abcd"
    body = Input(b"x" * 60, b"x" * 60, b"rest")
    with pytest.raises(BodyTooLarge, match="100 bytes"):
        made(body, HTTP_TRANSFER_ENCODING="chunked").read_all()
    assert body.steps == []


def test_b16_a_body_declared_too_large_is_refused_and_thrown_away() -> None:
    body = Input(b"x" * 101)
    with pytest.raises(BodyTooLarge):
        made(body, CONTENT_LENGTH="101")
    assert (body.steps, body.closed) == ([], 0)


def test_what_is_not_thrown_away_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DISCARD_LIMIT_BYTES", 10)
    body = Input(b"x" * 50, b"x" * 51)
    with pytest.raises(BodyTooLarge):
        made(body, CONTENT_LENGTH="101")
    assert body.closed == 1


@pytest.mark.parametrize("failure", [TimeoutError(), OSError(), b""])
def test_a_client_that_stops_while_its_body_is_thrown_away(failure: Any) -> None:
    body = Input(failure)
    with pytest.raises(BodyTooLarge):
        made(body, CONTENT_LENGTH="101")
    assert body.closed >= 1


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (TimeoutError(), BodyTimeout),
        (OSError(), InvalidRequest),
        (ValueError(), InvalidRequest),
        (ParseException(), InvalidRequest),
        (b"", InvalidRequest),
    ],
)
def test_half_a_body_is_refused_and_the_connection_closed(failure: Any, error: type[Exception]) -> None:
    body = Input(b"ha", failure)
    with pytest.raises(error):
        made(body, CONTENT_LENGTH="4").read_all()
    assert body.closed == 1


def test_without_our_hooks_nothing_is_closed() -> None:
    made(io.BytesIO()).close_after()


class Poll:
    """The kernel's answer."""

    def __init__(self, events: list[int] | None) -> None:
        self.events = events

    def register(self, fd: int, mask: int) -> None:
        if self.events is None:
            raise OSError

    def poll(self, timeout: int) -> list[int]:
        assert timeout == 0
        return self.events or []


@pytest.mark.parametrize(("events", "gone"), [([], False), ([1], True), (None, True)])
def test_b21_the_kernel_knows_whether_the_client_left(
    monkeypatch: pytest.MonkeyPatch, events: list[int] | None, gone: bool
) -> None:
    monkeypatch.setattr(module, "original", lambda *_: lambda: Poll(events))
    assert made(Input(), {"gunicorn.socket": Socket()}).gone() is gone


def test_b21_other_servers_are_asked_or_trusted() -> None:
    assert made(Input()).gone() is False
    assert made(Input(), {"waitress.client_disconnected": lambda: True}).gone() is True


@pytest.mark.parametrize("coding", ["gzip, chunked", "xchunked", "chunked, chunked"])
def test_a_coding_that_would_be_lost_is_refused(coding: str) -> None:
    with pytest.raises(InvalidRequest, match="Transfer-Encoding"):
        made(None, {"HTTP_TRANSFER_ENCODING": coding})
