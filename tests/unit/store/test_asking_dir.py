"""store/asking_dir: made once, for its user alone, kept over a reload, gone with the arbiter; the dead's too."""

from __future__ import annotations

import atexit
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.settings import load
from app.settings_rules import OWN_PREFIXES
from app.store import asking_dir
from app.store.board_file import shared

OWNER = asking_dir.VARIABLE + "_OWNER"
Exits = list[tuple[Callable[..., object], tuple[object, ...]]]


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exits]:
    """What would be done at exit."""
    noted: Exits = []
    monkeypatch.setattr(atexit, "register", lambda call, *args: noted.append((call, args)))
    yield noted


def made(folder: Path, environ: dict[str, str] | None = None) -> Path:
    """A directory in ``folder``."""
    path = asking_dir.share({} if environ is None else environ, (str(folder),))
    assert path is not None
    return Path(path)


def test_the_directory_is_made_told_and_in_use(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    path = made(tmp_path, environ)
    assert environ == {asking_dir.VARIABLE: str(path), OWNER: str(os.getpid())}
    assert path.stat().st_mode & 0o777 == 0o700
    assert shared(environ, asking_dir.VARIABLE) == str(path)
    held = os.open(path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(held)


def test_memory_comes_first() -> None:
    path = asking_dir.share({})
    assert path is not None
    try:
        assert Path(path).parent == Path("/dev/shm")  # noqa: S108
    finally:
        Path(path).rmdir()


def test_a_reload_keeps_it_and_another_gunicorn_makes_its_own(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    path = made(tmp_path, environ)
    assert made(tmp_path, environ) == path
    environ[OWNER] = "1"
    assert made(tmp_path, environ) != path
    assert path.exists()


def test_no_room_anywhere(tmp_path: Path) -> None:
    environ = {asking_dir.VARIABLE: "of another gunicorn", OWNER: "1"}
    assert asking_dir.share(environ, (str(tmp_path / "missing"),)) is None
    assert asking_dir.VARIABLE not in environ
    assert asking_dir.share(environ) is None, "a reload finds it so too"


def test_it_goes_away_with_the_arbiter_and_not_with_a_worker(
    tmp_path: Path, exits: Exits, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path)
    (path / "left").touch()
    ((remove, args),) = exits
    with monkeypatch.context() as worker:
        worker.setattr(os, "getpid", lambda: 1)
        remove(*args)
    assert path.exists()
    remove(*args)
    assert not path.exists()


def test_what_a_killed_arbiter_left_is_removed_by_the_next(tmp_path: Path) -> None:
    used = made(tmp_path)
    left, young, link = (tmp_path / f"penstock-asking-{name}" for name in ("left", "young", "link"))
    elsewhere = tmp_path / "elsewhere"
    for folder in (left, young, elsewhere):
        folder.mkdir()
    (left / "q-x").touch()
    link.symlink_to(elsewhere)
    for path in (used, left, elsewhere):
        os.utime(path, (1, 1))
    os.utime(link, (1, 1), follow_symlinks=False)
    made(tmp_path)
    assert not left.exists()
    assert used.exists() and young.exists() and elsewhere.exists()


def test_the_variable_is_not_taken_for_a_setting() -> None:
    assert not asking_dir.VARIABLE.startswith(tuple(OWN_PREFIXES))
    load({asking_dir.VARIABLE: "/x", OWNER: "1"})
