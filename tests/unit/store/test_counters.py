"""The counters' file: shared by instances, bounded, given back by the dead, not shared by a fork's two halves."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.store import board_file
from app.store.counters import _FEWEST, ROWS, VARIABLE, Entry, NodeCounters, counters_bytes

NOW = 1000.0
Open = Callable[[], NodeCounters]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens one more worker's view of the same file."""
    made: list[NodeCounters] = []

    def one() -> NodeCounters:
        made.append(NodeCounters(str(tmp_path / "counters"), 1))
        assert made[-1].fault == ""
        return made[-1]

    yield one
    for counters in made:
        counters.close()


def die(counters: NodeCounters) -> None:
    """What the kernel does for a killed process: its file is closed, nothing is cleared."""
    counters._let_go()
    counters._path = None


def running(counters: NodeCounters, key: str) -> int:
    with counters:
        return counters.running(key)


def enter(counters: NodeCounters, key: str) -> None:
    with counters:
        counters.enter(key, NOW + 100)


def test_what_one_writes_the_other_reads(opened: Open) -> None:
    first, second = opened(), opened()
    with first:
        first.write("a", Entry(NOW + 60, 7, 3, 2))
        first.write("b", Entry(NOW + 60, 7, 9, 0))
    with second:
        assert second.read("a", NOW) == (NOW + 60, 7, 3, 2)
        assert second.read("b", NOW) == (NOW + 60, 7, 9, 0)
        second.write("a", Entry(NOW + 60, 7, 4, 2))
    with first:
        assert first.read("a", NOW).current == 4


def test_what_has_ended_is_nothing(opened: Open) -> None:
    counters = opened()
    with counters:
        assert counters.read("never", NOW) == Entry()
        counters.write("a", Entry(NOW + 60, 7, 3, 2))
        assert counters.read("a", NOW + 59.9).current == 3
        assert counters.read("a", NOW + 60) == Entry()


def test_places_of_what_has_ended_are_used_again(opened: Open, tmp_path: Path) -> None:
    counters = opened()
    size = (tmp_path / "counters").stat().st_size
    for number in range(5 * _FEWEST):
        with counters:
            now = NOW + number
            counters.write("stays", Entry(now + 1000, 0, number, 0))
            counters.write(f"goes-{number}", Entry(now + 10, 0, 1, 0))
            assert counters.read(f"goes-{number}", now).current == 1
            assert counters.read("stays", now).current == number
    assert (tmp_path / "counters").stat().st_size == size == counters_bytes(1)
    assert len(counters._known) <= _FEWEST + 1


def test_in_a_full_table_what_ends_first_gives_way(opened: Open) -> None:
    counters, other = opened(), opened()
    with counters:
        for number in range(_FEWEST):
            ends_at = NOW + 50 if number == 77 else NOW + 100 + number
            counters.write(f"key-{number}", Entry(ends_at, 0, number + 1, 0))
        counters.write("one more", Entry(NOW + 500, 0, 1000, 0))
    with other:
        assert other.read("one more", NOW).current == 1000
        assert other.read("key-77", NOW) == Entry()
        kept = [other.read(f"key-{number}", NOW).current for number in range(_FEWEST)]
    assert kept == [0 if number == 77 else number + 1 for number in range(_FEWEST)]


def test_a_slot_that_changes_hands_has_nothing_under_way(opened: Open) -> None:
    counters = opened()
    with counters:
        for number in range(_FEWEST):
            counters.enter(f"key-{number}", NOW + 10)
        counters.enter("late", NOW + 1000)
        assert counters.running("late") == 1


def test_what_is_under_way_is_summed_over_workers(opened: Open) -> None:
    first, second = opened(), opened()
    assert first.row != second.row
    for _ in range(3):
        enter(first, "a")
    enter(second, "a")
    enter(second, "b")
    assert [running(one, "a") for one in (first, second)] == [4, 4]
    with second:
        for _ in range(3):
            second.leave("a")  # two more than it entered: of its own row only
        second.leave("unknown")
    assert running(first, "a") == 3
    assert running(first, "b") == 1


def test_entering_keeps_the_slot(opened: Open) -> None:
    counters = opened()
    with counters:
        counters.enter("a", NOW + 100)
        counters.enter("a", NOW + 50)
        assert counters.read("a", NOW + 99) == (NOW + 100, 0, 0, 0)
        counters.enter("a", NOW + 200)
        assert counters.read("a", NOW + 199) == (NOW + 200, 0, 0, 0)
        assert counters.running("a") == 3


def test_who_closes_gives_back(opened: Open) -> None:
    first, second = opened(), opened()
    enter(first, "a")
    first.close()
    assert running(second, "a") == 0
    enter(first, "a")  # a request that outlives the end: counted, but by nobody else
    assert running(second, "a") == 0
    first.close()


def test_the_dead_give_back_when_somebody_looks(opened: Open) -> None:
    dead, alive, looks = opened(), opened(), opened()
    enter(dead, "a")
    enter(alive, "a")
    die(dead)
    with looks:
        assert looks.running("a") == 2
        assert looks.reap()
        assert looks.running("a") == 1
        assert not looks.reap()


def test_a_row_of_the_dead_is_empty_for_the_next(opened: Open) -> None:
    dead, looks = opened(), opened()
    enter(dead, "a")
    row = dead.row
    die(dead)
    assert opened().row == row
    assert running(looks, "a") == 0


def test_more_workers_than_rows(opened: Open, tmp_path: Path) -> None:
    for _ in range(ROWS):
        opened()
    events: list[dict[str, object]] = []
    late = NodeCounters(str(tmp_path / "counters"), 1, events.append)
    assert "64 rows" in late.fault
    assert events == [{"event": "caller_counters_unavailable", "error": late.fault}]
    enter(late, "a")
    assert running(late, "a") == 1, "it counts alone"
    late.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"x" * counters_bytes(1), "not one of this version"), (b"x", "are the least")],
    ids=["another file", "too small"],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "counters"
    path.write_bytes(content)
    events: list[dict[str, object]] = []
    counters = NodeCounters(str(path), 1, events.append)
    assert why in counters.fault
    assert len(events) == 1
    with counters:
        counters.write("a", Entry(NOW + 1, 0, 1, 0))
        assert counters.read("a", NOW).current == 1
    assert path.read_bytes() == content, "nothing of it was touched"


def test_no_place_for_a_file(tmp_path: Path) -> None:
    counters = NodeCounters(str(tmp_path / "missing" / "counters"), 1)
    assert "No such file" in counters.fault
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    assert NodeCounters(str(link), 1).fault, "a link that a stranger may have laid is not followed"


def test_all_of_its_space_is_taken_and_nobody_else_reads_it(opened: Open, tmp_path: Path) -> None:
    opened()
    about = (tmp_path / "counters").stat()
    assert about.st_blocks * 512 >= counters_bytes(1), "a page that finds no room later would kill its writer"
    assert about.st_mode & 0o077 == 0


def test_the_arbiters_file_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atexit.register", lambda *args: None)
    environ: dict[str, str] = {}
    path = board_file.share(environ, VARIABLE, counters_bytes(40), (str(tmp_path),))
    assert path is not None  # and its arbiter holds a shared flock on it
    first, second = NodeCounters(path, 1), NodeCounters(path, 40)
    assert first.fault == second.fault == ""
    enter(first, "a")
    assert running(second, "a") == 1
    assert first._slots == 8 * 40, "as large as the file, whoever opens it first"
    first.close()
    second.close()


def test_without_a_path_each_counts_alone() -> None:
    first, second = NodeCounters(None, 1), NodeCounters(None, 1)
    enter(first, "a")
    assert (running(first, "a"), running(second, "a")) == (1, 0)
    with first:
        assert not first.reap()
    assert first.fault == ""


def in_a_child(what: Callable[[], int]) -> int:
    """What ``what`` returns in a forked process, which ends at once."""
    pid = os.fork()
    if pid == 0:
        os._exit(what())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_is_a_worker_of_its_own(opened: Open) -> None:
    parent, looks = opened(), opened()
    enter(parent, "a")

    def child() -> int:
        enter(parent, "a")
        return 10 * parent.row + running(parent, "a")

    assert in_a_child(child) == 10 * 2 + 2
    assert running(looks, "a") == 2
    with looks:
        assert looks.reap(), "the child is gone"
        assert looks.running("a") == 1
    assert running(parent, "a") == 1


def test_a_child_does_not_keep_its_parents_row(opened: Open) -> None:
    parent, looks = opened(), opened()
    enter(parent, "a")
    (told, tell), (held, hold) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:  # never counts anything, outlives its parent
        os.close(hold)
        os.write(tell, b"there")
        os.read(held, 1)
        os._exit(0)
    os.read(told, 5)
    die(parent)
    with looks:
        assert looks.reap()
        assert looks.running("a") == 0
    os.close(hold)
    os.waitpid(pid, 0)
    for end in (told, tell, held):
        os.close(end)


def test_a_child_without_a_path_starts_from_nothing() -> None:
    parent = NodeCounters(None, 1)
    enter(parent, "a")

    def child() -> int:
        enter(parent, "a")
        return running(parent, "a")

    assert in_a_child(child) == 1


@pytest.mark.parametrize("instances", [1, 2])
def test_threads_keep_out_of_each_others_section(opened: Open, instances: int) -> None:
    """Also where each has opened the file for itself, which locks that belong to a process would not see."""
    views = [opened() for _ in range(instances)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def add(counters: NodeCounters) -> None:
        for _ in range(2000):
            with counters:
                entry = counters.read("a", NOW)
                counters.write("a", Entry(NOW + 60, 0, entry.current + 1, 0))
                counters.enter("b", NOW + 60)

    threads = [threading.Thread(target=add, args=(views[number % instances],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    with views[0]:
        assert views[0].read("a", NOW).current == 8000
        assert views[0].running("b") == 8000


def test_a_taken_section_is_waited_for(opened: Open) -> None:
    first, second = opened(), opened()
    order: list[str] = []

    def later() -> None:
        with second:
            order.append("second")

    with first:
        thread = threading.Thread(target=later)
        thread.start()
        for _ in range(100):
            fcntl.fcntl(first._file, fcntl.F_GETFD)  # lets go of the interpreter
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_section_ends_with_an_error(opened: Open) -> None:
    first, second = opened(), opened()
    with pytest.raises(KeyError), first:
        raise KeyError
    enter(first, "a")
    assert running(second, "a") == 1
