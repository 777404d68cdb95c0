"""What is swept, and the table that comes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.bench.latency_figures import Sample
from app.bench.profiles_figures import (
    ROWS,
    SWITCH,
    WHAT,
    Plan,
    Profiles,
    Sweep,
    as_markdown,
    download_faults,
    download_figures,
    request_faults,
    request_figures,
    stream_figures,
    sweeps,
)
from app.bench.report import Report, Variant
from app.bench.stream_client import Streamed
from app.bench.streaming_figures import Round
from app.settings import rows

PLAN = Plan(downloads=4, download_kib=1024, requests=3)
KNOWN = {name for row in rows() for name in row.env}
WHOLE = Streamed(200, 1.0, 3.0, {}, first_s=1.5, body_s=1.5, size_bytes=2**20)
DOWNLOADS = Round([WHOLE] * 4, 0, duration_s=2.0, cpu_s=0.008, pss_bytes=(60 * 2**20, 64 * 2**20))


def _sweep(name: str) -> Sweep:
    return sweeps(PLAN, KNOWN | {SWITCH})[name]


def test_all_that_is_swept_are_settings_of_this_gateway() -> None:
    assert set(sweeps(PLAN, KNOWN | {SWITCH})) == set(WHAT)
    assert set(WHAT) - set(sweeps(PLAN, KNOWN)) <= {"switch"}
    assert set(sweeps(PLAN, {SWITCH})) == {"switch"}
    assert sweeps(PLAN, set()) == {}


def test_every_position_has_a_name_and_room_for_all_streams() -> None:
    cells = _sweep("connections").cells
    assert [tuple(cell.settings.values()) for cell in cells] == [(1, 200), (2, 100), (8, 25), (200, 1)]
    for streams in (1, 5, 8, 199, 1000):
        found = sweeps(Plan(streams=streams), KNOWN)["connections"].cells
        assert len({cell.name for cell in found}) == len(found)
        for cell in found:
            most, shared = (int(str(value)) for value in cell.settings.values())
            assert most * shared >= streams
    assert cells[0].name == "anthropic_max_connections_1_anthropic_streams_per_connection_200"


def test_the_chunk_sizes_are_allowed() -> None:
    (row,) = [one for one in rows() if "ANTHROPIC_CHUNK_SIZE" in one.env]
    sizes = [int(str(cell.settings["ANTHROPIC_CHUNK_SIZE"])) for cell in _sweep("chunk").cells]
    assert row.attribute == "anthropic_chunk_size_bytes"
    assert (min(sizes), max(sizes)) == (4096, 65536)


def test_titles_tell_what_each_position_carries() -> None:
    assert _sweep("switch").title(PLAN) == (
        f"switch: {SWITCH}; 200 streams x 100 events x 20 ms; 3 short requests, 32 at once; "
        "median of 3 interleaved round(s)"
    )
    assert "4 downloads of 1,024 KiB, 4 at once" in _sweep("chunk").title(PLAN)


def test_rows_are_the_figures_of_the_loads() -> None:
    requests = request_figures([Sample(200, 0.1, 0.2)], 1.0, 0.1, 2**20)
    found = {
        "requests": requests,
        "downloads": download_figures(DOWNLOADS),
        "streams": stream_figures(DOWNLOADS, 3),
    }
    assert {load: set(figures) for load, figures in found.items()} == {
        load: {row.figure for row in shown} for load, shown in ROWS.items()
    }
    *shown, last = _sweep("switch").rows
    assert shown == [*ROWS["streams"], *ROWS["requests"]]
    busy = replace(DOWNLOADS, others_pct=12.34)
    more = (request_figures([], 1, 1, 1, 12.34), download_figures(busy), stream_figures(busy, 3))
    assert [one[last.figure] for one in more] == [12.3] * 3
    assert found["streams"]["connections"] == 3


def test_requests_are_measured_by_those_that_succeeded() -> None:
    samples = [Sample(200, 0.1, 0.2), Sample(200, 0.1, 0.4), Sample(503, 0.0, 0.0)]
    assert request_figures(samples, 2.0, 0.001, 2**20) == {
        "rps": 1.0,
        "cpu_ms_per_request": 0.5,
        "full_p50_ms": 200.0,
        "full_p99_ms": 400.0,
        "pss_mib": 1.0,
    }
    assert request_faults(samples, PLAN) == ["1 of 3 requests failed"]
    assert request_faults([samples[0]] * 3, PLAN) == []
    assert set(request_figures([], 0.0, None, None).values()) == {None}


def test_downloads_are_weighed() -> None:
    assert download_figures(DOWNLOADS) == {
        "mib_per_s": 2.0,
        "cpu_ms_per_mib": 2.0,
        "download_p50_ms": 2000.0,
        "download_p99_ms": 2000.0,
        "peak_mib": 4.0,
    }
    assert download_faults(DOWNLOADS.samples, PLAN) == []
    assert set(download_figures(Round([], 0, 1.0)).values()) == {None}


@pytest.mark.parametrize("bad", [replace(WHOLE, size_bytes=2**20 - 1), replace(WHOLE, status=0)])
def test_a_download_is_there_to_the_last_byte(bad: Streamed) -> None:
    assert download_faults([WHOLE] * 3 + [bad], PLAN) == ["1 of 4 downloads failed or were not whole"]
    assert download_faults([WHOLE] * 3, PLAN) == ["1 of 4 downloads failed or were not whole"]


def _report(*faults: str) -> Report:
    variants = [Variant("a", "1 worker(s)", [{"rps": 1000.0, "cpu_ms_per_request": 0.5}]), Variant("b", "2", [{}])]
    return Report("profiles-workers", "workers: title", {}, ROWS["requests"], variants, [], faults)


def test_an_operator_reads_a_line_for_each_position() -> None:
    assert as_markdown(_report()).splitlines() == [
        "workers: title",
        "",
        "|  | requests per second | CPU per request |",
        "| --- | ---: | ---: |",
        "| 1 worker(s) | 1,000 /s | 0.500 ms |",
        "| 2 | - | - |",
    ]


def test_all_sweeps_are_one_outcome() -> None:
    found = Profiles("profiles: workers", {"workers": _report("lost"), "chunk": _report()}, notes=["a note"])
    assert found.faults == ["workers: lost"]
    assert (found.reached, len(found.sections)) == (True, 2)
    assert found.text().endswith("\n\na note")
    assert "| --- |" not in found.text()
    found.markdown = True
    assert found.text().count("| --- |") == 2
    data = found.json({"cores": 2})
    assert (data["bench"], list(data["parts"]), data["faults"]) == ("profiles", ["workers", "chunk"], found.faults)
    assert data["parts"]["workers"]["variants"]["a"]["median"]["rps"] == 1000.0
