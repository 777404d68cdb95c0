"""Reading /proc, from files made by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.bench.procs import children, holder, inode_of, rss_bytes

TABLE = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0 100 0\n"
    "   1: 0100007F:1F40 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 22 1 0 20 4\n"
    "   2: 0100007F:C350 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 33 1 0 20 4\n"
)


@pytest.mark.parametrize(
    ("ports", "inode"), [((8000, 50_000), 22), ((50_000, 8000), 33), ((8000, 1), 0), ((8000, 0), 11)]
)
def test_a_connection_has_an_inode_at_each_end(ports: tuple[int, int], inode: int) -> None:
    assert inode_of(TABLE, *ports) == inode


def _proc(folder: Path) -> Path:
    (folder / "net").mkdir()
    (folder / "net" / "tcp").write_text(TABLE)
    for pid, inode in ((7, 99), (8, 22)):
        (folder / str(pid) / "fd").mkdir(parents=True)
        (folder / str(pid) / "fd" / "5").symlink_to(f"socket:[{inode}]")
    return folder


def test_the_holder_of_a_connection(tmp_path: Path) -> None:
    proc = _proc(tmp_path)
    assert holder([7, 8], 8000, 50_000, proc) == 8
    assert holder([7, 6], 8000, 50_000, proc) is None
    assert holder([7, 8], 8000, 1, proc) is None


def test_children_and_memory(tmp_path: Path) -> None:
    (tmp_path / "5" / "task" / "5").mkdir(parents=True)
    (tmp_path / "5" / "task" / "5" / "children").write_text("7 8 ")
    (tmp_path / "5" / "statm").write_text("100 25 3 1 0 9 0\n")
    assert children(5, tmp_path) == [7, 8]
    assert children(6, tmp_path) == []
    assert rss_bytes(5, tmp_path) == 25 * os.sysconf("SC_PAGE_SIZE")
    with pytest.raises(OSError, match="statm"):
        rss_bytes(6, tmp_path)
