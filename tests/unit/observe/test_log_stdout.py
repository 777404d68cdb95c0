"""observe/log_stdout: few writes, whole lines, what is lost is counted.

Runs on: worker.
"""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.observe import log_stdout
from app.observe.log_stdout import Stdout, pieces
from app.observe.logs import ExchangeLog

ROOT = Path(__file__).resolve().parents[3]
# One of several workers with one stdout.
WORKER = """
import json, sys
from app.observe.log_stdout import Stdout
out = Stdout()
pad = "x" * 400
lines = [json.dumps({"by": sys.argv[1], "n": n, "pad": pad}).encode() + b"\\n" for n in range(64 * 40)]
out.write(b"ready\\n")
sys.stdin.readline()  # all begin at once, and the pipe is full soon
for batch in range(40):
    out.write(b"".join(lines[batch * 64 : batch * 64 + 64]))
out.end(60.0)
assert out.lost == 0
"""


class Raw(io.RawIOBase):
    """A descriptor that takes so many bytes a write; None blocks, 0 bytes fail."""

    def __init__(self, takes: list[int | None]) -> None:
        self.takes = takes
        self.got = b""
        self.sizes: list[int] = []

    def write(self, data: Any) -> int | None:
        self.sizes.append(len(data))
        count = self.takes.pop(0) if self.takes else len(data)
        if count == 0:
            raise OSError(28, "No space left on device")
        if count is not None:
            count = min(count, len(data))
            self.got += bytes(data[:count])
        return count


def stdout(monkeypatch: pytest.MonkeyPatch, buffer: object) -> Stdout:
    monkeypatch.setattr(log_stdout, "sys", SimpleNamespace(stdout=SimpleNamespace(buffer=buffer)))
    return Stdout()


def logs_on(monkeypatch: pytest.MonkeyPatch, buffer: object) -> ExchangeLog:
    monkeypatch.setattr(log_stdout, "sys", SimpleNamespace(stdout=SimpleNamespace(buffer=buffer)))
    return ExchangeLog("info", "json")


@given(st.lists(st.text("xy", max_size=30)), st.integers(1, 60))
def test_pieces_are_whole_lines_in_order_and_small_enough(lines: list[str], most: int) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    found = list(pieces(text, most))
    assert b"".join(found) == text
    assert all(piece.endswith(b"\n") for piece in found)
    assert all(len(piece) <= most or piece.count(b"\n") == 1 for piece in found)
    for one, following in pairwise(found):
        assert len(one) + following.index(b"\n") + 1 > most, "no more pieces than need be"


def test_a_pipe_that_workers_share_gets_what_it_takes_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as told, os.fdopen(writer, "wb") as pipe:
        found = stdout(monkeypatch, pipe)
        raw = Raw([])
        found._sink = raw
        found.write((b"x" * 999 + b"\n") * 10)
        assert raw.sizes == [4000, 4000, 2000]
        assert max(raw.sizes) <= select.PIPE_BUF
        found._sink = pipe.raw
        found.write(b"whole\n")
        assert told.read(6) == b"whole\n"


def test_a_file_gets_all_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with (tmp_path / "out").open("wb") as file:
        found = stdout(monkeypatch, file)
        raw = Raw([])
        found._sink = raw
        found.write((b"x" * 999 + b"\n") * 10)
    assert raw.sizes == [10_000]


def test_what_is_taken_in_parts_is_written_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw([3, 1, 2])
    found = stdout(monkeypatch, SimpleNamespace(raw=raw))
    found.write(b"one\ntwo\n")
    assert (raw.got, found.lost) == (b"one\ntwo\n", 0)


def test_after_a_torn_line_the_next_one_begins_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw([6, 0])
    found = stdout(monkeypatch, SimpleNamespace(raw=raw))
    found.write(b"one\ntwo\n")
    assert found.lost == 1
    found.write(b"three\n")
    found.write(b"four\n")
    assert raw.got == b"one\ntw\nthree\nfour\n"


def test_a_full_pipe_that_must_not_be_waited_for_loses_lines_and_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = Raw([None])
    found = stdout(monkeypatch, SimpleNamespace(raw=raw))
    found.write(b"one\ntwo\n")
    found.write(b"three\n")
    assert (raw.got, found.lost) == (b"three\n", 2)


def test_a_pipe_that_nobody_reads_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stdout, "_BACKLOG_BYTES", 100_000)
    reader, writer = os.pipe()
    lines = [f"{number:03} {'x' * 995}\n".encode() for number in range(300)]
    with os.fdopen(reader, "rb", buffering=0) as told, os.fdopen(writer, "wb") as pipe:
        found = stdout(monkeypatch, pipe)
        for line in lines:
            found.write(line)
        kept = 100
        taken = 300 - kept - found.lost
        assert found.waiting_bytes == kept * 1000
        assert 50 <= taken <= 65, "as much as a pipe holds"
        os.set_blocking(reader, False)
        got = told.read()
        while found.waiting_bytes:
            found.write()
            got += told.read() or b""
        numbers = [int(line[:3]) for line in got.splitlines()]
        assert numbers == [*range(taken), *range(300 - kept, 300)], "whole, in order, the oldest lost"


def test_at_the_end_what_nobody_reads_is_lost_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as told, os.fdopen(writer, "wb") as pipe:
        found = stdout(monkeypatch, pipe)
        for _ in range(100):
            found.write(b"x" * 999 + b"\n")
        waiting = found.waiting_bytes // 1000
        found.end(0.01)
        assert (found.waiting_bytes, found.lost) == (0, waiting)
        found.write(b"y" * 999 + b"\n")
        thread = threading.Timer(0.05, told.read, (65_536,))
        thread.start()
        found.end(10.0)
        assert (found.waiting_bytes, found.lost) == (0, waiting), "its reader came back in time"
        thread.join()


def test_a_child_does_not_write_what_waits_in_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as told, os.fdopen(writer, "wb") as pipe:
        log = logs_on(monkeypatch, pipe)
        for _ in range(100):
            log._stdout.write(b"x" * 999 + b"\n")
        waiting = log._stdout.waiting_bytes
        pid = os.fork()
        if pid == 0:
            os._exit(1 if log._stdout.waiting_bytes else 0)
        assert os.waitpid(pid, 0)[1] == 0
        assert log._stdout.waiting_bytes == waiting > 0
        told.read(65_536)


def test_workers_that_share_a_pipe_tear_no_line_of_each_other() -> None:
    """Not even while it is full, which is when the kernel splits what is larger than PIPE_BUF."""
    reader, writer = os.pipe()
    begin, begun = os.pipe()
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, name], cwd=ROOT, stdin=begin, stdout=writer)
        for name in ("p", "q", "r")
    ]
    os.close(begin)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as told:
        ready = b""
        while ready.count(b"\n") < len(workers):
            ready += told.read(6)
        os.close(begun)
        text = b"".join(iter(lambda: told.read(1500), b""))  # a little at a time: it is full all the time
    assert [worker.wait(30) for worker in workers] == [0, 0, 0]
    rows = [json.loads(line) for line in text.splitlines()]
    for name in ("p", "q", "r"):
        assert [row["n"] for row in rows if row["by"] == name] == list(range(40 * 64))
