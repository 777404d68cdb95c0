from __future__ import annotations

import pytest

from app.bench.figures import Figures
from app.bench.peers_figures import ROWS, Plan, faults, headers_apart, json_figures, stream_figures

PLAN = Plan()
LOAD: Figures = {
    "requests": 500,
    "rps": 100.0,
    "client_cpu_ms_per_request": 0.1,
    "cpu_ms_per_request": 1.0,
    "full_p50_ms": 2.0,
    "full_p95_ms": 3.0,
    "full_p99_ms": 4.0,
    "error_pct": 0.0,
}
STREAMS: Figures = {
    "events": 20_000,
    "ttfb_p50_ms": 1.0,
    "ttfb_p99_ms": 2.0,
    "delay_p50_ms": 3.0,
    "delay_p99_ms": 4.0,
    "cpu_ms_per_event": 0.05,
    "error_pct": 0.5,
}


@pytest.mark.parametrize(
    ("rate", "wanted"), [(1000.0, 5000), (10.0, 128), (None, 128), (0.0, 128), (1_000_000.0, 20_000), (33.33, 167)]
)
def test_a_load_takes_about_its_seconds(rate: float | None, wanted: int) -> None:
    assert PLAN.requests(rate) == wanted


def test_the_plan_in_words() -> None:
    assert (PLAN.model, PLAN.stream_model) == ("claude-sim-json-0ms", "claude-sim-stream-100x20ms")
    assert PLAN.title() == (
        "peers: 32 requests at once for about 5 s, then 200 streams x 100 events x 20 ms; one worker each; "
        "median of 3 interleaved round(s)"
    )


def test_what_is_shown_of_a_load() -> None:
    shown = json_figures(LOAD, answered_upstream=True)
    assert shown == {
        "requests": 500,
        "rps": 100.0,
        "cpu_ms_per_request": 1.0,
        "full_p50_ms": 2.0,
        "full_p99_ms": 4.0,
        "error_pct": 0.0,
    }
    without_cpu = {name: value for name, value in LOAD.items() if name != "cpu_ms_per_request"}
    assert "cpu_ms_per_request" not in json_figures(without_cpu, answered_upstream=True)


@pytest.mark.parametrize("error_pct", [1.01, 100.0, None])
def test_what_failed_has_no_figures_but_its_errors(error_pct: float | None) -> None:
    shown = json_figures({**LOAD, "error_pct": error_pct}, answered_upstream=True)
    assert shown.pop("error_pct") == error_pct
    assert set(shown.values()) == {None}
    shown = stream_figures({**STREAMS, "error_pct": error_pct})
    assert shown.pop("stream_error_pct") == error_pct
    assert set(shown.values()) == {None}


def test_answers_that_are_not_the_upstreams_have_no_figures() -> None:
    shown = json_figures(LOAD, answered_upstream=False)
    assert shown.pop("error_pct") == 0
    assert set(shown.values()) == {None}


def test_what_is_shown_of_streams() -> None:
    assert stream_figures(STREAMS) == {
        "events": 20_000,
        "stream_ttfb_p50_ms": 1.0,
        "stream_ttfb_p99_ms": 2.0,
        "stream_delay_p50_ms": 3.0,
        "stream_delay_p99_ms": 4.0,
        "cpu_ms_per_event": 0.05,
        "stream_error_pct": 0.5,
    }
    assert "cpu_ms_per_event" not in stream_figures({"events": 1, "error_pct": 0.0})


def test_each_row_is_there_once() -> None:
    names = [row.figure for row in ROWS]
    assert len(names) == len(set(names))


STRAIGHT = [
    [
        ("Date", "then"),
        ("request-id", "1"),
        ("x-robots-tag", "none"),
        ("via", "a"),
        ("via", "b"),
        ("server", "up"),
    ],
    [
        ("Date", "then"),
        ("request-id", "2"),
        ("x-robots-tag", "none"),
        ("via", "a"),
        ("via", "b"),
        ("server", "up"),
    ],
]


@pytest.mark.parametrize(
    ("through", "lost", "added"),
    [
        (STRAIGHT[0], [], []),
        ([*STRAIGHT[0], ("Connection", "close"), ("transfer-encoding", "chunked")], [], []),
        ([("date", "now"), ("Request-ID", "3"), ("X-Robots-Tag", "none"), *STRAIGHT[0][3:]], [], []),
        ([*STRAIGHT[0][:5], ("server", "mine")], ["server"], []),
        ([*STRAIGHT[0], ("server", "mine")], ["server"], []),
        ([*STRAIGHT[0][:4], ("server", "up")], ["via"], []),
        ([*STRAIGHT[0][:3], ("via", "b"), ("via", "a"), ("server", "up")], ["via"], []),
        (
            [("x-mine", "1"), ("A-nother", "2")],
            ["date", "request-id", "server", "via", "x-robots-tag"],
            ["a-nother", "x-mine"],
        ),
    ],
)
def test_headers_apart(through: list[tuple[str, str]], lost: list[str], added: list[str]) -> None:
    assert headers_apart(STRAIGHT, through) == (lost, added)


@pytest.mark.parametrize(
    ("found", "streams", "wanted"),
    [
        ({"error_pct": 0.0, "stream_error_pct": 1.0, "rps": 1.0}, True, []),
        ({"error_pct": 0.0}, False, []),
        ({"error_pct": 0.0}, True, ["no streams were measured"]),
        ({"stream_error_pct": 0.0}, True, ["no requests were measured"]),
        (
            {"error_pct": 2.0, "rps": None, "stream_error_pct": 50.0},
            True,
            ["2 % of the requests failed", "50 % of the streams failed"],
        ),
        (
            {"error_pct": 0.0, "stream_error_pct": 0.0, "rps": None, "a": None},
            True,
            ["could not be measured: a, rps"],
        ),
    ],
)
def test_what_a_round_lacks(found: dict[str, float | None], streams: bool, wanted: list[str]) -> None:
    assert faults(found, streams) == wanted
