"""gunicorn goes on, and says so, when the directory of its metrics is full or has gone (B41)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.simulator.running import Running
from tests.e2e.servers import Farm, Server, until
from tests.e2e.test_metrics import samples
from tests.e2e.wire import ask, post


def ready(server: Server) -> dict[str, Any]:
    """What ``/ready`` of one of the workers says."""
    answer = ask(server.port, "/ready")
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


def told(server: Server) -> set[str]:
    """Reasons that were logged, each as a warning."""
    lines = server.lines("metrics_not_shared")
    assert all(line["level"] == "warning" for line in lines)
    return {line["reason"] for line in lines}


def replace_one(server: Server) -> None:
    """Kill a worker, wait for the next, see requests and the page go on."""
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(server.lines("worker_started")) == 3, 15, "another worker")
    for _ in range(6):
        assert post(server.port, "json-0ms").status == 200
        assert any(name.startswith("penstock_workers") for name in samples(server))
    assert server.process.poll() is None


def two_workers(server: Server) -> None:
    """Wait until both are there."""
    until(lambda: len(server.lines("worker_started")) == 2, 10, "two workers")


def test_a_directory_that_went_is_made_anew(farm: Farm, simulator: Running, tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    with farm.own("gevent", WEB_CONCURRENCY=2, PROMETHEUS_MULTIPROC_DIR=folder) as server:
        two_workers(server)
        assert ready(server)["status"] == "ready"
        shutil.rmtree(folder)
        assert samples(server)["penstock_workers{}"] == 1, "whichever was asked shows itself"
        until(lambda: len(server.lines("metrics_not_shared")) == 2, 10, "both say so")
        replace_one(server)
        assert folder.stat().st_mode & 0o777 == 0o700
        until(lambda: samples(server)["penstock_workers{}"] == 1, 5, "what the new worker shares")
        prefix = "metrics are not shared: "
        again = f"{prefix}{folder} had gone and was made anew; what was counted before is lost"
        lost = f"{prefix}this worker's files are gone; nobody else sees what it counts"
        until(lambda: told(server) >= {again, lost}, 10, "the new one's reason")
        for _ in range(6):
            state = ready(server)
            assert state["status"] == "degraded"
            assert again in state["reasons"] or lost in state["reasons"]


def test_without_a_directory_a_worker_counts_for_itself(farm: Farm, simulator: Running, tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    with farm.own("gevent", WEB_CONCURRENCY=2, PROMETHEUS_MULTIPROC_DIR=folder) as server:
        two_workers(server)
        shutil.rmtree(folder)
        folder.write_text("in the way", encoding="ascii")
        replace_one(server)
        reason = f"metrics are not shared: {folder} cannot be used; this worker counts for itself"
        until(lambda: reason in told(server), 10, "the new one's reason")
        for _ in range(6):
            assert ready(server)["status"] == "degraded"


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system with 200 KB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("needs to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], timeout=30, check=True)


def test_a_full_directory_kills_no_worker(farm: Farm, simulator: Running, tiny: Path) -> None:
    """Room for three files of the eight that two workers want."""
    with farm.own("gevent", WEB_CONCURRENCY=2, PROMETHEUS_MULTIPROC_DIR=tiny) as server:
        two_workers(server)
        workers = server.workers()

        def both_say_so() -> bool:  # each as it first wants a file for which there is no room
            assert post(server.port, "json-0ms").status == 200
            assert ask(server.port, "/metrics").status == 200
            return len(server.lines("metrics_not_shared")) == 2

        until(both_say_so, 10, "a line of each")
        for _ in range(10):
            assert post(server.port, "json-0ms").status == 200
            assert ready(server)["status"] == "degraded"
        assert server.workers() == workers
        assert told(server) == {
            f"metrics are not shared: {tiny}: No space left on device; this worker counts for itself"
        }


def test_by_default_they_are_in_memory(farm: Farm, simulator: Running) -> None:
    """A disk that is full of other things does not matter then."""
    memory = Path("/dev/shm")  # noqa: S108 - looked at only
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        pytest.skip("no memory to be had")
    with farm.own("gevent") as server:
        until(lambda: server.lines("worker_started"), 10, "a worker")
        (worker,) = server.workers()
        assert list(memory.glob(f"penstock-metrics-*/counter_{worker}.db"))
    assert not list(memory.glob(f"penstock-metrics-*/counter_{worker}.db"))
