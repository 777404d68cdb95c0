"""Read what an answer says about its key's rate limits: the ``anthropic-ratelimit-*`` headers.

Source: https://docs.anthropic.com/en/api/rate-limits#response-headers. Four resources (requests, tokens, input
tokens, output tokens) state a limit, what is left of it, and the instant (RFC 3339) at which it is whole again.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

_PREFIX = "anthropic-ratelimit-"
_NAME = re.compile(r"(requests|tokens|input-tokens|output-tokens)-(limit|remaining|reset)")
_COUNT = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Remaining:
    """How much of its limits a key has left.

    Attributes:
        share: 0 to 1: what is left of the scarcest resource, over its limit.
        reset_in_s: Until that resource is whole again; 0.0 when that is past or not said.
        exhausted_for_s: Until the last of the resources with nothing left is whole again; None when each has some,
            or none of them says when.
    """

    share: float
    reset_in_s: float
    exhausted_for_s: float | None


def read(pairs: Iterable[tuple[str, str]], wall_now: float) -> Remaining | None:
    """The limits that the headers of one answer state.

    Args:
        pairs: Header names in any case.
        wall_now: Seconds since the epoch; resets are instants of the calendar.

    Returns:
        None when no resource states both its limit and what is left. A value that cannot be read counts as not
        stated, and so does a resource whose limit is 0: it is none of this key's.
    """
    found: dict[str, dict[str, str]] = {}
    for name, value in pairs:
        lower = name.lower()
        if lower.startswith(_PREFIX) and (what := _NAME.fullmatch(lower, len(_PREFIX))):
            found.setdefault(what[1], {})[what[2]] = value.strip()
    if not found:
        return None
    stated = [one for fields in found.values() if (one := _resource(fields, wall_now))]
    if not stated:
        return None
    share, reset_in_s = min(stated, key=lambda one: (one[0], -(one[1] or 0.0)))
    resets = [reset for left, reset in stated if left == 0.0 and reset is not None]
    return Remaining(share, reset_in_s or 0.0, max(resets, default=None))


def _resource(fields: dict[str, str], wall_now: float) -> tuple[float, float | None] | None:
    """Share left and seconds until the reset (None: not said) of one resource, if it states a share."""
    limit, left = fields.get("limit", ""), fields.get("remaining", "")
    if not (_COUNT.fullmatch(limit) and _COUNT.fullmatch(left) and int(limit)):
        return None
    return min(int(left) / int(limit), 1.0), _reset_in_s(fields.get("reset", ""), wall_now)


def _reset_in_s(text: str, wall_now: float) -> float | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return max(at.timestamp() - wall_now, 0.0) if at.tzinfo else None
