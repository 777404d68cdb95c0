"""The whole stack under gevent, a tracer on every patched lock: ``guard.py <transport> <origin> <ca> [talk]``.

Prints how many exchanges went well and which patched locks the loop's threads took, and from where. With ``talk``
the loop logs one line on purpose, so that a test can see that the tracer sees it.

Runs on: worker (and watches the loop).
"""

# ruff: noqa: E402

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from app.assembly import Assembly
from app.bridge.wait import native_threads
from app.factory import create_app
from app.settings import load

_taken: set[str] = set()


def _traced(kind: type, name: str) -> None:
    """Note who takes a lock of ``kind`` on a thread of the bridge."""
    given: Callable[..., Any] = getattr(kind, name)

    def take(self: Any, *args: Any, **kwargs: Any) -> Any:
        if native_threads.here():
            frames = [f for f in traceback.extract_stack()[:-1] if "threading.py" not in f.filename]
            if any("importlib" in f.filename for f in frames[-12:]):  # a module's first import, at start only
                return given(self, *args, **kwargs)
            _taken.add(" < ".join(f"{f.filename.rpartition('/')[2]}:{f.name}" for f in reversed(frames[-4:])))
        return given(self, *args, **kwargs)

    setattr(kind, name, take)


for _kind in (type(threading.Lock()), type(threading.RLock())):
    for _name in ("acquire", "__enter__"):
        _traced(_kind, _name)


def _post(client: Any, model: str, stream: bool) -> int:
    body = {"model": f"claude-sim-{model}", "max_tokens": 8, "stream": stream}
    answer = client.post("/v1/messages", json=body, buffered=True)
    return int(answer.status_code)


def main(transport: str, origin: str, ca: str, talk: bool) -> dict[str, Any]:
    """Real exchanges, good and bad, concurrent, with logging configured as loudly as an operator can."""
    logging.basicConfig(level=logging.DEBUG, handlers=[logging.NullHandler()])
    environ = {
        "ANTHROPIC_UPSTREAM_URL": origin,
        "SSL_CERT_FILE": ca,
        "UPSTREAM_TRANSPORT": transport,
        "LOG_LEVEL": "error",
        "BREAKER_MIN_CALLS": "1000",
    }
    app = create_app(load(environ))
    assembly: Assembly = app.extensions["penstock"]
    assembly.health.warm_up()
    if talk:
        assembly.bridge().main.post(logging.getLogger("deliberate").warning, "from the loop")
    statuses: list[int] = []

    def work(number: int) -> None:
        client = app.test_client()
        model = ("json-5ms", "stream-20x1ms", "status-429", "reset-2", "close-2", "overloaded")[number % 6]
        try:
            statuses.append(_post(client, model, model not in {"json-5ms", "status-429"}))
        except ConnectionResetError:
            statuses.append(0)

    for _ in range(3):
        logging.getLogger().setLevel(logging.DEBUG)  # empties logging's caches: the next question takes its lock
        workers = [threading.Thread(target=work, args=(n,)) for n in range(12)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(20)
    operator = app.test_client()
    ready = operator.get("/ready").status_code
    metrics = operator.get("/metrics").status_code
    bad = create_app(load({**environ, "ANTHROPIC_UPSTREAM_URL": "http://127.0.0.1:1"})).test_client()
    return {
        "served": len(statuses),
        "statuses": sorted(set(statuses)),
        "operator": [ready, metrics],
        "refused": _post(bad, "json-5ms", False),
        "fallbacks": assembly.bridge().fallbacks,
        "taken": sorted(_taken),
    }


if __name__ == "__main__":
    seen = main(sys.argv[1], sys.argv[2], sys.argv[3], "talk" in sys.argv[4:])
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
