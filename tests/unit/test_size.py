"""Little's law per node and worker, the JSON that loads, and what the defaults do not carry.

Pure.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from app import cli
from app.settings import load
from app.size import Size, config, meaning, size


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["size", *arguments])


@pytest.mark.parametrize(
    ("rps", "seconds", "workers", "nodes", "concurrency", "buffer_size"),
    [
        (2000, 8, 4, 4, 4000, 6000),
        (1, 1, 1, 1, 1, 2),
        (0.1, 30, 1, 1, 3, 5),
        (10, 1, 1, 3, 4, 6),
        (1, 1, 8, 1, 8, 12),
        (0.001, 0.001, 3, 10, 3, 5),
        (1000, 1000, 1, 1, 1_000_000, 1_500_000),
    ],
)
def test_littles_law(
    rps: float, seconds: float, workers: int, nodes: int, concurrency: int, buffer_size: int
) -> None:
    assert size(rps, seconds, workers, nodes) == Size(concurrency, buffer_size, workers, nodes)


def test_more_than_can_be_set_takes_more_nodes() -> None:
    with pytest.raises(ValueError, match=r"1000001 exchanges at once per node; 1000000 are possible"):
        size(1_000_001, 1, 1, 1)
    assert size(1_000_001, 1, 1, 2).concurrency == 500_001


@given(
    st.floats(0.001, 10_000), st.floats(0.001, 90), st.integers(1, 512), st.integers(1, 100)
)  # more could be too much for one node
def test_the_nodes_carry_the_load_and_every_worker_has_a_slot(
    rps: float, seconds: float, workers: int, nodes: int
) -> None:
    found = size(rps, seconds, workers, nodes)
    assert found.concurrency * nodes >= rps * seconds * (1 - 1e-12)
    assert found.concurrency >= workers
    assert found.buffer_size >= found.concurrency
    assert found.per_worker(found.concurrency) * workers >= found.concurrency


def test_the_command_prints_json_that_loads(tmp_path: Path) -> None:
    result = _run("--rps", "2000", "--seconds", "8", "--workers", "4", "--nodes", "4")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == config(Size(4000, 6000, 4, 4))
    path = tmp_path / "penstock.json"
    path.write_text(result.stdout)
    settings = load({"PENSTOCK_CONFIG": str(path), "WEB_CONCURRENCY": "4"})
    assert (settings.anthropic_concurrency, settings.anthropic_buffer_size) == (4000, 6000)
    assert (settings.initial_pool_size, settings.drop_excess_requests) == (4000, False)


def test_the_largest_size_loads_too(tmp_path: Path) -> None:
    path = tmp_path / "penstock.json"
    path.write_text(json.dumps(config(size(1000, 1000, 512, 1))))
    assert load({"PENSTOCK_CONFIG": str(path), "WEB_CONCURRENCY": "512"}).initial_pool_size == 1_000_000


def test_the_meaning_goes_to_stderr() -> None:
    result = _run("--rps", "2000", "--seconds", "8", "--workers", "4", "--nodes", "4")
    assert result.stderr.splitlines() == [
        "per node, of 4: 4000 exchanges at once, 6000 with those that wait; set WEB_CONCURRENCY=4",
        "per worker, of 4: 1000 at once, 1500 with those that wait",
        "warning: WORKER_CONNECTIONS: a worker needs 1500, the default is 1000: set WORKER_CONNECTIONS=1500",
        "ANTHROPIC_MAX_CONNECTIONS: a worker needs 10, the default of 200 carries it, "
        "with ANTHROPIC_STREAMS_PER_CONNECTION=100; 1000 where the upstream has no HTTP/2",
    ]


def test_what_the_defaults_carry_and_what_they_do_not() -> None:
    fine = list(meaning(Size(10_000, 1000, 1, 1)))
    assert not any(line.startswith("warning") for line in fine)
    assert len(fine) == 4
    (keepalive,) = (line for line in meaning(Size(10_001, 1000, 1, 1)) if line.startswith("warning"))
    assert keepalive.endswith("ANTHROPIC_MAX_KEEPALIVE=101")
    more = "\n".join(meaning(Size(20_001, 1001, 1, 1)))
    assert "set WORKER_CONNECTIONS=1001" in more
    assert "set ANTHROPIC_MAX_CONNECTIONS=201," in more
    too_much = "\n".join(meaning(Size(100_000, 100_001, 1, 1)))
    assert "a worker needs 100001, more than the 100000 it can be: take more workers or nodes" in too_much


FINE = {"--rps": "1", "--seconds": "1", "--workers": "1", "--nodes": "1"}


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--rps", "0", "0.0 is not in the range"),
        ("--rps", "-1", "is not in the range"),
        ("--rps", "nan", "'nan' is not a number"),
        ("--rps", "inf", "inf is not in the range"),
        ("--seconds", "x", "'x' is not a valid number"),
        ("--workers", "0", "0 is not in the range"),
        ("--workers", "513", "513 is not in the range"),
        ("--nodes", "1.5", "'1.5' is not a valid integer"),
    ],
)
def test_bad_numbers_are_named_with_their_option(option: str, value: str, complaint: str) -> None:
    result = _run(*(part for pair in (FINE | {option: value}).items() for part in pair))
    assert result.exit_code == 2
    assert not result.stdout
    assert f"'{option}'" in result.stderr
    assert complaint in result.stderr


def test_missing_numbers_and_loads_beyond_all_limits() -> None:
    assert "Missing option '--seconds'" in _run("--rps", "1", "--workers", "1").stderr
    result = _run("--rps", "1e7", "--seconds", "1", "--workers", "1")
    assert result.exit_code == 2
    assert "it takes more nodes" in result.stderr
