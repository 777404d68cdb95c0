"""What the dashboard shows, row by row: each panel's title, meaning, unit and queries.

Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from queries import RATE, buckets, level, mean, pick, quantile, quantiles, share, so_far, total, zero


class Panel(NamedTuple):
    """One panel.

    Attributes:
        title: What it shows.
        help: What that means, and when to worry.
        unit: As Grafana calls it.
        queries: Legend and query of its lines; a legend may hold ``{{label}}``.
        width: Of 24 columns.
        kind: ``timeseries``, ``stat`` or ``heatmap``.
        stacked: Its lines add up to something.
        limits: Values from which a stat turns orange and red.
        most: Upper end of the axis, where there is a natural one.
    """

    title: str
    help: str
    unit: str
    queries: dict[str, str]
    width: int = 8
    kind: str = "timeseries"
    stacked: bool = False
    limits: tuple[float, ...] = ()
    most: float | None = None


FINISHED: Final = f"sum (rate({pick('request_seconds', '_count')}[{RATE}]))"
FAILED: Final = share(total("failures"), FINISHED)
USD_PER_HOUR: Final = f"{total('cost_usd')} * 3600"
CACHED: Final = share(
    total("tokens", more='kind="cache_read"'), total("tokens", more='kind=~"input|cache_read|cache_write_.*"')
)
VERSIONS: Final = (
    f"sum by (version) ({pick('workers')} * on (job, instance) group_left (version) {pick('build_info')})"
)
NOT_HEALTHY: Final = level("credential_state", "credential, state", 'state!="healthy"')
REUSED: Final = (
    f"{total('upstream_requests_reused', 'provider')} / ({total('upstream_requests_reused', 'provider')}"
    f" + {total('upstream_connections_opened', 'provider')})"
)

ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Now": (
        Panel("Requests", "Finished exchanges.", "reqps", {"": zero(total("requests"))}, 3, "stat"),
        Panel(
            "Failed",
            "Of all models; error events in streams count, and what the client did wrong does not.",
            "percentunit",
            {"": FAILED},
            3,
            "stat",
            limits=(0.01, 0.05),
        ),
        Panel("In flight", "Exchanges under way.", "short", {"": level("in_flight")}, 3, "stat"),
        Panel(
            "Added by the gateway, p95",
            "Time that is not the upstream's; waits for a slot or a key are in it.",
            "s",
            {"": quantile("0.95", "gateway_seconds")},
            3,
            "stat",
            limits=(0.1, 0.5),
        ),
        Panel("Tokens", "Of all kinds.", "short", {"a minute": zero(f"{total('tokens')} * 60")}, 3, "stat"),
        Panel("Spending", "An hour at this pace.", "currencyUSD", {"": zero(USD_PER_HOUR)}, 3, "stat"),
        Panel("Workers", "Processes that serve, by version.", "short", {"{{version}}": VERSIONS}, 3, "stat"),
        Panel(
            "Alerts",
            "Rules of the gateway's own monitor that fire (ALERT_*).",
            "short",
            {"": zero("count(max by (rule) (" + pick("alert_firing") + ") > 0)")},
            3,
            "stat",
            limits=(1, 2),
        ),
    ),
    "Traffic": (
        Panel(
            "Requests by route",
            "Finished exchanges.",
            "reqps",
            {"{{route}}": total("requests", "route")},
            stacked=True,
        ),
        Panel(
            "Requests by status",
            "As the client saw it; 499 left before the answer.",
            "reqps",
            {"{{status}}": total("requests", "status")},
            stacked=True,
        ),
        Panel(
            "The gateway's own errors",
            "By slug, as in x-penstock-error. Errors of the provider pass as they are, and show by their status.",
            "reqps",
            {"{{slug}}": zero(total("requests", "slug", 'slug!=""'), "slug")},
            stacked=True,
        ),
        Panel(
            "Failures by type",
            "upstream_… are the provider's, also in mid-stream; all others are the gateway's own errors.",
            "reqps",
            {"{{type}}": zero(total("failures", "type"), "type")},
            stacked=True,
        ),
        Panel("Exchanges under way", "By node.", "short", {"{{instance}}": level("in_flight", "instance")}),
        Panel(
            "Clients that left",
            "Before their answer was over; what the upstream still had to say was cancelled.",
            "reqps",
            {"{{route}}": zero(total("client_departures", "route"), "route")},
        ),
        Panel(
            "Bytes",
            "Bodies of requests and answers.",
            "Bps",
            {"requests": total("request_bytes"), "answers": total("response_bytes")},
        ),
    ),
    "Latency": (
        Panel(
            "Added by the gateway",
            "Everything that is not the upstream's: parsing, waits for a slot, a key or a backoff, the way back.",
            "s",
            quantiles("gateway_seconds"),
        ),
        Panel(
            "Upstream's head",
            "From sending the last try to the first line of its answer.",
            "s",
            quantiles("upstream_head_seconds"),
        ),
        Panel("Whole exchange", "From the request to the last byte.", "s", quantiles("request_seconds")),
        Panel(
            "First byte",
            "From the request to the head of the answer.",
            "s",
            quantiles("time_to_first_byte_seconds"),
        ),
        Panel(
            "First event",
            "Streams: from the request to the first event.",
            "s",
            quantiles("time_to_first_event_seconds"),
        ),
        Panel(
            "Pause between events",
            "Streams: from one piece to the next. Users see a long one as stutter.",
            "s",
            quantiles("event_gap_seconds"),
        ),
        Panel(
            "Added by the gateway, all of it",
            "How many exchanges fell into each class.",
            "s",
            {"{{le}}": buckets("gateway_seconds")},
            24,
            "heatmap",
        ),
    ),
    "Queue and retries": (
        Panel(
            "Slots and waiting room",
            "Running and waiting exchanges below what may run, and what may run and wait together.",
            "short",
            {
                "{{provider}} running": level("slots_running", "provider"),
                "{{provider}} waiting": level("queue_depth", "provider"),
                "{{provider}} slots": level("slots_capacity", "provider"),
                "{{provider}} slots and room": level("queue_capacity", "provider"),
            },
        ),
        Panel("Wait for a slot", "Of all exchanges that asked for one.", "s", quantiles("queue_wait_seconds")),
        Panel(
            "Dropped",
            "Refused with 503 because the waiting room was full (DROP_EXCESS_REQUESTS).",
            "reqps",
            {"dropped": total("drops")},
        ),
        Panel(
            "Retries",
            "Tries that another one followed, by what came of them.",
            "reqps",
            {"{{provider}} {{reason}}": zero(total("retries", "provider, reason"), "reason")},
            stacked=True,
        ),
        Panel(
            "Tries per exchange",
            "1 is every request answered at the first try.",
            "short",
            {"{{provider}}": mean("attempts", "provider")},
        ),
        Panel(
            "Retries left",
            "What the budget of all workers still allows; at 0 the upstream's errors are passed on.",
            "short",
            {"left": level("retry_budget_left")},
        ),
    ),
    "Keys and breakers": (
        Panel(
            "Breakers",
            "Workers whose breaker is in this state; open refuses at once with 503.",
            "short",
            {"{{provider}} {{state}}": level("breaker_state", "provider, state")},
            stacked=True,
        ),
        Panel(
            "Keys that are not healthy",
            "Workers to which a key is cooling (429), on probation, open or benched (401, 403: look at it).",
            "short",
            {"{{credential}} {{state}}": zero(f"{NOT_HEALTHY} > 0", "state")},
        ),
        Panel(
            "Exchanges by key",
            "Under way with each key.",
            "short",
            {"{{provider}} {{credential}}": level("credential_in_flight", "provider, credential")},
        ),
    ),
    "Connections to the upstream": (
        Panel(
            "Open", "Over all workers.", "short", {"{{provider}}": level("upstream_connections", "provider")}, 6
        ),
        Panel(
            "New",
            "Connections opened, and TLS handshakes made.",
            "cps",
            {
                "{{provider}} opened": total("upstream_connections_opened", "provider"),
                "{{provider}} handshakes": total("upstream_tls_handshakes", "provider"),
            },
            6,
        ),
        Panel(
            "Reused",
            "Share of the tries that found an open connection. Less than 0.9 is worth a look.",
            "percentunit",
            {"{{provider}}": REUSED},
            6,
            most=1,
        ),
        Panel(
            "Time to connect",
            "TCP and TLS, where a try had to open a connection.",
            "s",
            quantiles("connect_seconds"),
            6,
        ),
    ),
    "Tokens and cost": (
        Panel(
            "Tokens by kind",
            "A second. Cache reads cost a tenth of input.",
            "short",
            {"{{kind}}": zero(total("tokens", "kind"), "kind")},
            stacked=True,
        ),
        Panel(
            "Tokens by model",
            "A second, of all kinds.",
            "short",
            {"{{model}}": zero(total("tokens", "model"), "model")},
            stacked=True,
        ),
        Panel(
            "Read from the cache",
            "Share of all tokens of prompts.",
            "percentunit",
            {"cache reads": CACHED},
            most=1,
        ),
        Panel(
            "Spending by model",
            "An hour at this pace, at the prices of the table or of PENSTOCK_PRICES.",
            "currencyUSD",
            {"{{model}}": zero(f"{total('cost_usd', 'model')} * 3600", "model")},
            stacked=True,
        ),
        Panel(
            "Spent",
            "In the range shown.",
            "currencyUSD",
            {"": zero(total("cost_usd", span="$__range", function="increase"))},
            4,
            "stat",
        ),
        Panel(
            "Not in that sum",
            "Exchanges with tokens and no price, and those that broke off before all their usage was told.",
            "reqps",
            {
                "no price: {{model}}": zero(total("unpriced", "model"), "model"),
                "partial usage": zero(total("usage_partial")),
            },
            6,
        ),
        Panel(
            "Server tools",
            "Uses of tools that the provider runs, such as web_search.",
            "ops",
            {"{{tool}}": zero(total("server_tool_uses", "tool"), "tool")},
            6,
        ),
    ),
    "Workers": (
        Panel(
            "Lag of the loops, p99",
            "How late a timer strikes in the upstream loop and in the hub of the clients' greenlets.",
            "s",
            {"upstream loop": quantile("0.99", "loop_lag_seconds"), "hub": quantile("0.99", "hub_lag_seconds")},
            6,
        ),
        Panel(
            "Crossings",
            "Requests handed to the loop, and those served by the fallback threads because it was gone.",
            "ops",
            {"crossings": total("bridge_crossings"), "fallbacks": total("bridge_fallbacks")},
            6,
        ),
        Panel("Fallback threads", "At work now.", "short", {"busy": level("fallback_pool_active")}, 6),
        Panel(
            "Events",
            "Of the bridge, the pools and the keys, as in the log.",
            "ops",
            {"{{event}}": zero(total("events", "event"), "event")},
            6,
        ),
        Panel(
            "Memory",
            "Resident, all workers of a node.",
            "bytes",
            {"{{instance}}": level("resident_memory_bytes", "instance")},
            6,
        ),
        Panel("Open files", "All workers of a node.", "short", {"{{instance}}": level("open_fds", "instance")}, 6),
        Panel(
            "Worker restarts",
            "Within five minutes.",
            "short",
            {"restarts": zero(total("worker_restarts", span="5m", function="increase"))},
            6,
        ),
        Panel(
            "Trouble",
            "Workers that are degraded, draining or cut off from Redis; lines and spans that were lost.",
            "short",
            {
                "degraded": level("degraded"),
                "draining": level("draining"),
                "without Redis": level("shared_state_degraded"),
                "log lines lost": level("log_lines_lost"),
                "spans lost": level("spans_lost"),
            },
            6,
        ),
    ),
    "Alerts": (
        Panel(
            "Firing in the gateway",
            "1 while a rule of the gateway's monitor (ALERT_*) fires on a node.",
            "short",
            {"{{rule}}": f"max by (rule) ({pick('alert_firing')})"},
        ),
        Panel(
            "Raised and delivered",
            "Since the gateway started: alerts raised, and what came of posting them to ALERT_WEBHOOK_URL.",
            "short",
            {
                "{{rule}}": zero(so_far("alerts", "rule"), "rule"),
                "deliveries: {{result}}": zero(so_far("alert_deliveries", "result"), "result"),
            },
        ),
        Panel(
            "Firing in Prometheus",
            "Rules of prometheus-rules.yml.",
            "short",
            {
                "{{alertname}}": zero(
                    'count by (alertname) (ALERTS{alertname=~"Penstock.*", alertstate="firing"})', "alertname"
                )
            },
        ),
    ),
}
