"""Reading /proc, from files made by hand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from app.bench import procs
from app.bench.procs import children, cpu_s, holder, inode_of, pss_bytes, rss_bytes, tree

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


def _family(folder: Path, links: dict[int, dict[int, str]]) -> Path:
    """pid -> thread -> its children."""
    for pid, threads in links.items():
        for thread, text in threads.items():
            (folder / str(pid) / "task" / str(thread)).mkdir(parents=True)
            (folder / str(pid) / "task" / str(thread) / "children").write_text(text)
    return folder


def test_a_tree_has_the_children_of_all_threads_and_theirs(tmp_path: Path) -> None:
    proc = _family(tmp_path, {5: {5: "7 8 ", 6: "9 "}, 7: {7: ""}, 9: {9: "10 "}})
    assert tree(5, proc) == [5, 7, 8, 9, 10]
    assert tree(7, proc) == [7]


def test_cpu_time_is_user_and_system_with_reaped_children(tmp_path: Path) -> None:
    before, after = "S 1 5 5 0 -1 4194560 4 0 0 0", "20 0 1 0 1000 1 1"
    for pid, times in ((5, "1 20 300 4000"), (7, "0 0 0 7")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (b) c) {before} {times} {after}\n")
    ticks_s = os.sysconf("SC_CLK_TCK")
    own_s = {5: 1.25, 7: 0.5}
    assert cpu_s([5, 7], tmp_path, own_s.__getitem__) == pytest.approx(1.75 + 4307 / ticks_s)
    assert cpu_s([], tmp_path) == 0
    with pytest.raises(OSError, match="stat"):
        cpu_s([5, 8], tmp_path, own_s.__getitem__)


def test_cpu_time_is_finer_than_a_tick() -> None:
    began, mine = cpu_s([os.getpid()]), time.process_time()
    while time.process_time() < mine + 0.003:
        pass
    assert 0.003 <= cpu_s([os.getpid()]) - began < 2.0
    with pytest.raises(ProcessLookupError, match="4194305 is gone"):
        procs._clock_s(4194305)


def test_shared_memory_counts_in_parts(tmp_path: Path) -> None:
    for pid, size_kib in ((5, 100), (7, 23)):
        (tmp_path / str(pid)).mkdir()
        text = f"5d-7f ---p 0 00:00 0 [rollup]\nRss: 900 kB\nPss: {size_kib} kB\nPss_Dirty: 9 kB\n"
        (tmp_path / str(pid) / "smaps_rollup").write_text(text)
    assert pss_bytes([5, 7], tmp_path) == 123 * 1024
    with pytest.raises(OSError, match="smaps_rollup"):
        pss_bytes([6], tmp_path)


def test_this_process_has_all_of_it() -> None:
    mine = tree(os.getpid())
    assert mine[0] == os.getpid()
    assert cpu_s([os.getpid()]) > 0
    assert pss_bytes([os.getpid()]) > 2**20
