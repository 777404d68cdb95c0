"""reserved: a full or missing directory ends no worker; it counts for itself and says so (B41).

Runs on: the test's thread.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from app import metrics_dir
from app.observe import reserved
from app.observe.reserved import ReservedDict, Unshared

ROOT = Path(__file__).resolve().parents[3]
FIRST_BYTES = 65_536
FULL = "No space left on device"


@pytest.fixture(autouse=True)
def _no_troubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_dir, "troubles", [])
    monkeypatch.setattr(reserved, "_mapped", type(reserved._mapped)())


def fill(one: ReservedDict, first: int, last: int) -> None:
    """Write values under names of some length."""
    for number in range(first, last):
        one.write_value(f"{number:0100d}", float(number), 0.0)  # type: ignore[no-untyped-call]


def values(one: ReservedDict) -> list[float]:
    """What it holds."""
    return [value for _, value, _ in one.read_all_values()]  # type: ignore[no-untyped-call]


def in_file(path: Path) -> list[float]:
    """What others see."""
    found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return [value for _, value, _, _ in found]


def no_room(monkeypatch: pytest.MonkeyPatch, above: int = 0) -> None:
    """Every reservation of more than so many bytes fails."""
    real = os.posix_fallocate

    def refuse(file: int, offset: int, size: int) -> None:
        if size > above:
            raise OSError(errno.ENOSPC, FULL)
        real(file, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", refuse)


def test_b41_its_space_is_taken_at_the_start_and_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    one = ReservedDict(str(path))
    assert path.stat().st_blocks * 512 >= FIRST_BYTES
    fill(one, 0, 2_000)
    about = path.stat()
    assert about.st_size > FIRST_BYTES
    assert about.st_blocks * 512 >= about.st_size
    assert in_file(path) == values(one) == [float(number) for number in range(2_000)]
    assert metrics_dir.troubles == []
    one.close()


def test_b41_without_room_at_the_start_it_counts_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch)
    one = ReservedDict(str(tmp_path / "counter_1.db"))
    fill(one, 0, 2_000)
    fill(one, 5, 6)
    assert values(one) == [float(number) for number in range(2_000)]
    assert one.read_value(f"{7:0100d}") == (7.0, 0.0)  # type: ignore[no-untyped-call]
    assert list(tmp_path.iterdir()) == [], "an empty file is a fault to whoever reads"
    assert metrics_dir.troubles == [f"{tmp_path}: {FULL}; this worker counts for itself"]
    one.close()


def test_b41_without_room_to_grow_it_goes_on_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch, FIRST_BYTES)
    counter, gauge = (ReservedDict(str(tmp_path / name)) for name in ("counter_1.db", "gauge_livesum_1.db"))
    for one in (counter, gauge):
        fill(one, 0, 2_000)
        assert values(one) == [float(number) for number in range(2_000)]
        one.close()
    seen = in_file(tmp_path / "counter_1.db")
    assert 0 < len(seen) < 2_000
    assert seen == [float(number) for number in range(len(seen))]
    assert (tmp_path / "counter_1.db").stat().st_size == FIRST_BYTES
    assert not (tmp_path / "gauge_livesum_1.db").exists(), "it would tell of this worker as it was"
    assert len(metrics_dir.troubles) == 1


def test_b41_a_reused_pid_goes_on_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    with path.open("wb") as file:
        file.truncate(FIRST_BYTES)  # sparse
    one = ReservedDict(str(path))
    assert path.stat().st_blocks * 512 >= FIRST_BYTES
    fill(one, 0, 3)
    one.close()
    again = ReservedDict(str(path))
    fill(again, 2, 5)
    assert values(again) == in_file(path) == [0.0, 1.0, 2.0, 3.0, 4.0]
    again.close()


def test_b41_rubbish_of_a_reused_pid_ends_nobody(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    path.write_bytes(b"\xff\xff\x00\x00" + b"rubbish!" * 100)
    one = ReservedDict(str(path))
    fill(one, 0, 3)
    assert values(one) == [0.0, 1.0, 2.0]
    assert len(metrics_dir.troubles) == 1


def test_b41_reading_makes_and_reserves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "counter_1.db"
    one = ReservedDict(str(path))
    fill(one, 0, 3)
    one.close()
    no_room(monkeypatch)
    reader = ReservedDict(str(path), read_mode=True)
    assert values(reader) == [0.0, 1.0, 2.0]
    reader.close()
    with pytest.raises(FileNotFoundError):
        ReservedDict(str(tmp_path / "none.db"), read_mode=True)
    assert metrics_dir.troubles == []


def test_b41_files_that_went_are_told_once(tmp_path: Path) -> None:
    told: list[dict[str, object]] = []
    unshared = Unshared(told.append)
    one = ReservedDict(str(tmp_path / "counter_1.db"))
    unshared.pump()
    assert (told, unshared.troubles) == ([], [])
    (tmp_path / "counter_1.db").unlink()
    fill(one, 0, 3)
    unshared.pump()
    unshared.pump()
    (reason,) = unshared.troubles
    assert reason == "metrics are not shared: this worker's files are gone; nobody else sees what it counts"
    assert told == [{"event": "metrics_not_shared", "reason": reason}]
    fill(one, 0, 2_000)
    assert len(values(one)) == 2_000
    assert list(tmp_path.iterdir()) == [], "growth makes no new file"
    one.close()


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


@pytest.mark.parametrize("left", [0, 10_000, 100_000])
def test_b41_a_full_file_system_kills_nobody(tiny: Path, left: int) -> None:
    """In a process of its own: what it is spared is SIGBUS."""
    (tiny / "others").write_bytes(bytes((204_800 - left) // 4096 * 4096))
    program = """
from app import metrics_dir
from app.observe import metrics
for number in range(1000):
    metrics.REQUESTS.labels("messages", f"model-{number}", "200", "").inc()
    metrics.QUEUE_WAIT.labels(str(number)).observe(1)
print(sum(s.value for s in next(iter(metrics.REQUESTS.collect())).samples), len(metrics_dir.troubles))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], metrics_dir.VARIABLE: str(tiny)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1000.0 1\n"), done.stderr
