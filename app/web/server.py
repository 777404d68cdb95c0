"""Fit into gunicorn: what its hooks do for this worker's start, its drain and its end.

    start()     bridge up, first connection warm, SIGTERM noticed, a keeper that looks after things
    keeper      every quarter second: writes out the loop's events, ends bodies that trickle in for too long,
                closes idle client connections while draining, replaces a worker whose background loop is broken
                once nothing is in flight
    drain       on SIGTERM, before gunicorn's own handler

Runs on: worker.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from app.gateway.life import Life
from app.observe.logs import ExchangeLog
from app.web.client import cut_slow_bodies
from app.web.health import Health

KEEPER_S = 0.25
_PUBLISH_S = 1.0
_GC_THRESHOLD = 20_000


class Keeper:
    """Looks after one worker process.

    Args:
        health: Of this worker.
        life: Of this worker.
        log: For its own events.
        warm_up: Open the first upstream connections at start.
        pumps: Called every quarter second.
        switch_interval_s: How long a thread may keep the interpreter; where gunicorn's hook starts us.
        closers: Called at the end, when the loops are stopped and before the last words are written.
    """

    def __init__(
        self,
        health: Health,
        life: Life,
        log: ExchangeLog,
        warm_up: bool,
        pumps: tuple[Callable[[], None], ...] = (),
        switch_interval_s: float = 0.005,
        closers: tuple[Callable[[], None], ...] = (),
    ) -> None:
        self._closers = closers
        self._pumps = pumps
        self._switch_interval_s = switch_interval_s
        self._health = health
        self._life = life
        self._log = log
        self._warm_up = warm_up
        self._pid = 0
        self._hooked_pid = 0
        self._stopping = False
        self._clients: weakref.WeakSet[Any] = weakref.WeakSet()
        self._busy: set[int] = set()
        self._sees_clients = False

    def start(self, worker: Any = None) -> None:
        """Begin; once per process. Only gunicorn's own hook brings a ``worker``: then SIGTERM is noticed too."""
        if worker is not None and self._hooked_pid != os.getpid():
            self._hooked_pid = os.getpid()
            self._catch_term()
            self._see_clients(worker)
            from app.web import gunicorn_answers  # gunicorn's own modules: only where gunicorn runs us

            gunicorn_answers.install()
            _tune_gc()
            sys.setswitchinterval(self._switch_interval_s)
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._health.bridge()
        if self._warm_up:
            self._health.warm_up()
        threading.Thread(target=self._keep, name="penstock-keeper", daemon=True).start()
        self._log.event("worker_started", pid=self._pid)

    def stop(self) -> None:
        """Stop the loops and write out what they still had to say."""
        if self._pid != os.getpid() or self._stopping:
            return
        self._stopping = True
        tell = self._health.last_words()
        self._health.bridge().stop()
        for close in self._closers:
            close()
        tell()
        self._log.event("worker_stopped", pid=self._pid)
        self._log.close()

    def before_request(self, request: Any) -> None:
        """gunicorn's ``pre_request``: keep the parsed request within reach of the view."""
        request.body.penstock_request = request
        sock = getattr(request.unreader, "sock", None)
        if sock is not None:
            if not self._sees_clients:
                self._clients.add(sock)
            self._busy.add(id(sock))
        if self._life.draining:
            request.force_close()

    def after_request(self, request: Any) -> None:
        """gunicorn's ``post_request``; parts what ``before_request`` tied, or the cyclic collector has to.

        Measured: 13 objects per request, of which every 1,500th stopped the worker for 15 to 30 ms.
        """
        request.body.penstock_request = None
        sock = getattr(request.unreader, "sock", None)
        self._busy.discard(id(sock))

    def _see_clients(self, worker: Any) -> None:
        """Know a gevent worker's connections from their accept on, not only from their first request."""
        if type(worker).__module__ != "gunicorn.workers.ggevent":
            return
        handle = worker.handle
        self._sees_clients = True

        def seen(listener: Any, client: Any, address: Any) -> None:
            self._clients.add(client)
            handle(listener, client, address)

        worker.handle = seen

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
        while True:
            began = time.monotonic()
            time.sleep(KEEPER_S)
            if self._stopping:
                return
            self._health.overslept(time.monotonic() - began - KEEPER_S)
            cut_slow_bodies(time.monotonic())
            for pump in self._pumps:
                pump()
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


def _tune_gc() -> None:
    """Let the cyclic collector run less often: requests leave almost nothing for it, and what was loaded stays.

    Measured on the JSON path: 8 % of the worker's cycles went into it with CPython's default of 700.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, 20, 20)
