"""observe/webhook against a real server: delivered, tried again, given up; its address never told (B44).

Runs on: the test's threads.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import trustme

from app.observe import webhook
from app.observe.alerts import Alert
from app.observe.webhook import Webhook

SECRET = "hook-secret-41c9"
ALERT = Alert("h/error_rate/1", "firing", "error_rate", 0.5, 0.05, 60, 1.5, "h", "penstock on h: firing")


class Receiver(HTTPServer):
    """Answers with the statuses it was given, one after the other, then 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.requests.append((self.path, dict(self.headers), json.loads(body)))
                status = outer.statuses.pop(0) if outer.statuses else 200
                self.send_response(status)
                self.send_header("location", f"/elsewhere-{SECRET}")
                self.send_header("content-length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *_: object) -> None:
                """Quietly."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{SECRET}?key={SECRET}"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "WAITS_S", (0.01, 0.01, 0.02, 0.02, 0.02))
    made = Receiver()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


class Told:
    """What the webhook said: what became of each alert, and its events."""

    def __init__(self) -> None:
        self.done: list[tuple[Alert, str]] = []
        self.events: list[dict[str, object]] = []

    def hook(self, url: str, context: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> Webhook:
        return Webhook(url, context, lambda *one: self.done.append(one), self.events.append)

    def until(self, count: int = 1) -> list[str]:
        """The faults of so many alerts."""
        deadline = time.monotonic() + 20
        while len(self.done) < count:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert SECRET not in repr((self.done, self.events))
        return [fault for _, fault in self.done]


@pytest.fixture
def told() -> Told:
    return Told()


def test_b44_one_post_of_json(receiver: Receiver, told: Told) -> None:
    told.hook(receiver.url).put(ALERT)
    assert told.until() == [""]
    ((path, headers, body),) = receiver.requests
    assert path == f"/{SECRET}?key={SECRET}"
    assert headers["content-type"] == "application/json"
    assert "authorization" not in {name.lower() for name in headers}
    assert body == {
        "alert": "h/error_rate/1",
        "state": "firing",
        "rule": "error_rate",
        "value": 0.5,
        "threshold": 0.05,
        "window_s": 60,
        "at": 1.5,
        "host": "h",
        "text": "penstock on h: firing",
    }


def test_b44_it_is_tried_again_until_it_is_taken(receiver: Receiver, told: Told) -> None:
    receiver.statuses = [500, 404, 302]
    told.hook(receiver.url).put(ALERT)
    assert told.until() == [""]
    assert [path for path, _, _ in receiver.requests] == [f"/{SECRET}?key={SECRET}"] * 4
    assert told.events == [
        {"event": "alert_delivery_retried", "rule": "error_rate", "tried": tried, "error": error}
        for tried, error in ((1, "status 500"), (2, "status 404"), (3, "status 302; redirects are not followed"))
    ]


def test_b44_it_is_given_up_after_five_more_tries_and_the_next_one_is_tried(
    receiver: Receiver, told: Told
) -> None:
    receiver.statuses = [503] * 6
    hook = told.hook(receiver.url)
    hook.put(ALERT)
    hook.put(ALERT._replace(state="resolved"))
    assert told.until(2) == ["status 503", ""]
    assert [body["state"] for _, _, body in receiver.requests] == ["firing"] * 6 + ["resolved"]


def test_b44_the_pauses_are_a_minute_in_all() -> None:
    assert len(webhook.WAITS_S) == 5
    assert sum(webhook.WAITS_S) == 60


def test_b44_nobody_there_is_told_without_saying_where(receiver: Receiver, told: Told) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    told.hook(f"http://127.0.0.1:{port}/{SECRET}").put(ALERT)
    assert told.until() == ["Connection refused"]
    told.hook(f"http://{SECRET}.invalid/").put(ALERT)
    assert SECRET not in told.until(2)[1]


def test_b44_a_receiver_that_says_nothing_is_not_waited_for(
    receiver: Receiver, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told.hook(f"http://127.0.0.1:{silent.getsockname()[1]}/{SECRET}").put(ALERT)
        assert told.until() == ["TimeoutError"]


def test_b44_what_is_no_answer_is_told(receiver: Receiver, told: Told) -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd:

        def babble() -> None:
            for _ in range(6):
                client, _ = odd.accept()
                client.recv(4096)
                client.sendall(SECRET.encode() + b"\r\n\r\n")
                client.close()

        thread = threading.Thread(target=babble)
        thread.start()
        told.hook(f"http://127.0.0.1:{odd.getsockname()[1]}/").put(ALERT)
        assert told.until() == ["BadStatusLine"]
        thread.join()


def test_b44_user_and_password_of_the_address_are_presented(receiver: Receiver, told: Told) -> None:
    told.hook(receiver.url.replace("http://", f"http://us%40er:{SECRET}@")).put(ALERT)
    assert told.until() == [""]
    ((_, headers, _),) = receiver.requests
    pair = {name.lower(): value for name, value in headers.items()}["authorization"]
    assert base64.b64decode(pair.removeprefix("Basic ")).decode() == f"us@er:{SECRET}"


def test_b44_https_is_verified_against_the_given_authorities(receiver: Receiver, told: Told) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    receiver.socket = serving.wrap_socket(receiver.socket, server_side=True)
    url = receiver.url.replace("http://", "https://")

    def trusting(one: trustme.CA) -> Callable[[], ssl.SSLContext]:
        def make() -> ssl.SSLContext:
            context = ssl.create_default_context()
            one.configure_trust(context)
            return context

        return make

    told.hook(url, trusting(authority)).put(ALERT)
    assert told.until() == [""]
    told.hook(url, trusting(stranger)).put(ALERT)
    assert told.until(2)[1] == "CERTIFICATE_VERIFY_FAILED"
    assert len(receiver.requests) == 1


def test_b44_too_many_that_wait_and_those_after_the_end(
    receiver: Receiver, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "WAITS_S", (60.0,))
    receiver.statuses = [500]
    hook = told.hook(receiver.url)
    hook.put(ALERT)
    deadline = time.monotonic() + 10
    while not told.events:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for number in range(34):
        hook.put(ALERT._replace(rule=str(number)))
    assert [(alert.rule, fault) for alert, fault in told.done] == [
        ("0", "too many alerts are waiting"),
        ("1", "too many alerts are waiting"),
    ]
    hook.stop()
    while any(thread.name == "penstock-webhook" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert (len(told.done), len(receiver.requests)) == (2, 1)
