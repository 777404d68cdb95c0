"""Write the queries of the dashboard's panels.

Pure.
"""

from __future__ import annotations

from typing import Final

RATE: Final = "$__rate_interval"
ROUTED: Final = {
    "requests",
    "failures",
    "client_departures",
    "request_bytes",
    "response_bytes",
    "usage_partial",
    "gateway_seconds",
    "upstream_head_seconds",
    "time_to_first_byte_seconds",
    "time_to_first_event_seconds",
    "event_gap_seconds",
    "request_seconds",
}
MODELLED: Final = {"requests", "tokens", "server_tool_uses", "cost_usd", "unpriced"}
PROVIDED: Final = {
    "retries",
    "attempts",
    "queue_wait_seconds",
    "queue_depth",
    "queue_capacity",
    "slots_running",
    "slots_capacity",
    "breaker_state",
    "credential_state",
    "credential_in_flight",
    "connect_seconds",
    "upstream_connections",
    "upstream_connections_opened",
    "upstream_tls_handshakes",
    "upstream_requests_reused",
}
"""Which metrics carry the labels that the variables at the top choose from."""


def pick(name: str, suffix: str = "", more: str = "") -> str:
    """A metric, narrowed down to what the dashboard's variables say."""
    chosen = ['instance=~"$instance"']
    chosen += ['route=~"$route"'] * (name in ROUTED)
    chosen += ['model=~"$model"'] * (name in MODELLED)
    chosen += ['provider=~"$provider"'] * (name in PROVIDED)
    return f"penstock_{name}{suffix}{{{', '.join([*chosen, *([more] if more else [])])}}}"


def total(name: str, by: str = "", more: str = "", span: str = RATE, function: str = "rate") -> str:
    """What a counter grew by, per second."""
    return f"sum{f' by ({by})' if by else ''} ({function}({pick(name, '_total', more)}[{span}]))"


def so_far(name: str, by: str) -> str:
    """What a counter has come to, for what is so rare that a rate would miss its first."""
    return f"sum by ({by}) ({pick(name, '_total')})"


def level(name: str, by: str = "", more: str = "") -> str:
    """A gauge over all nodes."""
    return f"sum{f' by ({by})' if by else ''} ({pick(name, '', more)})"


def quantile(share: str, name: str) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({share}, sum by (le) (rate({pick(name, '_bucket')}[{RATE}])))"


def quantiles(name: str) -> dict[str, str]:
    """Median, 95th and 99th percentile."""
    return {f"p{share}": quantile(f"0.{share}", name) for share in ("50", "95", "99")}


def buckets(name: str) -> str:
    """How many values fell into each class of a histogram."""
    return f"sum by (le) (increase({pick(name, '_bucket')}[{RATE}]))"


def mean(name: str, by: str) -> str:
    """Average of what a histogram took."""
    total_of, count_of = (f"sum by ({by}) (rate({pick(name, part)}[{RATE}]))" for part in ("_sum", "_count"))
    return f"{total_of} / {count_of}"


def zero(expr: str, label: str = "") -> str:
    """``expr``, or 0 where nothing of the kind has happened yet: an empty panel would leave that open."""
    if not label:
        return f"{expr} or vector(0)"
    return f'{expr} or on () label_replace(vector(0), "{label}", "none", "", "")'


def share(part: str, whole: str) -> str:
    """One rate over another; 0 while there is neither."""
    return f"({part} or vector(0)) / clamp_min({whole} or vector(0), 1e-9)"
