"""Lead a batch's ``results_url`` through this gateway, where the operator wants that (B18).

The SDKs follow the absolute URL in the body, past any proxy and with the caller's key. Rewriting it changes body
bytes, so it is off unless ``REWRITE_RESULTS_URL=true``; nothing else in the body is touched.
Pure.
"""

from __future__ import annotations

import re

LIMIT_BYTES = 8 << 20


def rewritten(body: bytes, origin: str, public_url: str) -> bytes:
    """``body`` with every ``"results_url": "<origin>/…"`` led to ``<public_url>/…``.

    Args:
        body: JSON of one batch or a list of them.
        origin: ``scheme://host[:port]`` of the upstream.
        public_url: Where clients reach this gateway, mount included, without a slash at the end.
    """
    upstream = re.escape(origin.encode()) + rb"|https://api\.anthropic\.com"
    pattern = re.compile(rb'("results_url"\s*:\s*")(?:' + upstream + rb")(?=/)")
    return pattern.sub(lambda found: found.group(1) + public_url.encode(), body)
