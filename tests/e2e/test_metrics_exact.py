"""The metrics of two workers, one of them killed: every counter against the simulator's and the clients' (B41).

What a killed worker had under way, and what it had not yet added up (a quarter second of Records, a second of what
is counted on the loop), is in no counter. So the test lets the counters come to rest first, and kills a worker
that has nothing but streams under way: those are missing, and nothing else is. What never shows, killed or not,
are the tries of an exchange whose client left before its head: nobody was there any more to be told of them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.simulator.running import Running
from tests.e2e.mixed import PRICED, Load, Seen
from tests.e2e.servers import Farm, Measured, Server, until
from tests.e2e.wire import Raw, ask

REFUSED = ("other", "", "400", "invalid_request")
FEW = 600
REQUESTS = int(os.environ.get("METRICS_EXACT_REQUESTS", FEW))
SENT_NS = re.compile(rb"@T:([0-9]+);")
HELD = 8
SETTLED_S = 30.0
MANY = 10_000
PRICE_USD = {"input": 3.0, "output": 15.0}
"""Of a million of PRICED's tokens."""


class Page:
    """One look at ``/metrics``."""

    def __init__(self, server: Server) -> None:
        answer = ask(server.port, "/metrics")
        assert answer.status == 200, answer
        self.samples = [
            sample for family in text_string_to_metric_families(answer.body.decode()) for sample in family.samples
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Over all series of that name with these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == f"penstock_{name}" and labels.items() <= sample.labels.items()
        )

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Every series that is not 0, by its labels' values."""
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for sample in self.samples
            if sample.name == f"penstock_{name}" and sample.value
        }


def expected(seen: Seen, simulator: Running) -> dict[str, object]:
    """Every figure as the clients and the simulator have it."""
    stats = simulator.stats()
    heard = stats["requests"]["h2"]
    assert sum(stats["requests"].values()) == heard
    crossed = sum(seen.requests.values()) - seen.requests[REFUSED]
    whole = sum(seen.requests.values())
    return {
        "requests": {key: float(count) for key, count in seen.requests.items()},
        "failures": _failures(seen),
        "tries": heard - seen.tries["untold"] - seen.lost,
        "retries": {(reason,): float(count) for reason, count in seen.retries.items() if count},
        "departures": float(seen.departures),
        "aborts upstream": stats["client_aborts"] - seen.lost,
        "connections opened": stats["h2_sessions"],
        "TLS handshakes": stats["tls_handshakes"],
        "requests on an open connection": heard - stats["h2_sessions"],
        "request bytes": [seen.sent_bytes, stats["request_bytes"] - seen.again_bytes - seen.lost_bytes],
        "tokens": {key: float(count) for key, count in seen.tokens.items() if count},
        "without a price": {(model,): float(n) for model, n in seen.used.items() if model != PRICED},
        "partial usage": float(seen.partial),
        "cost in USD": round(sum(seen.tokens[kind, PRICED] * PRICE_USD[kind] / 1e6 for kind in PRICE_USD), 6),
        "crossings": crossed + seen.lost,
        "request seconds": whole,
        "heads": [seen.heads] * 3,
        "first events": seen.streams,
        "queue waits": crossed - seen.tries["untold"],
        "drops, fallbacks": [0, 0],
        "in flight": 0,
        "workers": 2,
    }


def _failures(seen: Seen) -> dict[tuple[str, str], float]:
    """By route and type: no others fail than those that get the upstream's 503."""
    count = sum(count for key, count in seen.requests.items() if key[2] == "503")
    return {("messages", "upstream_5xx"): float(count)} if count else {}


def counted(page: Page, seen: Seen) -> dict[str, object]:
    """The same figures as the gateway has them; the departures also as the simulator's aborts."""
    departures = page.sum("client_departures_total")
    return {
        "requests": page.by("requests_total", "route", "model", "status", "slug"),
        "failures": page.by("failures_total", "route", "type"),
        "tries": page.sum("attempts_sum"),
        "retries": page.by("retries_total", "reason"),
        "departures": departures,
        "aborts upstream": departures,
        "connections opened": page.sum("upstream_connections_opened_total"),
        "TLS handshakes": page.sum("upstream_tls_handshakes_total"),
        "requests on an open connection": page.sum("upstream_requests_reused_total"),
        "request bytes": [page.sum("request_bytes_total")] * 2,
        "tokens": page.by("tokens_total", "kind", "model"),
        "without a price": page.by("unpriced_total", "model"),
        "partial usage": page.sum("usage_partial_total"),
        "cost in USD": round(page.sum("cost_usd_total"), 6),
        "crossings": page.sum("bridge_crossings_total"),
        "request seconds": page.sum("request_seconds_count"),
        "heads": [
            page.sum(f"{name}_seconds_count") for name in ("gateway", "upstream_head", "time_to_first_byte")
        ],
        "first events": page.sum("time_to_first_event_seconds_count"),
        "queue waits": page.sum("queue_wait_seconds_count"),
        "drops, fallbacks": [page.sum("drops_total"), page.sum("bridge_fallbacks_total")],
        "in flight": page.sum("in_flight"),
        "workers": page.sum("workers"),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the workers share their metrics."""
    return tmp_path / "metrics"


@pytest.fixture
def pair(farm: Farm, simulator: Running, tmp_path: Path, folder: Path) -> Iterator[Server]:
    """Two workers that retry, with a budget that never ends."""
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"models": {PRICED: PRICE_USD}}), encoding="utf-8")
    with farm.own(
        "gevent",
        WEB_CONCURRENCY=2,
        RETRY_MAX_ATTEMPTS=3,
        RETRY_429_INTERVAL=0.01,
        RETRY_BUDGET_FLOOR=MANY,
        BREAKER_MIN_CALLS=1_000_000,
        PROMETHEUS_MULTIPROC_DIR=folder,
        PENSTOCK_PRICES=prices,
    ) as server:
        until(lambda: len(server.lines("worker_started")) == 2, 10, "two workers")
        yield server


def settle(server: Server, simulator: Running, seen: Seen) -> list[tuple[str, object, object]]:
    """Wait until all figures are as they have to be; the last look, whatever it shows."""
    found: list[tuple[str, object, object]] = []

    def equal() -> bool:
        theirs, ours = expected(seen, simulator), counted(Page(server), seen)
        found[:] = [(name, theirs[name], ours[name]) for name in theirs]
        return theirs == ours

    try:
        until(equal, SETTLED_S)
    except AssertionError:
        differing = [row for row in found if row[1] != row[2]]
        raise AssertionError(differing) from None
    return found


def broken_off(raws: list[Raw], at_ns: int) -> int:
    """How many of the streams are gone; the others bring what was sent after that instant."""

    def goes_on(raw: Raw) -> bool:
        while data := raw.more():
            if any(int(sent_ns) > at_ns for sent_ns in SENT_NS.findall(data)):
                return True
        return False

    return sum(not goes_on(raw) for raw in raws)


def own_requests(folder: Path, pid: int) -> bool:
    """Whether this worker has counted anything itself."""
    return b"penstock_requests_total" in (folder / f"counter_{pid}.db").read_bytes()


def test_every_counter_is_the_simulators_own_with_a_worker_killed_in_the_middle(
    pair: Server, simulator: Running, folder: Path, measured: Measured
) -> None:
    load = Load(pair, simulator)
    load.run(REQUESTS // 2)
    for _ in range(3):
        load.leave_before_the_head()
    settle(pair, simulator, load.seen)

    killed, other = sorted(pair.workers())
    assert own_requests(folder, killed) and own_requests(folder, other)
    with load.held(HELD) as raws:
        at_rest(pair, simulator, load.seen)
        written(pair, load.seen)
        lost = kill(pair, killed, raws)
        assert not list(folder.glob(f"gauge_live*_{killed}.db")), "the gauges of the dead"
        load.gone(HELD - lost, lost)
    settle(pair, simulator, load.seen)

    load.run(REQUESTS - REQUESTS // 2)
    found = settle(pair, simulator, load.seen)
    page = Page(pair)
    assert page.sum("worker_restarts_total") == 1
    check_bytes(pair, load.seen, page)
    measured("exchanges", f"{sum(load.seen.requests.values())}, {lost} streams lost with their worker")
    if REQUESTS > FEW:
        for name, theirs, ours in found:
            measured(name, f"expected {theirs}, counted {ours}")


def at_rest(server: Server, simulator: Running, seen: Seen) -> None:
    """Wait until what the loops have counted for the streams under way has been looked at."""

    def equal() -> bool:
        page, stats = Page(server), simulator.stats()
        opened, reused = page.sum("upstream_connections_opened_total"), page.sum("upstream_requests_reused_total")
        crossed = sum(seen.requests.values()) - seen.requests[REFUSED] + HELD
        return (
            page.sum("in_flight") == HELD
            and page.sum("bridge_crossings_total") == crossed
            and (opened, opened + reused) == (stats["h2_sessions"], stats["requests"]["h2"])
        )

    until(equal, SETTLED_S, "all streams under way, and counted on the loops")


def kill(server: Server, pid: int, raws: list[Raw]) -> int:
    """SIGKILL; waits until another one serves. How many of the streams were lost with it."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in server.workers() and len(server.workers()) == 2, 10, "another worker")
    until(lambda: len(server.lines("worker_started")) == 3, 10, "its start")
    return broken_off(raws, time.monotonic_ns())


def written(server: Server, seen: Seen) -> list[dict[str, Any]]:
    """The log lines, once there is one for every exchange."""
    count = sum(seen.requests.values())
    until(lambda: len(server.lines()) == count, SETTLED_S, f"{count} lines")
    return server.lines()


def check_bytes(server: Server, seen: Seen, page: Page) -> None:
    """Answers' bytes: as the Records have them; of answers that came whole, as the clients do."""
    lines = written(server, seen)
    assert page.sum("response_bytes_total") == sum(line["response_bytes"] for line in lines)
    whole = sum(line["response_bytes"] for line in lines if not line["client_left"])
    assert whole == seen.got_bytes
