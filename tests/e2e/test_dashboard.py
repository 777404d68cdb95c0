"""deploy/grafana-dashboard.json against a real Prometheus that scrapes two workers under load: no panel is empty.

The load has a bit of everything that the panels show: short answers and streams, errors of the provider, retries,
clients that leave, a waiting room that runs over, a key that is refused, a worker that is killed. Every query of
every panel is then asked over the time of the load. What each panel showed is printed at the end of the run, and
written as JSON where PENSTOCK_PANELS names a file.

Runs on: the test's thread.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.simulator.options import Options
from app.simulator.process import running
from tests.e2e.prometheus import DEPLOY, Prometheus, Series, binary, scraping
from tests.e2e.servers import Farm, Measured, Server, until
from tests.e2e.wire import VERSION, Raw, Truncated, message, request

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = "prometheus-rules.yml"
VARIABLES = [one for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
LOAD_S = 14.0
LONGEST_S = 40.0
KILLED_AT_S = 6.0
CALLER = "caller-of-the-dashboard-test"
KEYS = ("sk-ant-dashboard-one", "sk-ant-dashboard-two", "sk-ant-dashboard-refused")
MODEL = "claude-sonnet-5"
PRICED = {"input_tokens": 1200, "cache_creation_input_tokens": 300, "cache_read_input_tokens": 5000}
USAGE = PRICED | {
    "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 100},
    "output_tokens": 240,
    "server_tool_use": {"web_search_requests": 2},
}
SETTINGS: dict[str, Any] = {
    "WEB_CONCURRENCY": 2,
    "ANTHROPIC_API_KEYS": ",".join(KEYS),
    "GATEWAY_API_KEYS": CALLER,
    "ANTHROPIC_CONCURRENCY": 12,
    "ANTHROPIC_BUFFER_SIZE": 20,
    "DROP_EXCESS_REQUESTS": "true",
    "RETRY_MAX_ATTEMPTS": 3,
    "RETRY_429_INTERVAL": 0.05,
}
AT_REST = {
    "Fallback threads": "they work only where a worker has lost its background loop",
    "Trouble": "there is none",
}
"""Panels whose every line may have been at 0 all the time, and why; all others have shown more."""


def recorded(folder: Path) -> Path:
    """An answer with usage of every kind, for the simulator to repeat."""
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
    }
    row = {
        "status": 200,
        "response_headers": [["content-type", "application/json"], ["request-id", "req_1"]],
        "response_body_b64": base64.b64encode(json.dumps(body).encode()).decode(),
    }
    path = folder / "recorded.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


class Load:
    """Clients in threads of their own, until it is stopped."""

    def __init__(self, server: Server) -> None:
        self._port = server.port
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count()

    def again(self, act: Callable[[], object], pause_s: float, clients: int = 1) -> None:
        """Do something over and over. A worker that dies takes its connections along: that is part of the load."""

        def loop() -> None:
            while not self._over.wait(pause_s):
                with suppress(OSError, Truncated):
                    act()

        self._threads += [threading.Thread(target=loop) for _ in range(clients)]

    def ask(self, scenario: str, stream: bool = False, model: str = "", **headers: str) -> None:
        """One message, in a conversation of its own, and its whole answer."""
        with self._sent(scenario, stream, model, **headers) as raw:
            raw.answer()

    def leave(self, scenario: str) -> None:
        """A stream that nobody stays for."""
        with self._sent(scenario, True) as raw:
            raw.head()

    def crowd(self, size: int, scenario: str) -> None:
        """So many at once."""
        with self._several(size, scenario) as raws:
            for raw in raws:
                raw.answer()

    @contextmanager
    def _several(self, size: int, scenario: str) -> Iterator[list[Raw]]:
        raws: list[Raw] = []
        try:
            for _ in range(size):
                raws.append(self._sent(scenario, False))
            yield raws
        finally:
            for raw in raws:
                raw.close()

    def _sent(self, scenario: str, stream: bool, model: str = "", **headers: str) -> Raw:
        said = [{"role": "user", "content": f"x {next(self._numbers)}"}]
        body = message(model or scenario, stream=stream, messages=said)
        pairs = [("x-api-key", CALLER), VERSION, ("content-type", "application/json")]
        pairs += [(name.replace("_", "-"), value) for name, value in headers.items()]
        if model:
            pairs.append(("x-sim-scenario", scenario))
        raw = Raw(self._port)
        raw.send(request("/v1/messages", body, tuple(pairs)))
        return raw

    def run(self, server: Server, enough: Callable[[], bool]) -> None:
        """All of it for a while and until it was enough; a worker is killed in between."""
        began = time.monotonic()
        for thread in self._threads:
            thread.start()
        try:
            until(lambda: time.monotonic() - began > KILLED_AT_S, LOAD_S, "the time to kill a worker")
            victim = server.workers()[0]
            os.kill(victim, signal.SIGKILL)
            until(lambda: victim not in server.workers() and len(server.workers()) == 2, what="another worker")
            until(lambda: time.monotonic() - began > LOAD_S and enough(), LONGEST_S, "all that the panels show")
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(20)


def _load(server: Server) -> Load:
    load = Load(server)
    load.again(lambda: load.ask("json-5ms", model=MODEL), 0.02, clients=2)
    load.again(lambda: load.ask("json-20ms"), 0.05)
    load.again(lambda: load.ask("", model=MODEL, x_sim_replay="0"), 0.1)
    load.again(lambda: load.ask("stream-20x10ms", stream=True, model=MODEL), 0.05, clients=2)
    load.again(lambda: load.ask("flaky-1-529"), 0.3)
    load.again(lambda: load.ask("status-500"), 0.5)
    load.again(lambda: load.ask("status-400"), 0.5)
    load.again(lambda: load.ask("goaway-now"), 1.0)
    load.again(lambda: load.leave("stream-50x50ms"), 0.3)
    load.again(lambda: load.crowd(40, "json-300ms"), 1.5)
    return load


class _Taker(BaseHTTPRequestHandler):
    """Takes what is posted."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def _receiving() -> Iterator[str]:
    """The address of a webhook."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Taker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/alerts"
        server.shutdown()
        thread.join()


def _alerted(prometheus: Prometheus) -> bool:
    """An alert of the gateway's own was delivered, and Prometheus knows."""
    found = prometheus.get("query", query='penstock_alert_deliveries_total{result="delivered"} > 0')
    return bool(found["result"])


Shown = dict[str, list[tuple[str, list[Series]]]]
"""Title of a panel: legend and series of each of its queries."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Shown]]:
    """The load, scraped; and what every panel had to show over its time."""
    binary("prometheus")
    folder = tmp_path_factory.mktemp("dashboard")
    with running(Options(max_concurrent_streams=100, replay=str(recorded(folder)))) as simulator:
        limited = [{"from_s": at, "to_s": at + 0.2, "status": 429, "retry_after": "0.5"} for at in range(1, 60, 2)]
        simulator.set_keys({KEYS[1]: limited, KEYS[2]: [{"status": 401}]})
        farm = Farm(simulator, folder)
        with (
            _receiving() as webhook,
            farm.own("gevent", ALERT_WEBHOOK_URL=webhook, ALERT_ERROR_RATE=0.001, **SETTINGS) as server,
            scraping(f"127.0.0.1:{server.port}", folder) as prometheus,
        ):
            began_s = time.time()
            _load(server).run(server, lambda: _alerted(prometheus))
            ended_s = time.time() + 2
            until(lambda: time.time() > ended_s, what="another scrape")
            shown = {
                panel["title"]: [
                    (target["legendFormat"], prometheus.series(plain(target["expr"]), began_s, ended_s))
                    for target in panel["targets"]
                ]
                for panel in PANELS
            }
            yield prometheus, shown


def plain(query: str) -> str:
    """A query as Grafana sends it; the variables pick every series that has the label, and no other."""
    for name in ("instance", "route", "model", "provider"):
        query = query.replace(f"${name}", ".+")
    query = query.replace("$__rate_interval", "10s").replace("$__range", "60s")
    assert "$" not in query, query
    return query


def highest(lines: list[tuple[str, list[Series]]]) -> float:
    """The largest value of a panel."""
    return max((value for _, series in lines for one in series for value in one.values), default=-1.0)


@pytest.mark.parametrize("title", [panel["title"] for panel in PANELS])
def test_no_panel_is_empty(seen: tuple[Prometheus, Shown], title: str) -> None:
    lines = seen[1][title]
    for legend, series in lines:
        assert any(one.values for one in series), f"{title}: nothing to show for {legend!r}"
    assert highest(lines) > 0 or title in AT_REST, f"{title}: nothing but 0 under load"


def test_every_metric_of_the_panels_and_rules_is_there(seen: tuple[Prometheus, Shown]) -> None:
    text = "".join((DEPLOY / name).read_text(encoding="utf-8") for name in ("grafana-dashboard.json", RULES))
    named = set(re.findall(r"penstock_\w+", text))
    found = set(seen[0].get("label/__name__/values"))
    assert len(named) > 40
    assert named <= found, named - found
    shown = {re.sub("_(total|bucket|sum|count)$", "", name) for name in named}
    theirs = {re.sub("_(total|bucket|sum|count)$", "", name) for name in found if name.startswith("penstock_")}
    assert theirs == shown, f"in no panel and no rule: {theirs - shown}"


def test_the_variables_have_values(seen: tuple[Prometheus, Shown]) -> None:
    for variable in VARIABLES:
        metric, _, label = variable["query"]["query"].removeprefix("label_values(").rstrip(")").partition(", ")
        assert label == variable["name"]
        assert seen[0].get(f"label/{label}/values", match__=metric), variable


def test_the_rules_are_evaluated(seen: tuple[Prometheus, Shown]) -> None:
    rules = [rule for group in seen[0].get("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert firing >= {"PenstockDrops", "PenstockCredentialBenched"}


def test_what_the_panels_showed(seen: tuple[Prometheus, Shown], measured: Measured) -> None:
    table = {title: {line: value for line, value in _values(lines)} for title, lines in seen[1].items()}
    for title, values in table.items():
        measured(title, "; ".join(f"{line} {value:.4g}" for line, value in values.items()))
    if path := os.environ.get("PENSTOCK_PANELS"):
        Path(path).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    assert len(table) == len(PANELS), "two panels of one title"


def _values(lines: list[tuple[str, list[Series]]]) -> Iterator[tuple[str, float]]:
    """Each line's name as its legend shows it, and its largest value."""
    for legend, series in lines:
        for one in series:
            name = legend
            for label, value in one.labels.items():
                name = name.replace(f"{{{{{label}}}}}", value)
            if one.values:
                yield name, max(one.values)
