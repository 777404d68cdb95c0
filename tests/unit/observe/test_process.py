"""observe/process: memory and descriptors are the kernel's figures, and none elsewhere than on Linux (B41).

Runs on: worker.
"""

from __future__ import annotations

import os
from pathlib import Path

from app.observe import process


def test_b41_memory_is_counted_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "statm").write_text("900 7 3 1 0 2 0\n", encoding="ascii")
    assert process.resident_bytes(tmp_path) == 7 * os.sysconf("SC_PAGE_SIZE")
    found = process.resident_bytes()
    assert found is not None and found > 1_000_000


def test_b41_descriptors_are_counted() -> None:
    before = process.open_fds()
    assert before is not None
    with Path(os.devnull).open("rb"), Path(os.devnull).open("rb"):
        assert process.open_fds() == before + 2
    assert process.open_fds() == before


def test_b41_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert (process.resident_bytes(tmp_path), process.open_fds(tmp_path)) == (None, None)
