"""Settings of what is observed: metrics, usage and prices, logs, alerts, spans.

Pure.
"""

from __future__ import annotations

from typing import Literal

from pydantic import SecretStr

from app.settings_fields import count, setting
from app.settings_traffic import Traffic


class Observed(Traffic):
    """The last part of the settings but for those of the whole; see ``app.settings.Settings``."""

    # what it counts
    enable_metrics_endpoint: bool = setting(
        "ENABLE_METRICS_ENDPOINT", True, "Count, and serve /metrics and /anthropic/metrics."
    )
    metrics_models: int = count(
        "METRICS_MODELS",
        50,
        0,
        10_000,
        "Models counted under their own name, per worker; others are `other`.",
        "models",
    )
    server_timing: bool = setting("SERVER_TIMING", True, "Tell clients in `server-timing` where the time went.")
    enable_usage: bool = setting("ENABLE_USAGE", True, "Read tokens off the answers, and put a price on them.")
    penstock_prices: str | None = setting(
        "PENSTOCK_PRICES",
        None,
        "JSON file of prices that replace or add to the table.",
        note="a readable JSON file",
    )
    gateway_admin_key: SecretStr | None = setting(
        "GATEWAY_ADMIN_KEY",
        None,
        "Opens /admin/records/<request id> to whoever presents it; without it there is no such page.",
        note="at least 16 printable ASCII characters without spaces",
        shown="none",
    )
    recent_records: int = count(
        "RECENT_RECORDS", 1000, 0, 100_000, "Finished exchanges each worker remembers for that page.", "exchanges"
    )

    # what it writes
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "LOG_LEVEL", "info", "Least severe line that is logged."
    )
    log_format: Literal["json", "console"] = setting(
        "LOG_FORMAT", "json", "One JSON object a line, or text for people; on stdout."
    )
    log_dir: str | None = setting(
        "LOG_DIR",
        None,
        "Directory for performance.json, errors.json and, at level debug, requests.json.",
        note="a directory that can be written to",
    )
    log_file_max_bytes: int = count(
        "LOG_FILE_MAX_BYTES", 52_428_800, 65_536, 10_737_418_240, "A log file over this size is rotated.", "bytes"
    )
    log_files_kept: int = count("LOG_FILES_KEPT", 5, 1, 100, "Rotated files kept of each.", "files")
    debug: bool = setting("DEBUG", False, "Tracebacks in the log.")
    enable_request_body_logging: bool = setting("ENABLE_REQUEST_BODY_LOGGING", False, "Log request bodies.")
    enable_response_body_logging: bool = setting("ENABLE_RESPONSE_BODY_LOGGING", False, "Log response bodies.")
    body_log_bytes: int = count("BODY_LOG_BYTES", 8192, 256, 1_048_576, "Most of a body that is logged.", "bytes")

    # what it tells
    enable_performance_monitor: bool = setting(
        "ENABLE_PERFORMANCE_MONITOR", True, "Keep windows of the last hour, and raise alerts."
    )
    alert_p95_latency_ms: float = setting(
        "ALERT_P95_LATENCY_MS",
        500.0,
        "Alert above: 95th percentile of what the gateway adds; 0 is off.",
        "ms",
        ge=0,
        le=600_000,
    )
    alert_p99_latency_ms: float = setting(
        "ALERT_P99_LATENCY_MS",
        1000.0,
        "Alert above: 99th percentile of what the gateway adds; 0 is off.",
        "ms",
        ge=0,
        le=600_000,
    )
    alert_error_rate: float = setting(
        "ALERT_ERROR_RATE",
        0.05,
        "Alert above: share of exchanges that failed; 0 is off.",
        "of the exchanges",
        ge=0,
        le=1,
    )
    alert_memory_growth_mb: float = setting(
        "ALERT_MEMORY_GROWTH_MB",
        50.0,
        "Alert above: growth of a worker within the hour; 0 is off.",
        "MB",
        ge=0,
        le=1_000_000,
    )
    alert_requests_per_second_min: float = setting(
        "ALERT_REQUESTS_PER_SECOND_MIN",
        1.0,
        "Alert below, once it has been above; 0 is off.",
        "requests/s",
        ge=0,
        le=1_000_000,
    )
    alert_webhook_url: SecretStr | None = setting(
        "ALERT_WEBHOOK_URL", None, "Alerts are posted there as JSON.", note="an http or https URL", shown="none"
    )
    enable_otel: bool = setting(
        "ENABLE_OTEL", False, "A span per exchange, exported as OTEL_* says; takes pip install 'penstock[otel]'."
    )
