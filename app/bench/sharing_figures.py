"""How long it takes until nobody uses a key that one worker was told to leave alone.

    ordinary answers ... one 429 with a long retry-after ... ordinary answers
                         told                          last                 told + watch

Only the worker that met the 429 knows of it by itself. For everyone else the key goes on answering 200, so they
use it until they are told by the other, and each attempt until then is on the simulator's record.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.bench.figures import Figures, milliseconds

_QUIET_SHARE = 0.25
Record = Mapping[str, Sequence[tuple[float, int]]]
"""Per key, (arrival in seconds, status) of each attempt, in order."""


def told_at(record: Record, key: str) -> float | None:
    """When the key answered its 429."""
    return next((t_s for t_s, status in record.get(key, ()) if status == 429), None)


def figures(record: Record, key: str, watch_s: float, others: int) -> Figures:
    """One trial.

    Args:
        record: What the simulator met; with a 429 of ``key``.
        key: Which one answered it.
        watch_s: How long the load went on after that.
        others: Answers other than 200 that clients saw.
    """
    told_s = told_at(record, key) or 0.0
    before = [t_s for t_s, _ in record[key] if t_s < told_s]
    after = [t_s - told_s for t_s, _ in record[key] if told_s < t_s <= told_s + watch_s]
    last_s = max(after, default=0.0)
    left_alone = last_s <= watch_s * (1 - _QUIET_SHARE)
    return {
        "until_ms": milliseconds(last_s) if left_alone else None,
        "left_alone": int(left_alone),
        "attempts_after": len(after),
        "gap_ms": milliseconds((told_s - before[0]) / len(before)) if before else None,
        "others": others,
    }


def faults(record: Record, key: str, watch_s: float) -> list[str]:
    """Why a trial says nothing."""
    told_s = told_at(record, key)
    if told_s is None:
        return [f"{key} never came to answer its 429"]
    went_on_s = max(t_s for rows in record.values() for t_s, _ in rows) - told_s
    if went_on_s < watch_s:
        return [f"{key}: the load went on for {went_on_s:.2f} s after the 429, not for {watch_s:g} s"]
    return []


def unused(record: Record, keys: Sequence[str]) -> list[str]:
    """Keys that nobody used."""
    return [key for key in keys if not record.get(key)]
