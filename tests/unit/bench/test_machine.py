"""Facts about the machine, or None."""

from __future__ import annotations

import json
from pathlib import Path

from app.bench.machine import facts


def test_what_can_be_found_out(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Processor 9000\nmodel name\t: another\n")
    (tmp_path / "meminfo").write_text("MemTotal:       16384 kB\nMemFree: 1 kB\n")
    found = facts(tmp_path)
    assert (found["cpu"], found["memory_kib"]) == ("A Processor 9000", 16384)
    assert found["cores"] > 0
    assert found["packages"]["gevent"]
    json.dumps(found)


def test_what_cannot_is_none(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor: 0\n")
    found = facts(tmp_path)
    assert (found["cpu"], found["memory_kib"]) == (None, None)
