"""Usage, its price, where the time went: on the exchange's line, in the header, in the ledger (B42, B43)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.servers import ROOT, Farm, Server, until
from tests.e2e.wire import opened, post

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_METRIC = rf'{_TOKEN}(?:;{_TOKEN}=(?:{_TOKEN}|"[\t !#-\[\]-~]*"))*'
SERVER_TIMING = re.compile(rf"{_METRIC}(?:, {_METRIC})*")
USED = {"input_tokens": 25, "output_tokens": 21}


@pytest.fixture
def prices(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prices of the simulator's models; the same file for all tests, so that they can share a server."""
    path = tmp_path_factory.getbasetemp() / "prices.json"
    rates = {"input": 2, "output": 10, "cache_write_5m": 2.5, "cache_write_1h": 4, "cache_read": 0.2}
    path.write_text(json.dumps({"as_of": "2026-11-21", "models": {"claude-sim-*": rates}}))
    return str(path)


@pytest.fixture
def priced(farm: Farm, kind: str, prices: str, simulator: object) -> Server:
    """A gunicorn with these prices."""
    del simulator
    return farm.shared(kind, PENSTOCK_PRICES=prices)


def line(server: Server, request_id: str) -> dict[str, Any]:
    """The exchange's line."""
    until(lambda: any(row["request_id"] == request_id for row in server.lines()), 5, "the log line")
    return next(row for row in server.lines() if row["request_id"] == request_id)


def figures(row: dict[str, Any]) -> dict[str, int]:
    return {name: count for name, count in row["tokens"].items() if count}


def test_b43_a_json_answers_usage_has_its_price(priced: Server) -> None:
    given = f"usage-of-a-json-answer-{time.monotonic_ns()}"
    post(priced.port, "json-0ms", headers=(("x-request-id", given),))
    row = line(priced, given)
    assert (figures(row), row["usage_complete"], row["cost_micro_usd"]) == (USED, True, 25 * 2 + 21 * 10)


def test_b43_a_streams_usage_is_the_last_statement_and_has_its_price(priced: Server) -> None:
    given = f"usage-of-a-whole-stream-{time.monotonic_ns()}"
    answer = post(priced.port, "stream-20x1ms", stream=True, headers=(("x-request-id", given),))
    row = line(priced, given)
    stated = json.loads(re.findall(rb"data: (\{\"type\":\"message_delta\".*?)\s*\n", answer.body)[-1])["usage"]
    assert row["tokens"]["output_tokens"] == stated["output_tokens"] > 1
    assert row["usage_complete"] is True
    assert row["cost_micro_usd"] == 2 * stated["input_tokens"] + 10 * stated["output_tokens"]


def test_b43_a_client_that_leaves_has_used_what_was_stated_by_then(priced: Server) -> None:
    before = len(priced.lines())
    raw, head = opened(priced.port, "stream-1000x10ms")
    got = b""
    for piece in raw.pieces(head):
        got += piece
        if got.count(b"content_block_delta") > 4:
            break
    raw.close()
    until(lambda: len(priced.lines()) > before, 5, "the log line")
    row = priced.lines()[-1]
    assert row["client_left"] is True and row["usage_complete"] is False
    assert figures(row) == {"input_tokens": 25, "output_tokens": 1}
    assert row["cost_micro_usd"] == 25 * 2 + 10


def test_b42_server_timing_is_valid_and_says_what_the_router_took(priced: Server) -> None:
    started = f"t={time.time() - 0.25:.3f}"
    answer = post(priced.port, "json-0ms", headers=(("x-request-start", started),))
    value = answer.get("server-timing")
    assert SERVER_TIMING.fullmatch(value), value
    names = [metric.partition(";")[0] for metric in value.split(", ")]
    assert names[:4] == ["router", "gateway", "queue", "upstream"] and "connect" in names
    router_ms = float(value.split(",")[0].partition("dur=")[2])
    assert 200.0 < router_ms < 10_000.0


def test_what_is_switched_off_is_not_there(farm: Farm) -> None:
    with farm.own("gthread", SERVER_TIMING="false", ENABLE_USAGE="false") as server:
        given = "neither-usage-nor-timing-0001"
        answer = post(server.port, "json-0ms", headers=(("x-request-id", given),))
        row = line(server, given)
    assert answer.get("server-timing") == ""
    assert (row["tokens"], row["usage_complete"], row["cost_micro_usd"]) == ({}, False, None)


def test_faulty_prices_stop_the_start_and_all_faults_are_told(tmp_path: Path, farm: Farm) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"models": {"a": {"input": "1"}, "b": 1}}')
    with (
        pytest.raises(AssertionError, match=r"(?s)models\.a\.input: .*models\.a\.output: .*models\.b: "),
        farm.own("gthread", PENSTOCK_PRICES=path),
    ):
        pytest.fail("it serves")


def test_the_ledger_of_a_servers_own_log_is_what_it_served(farm: Farm, kind: str, prices: str) -> None:
    with farm.own(kind, PENSTOCK_PRICES=prices) as server:
        for _ in range(7):
            post(server.port, "json-0ms")
        post(server.port, "status-500")
        until(lambda: len(server.lines()) >= 8, 5, "the log lines")
        command = [
            sys.executable,
            "-m",
            "app",
            "ledger",
            "--log",
            str(server.log),
            "--by",
            "route,model",
            "--json",
        ]
        found = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout)
    row = next(row for row in found["rows"] if row["model"] == "claude-sim-json-0ms")
    assert (row["exchanges"], row["input"], row["output"], row["partial"], row["unpriced"]) == (7, 175, 147, 0, 0)
    assert row["cost_usd"] == "0.001820"
    assert found["total"]["exchanges"] == 8
    assert found["total"]["cost_usd"] == "0.001820"
