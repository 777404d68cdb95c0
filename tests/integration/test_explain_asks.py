"""explain: whatever answers where the gateway should be, the key goes nowhere else, and what is wrong is said."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.explain import Unseen, asked

KEY = "admin-key-of-these-tests"


class _Handler(http.server.BaseHTTPRequestHandler):
    answer: tuple[int, list[tuple[str, str]], bytes] = (200, [], b"{}")
    seen: list[tuple[str, str | None]] = []  # noqa: RUF012 - emptied by the fixture

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("x-api-key")))
        status, headers, body = self.answer
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not on the test's output."""


@pytest.fixture
def url() -> Iterator[str]:
    """A server that answers as told."""
    _Handler.seen.clear()
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def failed(url: str, status: int, headers: list[tuple[str, str]], body: bytes = b"") -> str:
    """What is said to that answer."""
    _Handler.answer = (status, headers, body)
    with pytest.raises(Unseen) as error:
        asked(url, KEY, "id-1")
    assert KEY not in str(error.value)
    return str(error.value)


def test_the_page_is_asked_with_the_key_and_the_id_as_one_segment(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    _Handler.answer = (200, [], b'{"records": []}')
    assert asked(f"{url}/llm", KEY, "/a+b/../=") == {"records": []}
    assert _Handler.seen == [("/llm/admin/records/%2Fa%2Bb%2F..%2F%3D", KEY)]


def test_a_record_that_is_not_kept(url: str) -> None:
    body = json.dumps({"error": {"message": "None is kept."}}).encode()
    _Handler.answer = (404, [("x-penstock-error", "unknown_record")], body)
    assert asked(url, KEY, "id-1") == {"message": "None is kept."}
    _Handler.answer = (404, [("x-penstock-error", "unknown_record")], b"[]")
    assert asked(url, KEY, "id-1") == {"message": ""}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(url: str, status: int) -> None:
    said = failed(url, status, [("location", f"{url}/elsewhere")])
    assert f"({status}), which is not followed" in said
    assert [path for path, _ in _Handler.seen] == ["/admin/records/id-1"]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "refuses the key (401)"),
        (404, "has no such page (404): is GATEWAY_ADMIN_KEY set for that gateway?"),
        (503, "answers 503."),
        (400, "answers 400."),
    ],
)
def test_a_refusal_is_said(url: str, status: int, said: str) -> None:
    assert said in failed(url, status, [], b"<html>")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b"\xff", b'{"records": '])
def test_something_else_than_a_gateway(url: str, body: bytes) -> None:
    assert "did not answer as a gateway does" in failed(url, 200, [], body)


def test_an_answer_that_breaks_off(url: str) -> None:
    assert "JSONDecodeError" in failed(url, 200, [("content-length", "100")], b'{"records": [')


def test_nobody_is_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unseen, match="cannot be asked: Connection refused"):
            asked(f"http://127.0.0.1:{taken.getsockname()[1]}", KEY, "id-1")


def test_something_that_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def speak() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(Unseen, match="BadStatusLine"):
            asked(f"http://127.0.0.1:{server.getsockname()[1]}", KEY, "id-1")
        thread.join()
