"""observe/node_rings: what a worker counts is written, read and gone on with; what goes wrong is told once (B44).

Runs on: the test's thread.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from app.observe.cells import LEVELS, Cell, Series, bins
from app.observe.node_cells import node_bytes
from app.observe.node_rings import ALIVE_S, NodeRings
from app.observe.windows import window

NOW = 720_000.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "cells"
    file.write_bytes(bytes(node_bytes(1)))
    return str(file)


def cell(count: int) -> Cell:
    made = Cell()
    made.exchanges["messages"] = Series(count, {}, bins([1.0] * count))
    return made


def rings(path: str | None, told: list[dict[str, object]] | None = None, born_at: float = NOW) -> NodeRings:
    events: list[dict[str, object]] = [] if told is None else told
    return NodeRings(path, born_at, events.append)


def seen(one: NodeRings, now: float = NOW) -> int:
    found = one.look(now)
    return window(LEVELS[1], found.cells, now, found.born_at).total.requests


def test_b44_alone_a_process_sees_itself() -> None:
    one = rings(None)
    one.rings.add(cell(3), NOW)
    one.write(NOW)
    one.write_watch({"found": 1})
    one.close()
    assert (seen(one), one.look(NOW).workers, one.look(NOW).growth_mb, one.trouble) == (3, 1, None, "")


def test_b44_all_see_all_and_the_dead_leave_the_windows_by_their_age(path: str) -> None:
    one, two = rings(path, born_at=NOW - 100), rings(path)
    one.rings.add(cell(3), NOW)
    two.rings.add(cell(4), NOW)
    one.growth_mb, two.growth_mb = 12.0, 7.00049
    one.write(NOW)
    two.write(NOW)
    assert (seen(one), seen(two)) == (7, 7)
    found = two.look(NOW)
    assert (found.workers, found.growth_mb, found.born_at) == (2, 12.0, NOW - 100)
    one.close()
    late = NOW + ALIVE_S
    assert (seen(two, late), two.look(late).workers, two.look(late).growth_mb) == (7, 1, 7.0)
    assert seen(two, NOW + 60) == 0


def test_b44_the_next_worker_goes_on_with_the_place_of_a_dead_one(path: str) -> None:
    one, two = rings(path, born_at=NOW - 100), rings(path)
    one.rings.add(cell(3), NOW)
    for of in (one, two):
        of.write(NOW)
    one.close()
    three = rings(path, born_at=NOW + 1)
    assert (seen(two), seen(three)) == (3, 3)
    three.rings.add(cell(5), NOW + 1)
    three.write(NOW + 6)
    assert (seen(two), seen(three)) == (8, 8)
    assert two.look(NOW).born_at == NOW - 100


def test_b44_cells_are_written_where_they_have_changed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = rings(path)
    written: list[int] = []
    assert one.file is not None
    monkeypatch.setattr(one.file, "write_cell", lambda slot, _: written.append(slot))
    one.rings.add(cell(1), NOW)
    one.write(NOW)
    one.write(NOW + 1)
    assert len(written) == len(LEVELS)


def test_b44_where_there_is_no_place_it_says_so_once_and_still_looks(path: str) -> None:
    others = [rings(path) for _ in range(4)]
    others[0].rings.add(cell(2), NOW)
    others[0].write(NOW)
    told: list[dict[str, object]] = []
    late = rings(path, told)
    late.rings.add(cell(1), NOW)
    late.write(NOW)
    assert told == [{"event": "performance_not_shared", "error": "all places are taken by other workers"}]
    assert late.trouble == (
        "performance: this worker cannot share what it measures: all places are taken by other workers"
    )
    assert seen(late) == 3


def test_b44_a_file_that_is_gone_or_full_is_told(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    gone = rings(path + "-not-there", told)
    gone.rings.add(cell(1), NOW)
    gone.write(NOW)
    assert (seen(gone), gone.file) == (1, None)
    full = rings(path, told)

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", no_room)
    full.rings.add(cell(1), NOW)
    full.write(NOW)
    full.write_watch({})
    assert [fields["error"] for fields in told] == ["No such file or directory", "No space left on device"]


def test_b44_cells_of_another_version_are_left_alone(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = rings(path), rings(path)
    with monkeypatch.context() as patch:
        patch.setattr("app.observe.cells._VERSION", 2)
        one.rings.add(cell(3), NOW)
        one.write(NOW)
    assert seen(two) == 0
    one.close()
    assert seen(rings(path)) == 0
