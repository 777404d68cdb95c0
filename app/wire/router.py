"""Read off ``X-Request-Start`` how long a request waited in the platform's router.

Heroku sends milliseconds since the epoch, nginx by custom ``t=${msec}`` (seconds with milliseconds), others
microseconds, with or without ``t=``. The size tells the unit: they are a thousand apart, and until the year 5138
seconds stay below 10^11.
Pure: the clock is passed in.
"""

from __future__ import annotations

import re

NAME = "x-request-start"
_LONGEST_S = 3600.0
_START = re.compile(r"(?:t=)?(\d{9,19}(?:\.\d{1,9})?)", re.ASCII)


def waited_ms(value: str, now: float) -> float | None:
    """Milliseconds from the router's instant to ``now``.

    Args:
        value: Of the header.
        now: When the request was received, in seconds since the epoch.

    Returns:
        0.0 where the router's clock is ahead of ours; None where the value is none, or over an hour from ``now``.
    """
    found = _START.fullmatch(value.strip())
    if found is None:
        return None
    start = float(found.group(1))
    while start >= 1e11:
        start /= 1000.0
    waited_s = now - start
    if abs(waited_s) > _LONGEST_S:
        return None
    return max(0.0, waited_s * 1000.0)
