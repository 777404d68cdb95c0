"""observe/log_files: every line once and whole in one of the files, whoever rotates, and whatever the disk does.

Runs on: the test's thread, and processes of its own.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observe import log_files
from app.observe.log_files import Busy, LogFile, LogFiles, RotatedFile

ROOT = Path(__file__).resolve().parents[3]
# One of several processes that append numbered lines to one file, in batches, rotating it all the time.
WRITER = """
import json, sys
from pathlib import Path
from app.observe.log_files import LogFile, RotatedFile
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
file = LogFile(RotatedFile(path, 4096, 500))
sys.stdin.readline()
for number in range(count):
    file.add(json.dumps({"by": name, "n": number, "pad": "x" * (number % 300)}).encode() + b"\\n")
    if number % 3 == 0:
        file.flush()
file.flush(10.0)
file.close()
assert file.lost == 0, file.lost
"""


def everything(path: Path) -> list[bytes]:
    """All lines of a file and its rotated ones, the oldest first."""
    rotated = sorted(
        (one for one in path.parent.glob(path.name + ".*")), key=lambda one: int(one.suffix[1:]), reverse=True
    )
    return [
        line for one in [*rotated, path] if one.exists() for line in one.read_bytes().splitlines(keepends=True)
    ]


def test_a_file_is_rotated_before_it_grows_over_its_size(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "a.json", 10, 2)
    for number in range(5):
        file.append(f"line{number}\n".encode())
    found = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert found == {"a.json": b"line4\n", "a.json.1": b"line3\n", "a.json.2": b"line2\n"}
    file.append(b"x\n")
    assert (tmp_path / "a.json").read_bytes() == b"line4\nx\n"


def test_a_line_larger_than_a_file_has_one_of_its_own(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "a.json", 10, 5)
    for text in (b"1\n", b"x" * 50 + b"\n", b"2\n"):
        file.append(text)
    assert [(tmp_path / name).stat().st_size for name in ("a.json.2", "a.json.1", "a.json")] == [2, 51, 2]


def test_lines_that_waited_together_fill_no_file_over_its_size(tmp_path: Path) -> None:
    file = LogFile(RotatedFile(tmp_path / "a.json", 10, 5))
    for number in range(5):
        file.add(b"%d234\n" % number)
    file.flush()
    sizes = sorted(one.stat().st_size for one in tmp_path.iterdir())
    assert sizes == [5, 10, 10]


def test_files_beyond_what_is_kept_go_where_fewer_are_kept_than_before(tmp_path: Path) -> None:
    for number in range(1, 6):
        (tmp_path / f"a.json.{number}").write_text(str(number))
    file = RotatedFile(tmp_path / "a.json", 4, 2)
    file.append(b"old\n")
    file.append(b"new\n")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {
        "a.json": "new\n",
        "a.json.1": "old\n",
        "a.json.2": "1",
    }


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 60), st.integers(1, 4))
def test_what_is_kept_is_the_newest_whole_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], most: int, kept: int
) -> None:
    path = tmp_path_factory.mktemp("logs") / "a.json"
    file = RotatedFile(path, most, kept)
    written = [f"{number}".rjust(size, "x").encode() + b"\n" for number, size in enumerate(sizes)]
    for data in written:
        file.append(data)
    file.close()
    found = everything(path)
    assert found == written[len(written) - len(found) :]
    assert len(list(path.parent.iterdir())) <= kept + 1
    if sum(map(len, written)) <= most:
        assert len(found) == len(written)


def test_processes_that_rotate_at_once_lose_and_tear_nothing(tmp_path: Path) -> None:
    path, names, count = tmp_path / "a.json", ("p", "q", "r"), 600
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, name, str(count)], cwd=ROOT, stdin=subprocess.PIPE, text=True)
        for name in names
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    rows = [json.loads(line) for line in everything(path)]
    assert len(list(tmp_path.iterdir())) > 50  # it was rotated
    for name in names:
        assert [row["n"] for row in rows if row["by"] == name] == list(range(count))


def test_who_finds_the_file_taken_does_not_wait(tmp_path: Path) -> None:
    file = LogFile(RotatedFile(tmp_path / "a.json", 1000, 2))
    file.add(b"1\n")
    file.flush()
    with (tmp_path / "a.json").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        file.add(b"2\n")
        file.flush()
        file.flush(0.002)
        assert (tmp_path / "a.json").read_bytes() == b"1\n"
        assert (file.trouble, file.lost) == ("", 0)
    file.flush()
    assert (tmp_path / "a.json").read_bytes() == b"1\n2\n"


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "a.json", 4, 2)
    for text in (b"one\n", b"two\n"):  # plain, and with a rotation
        file.append(text)
        with (tmp_path / "a.json").open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("how", ["rotated", "removed", "folder removed"])
def test_a_file_that_somebody_took_away_is_made_again(tmp_path: Path, how: str) -> None:
    path = tmp_path / "logs" / "a.json"
    file = RotatedFile(path, 1000, 2)
    file.append(b"1\n")
    if how == "rotated":
        path.rename(path.with_name("elsewhere"))
    else:
        path.unlink()
    if how == "folder removed":
        path.parent.rmdir()
    file.append(b"2\n")
    assert path.read_bytes() == b"2\n"


def test_a_file_rotated_between_opening_and_locking_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    ours, theirs = RotatedFile(path, 4, 3), RotatedFile(path, 4, 3)
    theirs.append(b"one\n")
    real = fcntl.flock
    meddled: list[int] = []

    def flock(fd: int, how: int) -> None:
        if not meddled:
            meddled.append(fd)
            theirs.append(b"two\n")
        real(fd, how)

    monkeypatch.setattr("app.observe.log_files.fcntl.flock", flock)
    ours.append(b"six\n")
    assert everything(path) == [b"one\n", b"two\n", b"six\n"]
    assert path.read_bytes() == b"six\n"


def test_a_file_that_is_always_rotated_away_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        path.unlink()
        real(fd, how)

    monkeypatch.setattr("app.observe.log_files.fcntl.flock", flock)
    with pytest.raises(Busy):
        RotatedFile(path, 4, 3).append(b"one\n")


def test_a_full_disk_leaves_no_half_line_and_the_lines_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    file = LogFile(RotatedFile(path, 1000, 2))
    file.add(b"before\n")
    file.flush()
    real, room = os.write, 10

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(room, len(data))
        room -= taken
        return real(fd, data[:taken])

    monkeypatch.setattr("app.observe.log_files.os.write", write)
    file.add(b"0123456789\n")
    file.add(b"more\n")
    file.flush()
    assert path.read_bytes() == b"before\n"
    assert file.trouble == "No space left on device"
    room = 1000
    file.add(b"after\n")
    file.flush()
    assert path.read_bytes() == b"before\n0123456789\nmore\nafter\n"
    assert (file.trouble, file.lost) == ("", 0)


def test_what_waits_for_a_disk_is_bounded_and_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "BACKLOG_BYTES", 10)
    blocked = tmp_path / "logs"
    blocked.write_text("")
    file = LogFile(RotatedFile(blocked / "a.json", 1000, 2))
    for number in range(4):
        file.add(f"a{number}\n".encode())
        file.add(f"b{number}\n".encode())
        file.flush()
    assert file.lost == 6
    blocked.unlink()
    file.flush()
    assert (blocked / "a.json").read_bytes() == b"a3\nb3\n"
    file.close()
    assert file.lost == 6
    file.add(b"late\n")
    file.close()
    assert file.lost == 7


def test_after_a_fork_a_file_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a descriptor that parent and child share, both would have the lock."""
    file = RotatedFile(tmp_path / "a.json", 1000, 2)
    file.append(b"1\n")
    opened = file._fd
    keep = os.dup(opened)  # the parent's
    monkeypatch.setattr("app.observe.log_files.os.getpid", lambda: -1)
    fcntl.flock(keep, fcntl.LOCK_EX)
    with pytest.raises(Busy):
        file.append(b"2\n")
    os.close(keep)
    file.append(b"2\n")
    file.close()
    assert (tmp_path / "a.json").read_bytes() == b"1\n2\n"


def test_nobody_else_may_read_what_is_logged(tmp_path: Path) -> None:
    file = RotatedFile(tmp_path / "logs" / "a.json", 1000, 2)
    file.append(b"1\n")
    assert (tmp_path / "logs" / "a.json").stat().st_mode & 0o137 == 0
    assert (tmp_path / "logs").stat().st_mode & 0o027 == 0


def test_a_name_each(tmp_path: Path) -> None:
    found = LogFiles(tmp_path, 1000, 2, with_requests=True)
    assert [file.name for file in found.every] == ["performance.json", "errors.json", "requests.json"]
    assert LogFiles(tmp_path, 1000, 2, with_requests=False).requests is None
