"""Counts what one exchange costs, where times would say more about the machine: calls, crossings, wake-ups.

    worker    this thread asks the application as gunicorn would, and reads the answer
    loop      the bridge's own thread; a profile function is set on it from inside
    gunicorn  is not there: its parser and its sockets are its own

Everything is counted in this process, so it has to be a fresh one without gevent; the simulator is another one.

Runs on: worker.
"""

from __future__ import annotations

import gc
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from app.bench.figures import Figures
from app.bench.report import Report, Row, Variant
from app.bench.servers import simulator
from app.bench.verdict import Aim, judge
from app.bridge.call import Bridge
from app.factory import create_app
from app.settings import load
from app.simulator.running import Running

REQUESTS = 200
EVENTS = 1000
_WARM = 30
JSON = "claude-sim-json-0ms"
PACED = "claude-sim-stream-1000x1ms"
BURST = "claude-sim-stream-1000x0ms"

AIMS = (
    Aim("json", "worker_calls", "<=", 130),  # of these 13 read the answer's usage and price it (B43), in 4.5 µs
    Aim("json", "loop_calls", "<=", 190),
    Aim("json", "crossings", "<=", 1),
    Aim("json", "wakes", "<=", 1),
    Aim("json", "posts", "<=", 1.05),
    Aim("json", "cyclic_objects", "<=", 0),
    Aim("paced", "worker_calls", "<=", 18.5),
    Aim("paced", "loop_calls", "<=", 20.5),
    Aim("paced", "wakes", "<=", 1.01),
    Aim("burst", "wakes", "<=", 0.5),
)
"""Ceilings; JSON per request, streams per event. A burst's wake-ups depend on how the threads take turns."""

_ROWS = (
    Row("worker_calls", "Python calls, worker", digits=2),
    Row("loop_calls", "Python calls, loop", digits=2),
    Row("worker_c_calls", "C calls, worker", digits=2),
    Row("loop_c_calls", "C calls, loop", digits=2),
    Row("crossings", "crossings", digits=3),
    Row("wakes", "wake-ups of the worker", digits=3),
    Row("posts", "wake-ups of the loop by the worker", digits=3),
    Row("cyclic_objects", "objects left to the cyclic collector", digits=2),
)


class Calls:
    """Counts the calls of one thread by what was called.

    Attributes:
        python: By code object.
        c: How many.
    """

    def __init__(self) -> None:
        self.python: Counter[CodeType] = Counter()
        self.c = 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """A profile function for ``sys.setprofile``."""
        if event == "call":
            self.python[frame.f_code] += 1
        elif event == "c_call":
            self.c += 1


class Subject:
    """The application, asked the way a WSGI server asks it.

    Args:
        upstream: Where it sends to.
    """

    def __init__(self, upstream: Running) -> None:
        environ = {"ANTHROPIC_UPSTREAM_URL": upstream.tls_url, "SSL_CERT_FILE": upstream.ca_path}
        self.app = create_app(load({**environ, "LOG_LEVEL": "warning"}))
        self.bridge: Bridge = self.app.extensions["penstock"].bridge()

    def ask(self, model: str) -> int:
        """One exchange to its end; the bytes of its body.

        Raises:
            RuntimeError: The answer's status is not 200.
        """
        told: list[str] = []
        start: Any = lambda status, headers: told.append(status)  # noqa: E731
        body: Any = self.app(_environ(model), start)
        size = sum(map(len, body))
        body.close()
        if not told[0].startswith("200"):
            raise RuntimeError(f"{model}: {told[0]}")
        return size

    @contextmanager
    def profiled(self) -> Iterator[tuple[Calls, Calls]]:
        """Count the calls of this thread and of the loop's."""
        worker, loop = Calls(), Calls()
        self.bridge.call(lambda _: sys.setprofile(loop))
        sys.setprofile(worker)
        try:
            yield worker, loop
        finally:
            sys.setprofile(None)
            self.bridge.call(lambda _: sys.setprofile(None))


def _environ(model: str) -> dict[str, Any]:
    stream = b"true" if "stream" in model else b"false"
    body = b'{"model":"%s","max_tokens":64,"stream":%s,"messages":[{"role":"user","content":"hello"}]}'
    raw = body % (model.encode(), stream)
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/v1/messages",
        "RAW_URI": "/v1/messages",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(raw)),
        "HTTP_HOST": "127.0.0.1",
        "HTTP_X_API_KEY": "sk-ant-counts",
        "HTTP_ANTHROPIC_VERSION": "2023-06-01",
        "HTTP_ACCEPT": "application/json",
        "HTTP_USER_AGENT": "counts",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(raw),
        "wsgi.errors": sys.stderr,
    }


def counted(subject: Subject, model: str, exchanges: int, per: int) -> Figures:
    """What ``exchanges`` cost, divided by ``per``."""
    bridge = subject.bridge
    crossings, posts, wakes = bridge.crossings, bridge.main.wakeups, 0
    opened = bridge.open

    def noting(make: Any) -> Any:
        crossing = opened(make)
        made.append(crossing)
        return crossing

    made: list[Any] = []
    bridge.open = noting  # type: ignore[method-assign]
    try:
        with subject.profiled() as (worker, loop):
            for _ in range(exchanges):
                subject.ask(model)
        wakes = sum(crossing.wakes for crossing in made)
    finally:
        bridge.open = opened  # type: ignore[method-assign]
    ours = {noting.__code__, Subject.ask.__code__, _environ.__code__}
    kept = sum(count for code, count in worker.python.items() if code not in ours)
    return {
        "worker_calls": kept / per,
        "loop_calls": sum(loop.python.values()) / per,
        "worker_c_calls": worker.c / per,
        "loop_c_calls": loop.c / per,
        "crossings": (bridge.crossings - crossings) / per,
        "wakes": wakes / per,
        "posts": (bridge.main.wakeups - posts - 2) / per,  # setting and taking off the profile were two
    }


def cyclic_objects(ask: Callable[[], object], times: int) -> float:
    """Objects per call that only the cyclic collector can free."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(times):
            ask()
        return gc.collect() / times
    finally:
        gc.enable()


def run() -> Report:
    """Counts a JSON answer, a paced stream and a burst.

    Raises:
        BenchError: The simulator did not come up.
    """
    with simulator() as upstream:
        subject = Subject(upstream)
        for _ in range(_WARM):
            subject.ask(JSON)
        subject.ask(PACED)
        plain = counted(subject, JSON, REQUESTS, REQUESTS)
        plain["cyclic_objects"] = cyclic_objects(lambda: subject.ask(JSON), REQUESTS)
        paced = counted(subject, PACED, 1, EVENTS)
        burst = counted(subject, BURST, 3, 3 * EVENTS)
        subject.bridge.stop()
    variants = [
        Variant("json", "JSON, per request", [plain]),
        Variant("paced", "stream, per event 1 ms apart", [paced]),
        Variant("burst", "stream, per event without gap", [burst]),
    ]
    judged = judge(AIMS, {variant.name: variant.rounds for variant in variants})
    title = f"counts: {REQUESTS} JSON answers, {EVENTS:,} events paced, {3 * EVENTS:,} without gap; TLS, HTTP/2"
    return Report("counts", title, {"requests": REQUESTS, "events": EVENTS}, _ROWS, variants, judged)
