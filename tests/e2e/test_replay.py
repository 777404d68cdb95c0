"""Recorded traffic through the gateway, equal in every byte (B10-B15); a few exchanges of our own always run.

The recordings stand beside the checkout (``../shared/fixtures``), since they carry licences of their own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from app.simulator.options import Options
from app.simulator.process import running
from app.simulator.running import Running
from tests.e2e.servers import ROOT, Farm, Measured
from tests.e2e.wire import Raw, request

RECORDED = ROOT.parent / "shared" / "fixtures" / "anthropic.jsonl"
NOT_SENT = {"host", "content-length", "connection", "transfer-encoding", "x-sim-replay"}
NOT_PASSED_UP = {"cookie"}
FRAMING = {"connection", "keep-alive", "transfer-encoding", "content-length", "proxy-connection", "upgrade"}
OURS = {"x-request-id", "x-accel-buffering", "date", "server"}
APPENDED = ("x-penstock-provider", "server-timing")  # ours come behind the upstream's own, which are kept

Row = dict[str, Any]


def _row(status: int, headers: list[list[str]], body: bytes, asked: bytes, **more: Any) -> Row:
    return {
        "id": f"own-{status}-{len(body)}",
        "method": "POST",
        "path": "/v1/messages",
        "query": "",
        "request_headers": [["X-Api-Key", "k"], ["User-Agent", "odd/1"], ["Content-Type", "application/json"]],
        "request_body_b64": base64.b64encode(asked).decode(),
        "status": status,
        "response_headers": headers,
        "response_body_b64": base64.b64encode(body).decode(),
        "is_stream": False,
    } | more


JSON = ["content-type", "application/json"]
SSE = ["content-type", "text/event-stream; charset=utf-8"]
EVENTS = (
    b'event: message_start\r\ndata: {"type":"message_start"}\r\n\r\n: comment\n\n'
    b'event:unheard_of\ndata:{"a": 1 }\n\n'
    b'data: one\ndata: two\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)
OWN = [
    _row(
        200,
        [JSON, ["request-id", "req_1"], ["X-Twice", "b"], ["x-twice", "a"]],
        b'{ "b":1,"a":[ ]}\n',
        b'{"z":1, "a":2}',
    ),
    _row(200, [SSE, ["cache-control", "no-cache"]], EVENTS, b'{"stream": true}', is_stream=True),
    _row(200, [SSE], EVENTS[:-9], b'{"stream":true}', is_stream=True),
    _row(200, [JSON, ["content-encoding", "gzip"]], gzip.compress(b'{"a":1}', mtime=0), b"\xff\x00"),
    _row(529, [JSON, ["retry-after", "7"], ["x-should-retry", "true"]], b'{"type":"error"}', b"{}"),
    _row(502, [["content-type", "text/html"], ["server", "cloudflare"]], b"<html>\r\n", b"{}"),
    _row(
        200,
        [["content-type", "application/octet-stream"]],
        bytes(range(256)) * 999,
        b"",
        method="GET",
        path="/v1/files/f/content",
    ),
    _row(404, [JSON], b"{}", b"", method="DELETE", path="/v1/files/f%20g", query="beta=true&x=%C3%A9"),
]


def _sent(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in row["request_headers"] if name.lower() not in NOT_SENT)


def _expected_up(row: Row) -> list[list[str]]:
    """Headers the upstream should hear: all that were sent but cookies, and a version where there was none."""
    pairs = [[name.lower(), value] for name, value in _sent(row) if name.lower() not in NOT_PASSED_UP]
    if not any(name == "anthropic-version" for name, _ in pairs):
        pairs.append(["anthropic-version", "2023-06-01"])
    return pairs


def _expected_down(row: Row) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in row["response_headers"] if name.lower() not in FRAMING]


def replay(raw: Raw, simulator: Running, index: int, row: Row) -> dict[str, bool]:
    """Send one recorded request; which of its four sides came through equal."""
    body = base64.b64decode(row["request_body_b64"] or "")
    target = row["path"] + (f"?{row['query']}" if row["query"] else "")
    option = (("x-sim-replay", str(index)),)
    has_body = row["method"] in ("POST", "PUT", "PATCH")
    raw.send(request(target, body if has_body else None, _sent(row) + option, row["method"]))
    answer = raw.answer(row["method"])
    last = simulator.last()
    assert last is not None
    up = [[n.lower(), v] for n, v in last["headers"] if n.lower() not in NOT_SENT]
    wanted = _expected_down(row)
    present = {name for name, _ in wanted}
    down = [(n.lower(), v) for n, v in answer.headers if n.lower() not in FRAMING]
    down = [(name, value) for name, value in down if name in present or name not in OURS]
    for ours in APPENDED:
        del down[max(index for index, (name, _) in enumerate(down) if name == ours)]
    asked = (last["method"], last["target"], last["body_sha256"])
    return {
        "request": asked == (row["method"], target, hashlib.sha256(body).hexdigest()) and up == _expected_up(row),
        "status": answer.status == row["status"],
        "headers": down == wanted,
        "body": answer.body == base64.b64decode(row["response_body_b64"] or ""),
    }


def _equal(farm: Farm, kind: str, rows: list[Row], path: Path) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {"request": [], "status": [], "headers": [], "body": []}
    options = Options(replay=str(path))
    with (
        running(options) as simulator,
        farm.own(kind, upstream=simulator.tls_url, SSL_CERT_FILE=simulator.ca_path) as server,
        Raw(server.port) as raw,
    ):
        for index, row in enumerate(rows):
            for side, equal in replay(raw, simulator, index, row).items():
                found[side].append(equal)
    return found


def _check(found: dict[str, list[bool]], rows: list[Row], measured: Measured) -> None:
    counts = {side: f"{sum(results)}/{len(rows)}" for side, results in found.items()}
    measured("equal", counts)
    unequal = {
        side: [row["id"] for row, ok in zip(rows, oks, strict=True) if not ok] for side, oks in found.items()
    }
    assert not any(unequal.values()), f"equal {counts}; not: {unequal}"


def test_own_exchanges(farm: Farm, kind: str, tmp_path: Path, measured: Measured) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in OWN), encoding="utf-8")
    _check(_equal(farm, kind, OWN, path), OWN, measured)


@pytest.mark.skipif(not RECORDED.exists(), reason="the recordings are not beside this checkout")
def test_recorded_exchanges(farm: Farm, kind: str, measured: Measured) -> None:
    rows = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(rows) == 282
    _check(_equal(farm, kind, rows, RECORDED), rows, measured)
