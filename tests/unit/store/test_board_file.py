"""The shared file: made once, kept over a reload, told to workers, gone with the arbiter."""

from __future__ import annotations

import atexit
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import load
from app.settings_rules import OWN_PREFIXES
from app.store import board_file
from app.store.board import Board, board_bytes

OWNER = board_file.VARIABLE + "_OWNER"
OLD_S = 120
Exits = list[tuple[Callable[..., object], tuple[object, ...]]]


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exits]:
    """What would be done at exit."""
    noted: Exits = []
    monkeypatch.setattr(atexit, "register", lambda call, *args: noted.append((call, args)))
    yield noted


def test_the_file_is_made_and_told(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    path = board_file.share(environ, folders=(str(tmp_path),))
    assert path is not None
    assert environ == {board_file.VARIABLE: path, OWNER: str(os.getpid())}
    about = Path(path).stat()
    assert about.st_size == board_bytes()
    assert about.st_blocks * 512 >= board_bytes(), "all of its space is taken: no worker dies of a full disk later"
    assert about.st_mode & 0o077 == 0, "nobody else may plant facts"
    board = Board(path)
    assert board.index == 0
    board.close()
    with Path(path).open("rb") as file, pytest.raises(BlockingIOError):  # what marks it as in use
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    path = board_file.share(environ, "WORKER_CALLERS_FILE", 4096, (str(tmp_path),))
    assert path is not None
    assert Path(path).read_bytes() == bytes(4096)
    assert environ["WORKER_CALLERS_FILE"] == path


def test_memory_comes_first() -> None:
    path = board_file.share({})
    assert path is not None
    try:
        assert Path(path).parent == Path("/dev/shm")  # noqa: S108
    finally:
        Path(path).unlink()


def test_a_reload_keeps_the_file(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    path = board_file.share(environ, folders=(str(tmp_path),))
    assert board_file.share(environ, folders=(str(tmp_path),)) == path
    assert len(list(tmp_path.iterdir())) == 1


def test_a_gunicorn_started_from_another_makes_its_own(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.touch()
    environ = {board_file.VARIABLE: str(theirs), OWNER: "1"}
    assert board_file.share(environ, folders=(str(tmp_path),)) not in (None, str(theirs))
    assert theirs.exists()


def test_no_room_anywhere(tmp_path: Path) -> None:
    environ = {board_file.VARIABLE: "of another gunicorn", OWNER: "1"}
    assert board_file.share(environ, folders=(str(tmp_path / "missing"),)) is None
    assert board_file.VARIABLE not in environ
    assert board_file.shared(environ) is None
    assert board_file.share(environ) is None, "a reload finds it so too"


def test_a_folder_without_room_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "full", tmp_path / "roomy"
    first.mkdir()
    second.mkdir()
    allocate = os.posix_fallocate

    def full(file: int, start: int, size: int) -> None:
        if Path(f"/proc/self/fd/{file}").readlink().parent == first:
            raise OSError(28, "No space left on device")
        allocate(file, start, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = board_file.share({}, folders=(str(first), str(second)))
    assert path is not None
    assert Path(path).parent == second
    assert list(first.iterdir()) == [], "nothing is left behind"


def test_a_worker_finds_its_arbiters_file_only() -> None:
    for pid in (os.getpid(), os.getppid()):
        assert board_file.shared({board_file.VARIABLE: "/x", OWNER: str(pid)}) == "/x"
    assert board_file.shared({board_file.VARIABLE: "/x", OWNER: "1234567"}) is None
    assert board_file.shared({board_file.VARIABLE: "/x"}) is None
    assert board_file.shared({}) is None


def test_it_goes_away_with_the_arbiter_and_not_with_a_worker(tmp_path: Path, exits: Exits) -> None:
    path = board_file.share({}, folders=(str(tmp_path),))
    assert path is not None
    ((call, (named, owner)),) = exits
    assert (named, owner) == (path, os.getpid())
    call(path, os.getpid() + 1)
    assert Path(path).exists(), "a worker inherits the handler"
    call(path, os.getpid())
    assert not Path(path).exists()
    call(path, os.getpid())


def test_what_a_killed_arbiter_left_is_removed(tmp_path: Path) -> None:
    left, young, used = (tmp_path / f"penstock-board-{name}" for name in ("left", "young", "used"))
    stranger = tmp_path / "stranger"
    for file in (left, young, used, stranger):
        file.touch()
    for file in (left, used, stranger):
        old = file.stat().st_mtime - OLD_S
        os.utime(file, (old, old))
    with used.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        path = board_file.share({}, folders=(str(tmp_path),))
    assert path is not None
    assert sorted(tmp_path.iterdir()) == sorted([young, used, stranger, Path(path)])


def test_another_users_file_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "penstock-board-left"
    left.touch()
    os.utime(left, (0, 0))
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    board_file.share({}, folders=(str(tmp_path),))
    assert left.exists()


def test_its_name_is_no_unknown_setting() -> None:
    assert not board_file.VARIABLE.startswith(OWN_PREFIXES)
    load({board_file.VARIABLE: "/x", OWNER: "1"})
