"""The hot path keeps its number of calls, crossings and wake-ups: a regression shows without a clock.

Runs on: the test's thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from app.bench.counts import AIMS

ROOT = Path(__file__).resolve().parents[2]


def test_the_hot_path_costs_no_more_than_its_ceilings(tmp_path: Path) -> None:
    """In a process of its own: what is counted depends on what else runs in it."""
    output = tmp_path / "counts.json"
    command = [sys.executable, "-m", "app", "bench", "counts", "--strict", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"a ceiling of app/bench/counts.py is passed:\n{done.stdout}\n{done.stderr}"
    found = json.loads(output.read_text(encoding="utf-8"))
    counted = [found["variants"][aim.variant]["median"][aim.figure] for aim in AIMS]
    assert [value is not None for value in counted] == [True] * len(AIMS)
    plain = found["variants"]["json"]["median"]
    assert plain["crossings"] == 1, "counted, and not merely below its ceiling"
    assert min(plain["worker_calls"], plain["loop_calls"], found["variants"]["paced"]["median"]["wakes"]) > 0
