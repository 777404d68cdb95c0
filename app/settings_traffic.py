"""Settings of the traffic: sizes, slots, retries, breaker, fallbacks, what callers may take, shared state.

Pure.
"""

from __future__ import annotations

from typing import Literal

from pydantic import SecretStr

from app.settings_fields import MOST_REQUESTS, MOST_TOKENS, Names, ProviderSettings, count, seconds, setting
from app.settings_network import Network


class Traffic(Network):
    """The second half of the settings; see ``app.settings.Settings``."""

    # limits and tries
    max_body_bytes: int = count(
        "MAX_BODY_BYTES", 33_554_432, 1024, 1_073_741_824, "Largest request body; over it 413.", "bytes"
    )
    max_file_bytes: int = count(
        "MAX_FILE_BYTES", 524_288_000, 1024, 10_737_418_240, "Largest file upload; over it 413.", "bytes"
    )
    rewrite_results_url: bool = setting(
        "REWRITE_RESULTS_URL", False, "Rewrite results_url of batches to lead through this gateway."
    )
    anthropic_concurrency: int = count(
        "ANTHROPIC_CONCURRENCY", 1000, 1, 1_000_000, "Exchanges with Anthropic at once, per node.", "exchanges"
    )
    anthropic_buffer_size: int = count(
        "ANTHROPIC_BUFFER_SIZE",
        5000,
        1,
        10_000_000,
        "Exchanges running and waiting together, per node.",
        "exchanges",
    )
    drop_excess_requests: bool = setting(
        "DROP_EXCESS_REQUESTS",
        False,
        "Refuse with 503 at once what is beyond the buffer, instead of letting it wait.",
    )
    retry_max_attempts: int = count(
        "RETRY_MAX_ATTEMPTS", 3, 1, 10, "Tries per exchange, the first included; 1 never retries.", "tries"
    )
    retry_429_interval_s: float = seconds(
        "RETRY_429_INTERVAL", 1.0, 0.01, 60, "Base of the backoff when the answer names no time."
    )
    retry_backoff_max_s: float = seconds(
        "RETRY_BACKOFF_MAX", 12.0, 0.01, 600, "Longest backoff between two tries."
    )
    retry_budget_ratio: float = setting(
        "RETRY_BUDGET_RATIO",
        0.1,
        "Retries allowed per request of the last ten seconds, in each worker; on top of the floor.",
        "retries per request",
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    retry_budget_floor: int = count(
        "RETRY_BUDGET_FLOOR",
        10,
        0,
        10_000,
        "Retries allowed in any ten seconds however little traffic there is.",
        "retries",
    )

    # breaker
    breaker_window_s: float = seconds(
        "BREAKER_WINDOW", 10.0, 1, 600, "How far back failures count towards opening a breaker."
    )
    breaker_min_calls: int = count(
        "BREAKER_MIN_CALLS", 30, 1, 1_000_000, "Fewer calls than this in the window open no breaker.", "calls"
    )
    breaker_failure_rate: float = setting(
        "BREAKER_FAILURE_RATE",
        0.5,
        "Share of failed calls in the window that opens a breaker.",
        "of the calls",
        ge=0.01,
        le=1,
        allow_inf_nan=False,
    )
    breaker_open_s: float = seconds(
        "BREAKER_OPEN", 5.0, 0.1, 600, "How long a breaker stays open before one probe; longer when that fails."
    )

    # other providers
    anthropic_fallbacks: Names = setting(
        "ANTHROPIC_FALLBACKS",
        (),
        "Providers tried in this order when Anthropic is refused, open or exhausted.",
        note="names of providers in the JSON file, separated by commas",
    )
    providers: tuple[ProviderSettings, ...] = setting(
        "", (), "Other providers of the same dialect; only in the JSON file.", note="objects by name"
    )

    # what a caller may take
    gateway_requests_per_minute: int = count(
        "GATEWAY_REQUESTS_PER_MINUTE",
        0,
        0,
        MOST_REQUESTS,
        "Requests a minute per gateway key; 0 is no limit.",
        "requests",
    )
    gateway_concurrent_requests: int = count(
        "GATEWAY_CONCURRENT_REQUESTS",
        0,
        0,
        MOST_REQUESTS,
        "Requests at once per gateway key; 0 is no limit.",
        "requests",
    )
    gateway_tokens_per_day: int = count(
        "GATEWAY_TOKENS_PER_DAY",
        0,
        0,
        MOST_TOKENS,
        "Tokens a day (input, cache writes, output) per gateway key; 0 is no limit.",
        "tokens",
    )

    # shared state
    redis_url: SecretStr | None = setting(
        "REDIS_URL",
        None,
        "Redis that shares limits and learned states among nodes; without it each node keeps its own.",
        note="a redis://, rediss:// or unix:// URL",
    )
    redis_tls_verify: Literal["auto", "true", "false"] = setting(
        "REDIS_TLS_VERIFY",
        "auto",
        "Check Redis's certificate; auto accepts a self-signed one, as Heroku's, and says so.",
    )
