"""metrics_dir: a directory of this run alone, of which nothing else is lost (B41).

Runs on: the test's thread.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app import metrics_dir

OURS = ("counter_12.db", "histogram_12.db", "gauge_livesum_12.db", "gauge_max_3.db", "summary_1.db")


def test_b41_an_earlier_runs_files_go_and_nothing_else(tmp_path: Path) -> None:
    others = ("users.db", "counter_x.db", "counter_12.db.bak", "notes.txt")
    for name in (*OURS, *others):
        (tmp_path / name).write_text("x", encoding="ascii")
    metrics_dir.add_restart(str(tmp_path))
    environ = {metrics_dir.VARIABLE: str(tmp_path)}
    assert metrics_dir.share(environ) == str(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted((*others, "restarts"))
    assert metrics_dir.restarts(str(tmp_path)) == 0


def test_b41_a_reload_leaves_the_files_alone(tmp_path: Path) -> None:
    environ = {metrics_dir.VARIABLE: str(tmp_path)}
    metrics_dir.share(environ)
    (tmp_path / "counter_12.db").write_text("x", encoding="ascii")
    metrics_dir.add_restart(str(tmp_path))
    assert metrics_dir.share(environ) == str(tmp_path)
    assert (tmp_path / "counter_12.db").exists()
    assert metrics_dir.restarts(str(tmp_path)) == 1


def test_b41_a_reload_of_a_daemon_leaves_them_alone_too(tmp_path: Path) -> None:
    """Its arbiter has another pid than when it first read its configuration."""
    environ = {metrics_dir.VARIABLE: str(tmp_path)}
    metrics_dir.share(environ)
    environ["PROMETHEUS_MULTIPROC_OWNER"] = "1"
    metrics_dir.adopt(environ, made=False)
    (tmp_path / "counter_12.db").write_text("x", encoding="ascii")
    metrics_dir.share(environ)
    assert (tmp_path / "counter_12.db").exists()


def test_b41_a_directory_is_made_where_it_is_missing(tmp_path: Path) -> None:
    given = tmp_path / "a" / "b"
    metrics_dir.share({metrics_dir.VARIABLE: str(given)})
    assert given.is_dir()


def test_b41_one_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="ascii")
    with pytest.raises(OSError, match="file"):
        metrics_dir.share({metrics_dir.VARIABLE: str(tmp_path / "file")})


@pytest.mark.parametrize("adopted", [False, True])
def test_b41_one_that_was_made_goes_away_with_its_process_and_not_with_a_fork(adopted: bool) -> None:
    program = f"""
import os
from app import metrics_dir
environ = {{}}
made = metrics_dir.share(environ)
if {adopted}:
    environ["PROMETHEUS_MULTIPROC_OWNER"] = "1"
    metrics_dir.adopt(environ, made=True)
if os.fork() == 0:
    raise SystemExit
os.wait()
print(made, os.path.isdir(made), environ[metrics_dir.VARIABLE] == made)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    made, there, told = done.stdout.split()
    assert (there, told) == ("True", "True")
    assert not Path(made).exists()


def test_b41_live_gauges_go_with_their_worker(tmp_path: Path) -> None:
    for name in (*OURS, "gauge_livesum_123.db", "gauge_livemax_12.db"):
        (tmp_path / name).write_text("x", encoding="ascii")
    metrics_dir.forget(str(tmp_path), 12)
    metrics_dir.forget(str(tmp_path), 12)
    assert not (tmp_path / "gauge_livesum_12.db").exists()
    assert not (tmp_path / "gauge_livemax_12.db").exists()
    assert (tmp_path / "counter_12.db").exists()
    assert (tmp_path / "gauge_livesum_123.db").exists()


def test_b41_restarts_are_counted(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert metrics_dir.restarts(folder) == 0
    for _ in range(3):
        metrics_dir.add_restart(folder)
    assert metrics_dir.restarts(folder) == 3


def test_b41_the_arbiter_stays_without_prometheus() -> None:
    """What it imports, the workers it forks later have before gevent could patch."""
    program = "import sys, app.metrics_dir as m; print('ssl' in sys.modules, 'prometheus_client' in sys.modules)"
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True, env=environ
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.fixture
def troubles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is noted from now on; prometheus_client is not there yet, as in a worker that starts."""
    found: list[str] = []
    monkeypatch.setattr(metrics_dir, "troubles", found)
    monkeypatch.delitem(sys.modules, "prometheus_client", raising=False)
    return found


def test_b41_a_directory_that_is_there_is_left_alone(tmp_path: Path, troubles: list[str]) -> None:
    environ = {metrics_dir.VARIABLE: str(tmp_path)}
    metrics_dir.check(environ, made=True)
    metrics_dir.check({}, made=True)
    assert (environ, troubles) == ({metrics_dir.VARIABLE: str(tmp_path)}, [])


def test_b41_one_that_went_is_made_anew_for_this_user_alone(tmp_path: Path, troubles: list[str]) -> None:
    folder = tmp_path / "gone"
    environ = {metrics_dir.VARIABLE: str(folder)}
    metrics_dir.check(environ, made=True)
    metrics_dir.check(environ, made=True)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert environ == {metrics_dir.VARIABLE: str(folder)}
    assert troubles == [f"{folder} had gone and was made anew; what was counted before is lost"]


def test_b41_without_one_the_worker_counts_for_itself(tmp_path: Path, troubles: list[str]) -> None:
    (tmp_path / "file").write_text("x", encoding="ascii")
    for name, reason in (("file", "cannot be used"), ("file/below", "has gone")):
        environ = {metrics_dir.VARIABLE: str(tmp_path / name)}
        metrics_dir.check(environ, made=False)
        assert environ == {}
        assert troubles.pop() == f"{tmp_path / name} {reason}; this worker counts for itself"


def test_b41_anothers_directory_in_place_of_our_own_is_not_taken(
    tmp_path: Path, troubles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    environ = {metrics_dir.VARIABLE: str(tmp_path)}
    metrics_dir.check(environ, made=False)
    assert troubles == []
    metrics_dir.check(environ, made=True)
    assert (environ, len(troubles)) == ({}, 1)


def test_b41_where_there_is_no_memory_it_is_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    monkeypatch.setattr(metrics_dir, "_MEMORY", str(tmp_path / "none"))
    assert Path(metrics_dir.share({})).parent == tmp_path
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(metrics_dir, "_MEMORY", str(memory))
    assert Path(metrics_dir.share({})).parent == memory
