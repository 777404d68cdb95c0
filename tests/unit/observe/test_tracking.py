"""observe/tracking: an application's own work, timed and counted (B44).

Runs on: the test's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from app.observe.cells import Tracked
from app.observe.tracking import Timed, tracked


@pytest.mark.parametrize(
    ("status", "error", "found"),
    [
        (200, None, ""),
        (404, None, ""),
        (429, None, ""),
        (500, None, "status_5xx"),
        (503, "no_room", "no_room"),
        (200, "late", "late"),
        (200, ValueError("x"), "ValueError"),
    ],
)
def test_b44_what_is_a_failure(status: int, error: str | BaseException | None, found: str) -> None:
    assert tracked("report", 12, status, error) == Tracked("report", 12.0, found)


@pytest.mark.parametrize("ms", [float("nan"), float("inf"), -0.001])
def test_b44_what_is_no_length_of_time_is_refused(ms: float) -> None:
    with pytest.raises(ValueError, match="duration_ms"):
        tracked("report", ms, 200, None)


def test_b44_as_a_context_manager() -> None:
    found: list[Tracked] = []
    with Timed("report", found.append):
        pass
    with Timed("report", found.append) as it:
        it.status = 500
    with Timed("report", found.append) as it:
        it.error = "no_room"
    with pytest.raises(KeyError), Timed("report", found.append) as it:
        it.error = "no_room"
        raise KeyError
    assert [(one.endpoint, one.error) for one in found] == [
        ("report", ""),
        ("report", "status_5xx"),
        ("report", "no_room"),
        ("report", "KeyError"),
    ]
    assert all(one.ms >= 0 for one in found)


def test_b44_as_a_decorator_of_calls_that_overlap() -> None:
    found: list[Tracked] = []
    both = threading.Barrier(2, timeout=10)

    @Timed("report", found.append)
    def work(number: int) -> int:
        """What it does."""
        both.wait()
        if number:
            raise ValueError
        return number

    def fail() -> None:
        with pytest.raises(ValueError, match=r"^$"):
            work(1)

    thread = threading.Thread(target=fail)
    thread.start()
    assert work(0) == 0
    thread.join()
    assert sorted(one.error for one in found) == ["", "ValueError"]
    assert (work.__name__, work.__doc__) == ("work", "What it does.")


def test_b44_calls_within_calls_have_a_time_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tracked] = []
    instants = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr("app.observe.tracking.time.monotonic", lambda: next(instants))

    @Timed("report", found.append)
    def work(deeper: int) -> None:
        if deeper:
            work(deeper - 1)

    work(1)
    monkeypatch.undo()
    assert [one.ms for one in found] == [10_000.0, 30_000.0]


def test_b44_what_works_after_its_call_is_refused() -> None:
    found: list[Tracked] = []

    def pieces() -> Iterator[int]:
        yield 1

    async def later() -> None:
        """Later."""

    for one in (pieces, later):
        with pytest.raises(TypeError, match="after its call is over"):
            Timed("report", found.append)(one)
