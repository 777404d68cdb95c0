"""The accounts of an overload: who was served, how quickly the others were refused, and in which order.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.bench.figures import Figures, milliseconds, percentile

MESSAGE = "request dropped: queue is full"
BATCH, WEB = "overload-batch", "overload-web"
# A worker that was held up for a moment reads what came meanwhile in any order (libev: the last first); a waiting
# room that let someone pass would do so by as much as the wait, which is seconds here.
TOLERANCE_S = 0.05
_WEB_EVERY = 5
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        index: Which one it was, in the order of sending.
        status: 0 is no answer.
        sent_s: When it was written; monotonic.
        latency_s: Until its answer was whole.
        retry_after: Header value, or an empty string.
        body: The beginning of the answer.
    """

    index: int
    status: int
    sent_s: float
    latency_s: float
    retry_after: str = ""
    body: bytes = b""

    @property
    def is_refusal(self) -> bool:
        """Whether it was dropped in the words, and with the advice, that a client may rely on."""
        if self.status != 503 or not self.retry_after:
            return False
        try:
            return bool(json.loads(self.body)["error"]["message"] == MESSAGE)
        except (ValueError, KeyError, TypeError):
            return False


def caller_of(index: int) -> str:
    """Whose request it is: one in five is the web's, the others are a batch job's."""
    return WEB if index % _WEB_EVERY == 0 else BATCH


def counted(outcomes: Sequence[Outcome]) -> Figures:
    """Served, refused, and neither; how long each took."""
    served = [one.latency_s for one in outcomes if one.status == 200]
    refused = [one.latency_s for one in outcomes if one.is_refusal]
    return {
        "served": len(served),
        "refused": len(refused),
        "neither": len(outcomes) - len(served) - len(refused),
        **_local(refused),
        "served_p50_ms": milliseconds(percentile(served, 0.50)),
        "served_p95_ms": milliseconds(percentile(served, 0.95)),
    }


def health(outcomes: Sequence[Outcome]) -> Figures:
    """The same of requests to ``/health``, whose answers need no upstream, as a refusal does."""
    good = [one.latency_s for one in outcomes if one.status == 200]
    return {"served": len(good), "neither": len(outcomes) - len(good), **_local(good)}


def _local(latencies_s: Sequence[float]) -> Figures:
    """How long the answers took that needed no upstream."""
    return {
        "local_p50_ms": milliseconds(percentile(latencies_s, 0.50)),
        "local_p99_ms": milliseconds(percentile(latencies_s, 0.99)),
    }


def by_caller(outcomes: Sequence[Outcome]) -> Figures:
    """How long the answers of each caller took, median."""
    found: Figures = {}
    for name, caller in (("web_p50_ms", WEB), ("batch_p50_ms", BATCH)):
        mine = [one.latency_s for one in outcomes if one.status == 200 and caller_of(one.index) == caller]
        found[name] = milliseconds(percentile(mine, 0.50))
    return found


def overtaken(
    sent_s: Mapping[int, float], order: Sequence[int], tolerance_s: float = TOLERANCE_S
) -> tuple[int, float]:
    """How many requests reached the upstream behind one that the same caller had sent later.

    Args:
        sent_s: When each request was sent.
        order: In which order they came to the upstream; what came twice counts where it came first.
        tolerance_s: Overtaken by less does not count.

    Returns:
        Their number; and by how many seconds of sending the worst was overtaken, whatever the tolerance.
    """
    latest: dict[str, float] = {}
    number, worst_s = 0, 0.0
    for index in dict.fromkeys(order):
        caller = caller_of(index)
        behind_s = latest.get(caller, sent_s[index]) - sent_s[index]
        number += behind_s > tolerance_s
        worst_s = max(worst_s, behind_s)
        latest[caller] = max(latest.get(caller, sent_s[index]), sent_s[index])
    return number, worst_s


def grown_mib(sizes_bytes: Sequence[int]) -> list[float]:
    """By how much memory after each repetition exceeds that after the first quarter of them; 0 until then."""
    settled = max(1, len(sizes_bytes) // 4)
    return [
        0.0 if number < settled else round((size - sizes_bytes[settled - 1]) / _MIB, 3)
        for number, size in enumerate(sizes_bytes)
    ]


def mib(size_bytes: int) -> float:
    """Bytes as MiB."""
    return round(size_bytes / _MIB, 2)


def faults(outcomes: Sequence[Outcome], wanted: int, answer_s: float) -> list[str]:
    """What is missing in one repetition, or makes its counts say nothing.

    Args:
        outcomes: What became of the requests.
        wanted: How many were to be sent.
        answer_s: What an upstream answer takes: whoever arrives after that may find a slot that was used before.
    """
    found = []
    if len(outcomes) != wanted:
        found.append(f"{len(outcomes)} samples of {wanted} requests")
    silent = sum(one.status == 0 for one in outcomes)
    if silent:
        found.append(f"{silent} requests without an answer")
    refused_s = [one.sent_s + one.latency_s for one in outcomes if one.is_refusal]
    took_s = max(refused_s) - min(one.sent_s for one in outcomes) if refused_s else 0.0
    if took_s >= answer_s:
        found.append(f"the last refusal came after {took_s:.1f} s, when slots were free again: too busy a machine")
    return found


def statuses(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How often each status was seen."""
    seen: dict[str, int] = {}
    for one in outcomes:
        seen[str(one.status)] = seen.get(str(one.status), 0) + 1
    return {"statuses": dict(sorted(seen.items()))}
