"""The board, several workers played by several ``Board`` objects: each has its own lock and its own mapping."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.store.board import NAMES_BYTES, SLOTS, Board, board_bytes
from app.store.facts import Fact, Kind

SIZE = 4
HEAD = 64
MARKS = HEAD + 8 * SIZE
RECORD = 128


class Clock:
    """Goes on a little at every look, so that no two facts are said at the same instant."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


Make = Callable[[], Board]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "board"
    file.write_bytes(bytes(board_bytes(SIZE)))
    return file


@pytest.fixture
def events() -> list[dict[str, object]]:
    return []


@pytest.fixture
def worker(path: Path, clock: Clock, events: list[dict[str, object]]) -> Iterator[Make]:
    """Starts workers."""
    made: list[Board] = []

    def start() -> Board:
        made.append(Board(str(path), SIZE, tell=events.append, clock=clock))
        return made[-1]

    yield start
    for one in made:
        one.close()


def fact(credential: str = "key-1", until_at: float = 2000.0, kind: Kind = "cooling") -> Fact:
    return Fact(kind, "anthropic", credential, until_at)


def record_at(section: int, slot: int) -> int:
    return MARKS + (section * SLOTS + slot) * RECORD


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def mark(path: Path, section: int) -> int:
    number: int = struct.unpack_from("<Q", path.read_bytes(), HEAD + 8 * section)[0]
    return number


def test_64_workers_fit_into_a_mebibyte() -> None:
    assert board_bytes() <= 1 << 20


def test_what_one_says_the_others_hear_once(worker: Make) -> None:
    one, two, three = worker(), worker(), worker()
    said = [fact(), fact("", kind="open"), fact("ключ-ß", kind="benched")]
    assert all(one.publish(each) for each in said)
    assert two.news() == said
    assert three.news() == said
    assert two.news() == three.news() == one.news() == []


def test_facts_of_several_workers_come_in_the_order_they_were_said(worker: Make) -> None:
    one, two, three = worker(), worker(), worker()
    three.news()
    said = [fact(kind="restored"), fact(until_at=1500), fact(kind="closed"), fact(kind="open")]
    for author, each in zip((two, one, two, one), said, strict=True):
        author.publish(each)
    assert three.news() == said


def test_a_replaced_fact_is_heard_in_its_last_form(worker: Make) -> None:
    one, two = worker(), worker()
    two.news()
    one.publish(fact(until_at=1500))
    assert two.news() == [fact(until_at=1500)]
    one.publish(fact(until_at=1600))
    one.publish(fact(until_at=1700))
    assert two.news() == [fact(until_at=1700)]


def test_what_ran_out_is_no_news_and_what_takes_back_always_is(worker: Make, clock: Clock) -> None:
    one, two = worker(), worker()
    two.news()
    one.publish(fact(until_at=1010))
    one.publish(fact(until_at=0.0, kind="restored"))
    clock.now = 1011.0
    assert two.news() == [fact(until_at=0.0, kind="restored")]


def test_a_new_worker_hears_what_still_holds(worker: Make, clock: Clock) -> None:
    one, two = worker(), worker()
    one.publish(fact("short", 1010))
    one.publish(fact("taken back"))
    one.publish(fact("long", 4600, "benched"))
    two.publish(fact("taken back", 0.0, "restored"))
    clock.now = 1011.0
    three = worker()
    assert three.news() == [fact("long", 4600, "benched")]
    assert three.news() == []


def test_a_bench_outlasts_any_number_of_short_facts(worker: Make, clock: Clock) -> None:
    """In a ring it would have been pushed out."""
    one = worker()
    one.publish(fact("dead", 4600, "benched"))
    for n in range(10 * SLOTS):
        one.publish(fact(f"key-{n % 20}", clock.now + 2))
    assert fact("dead", 4600, "benched") in worker().news()


def test_a_slow_reader_loses_the_oldest_only(worker: Make) -> None:
    one, two = worker(), worker()
    two.news()
    said = [fact(f"key-{n}") for n in range(SLOTS + 30)]
    for each in said:
        one.publish(each)
    assert two.news() == said[-SLOTS:]


def test_what_ran_out_gives_way_before_the_oldest(worker: Make) -> None:
    one, two = worker(), worker()
    two.news()
    said = [fact(f"key-{n}", 1000.0 if n == 50 else 2000.0) for n in range(SLOTS + 1)]
    for each in said:
        one.publish(each)
    assert two.news() == [each for n, each in enumerate(said) if n != 50]


def test_every_worker_has_a_section_of_its_own(worker: Make, events: list[dict[str, object]]) -> None:
    assert [worker().index for _ in range(SIZE)] == list(range(SIZE))
    assert events == []


def test_more_workers_than_sections(worker: Make, events: list[dict[str, object]]) -> None:
    inside = [worker() for _ in range(SIZE)]
    extra = worker()
    assert extra.index is None
    assert events == [{"event": "board_full", "sections": SIZE}]
    assert not extra.publish(fact())
    assert len(events) == 1, "said once"
    inside[1].publish(fact())
    assert extra.news() == [fact()], "it still hears the others"
    inside[2].close()
    assert extra.publish(fact("key-2")), "a section came free: a reload's old workers ended"
    assert extra.index == 2
    assert inside[0].news() == [fact(), fact("key-2")]


def test_a_section_taken_over_goes_on(worker: Make) -> None:
    one, two, three = worker(), worker(), worker()
    one.publish(fact("before"))
    assert three.news() == [fact("before")]
    one.close()
    heir = worker()
    assert heir.index == 0
    assert heir.news() == [fact("before")], "not its own words: the last worker's"
    heir.publish(fact("after"))
    assert three.news() == [fact("after")]
    assert two.news() == [fact("before"), fact("after")]
    assert heir.news() == []


def test_a_late_claim_hears_what_was_said_there_in_between(worker: Make) -> None:
    inside = [worker() for _ in range(SIZE)]
    extra = worker()
    extra.news()
    inside[0].publish(fact())
    inside[0].close()
    assert extra.publish(fact("key-2"))
    assert extra.news() == [fact()]


def test_a_worker_killed_between_record_and_mark_is_completed_by_its_heir(worker: Make, path: Path) -> None:
    one, two = worker(), worker()
    two.news()
    one.publish(fact())
    overwrite(path, HEAD, bytes(8))
    assert two.news() == [], "without the mark nobody looks"
    one.close()
    worker()
    assert two.news() == [fact()]


def test_a_record_whose_mark_is_not_raised_yet_is_heard_once(worker: Make, path: Path) -> None:
    one, two = worker(), worker()
    one.publish(fact("a"))
    one.publish(fact("b"))
    overwrite(path, HEAD, struct.pack("<Q", 1))
    assert two.news() == [fact("a")]
    overwrite(path, HEAD, struct.pack("<Q", 2))
    assert two.news() == [fact("b")]


def test_a_replaced_fact_leaves_no_older_one_behind(worker: Make, path: Path) -> None:
    one = worker()
    one.publish(fact("a"))
    one.publish(fact("b", 3000))
    overwrite(path, record_at(0, 0), b"\xff" * 8)  # a place that is free again
    one.close()
    worker().publish(fact("b", 1500))
    assert worker().news() == [fact("b", 1500)]


def test_a_broken_record_is_skipped(worker: Make, path: Path) -> None:
    one, two = worker(), worker()
    for name in ("a", "b", "c"):
        one.publish(fact(name))
    overwrite(path, record_at(0, 1) + 40, b"\xff")
    assert two.news() == [fact("a"), fact("c")]
    assert two.news() == []


@pytest.mark.parametrize("offset", [0, 4, 5, 6, 8, 16, 24, 32, 33, 127])
def test_no_byte_can_be_wrong_unnoticed(worker: Make, path: Path, offset: int) -> None:
    one, two = worker(), worker()
    one.publish(fact())
    where = record_at(0, 0) + offset
    overwrite(path, where, bytes([path.read_bytes()[where] ^ 0x55]))
    assert two.news() == []


def test_a_record_met_half_written_is_heard_once_it_is_whole(worker: Make, path: Path) -> None:
    one, two = worker(), worker()
    two.news()
    one.publish(fact("a"))
    one.publish(fact("b"))
    where = record_at(0, 1)
    whole = path.read_bytes()[where : where + RECORD]
    overwrite(path, where + 20, b"\xff\xff")
    assert two.news() == [fact("a")]
    assert two.news() == []
    overwrite(path, where, whole)
    assert two.news() == [fact("b")]
    assert two.news() == []


def test_a_record_that_stays_broken_is_given_up(worker: Make, path: Path) -> None:
    one, two = worker(), worker()
    one.publish(fact("a"))
    where = record_at(0, 0)
    whole = path.read_bytes()[where : where + RECORD]
    overwrite(path, where, b"\xff" * 8)
    for _ in range(20):
        assert two.news() == []
    overwrite(path, where, whole)
    assert two.news() == [], "it is not looked for at every call for ever"
    one.publish(fact("b"))
    assert two.news() == [fact("b")]


def test_a_kind_of_a_later_version_is_skipped(worker: Make, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = worker(), worker()
    one.publish(fact(kind="closed"))
    one.publish(fact())
    monkeypatch.setattr("app.store.board.KINDS", ("cooling",))
    assert two.news() == [fact()]


def test_names_have_a_limit(worker: Make, events: list[dict[str, object]]) -> None:
    one, two = worker(), worker()
    longest = Fact("cooling", "p" * 41, "c" * (NAMES_BYTES - 41), 2000.0)
    assert one.publish(longest)
    for _ in range(2):
        assert not one.publish(fact("x" * NAMES_BYTES))
    assert [each["event"] for each in events] == ["board_names_too_long"]
    assert two.news() == [longest]


def test_a_board_of_another_layout_is_left_alone(
    worker: Make, path: Path, tmp_path: Path, events: list[dict[str, object]]
) -> None:
    other = b"penstock-board\0\2" + bytes(board_bytes(SIZE) - 16)
    path.write_bytes(other)
    one = worker()
    assert one.index is None
    assert not one.publish(fact())
    assert one.news() == []
    assert path.read_bytes() == other
    assert [each["event"] for each in events] == ["board_unavailable"]


def test_no_file_and_a_short_file_are_no_crash(tmp_path: Path, events: list[dict[str, object]]) -> None:
    (tmp_path / "short").write_bytes(b"x")
    for name in ("missing", "short"):
        one = Board(str(tmp_path / name), tell=events.append)
        assert (one.index, one.news(), one.publish(fact())) == (None, [], False)
        one.close()
    assert [each["event"] for each in events] == ["board_unavailable"] * 2
    assert Board(str(tmp_path / "missing")).index is None, "nobody to tell is no crash either"


def test_a_closed_board_is_silent(worker: Make, path: Path) -> None:
    one, two = worker(), worker()
    one.publish(fact())
    one.close()
    one.close()
    assert (one.index, one.news(), one.publish(fact("key-2"))) == (None, [], False)
    assert mark(path, 0) == 1
    assert two.news() == [fact()]


def test_nothing_new_is_one_comparison(worker: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count, not a time: the sections are not looked into."""
    one, two = worker(), worker()
    one.publish(fact())
    two.news()
    monkeypatch.setattr(Board, "_records", None)
    monkeypatch.setattr("app.store.board._numbers", None)
    assert one.news() == two.news() == []
