"""Fit into gunicorn: what its hooks do for this worker's start, its drain and its end.

    start()     bridge up, first connection warm, SIGTERM noticed, a keeper that looks after things
    keeper      every quarter second: writes out the loop's events, closes idle client connections while
                draining, replaces a worker whose background loop is broken once nothing is in flight
    drain       on SIGTERM, before gunicorn's own handler

Also what gunicorn itself would say is said properly: its parser's errors as Anthropic errors, and no second
``Server`` or ``Date`` beside the upstream's.

Runs on: worker.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
import weakref
from types import FrameType
from typing import Any

from app.errors import InvalidRequest
from app.gateway.life import Life
from app.observe.logs import ExchangeLog
from app.web.health import Health
from app.web.render import error_body
from app.wire.headers import HOP_BY_HOP

KEEPER_S = 0.25
_PUBLISH_S = 1.0
_ONE_WRITE_BYTES = 65536
_NAMES = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")
_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Keeper:
    """Looks after one worker process.

    Args:
        health: Of this worker.
        life: Of this worker.
        log: For its own events.
        warm_up: Open the first upstream connection at start.
    """

    def __init__(self, health: Health, life: Life, log: ExchangeLog, warm_up: bool) -> None:
        self._health = health
        self._life = life
        self._log = log
        self._warm_up = warm_up
        self._pid = 0
        self._stopping = False
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self._busy: set[int] = set()

    def start(self, worker: Any = None) -> None:
        """Begin; safe to call again (the second call in a process does nothing)."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._health.bridge()
        if self._warm_up:
            self._health.warm_up()
        if worker is not None:
            self._catch_term()
            _speak_properly()
        threading.Thread(target=self._keep, name="penstock-keeper", daemon=True).start()
        self._log.event("worker_started", pid=self._pid)

    def stop(self) -> None:
        """Stop the loops and write out what they still had to say."""
        if self._pid != os.getpid() or self._stopping:
            return
        self._stopping = True
        bridge = self._health.bridge()
        bridge.stop()
        self._log.drain(bridge.events)
        self._log.event("worker_stopped", pid=self._pid)

    def before_request(self, request: Any) -> None:
        """gunicorn's ``pre_request``: keep the parsed request within reach of the view."""
        request.body.penstock_request = request
        sock = getattr(request.unreader, "sock", None)
        if sock is not None:
            self._clients.add(sock)
            self._busy.add(id(sock))
        if self._life.draining:
            request.force_close()

    def after_request(self, request: Any) -> None:
        """gunicorn's ``post_request``."""
        sock = getattr(request.unreader, "sock", None)
        self._busy.discard(id(sock))

    def _catch_term(self) -> None:
        before = signal.getsignal(signal.SIGTERM)

        def on_term(signum: int, frame: FrameType | None) -> None:
            self._life.drain()
            if callable(before):
                before(signum, frame)

        signal.signal(signal.SIGTERM, on_term)

    def _keep(self) -> None:
        published_at = 0.0
        announced = False
        while not self._stopping:
            time.sleep(KEEPER_S)
            if self._life.draining:
                if not announced:
                    announced = True
                    self._log.event("worker_draining", pid=self._pid, in_flight=self._life.in_flight)
                self._close_idle()
            if time.monotonic() - published_at >= _PUBLISH_S:
                published_at = time.monotonic()
                self._health.publish()
                self._replace_if_broken()

    def _close_idle(self) -> None:
        """Clients without a request under way would hold the worker until gunicorn kills it."""
        for sock in list(self._clients):
            if id(sock) in self._busy:
                continue
            try:
                sock.shutdown(socket.SHUT_RD)
            except OSError:  # closed already
                continue

    def _replace_if_broken(self) -> None:
        if self._health.bridge().degraded == "" or self._life.in_flight or self._life.draining:
            return
        if "gunicorn.arbiter" in sys.modules:
            self._log.event("worker_replaced", pid=self._pid, reason=self._health.bridge().degraded)
            os.kill(os.getpid(), signal.SIGTERM)


def _speak_properly() -> None:
    """Make gunicorn answer in our terms; called in a worker only."""
    from gunicorn import util
    from gunicorn.http import wsgi

    def write_error(sock: Any, status_int: int, reason: str, mesg: str) -> None:
        error = InvalidRequest(f"The request is not valid HTTP: {reason}. {mesg}".strip())
        body = error_body(error, "")
        head = (
            f"HTTP/1.1 {status_int} {reason}\r\nconnection: close\r\ncontent-type: application/json\r\n"
            f"x-penstock-error: {error.slug}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        util.write_nonblock(sock, head.encode("latin-1", "replace") + body)

    class Head(wsgi.Response):  # type: ignore[misc]
        """gunicorn's response, with the upstream's Server and Date, where it sent them, instead of its own, and
        head and first bytes in one write."""

        def process_headers(self, headers: list[tuple[str, str]]) -> None:
            if not _NAMES.fullmatch("".join([name for name, _ in headers])) or _UNSAFE.search(
                "".join([value for _, value in headers])
            ):
                super().process_headers(headers)  # finds the one and says so
            for name, value in headers:
                lower = name.lower()
                if lower == "content-length":
                    self.response_length = int(value)
                if lower not in HOP_BY_HOP:
                    self.headers.append((name, value.strip(" \t")))

        def default_headers(self) -> list[str]:
            lines: list[str] = super().default_headers()
            sent = {name.lower() for name, _ in self.headers}
            return [line for line in lines if line.partition(":")[0].lower() not in sent]

        def write(self, arg: bytes) -> None:
            size = len(arg) if isinstance(arg, bytes) else 0
            if (
                self.headers_sent
                or not 0 < size <= _ONE_WRITE_BYTES
                or size != self.response_length
                or self._omits_body
            ):
                super().write(arg)
                return
            lines = self.default_headers()
            lines += [f"{name}: {value}\r\n" for name, value in self.headers]
            lines.append("\r\n")
            self.headers_sent: bool = True
            self.sent = size
            self.sock.sendall("".join(lines).encode("latin-1") + arg)

    util.write_error = write_error
    wsgi.Response = Head
