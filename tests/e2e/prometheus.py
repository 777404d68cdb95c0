"""A real Prometheus: Debian's, in a process of its own, on a free port, its data in a folder of the test's.

Where the binary is missing these tests are skipped, but under CI they fail: a gate must not pass by not looking.
Runs on: the test's thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.e2e.servers import ROOT, free_port, until

DEPLOY = ROOT / "deploy"
START_S = 20.0
STOP_S = 10.0


def binary(name: str) -> str:
    """Path of ``prometheus`` or ``promtool``."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed (Debian: apt-get install prometheus)"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; under CI it has to be")
        pytest.skip(reason)
    return found


def promtool(*arguments: str) -> str:
    """What promtool says; fails unless it is content."""
    done = subprocess.run(
        [binary("promtool"), *arguments], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"promtool {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Series(NamedTuple):
    """One series of an answer: its labels and its samples, oldest first, those that are no number left out."""

    labels: dict[str, str]
    values: list[float]


class Prometheus:
    """One running server."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port = port
        self.process = process
        self.log = log

    def get(self, path: str, **parameters: str) -> Any:
        """``data`` of an answer of the HTTP API; fails with Prometheus' own words, warnings too."""
        query = urllib.parse.urlencode({name.rstrip("_"): value for name, value in parameters.items()})
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(f"{parameters}: {error.read().decode()}")
        assert told["status"] == "success" and not told.get("warnings"), (parameters, told)
        return told["data"]

    def series(self, query: str, start_s: float, end_s: float) -> list[Series]:
        """A query for every second between two instants since the epoch."""
        data = self.get("query_range", query=query, start=f"{start_s:.3f}", end=f"{end_s:.3f}", step="1")
        return [Series(one["metric"], _numbers(one["values"])) for one in data["result"]]

    def is_ready(self) -> bool:
        """Whether it serves queries; it listens before that, and answers 503."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def is_up(self) -> bool:
        """Whether its targets have been scraped."""
        found = self.get("targets", state="active")["activeTargets"]
        return bool(found) and all(target["health"] == "up" for target in found)


def _numbers(samples: list[tuple[float, str]]) -> list[float]:
    return [float(text) for _, text in samples if text not in ("NaN", "+Inf", "-Inf")]


@contextlib.contextmanager
def scraping(target: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with deploy/prometheus.yml and its rules that asks ``target`` every second."""
    found = binary("prometheus")
    settings = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(DEPLOY / name) for name in settings["rule_files"]]
    (job,) = settings["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    config, log, port = folder / "prometheus.yml", folder / "prometheus.log", free_port()
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [found, *options, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=sink, stderr=sink
        )
    server = Prometheus(port, process, log)
    try:
        until(lambda: process.poll() is not None or server.is_ready(), START_S, "Prometheus")
        assert process.poll() is None, log.read_text(encoding="utf-8")
        until(server.is_up, START_S, "a first scrape")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
