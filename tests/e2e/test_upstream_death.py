"""An upstream that dies: one terminal error event at an event boundary, or a truncation that can be seen (B22)."""

from __future__ import annotations

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.wire import Truncated, ask, opened, post, terminal_error


@pytest.fixture
def impatient(farm: Farm, kind: str, simulator: Running) -> Server:
    """A gateway that takes a second of silence for the end."""
    return farm.shared(kind, STREAM_TIMEOUT=1)


def _body(port: int, scenario: str) -> bytes:
    """A broken stream's body: framed to its end, so that no client library takes it for a transport error."""
    raw, head = opened(port, scenario)
    with raw:
        assert head.status == 200
        return raw.body(head)


@pytest.mark.parametrize("plain", [False, True], ids=["h2", "http1"])
@pytest.mark.parametrize(("scenario", "deltas"), [("reset-3", 3), ("close-3", 3), ("reset-40", 40)])
def test_broken_streams(
    farm: Farm, kind: str, simulator: Running, plain: bool, scenario: str, deltas: int
) -> None:
    """RST_STREAM or TCP RST, and a clean close in the middle."""
    more = {"ANTHROPIC_UPSTREAM_URL": simulator.plain_url} if plain else {}
    body = _body(farm.shared(kind, **more).port, scenario)
    assert terminal_error(body)["error"]["type"] == "api_error"
    assert body.count(b"text_delta") == deltas


@pytest.mark.parametrize("scenario", ["stall-3", "halfevent-3"])
def test_silence(impatient: Server, simulator: Running, scenario: str) -> None:
    """After STREAM_TIMEOUT; half an event is not passed on, and the upstream stream is reset."""
    body = _body(impatient.port, scenario)
    assert terminal_error(body)["error"]["type"] == "api_error"
    assert body.count(b'"text_delta"') == 3
    until(lambda: simulator.stats()["open_streams"] == 0)


def test_a_slow_stream_is_not_a_silent_one(impatient: Server) -> None:
    body = _body(impatient.port, "stream-4x400ms")
    assert body.count(b"text_delta") == 4
    assert b"event: error" not in body


def test_the_upstreams_own_last_word_stays_the_last(server: Server) -> None:
    """No second error event after one of the upstream's."""
    for scenario in ("streamerror-2", "overloaded"):
        body = _body(server.port, scenario)
        assert terminal_error(body)["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("scenario", ["reset-1", "close-1"])
def test_truncated_json(server: Server, scenario: str) -> None:
    """The head had promised a length: either nothing of it was passed on, or the client sees the truncation."""
    try:
        answer = post(server.port, scenario)
    except Truncated:
        return
    assert answer.status == 502
    assert answer.error == "api_error"
    assert answer.get("x-penstock-error") in ("stream_broken", "protocol_broken")


@pytest.mark.parametrize("scenario", ["reset-1", "close-1"])
def test_truncated_downloads(server: Server, scenario: str) -> None:
    option = (("x-sim-scenario", scenario),)
    try:
        answer = ask(server.port, "/v1/files/file_sim_100/content", None, option)
    except Truncated:
        return
    assert answer.status == 502


def test_before_the_head(server: Server, simulator: Running) -> None:
    """Refused streams were not processed: an error of the gateway's own that says to try again."""
    answer = post(server.port, "refused")
    assert answer.status == 502
    assert answer.error == "api_error"
    assert answer.get("x-should-retry") == "true"


def test_the_whole_time_of_a_json_answer_is_bounded(farm: Farm, kind: str, simulator: Running) -> None:
    server = farm.shared(kind, REQUEST_TIMEOUT=1)
    answer = post(server.port, "hang")
    assert (answer.status, answer.error) == (504, "timeout_error")
    assert answer.get("x-penstock-error") == "deadline_passed"
    until(lambda: simulator.stats()["open_streams"] == 0)
    assert _body(server.port, "stream-3x450ms").count(b"text_delta") == 3  # a stream may be longer


def test_one_dead_stream_leaves_its_siblings_alone(farm: Farm, kind: str, simulator: Running) -> None:
    server = farm.shared(kind, STREAM_TIMEOUT=2)
    stays, head = opened(server.port, "stream-90x30ms")
    for scenario in ("reset-1", "stall-1"):
        terminal_error(_body(server.port, scenario))
    with stays:
        assert stays.body(head).count(b"text_delta") == 90


def test_a_goaway_loses_nothing(farm: Farm, kind: str, simulator: Running) -> None:
    """What can be finished is finished; what was never looked at is sent again."""
    server = farm.shared(kind, RETRY_MAX_ATTEMPTS=3)
    stays, head = opened(server.port, "goaway-3")
    with stays:
        assert stays.body(head).count(b"text_delta") == 13
    assert post(server.port, "goaway-now").status == 200
    assert post(server.port, "json-0ms").status == 200
