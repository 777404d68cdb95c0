"""The storm's script and its accounts: what the client saw, and what the simulator met, key by key.

    key           answers
    storm-429     429 with retry-after, always
    storm-529     529 for a while in the middle, the ordinary answer before and after
    storm-401     401, always
    storm-200     the ordinary answer, always

An attempt went to a key *known to be cooling* when it arrived later than the grace after a 429 of that key had
been answered and before the retry-after of that 429 was over. The grace is what the answer may take on its way
back, and what was sent meanwhile on its way here: nobody could have known. A 401 is known for good, after the same
grace.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.bench.figures import Figures, milliseconds, percentile

LIMITED, OVERLOADED, DENIED, HEALTHY = "storm-429", "storm-529", "storm-401", "storm-200"
KEYS = (LIMITED, OVERLOADED, DENIED, HEALTHY)
GRACE_S = 0.05
_SDK_RETRIES = 2
_SDK_BASE_S, _SDK_CAP_S = 0.5, 8.0
_SDK_OBEYED_S = 60.0
_SPREAD = (-25, -10, 5, 20, 10)  # percent; the mean is 0

Record = Mapping[str, Sequence[tuple[float, int]]]
"""Per key, (arrival in seconds, status) of each attempt, in order."""


@dataclass(frozen=True, slots=True)
class Script:
    """What happens in one round.

    Attributes:
        requests: How many the client sends.
        concurrency: How many at once.
        answer_ms: Mean time of an ordinary answer.
        retry_after_s: What the 429 asks for.
        outage_s: How long the 529 lasts.
    """

    requests: int
    concurrency: int
    answer_ms: int
    retry_after_s: int
    outage_s: float

    @property
    def expected_s(self) -> float:
        """How long the round takes if every request is answered at once in the ordinary way."""
        return self.requests * self.answer_ms / 1000 / min(self.concurrency, self.requests)

    @property
    def outage(self) -> tuple[float, float]:
        """Begin and end of the 529, in the middle of the expected length."""
        begin_s = max(0.0, (self.expected_s - self.outage_s) / 2)
        return begin_s, begin_s + self.outage_s

    def programs(self) -> dict[str, list[dict[str, Any]]]:
        """What each key is answered, for the simulator."""
        begin_s, end_s = self.outage
        return {
            LIMITED: [{"status": 429, "retry_after": str(self.retry_after_s)}],
            OVERLOADED: [{"from_s": begin_s, "to_s": end_s, "status": 529}],
            DENIED: [{"status": 401}],
        }

    def model(self, index: int) -> str:
        """The model of request ``index``, which says how long its answer takes."""
        return f"claude-sim-json-{self.answer_ms * (100 + _SPREAD[index % len(_SPREAD)]) // 100}ms"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request as its client saw it.

    Attributes:
        status: The last one; 0 is none.
        latency_s: From the first byte sent to the last byte of the last answer.
        tries: How often the client sent it.
    """

    status: int
    latency_s: float
    tries: int = 1


def sdk_wait_s(status: int, retry_after: str, made: int, rnd: float) -> float | None:
    """How long an official SDK waits before it tries again; None if it gives up.

    Source: anthropic 0.40 to 2.x, ``_base_client.py``: two retries of 408, 409, 429, 5xx and failed connections,
    retry-after up to a minute, else 0.5 s doubled up to 8 s, less up to a quarter.

    Args:
        status: 0 is a failed connection.
        retry_after: Header value, or an empty string.
        made: Tries made so far.
        rnd: In [0, 1).
    """
    if made > _SDK_RETRIES or not (status in (0, 408, 409, 429) or status >= 500):
        return None
    asked_s = float(retry_after) if retry_after.replace(".", "", 1).isdigit() else 0.0
    if 0 < asked_s <= _SDK_OBEYED_S:
        return asked_s
    return min(_SDK_BASE_S * 2.0 ** (made - 1), _SDK_CAP_S) * (1 - 0.25 * rnd)


def attempts_while_cooling(
    rows: Sequence[tuple[float, int]], retry_after_s: float, grace_s: float = GRACE_S
) -> int:
    """Attempts on one key while it was known to be cooling; a 429 is answered when it arrives."""
    found = 0
    until_s = float("-inf")
    waiting: list[float] = []  # 429s that nobody can know of yet
    for t_s, status in rows:
        while waiting and waiting[0] + grace_s < t_s:
            until_s = waiting.pop(0) + retry_after_s
        found += t_s < until_s
        if status == 429:
            waiting.append(t_s)
    return found


def attempts_after_denial(rows: Sequence[tuple[float, int]], grace_s: float = GRACE_S) -> int:
    """Attempts on one key after its first 401 was known."""
    first_s = next((t_s for t_s, status in rows if status == 401), None)
    return 0 if first_s is None else sum(t_s > first_s + grace_s for t_s, _ in rows)


def figures(samples: Sequence[Sample], record: Record, script: Script) -> Figures:
    """The figures of one round of one variant; latencies are those of successes, for failures are quick."""
    good_s = [sample.latency_s for sample in samples if sample.status == 200]
    attempts = sum(len(rows) for rows in record.values())
    count = len(samples)
    return {
        "success_pct": round(100 * len(good_s) / count, 3) if count else None,
        "attempts_per_request": round(attempts / count, 4) if count else None,
        "p50_ms": milliseconds(percentile(good_s, 0.50)),
        "p95_ms": milliseconds(percentile(good_s, 0.95)),
        "attempts_while_cooling": sum(
            attempts_while_cooling(rows, script.retry_after_s) for rows in record.values()
        ),
        "attempts_after_denial": attempts_after_denial(record.get(DENIED, ())),
        "met_529": sum(status == 529 for rows in record.values() for _, status in rows),
        "attempts": attempts,
        "failed": count - len(good_s),
    }


def details(samples: Sequence[Sample], record: Record) -> dict[str, Any]:
    """Counts by status the client saw, and by key and status the simulator met."""
    return {
        "statuses": _counted(sample.status for sample in samples),
        "attempts_by_key": {key: _counted(status for _, status in record.get(key, ())) for key in KEYS},
    }


def _counted(values: Any) -> dict[str, int]:
    return {str(value): number for value, number in sorted(Counter(values).items())}


def faults(samples: Sequence[Sample], record: Record, script: Script, *, direct: bool) -> list[str]:
    """What is missing in a round; if ``direct``, without a gateway between, both ends must have counted alike."""
    found = []
    if len(samples) != script.requests:
        found.append(f"{len(samples)} samples of {script.requests} requests")
    strangers = sorted(set(record) - set(KEYS))
    if strangers:
        found.append(f"attempts with keys that are not the storm's: {strangers}")
    met = sum(len(rows) for rows in record.values())
    if direct:
        sent = sum(sample.tries for sample in samples)
        if met != sent:
            found.append(f"the client sent {sent} attempts, the simulator met {met}")
    else:
        good = sum(sample.status == 200 for sample in samples)
        answered = sum(status == 200 for rows in record.values() for _, status in rows)
        if good > answered:
            found.append(f"{good} successes, but the simulator gave {answered}")
    if not any(sample.status == 200 for sample in samples):
        found.append("no request succeeded, so there is no latency")
    return found
