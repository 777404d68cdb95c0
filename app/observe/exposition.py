"""Make the text that Prometheus scrapes, of all workers of the node (B41).

Runs on: worker.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app import metrics_dir
from app.observe import metrics  # noqa: F401 - what is to be shown is named there

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TRIES = 3


class _Workers(Collector):
    """What all workers have counted, and what the arbiter has: it holds no metrics of its own."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """Every metric there is; a directory that was given may hold other files than ours."""
        yield from MultiProcessCollector.merge(metrics_dir.files(self._directory))  # type: ignore[no-untyped-call]
        text = "Workers that ended, of whatever, and were replaced."
        yield CounterMetricFamily("penstock_worker_restarts", text, metrics_dir.restarts(self._directory))


def exposition(directory: str | None) -> bytes:
    """The text to scrape.

    Args:
        directory: That the workers share; None, or one that has gone: of this process alone (``reserved`` says
            so in ``/ready``).
    """
    if directory is None:
        return bytes(generate_latest(REGISTRY))
    registry = CollectorRegistry()
    registry.register(_Workers(directory))
    for _ in range(_TRIES):
        try:
            return bytes(generate_latest(registry))
        except struct.error:  # a worker that starts right now has made its file and not yet written its length
            continue
        except OSError:
            if not Path(directory).is_dir():
                return bytes(generate_latest(REGISTRY))
    return bytes(generate_latest(registry))
