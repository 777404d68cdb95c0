"""observe/node_cells: one file, several workers; nothing half-written is taken, nothing lost (B44).

Runs on: the test's thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from app.observe import node_cells
from app.observe.cells import SLOTS
from app.observe.node_cells import CELL_BYTES, FRAMES, NodeCells, node_bytes


@pytest.fixture
def path(tmp_path: Path) -> str:
    """As the arbiter makes it for one worker: four sections of zeros."""
    file = tmp_path / "cells"
    file.write_bytes(bytes(node_bytes(1)))
    return str(file)


def claimed(path: str, head: str = "") -> NodeCells:
    made = NodeCells(path)
    assert made.claim() is not None
    if head:
        made.write_head({"name": head})
    return made


def test_b44_there_is_a_frame_for_every_cell_and_room_for_a_reload() -> None:
    assert FRAMES == SLOTS + 1
    assert node_bytes(2) < 1_200_000
    assert node_bytes(3) - node_bytes(2) == 2 * FRAMES * 2048


def test_b44_others_see_what_one_has_written_and_one_does_not(path: str) -> None:
    one, two = claimed(path, "one"), claimed(path, "two")
    one.write_cell(0, b"first")
    one.write_cell(SLOTS - 1, b"x" * CELL_BYTES)
    assert one.index != two.index
    (seen,) = two.others()
    assert seen.head == {"name": "one"}
    assert seen.cells == {0: b"first", SLOTS - 1: b"x" * CELL_BYTES}
    assert [section.head for section in one.others()] == [{"name": "two"}]
    one.write_cell(0, b"second, and longer")
    one.write_cell(0, b"3rd")
    assert two.others()[0].cells[0] == b"3rd"
    with pytest.raises(ValueError, match="do not fit"):
        one.write_cell(0, b"x" * (CELL_BYTES + 1))


def test_b44_what_a_worker_had_written_outlives_it_and_the_next_goes_on_with_it(path: str) -> None:
    one, two = claimed(path, "one"), claimed(path, "two")
    one.write_cell(3, b"past")
    place = one.index
    one.close()  # as the kernel does with the dead
    assert [section.cells for section in two.others()] == [{3: b"past"}]
    three = NodeCells(path)
    found = three.claim()
    assert found is not None
    assert (three.index, found.head, found.cells) == (place, {"name": "one"}, {3: b"past"})
    assert [section.head for section in three.others()] == [{"name": "two"}]


def test_b44_where_all_places_are_taken_there_is_none(path: str) -> None:
    held = [claimed(path, str(number)) for number in range(4)]
    late = NodeCells(path)
    assert late.claim() is None
    assert len(late.others()) == 4
    held[2].close()
    assert late.claim() is not None
    assert late.index == 2


@pytest.mark.parametrize("cut", ["checksum", "middle", "length"])
def test_b44_what_is_half_written_is_as_it_was(path: str, cut: str) -> None:
    one, two = claimed(path, "one"), claimed(path, "two")
    one.write_cell(5, b"as it was")
    assert two.others()[0].cells == {5: b"as it was"}
    whole = node_cells._framed(b"as it is now")
    half = {"checksum": whole[:4], "middle": whole[:12], "length": b"\1\2\3\4" + b"\xff" * 4}[cut]
    place = node_cells._place(one.index or 0, 1 + 5)
    with Path(path).open("r+b") as file:
        file.seek(place)
        file.write(half)
    assert two.others()[0].cells == {5: b"as it was"}
    assert [section.cells for section in NodeCells(path).others()] == [{}, {}]
    with Path(path).open("r+b") as file:
        file.seek(place)
        file.write(whole)
    assert two.others()[0].cells == {5: b"as it is now"}


def test_b44_a_frame_whose_write_ends_meanwhile_is_read_again(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = claimed(path, "one"), claimed(path, "two")
    one.write_cell(5, b"whole")
    read: Callable[[int, int, int], bytes] = os.pread
    torn = [True]

    def pread(file: int, length: int, at: int) -> bytes:
        found = read(file, length, at)
        if torn.pop() if torn else False:
            return found.replace(b"whole", b"wh\0\0\0")
        return found

    monkeypatch.setattr(os, "pread", pread)
    assert two.others()[0].cells == {5: b"whole"}
    assert torn == []


def test_b44_one_watches_and_another_goes_on_with_what_it_found(path: str) -> None:
    one, two = claimed(path), claimed(path)
    assert two.watch() == {}
    assert (one.lead(), two.lead(), one.lead()) == (True, False, True)
    one.write_watch({"found": 1})
    assert two.watch() == {"found": 1}
    one.step_down()
    one.step_down()
    assert (one.leads, two.lead(), one.lead()) == (False, True, False)
    two.close()  # as the kernel does with the dead
    assert (one.lead(), one.watch()) == (True, {"found": 1})


def test_b44_a_child_holds_none_of_its_parents_places(path: str) -> None:
    """The lock is the parent's; what the monitor does in a child is to close its copy of the descriptor."""
    one = claimed(path)
    pid = os.fork()
    if pid == 0:
        os.close(one._file)
        os._exit(0)
    os.waitpid(pid, 0)
    other = NodeCells(path)
    assert other.claim() is not None
    assert other.index != one.index


def test_b44_no_room_is_told(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = claimed(path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        one.write_cell(0, b"x")
