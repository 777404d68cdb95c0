from __future__ import annotations

from typing import Any

import pytest

from app.bench.section import SectionError, collected, markdown
from app.bench.section_peers import side_by_side
from tests.unit.bench.test_section import MACHINE, WHOLE

OURS: dict[str, float | None] = {
    "cpu_ms_per_request": 0.5,
    "floor_ratio": 2.5,
    "added_p50_ms": 3.0,
    "added_p99_ms": 9.0,
    "error_pct": 0.0,
    "cpu_ms_per_event": 0.04,
    "stream_ttfb_p50_ms": 2.0,
    "stream_ttfb_p99_ms": 20.0,
    "stream_delay_p99_ms": 5.0,
    "stream_error_pct": 0.0,
    "pss_mib": 70.0,
    "request_verbatim": 1.0,
    "json_verbatim": 1.0,
    "sse_verbatim": 1.0,
    "headers_lost": 0.0,
    "headers_added": 3.0,
    "cancels_mid_stream": 1.0,
    "cancels_in_silence": 1.0,
}


def peers(others: dict[str, dict[str, float | None]], known: dict[str, Any] | None = None) -> dict[str, Any]:
    """A results file of ``bench peers``."""
    medians: dict[str, dict[str, float | None]] = {
        "direct": {"error_pct": 0.0},
        "floor": {"cpu_ms_per_request": 0.2},
        "gateway": OURS,
        **others,
    }
    about = {name: {"version": f"{name} 1", "faults": []} for name in others}
    return {
        "bench": "peers",
        "format": 1,
        "machine": MACHINE,
        "settings": {
            "rounds": 3,
            "seconds": 5.0,
            "concurrency": 32,
            "streams": 200,
            "events": 100,
            "gap_ms": 20,
            "peers": {**about, **(known or {})},
        },
        "variants": {
            name: {"median": median, "interval": {}, "rounds": [dict(median)] * 3}
            for name, median in medians.items()
        },
        "aims": [],
        "faults": [],
        "command": "penstock bench peers --cache /some/where",
    }


def text(others: dict[str, dict[str, float | None]], known: dict[str, Any] | None = None) -> str:
    return "\n\n".join(side_by_side(peers(others, known)))


def test_a_line_for_each() -> None:
    found = text({"nginx": {**OURS, "cpu_ms_per_request": 0.02}, "litellm": {}})
    assert "| WSGI floor | 0.20 | – | – | – | – | – | – | – | – | – |" in found
    ours = "| **Penstock** | 0.50 (2.50) | 3.0 / 9.0 | 0.040 | 2.0 / 20.0 | 5.0 | 0 % | 70 | yes | 0 / 3 | yes |"
    assert ours in found
    assert "| nginx | 0.02 (2.50) |" in found
    assert "| LiteLLM | – | – | – | – | – | – | – | – | – | – |" in found
    assert "32 JSON requests at once for about 5 s, then 200 streams × 100 events × 20 ms; medians of 3" in found
    assert "Versions: nginx 1; litellm 1." in found
    rows = [line for line in found.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_what_we_lose_at() -> None:
    facts = ("_verbatim", "_stream", "_silence")
    worse = {name: (value or 0) + 1 for name, value in OURS.items() if not name.endswith(facts)}
    quick: dict[str, float | None] = {
        **worse,
        "cpu_ms_per_request": 0.02,
        "added_p99_ms": 8.9,
        "headers_added": 0.0,
        "pss_mib": None,
    }
    small: dict[str, float | None] = {**worse, "cpu_ms_per_request": 0.4, "pss_mib": 15.0}
    _, lost = text({"nginx": quick, "flask": small}).split("What we lose at:\n\n")
    assert lost.splitlines() == [
        "- CPU per request: ours 0.50 ms; nginx 0.02, Flask + requests, gevent 0.40",
        "- added to an answer, p99: ours 9.0 ms; nginx 8.9",
        "- memory: ours 70 MiB; Flask + requests, gevent 15",
        "- response headers added: ours 3; nginx 0",
    ]


def test_facts_may_be_lost_at_too() -> None:
    data = peers({"nginx": dict(OURS)})
    data["variants"]["gateway"]["median"] = {**OURS, "json_verbatim": 0.0, "headers_lost": 2.0}
    lost = "\n\n".join(side_by_side(data)).split("What we lose at:\n\n")[1]
    assert lost.splitlines() == [
        "- JSON answers byte for byte: ours 0; nginx 1",
        "- response headers lost or altered: ours 2; nginx 0",
    ]


@pytest.mark.parametrize("theirs", [dict(OURS), {**OURS, "pss_mib": 69.9, "cpu_ms_per_request": 0.4999}, {}])
def test_what_looks_alike_is_no_loss(theirs: dict[str, float | None]) -> None:
    assert text({"nginx": theirs}).endswith("What we lose at:\n\n- nothing that is in this table")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"json_verbatim": 0.0}, "requests and events only"),
        ({"json_verbatim": 0.0, "request_verbatim": 0.0}, "events only"),
        ({"json_verbatim": 0.0, "request_verbatim": 0.0, "sse_verbatim": 0.0}, "no"),
        ({"json_verbatim": None}, "requests and events only"),
        ({"json_verbatim": 0.0, "request_verbatim": 0.0, "sse_verbatim": None}, "no"),
        ({"json_verbatim": None, "request_verbatim": None, "sse_verbatim": None}, "–"),
        ({"cancels_in_silence": 0.0}, "only while events come"),
        ({"cancels_mid_stream": 0.0}, "only in silence"),
        ({"cancels_mid_stream": 0.0, "cancels_in_silence": 0.0}, "no"),
        ({"cancels_mid_stream": None}, "–"),
        ({"stream_error_pct": 0.5}, "0.5 %"),
        ({"error_pct": 0.25}, "0.25 %"),
    ],
)
def test_facts_in_words(facts: dict[str, float | None], words: str) -> None:
    (line,) = [line for line in text({"nginx": {**OURS, **facts}}).splitlines() if line.startswith("| nginx ")]
    assert f"| {words} |" in line


def test_a_peer_with_a_fault_is_named() -> None:
    found = text({"litellm": {}}, {"litellm": {"version": "", "faults": ["it cannot be set up: no network"]}})
    assert "LiteLLM: it cannot be set up: no network." in found
    assert "Versions: ." not in found


def test_what_failed_in_every_round_is_said_once() -> None:
    faults = [
        "round 1: 2 % of the requests failed",
        "round 2: 2 % of the requests failed",
        "round 3: it went away",
    ]
    found = text({"litellm": {}}, {"litellm": {"version": "litellm 1", "faults": faults}})
    assert found.count("LiteLLM: ") == 2
    assert "LiteLLM: 2 % of the requests failed.\nLiteLLM: it went away." in found


def test_the_section_has_it_and_says_how_to_make_it() -> None:
    whole = markdown(collected({"peers.json": peers({"nginx": dict(OURS)})}))
    assert "| nginx | 0.50 (2.50) |" in whole
    commands = "penstock bench peers --output peers.json\npenstock bench section peers.json\n```\n"
    assert whole.endswith(f"```sh\n{commands}")
    assert "| one worker | aim |" not in whole


def test_a_peer_that_could_not_be_measured_has_no_rounds_but_a_fault() -> None:
    data = peers({"litellm": {}}, {"litellm": {"version": "", "faults": ["no network"]}})
    data["variants"]["litellm"]["rounds"] = []
    assert "LiteLLM: no network." in markdown(collected({"peers.json": data}))
    data["settings"]["peers"]["litellm"]["faults"] = []
    with pytest.raises(SectionError, match="litellm has no rounds"):
        collected({"peers.json": data})


def test_the_side_by_side_is_of_the_same_machine() -> None:
    other = {**peers({"nginx": dict(OURS)}), "machine": {**MACHINE, "cores": 64}}
    with pytest.raises(SectionError, match="different machines"):
        collected({"all.json": WHOLE, "peers.json": other})


def test_the_side_by_side_may_be_of_another_day() -> None:
    later = {**peers({"nginx": dict(OURS)}), "machine": {**MACHINE, "at": "2026-12-01T00:00:00", "load_1m": 3}}
    whole = markdown(collected({"all.json": WHOLE, "peers.json": later}))
    assert whole.index("| one worker | aim |") < whole.index("| nginx |")
    assert " The side-by-side: on 2026-12-01, with a load of 3 when it began.\n" in whole
