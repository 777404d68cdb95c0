"""Model names mean what the grammar says."""

from __future__ import annotations

import pytest

from app.simulator.scenarios import DEMO, Scenario, named, parse


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("json-0ms", Scenario("json")),
        ("json-20ms-4k", Scenario("json", delay_ms=20, size_kib=4)),
        ("delay-200ms", Scenario("json", delay_ms=200)),
        ("stream-100x20ms", Scenario("stream", deltas=100, gap_ms=20)),
        ("stream-5x0ms-300b", Scenario("stream", deltas=5, gap_ms=0, pad_bytes=300)),
        ("burst-50", Scenario("burst", deltas=50)),
        ("status-429", Scenario("status", status=429)),
        ("status-529-ra3", Scenario("status", status=529, retry_after="3")),
        ("status-503-ra0.5", Scenario("status", status=503, retry_after="0.5")),
        ("status-502-html", Scenario("html", status=502)),
        ("early-413", Scenario("early", status=413)),
        ("reset", Scenario("reset", deltas=3, gap_ms=5)),
        ("reset-7", Scenario("reset", deltas=7, gap_ms=5)),
        ("close-2", Scenario("close", deltas=2, gap_ms=5)),
        ("stall-1", Scenario("stall", deltas=1, gap_ms=5)),
        ("halfevent-4", Scenario("halfevent", deltas=4, gap_ms=5)),
        ("streamerror-2", Scenario("streamerror", deltas=2, gap_ms=5)),
        ("overloaded", Scenario("overloaded")),
        ("overloaded-2", Scenario("overloaded", count=2)),
        ("hang", Scenario("hang")),
        ("refused", Scenario("refused")),
        ("goaway-2", Scenario("goaway", deltas=2, gap_ms=5)),
        ("goaway-now", Scenario("goaway_now")),
        ("golden", Scenario("golden")),
        ("repeat", Scenario("repeat")),
        ("slowhead-150", Scenario("slowhead", delay_ms=150)),
        ("slowhead-150ms", Scenario("slowhead", delay_ms=150)),
        ("slowread-64", Scenario("slowread", rate_kbps=64)),
        ("big-2048k", Scenario("big", size_kib=2048)),
        ("flaky-2-529", Scenario("flaky", count=2, status=529)),
        ("flaky-1-429-ra2", Scenario("flaky", count=1, status=429, retry_after="2")),
    ],
)
@pytest.mark.parametrize(
    "prefix", ["claude-lab-", "gpt-lab-", "claude-sim-", "gpt-sim-", "some/route/claude-sim-"]
)
def test_a_name_asks_for_its_scenario(prefix: str, text: str, wanted: Scenario) -> None:
    found = parse(prefix + text)
    assert found.name == text
    assert {**_fields(found), "name": ""} == _fields(wanted)
    assert named(text) == found == named(prefix + text)


@pytest.mark.parametrize(
    "name", ["claude-sonnet-4-5", "", "json-0ms", "claude-sim-", "claude-sim-hangover", "claude-lab-json-5s"]
)
def test_any_other_name_is_answered_as_by_a_live_model(name: str) -> None:
    assert parse(name) is DEMO


def test_a_name_may_go_on_after_its_scenario() -> None:
    assert parse("claude-sim-stream-100x20ms-20250101").deltas == 100
    assert parse("claude-sim-burst-50-x").deltas == 50


def _fields(scenario: Scenario) -> dict[str, object]:
    return {name: getattr(scenario, name) for name in Scenario.__slots__}
