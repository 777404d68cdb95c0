"""Put the parts for one set of settings together: the one place that knows them all.

All assemblies of one process share one bridge; each has its own pools, limits and life.

Runs on: worker (the targets it makes are made on the loop).
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from app import metrics_dir, settings_otel
from app.bridge.call import Bridge, get_bridge
from app.bridge.loop import BackgroundLoop
from app.bridge.wait import original
from app.gateway.body import BodyRules
from app.gateway.handle import Gateway, Options
from app.gateway.life import Life
from app.gateway.plan import Rules
from app.gateway.records import Observer, Records
from app.gateway.watching import Capture, Watching
from app.observe import alerts, counting, node_cells
from app.observe.cleaned import Cleaned
from app.observe.groups import Gathered, Sorted
from app.observe.log_made import exchange_log, redactor, shows_headers
from app.observe.monitor import PerformanceMonitor, Setup, get_performance_monitor
from app.observe.prices import Prices, tables
from app.observe.reserved import Unshared
from app.observe.watch import Watch
from app.observe.webhook import Done, Webhook
from app.policy.retry import Budget
from app.policy.retry import Rules as RetryRules
from app.providers.base import Provider
from app.providers.table import PROVIDERS
from app.settings import Settings, environment
from app.store import counters
from app.store.board import Board
from app.store.board_file import shared
from app.store.callers import CallerLimits, CallerRule
from app.store.facts import Fact
from app.store.sharing import Link, Sharing
from app.upstream.attempts import Patience
from app.upstream.dispatch import Dispatcher
from app.upstream.pool import Pool, PoolOptions
from app.upstream.target import Target
from app.upstream.target_options import TargetOptions, split, targets_of
from app.upstream.trust import trust
from app.web.admin import Remembered
from app.web.figures import Figures
from app.web.health import Health
from app.web.ops import Ops
from app.web.proxy import Proxy
from app.web.server import Keeper
from app.wire import sse

if TYPE_CHECKING:
    from app.observe.spans import Spans


_ASKED_WAIT_S: Final = 0.1


class Assembly:
    """All parts for one set of settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._kept_pid = 0
        self._untold: list[dict[str, object]] = []
        self.provider = PROVIDERS["anthropic"]
        self.workers = settings.web_concurrency
        self._ca_pem = Path(settings.ssl_cert_file).read_bytes() if settings.ssl_cert_file else None
        self.log = exchange_log(settings, original("select", "poll"))
        self.life = Life(settings.drain_timeout_s)
        self.records = Records(shown=self.log.look)
        self.sharing = Sharing(self._link if settings.redis_url else None)
        self.limits = CallerLimits(
            _caller_rules(settings),
            shared(environment(), counters.VARIABLE),
            self.sharing.client if settings.redis_url else None,
            self._tell,
        )
        self.spans = self._spans()
        self.remembered = Remembered(settings, self._tell, self.records.flush)
        self.monitor = self._monitor()
        self.gathered = Gathered(self._counters())
        self.unshared = Unshared(self._tell)
        self.health = self._health()
        options = _options(settings, _rules(settings, self.provider), self.spans is not None)
        self.gateway = Gateway(options, self.bridge, self.dispatcher, self.life, self.records)
        self.records.observers = self._observers()
        self.proxy = self._proxy()
        self.ops = Ops(
            self.health,
            _configuration(settings),
            environment().get(metrics_dir.VARIABLE),
            self.monitor.view,
        )
        self.keeper = Keeper(
            self.health,
            self.life,
            self.log,
            settings.production_warmup_connections,
            self._pumps(),
            settings.switch_interval_ms / 1000.0,
            (
                self.records.close,
                self.gathered.flush,
                *((self.spans.stop,) if self.spans is not None else ()),
                self.monitor.stop,
            ),
        )

    def _health(self) -> Health:
        return Health(
            self.bridge,
            self.dispatcher,
            self.life,
            self.log,
            -(-self.settings.initial_pool_size // self.workers) or 1,
            lambda: self.sharing.degraded or self.limits.degraded or self.remembered.asking.degraded,
            Figures() if self.settings.enable_metrics_endpoint else None,
            lambda: self.spans.trouble if self.spans is not None else "",
            lambda: self.monitor.troubles,
            lambda: self.unshared.troubles,
            self._settle,
        )

    def _proxy(self) -> Proxy:
        settings = self.settings
        keys = tuple((k.name, k.get_secret_value().encode()) for k in settings.gateway_api_keys)
        guarded = bool(settings.anthropic_api_keys)
        return Proxy(
            self.gateway,
            keys if guarded else (),
            settings.max_body_bytes,
            settings.max_file_bytes,
            settings.body_timeout_s,
            self.limits.admit if guarded and keys and self.limits.any else None,
            self.remembered.admin_key,
        )

    def _observers(self) -> tuple[Observer, ...]:
        """Are shown the Records of all exchanges, while a client may wait: what takes long they put aside."""
        found: list[Observer] = [self.health.observe, self.log.observe, *self.remembered.observers]
        if self.settings.enable_metrics_endpoint or self.settings.enable_performance_monitor:
            found.append(self.gathered.observe)
        if self.spans is not None:
            found.append(self.spans.observe)
        return tuple(found)

    def _counters(self) -> tuple[Callable[[Sorted], None], ...]:
        """Count what has been gathered."""
        found: list[Callable[[Sorted], None]] = []
        if self.settings.enable_metrics_endpoint:
            counting.limit_models(self.settings.metrics_models)
            found.append(counting.count)
        if self.settings.enable_performance_monitor:
            found.append(self.monitor.observe)
        return tuple(found)

    def _settle(self) -> None:
        """Make and count the Records of all that is over: somebody asks."""
        self.records.flush(_ASKED_WAIT_S)
        self.gathered.flush()

    def _pumps(self) -> tuple[Callable[[], None], ...]:
        """Do what was put off, every quarter second."""
        found: list[Callable[[], None]] = [self.records.pump, self.gathered.flush, self.sharing.pump]
        found += (self.limits.pump, *self.remembered.pumps)
        if self.settings.enable_metrics_endpoint:
            found.append(self.unshared.pump)
        if self.settings.enable_performance_monitor:
            found.append(self.monitor.pump)
        if self.spans is not None:
            found.append(self.spans.pump)
        found.append(self.log.pump)  # last: what the others had to say goes with it
        return tuple(found)

    def _monitor(self) -> PerformanceMonitor:
        """The process's monitor, set up for these settings; of several gateways in one process the last counts."""
        settings, secret = self.settings, self.settings.alert_webhook_url
        thresholds = alerts.rules(
            p95_latency_ms=settings.alert_p95_latency_ms,
            p99_latency_ms=settings.alert_p99_latency_ms,
            error_rate=settings.alert_error_rate,
            memory_growth_mb=settings.alert_memory_growth_mb,
            requests_per_second_min=settings.alert_requests_per_second_min,
        )

        def webhook(done: Done) -> Webhook:
            assert secret is not None  # noqa: S101 - asked only then
            return Webhook(secret.get_secret_value(), lambda: trust(self._ca_pem, http2=False), done, self._tell)

        monitor = get_performance_monitor()
        setup = Setup(
            settings.enable_performance_monitor,
            lambda: shared(environment(), node_cells.VARIABLE),
            self._tell,
            lambda: self.life.draining,
            self._settle,
        )
        monitor.configure(setup, Watch(thresholds, self._tell, webhook if secret is not None else None))
        return monitor

    def _spans(self) -> Spans | None:
        """Makes a span of every exchange; None where none are wanted."""
        if not self.settings.enable_otel:
            return None
        if why := settings_otel.off(environment()):
            self._tell({"event": "spans_off", "reason": why})
            return None
        from app.observe.spans import Spans  # an optional extra

        return Spans(self.provider.name, _addresses(self.settings, self.provider), self._tell, environment())

    def bridge(self) -> Bridge:
        """This process's bridge; under servers without our hooks its first use also starts the keeper."""
        bridge = get_bridge(self.settings.router_thread_pool_size)
        if self._kept_pid != bridge.pid:
            self._kept_pid = bridge.pid
            bridge.events.extend(self._untold)
            self.keeper.start()
        return bridge

    def dispatcher(self, loop: BackgroundLoop) -> Dispatcher:
        """The dispatcher of ``loop``; on that loop only."""
        key = f"dispatcher-{id(self)}"
        found: Dispatcher | None = loop.local.get(key)
        if found is None:
            found = loop.local[key] = self._dispatcher(loop)
        return found

    def _dispatcher(self, loop: BackgroundLoop) -> Dispatcher:
        settings = self.settings
        main = loop is self.bridge().main
        board = _board(loop) if main else None
        divided_by, index = self.workers, _place_on(board, self.workers)
        if main:
            self.sharing.use(board)
        else:
            divided_by *= settings.router_thread_pool_size  # the fallback threads share this worker's part
        targets = [
            Target(options, self._pool(options, loop), random.random, loop.events, self.sharing.publish)
            for options in targets_of(settings, self.provider, divided_by, index)
        ]
        rules = RetryRules(
            settings.retry_max_attempts, settings.retry_429_interval_s, settings.retry_backoff_max_s
        )
        return Dispatcher(
            targets,
            Patience(rules, random.random),
            Budget(settings.retry_budget_ratio, settings.retry_budget_floor),
            self.sharing.news if main else tuple,
        )

    def _link(self, outbox: deque[Fact]) -> Link:
        from app.store.redis import RedisLink  # an optional extra

        settings = self.settings
        assert settings.redis_url is not None  # noqa: S101 - asked only then
        return RedisLink(
            settings.redis_url.get_secret_value(),
            settings.redis_tls_verify,
            settings.ssl_cert_file,
            outbox,
            self._deliver,
            self._tell,
        )

    def _deliver(self, facts: list[Fact]) -> None:
        """Hand what other nodes have found out to the loop (worker)."""
        loop = self.bridge().main
        loop.post(lambda: self.dispatcher(loop).hear(facts))

    def _tell(self, event: dict[str, object]) -> None:
        """Log and count an event with the loop's own; while there is no loop here yet, it waits (worker)."""
        if self._kept_pid == os.getpid():
            self.bridge().events.append(event)
        else:
            self._untold.append(event)

    def _pool(self, target: TargetOptions, loop: BackgroundLoop) -> Pool:
        settings = self.settings
        main = target.name == self.provider.name
        options = PoolOptions(
            origin=target.origin,
            transport=settings.upstream_transport,
            max_connections=settings.anthropic_max_connections if main else settings.http_pool_maxsize,
            max_keepalive=settings.anthropic_max_keepalive if main else settings.http_keepalive_connections,
            keepalive_expiry_s=settings.anthropic_keepalive_expiry_s,
            connect_timeout_s=settings.connect_timeout_s,
            pool_timeout_s=settings.pool_timeout_s,
            streams_per_connection=settings.anthropic_streams_per_connection,
            http2=settings.production_enable_http2,
            ca_pem=self._ca_pem,
            write_timeout_s=settings.write_timeout_s,
            ping_interval_s=settings.upstream_ping_interval_s,
            ping_timeout_s=settings.upstream_ping_timeout_s,
            tells_connections=settings.log_level == "debug",
        )
        return Pool(options, loop.events)


def _options(settings: Settings, rules: Rules, spans: bool) -> Options:
    heartbeat = sse.PING if settings.stream_heartbeat_kind == "ping" else sse.COMMENT
    return Options(
        rules=rules,
        body=BodyRules(settings.anthropic_chunk_size_bytes, settings.stream_heartbeat_s, heartbeat),
        write_timeout_s=settings.write_timeout_s,
        public_url=(settings.public_url or "") if settings.rewrite_results_url else "",
        watching=_watching(settings, spans),
    )


def _watching(settings: Settings, spans: bool) -> Watching:
    most = settings.body_log_bytes
    capture = Capture(
        headers=shows_headers(settings),
        request_body_bytes=most if settings.enable_request_body_logging else 0,
        response_body_bytes=most if settings.enable_response_body_logging else 0,
    )
    return Watching(
        price=Prices(*tables(settings.penstock_prices)) if settings.enable_usage else None,
        reads_usage=settings.enable_usage,
        server_timing=settings.server_timing,
        capture=None if capture == Capture() else capture,
        spans=spans,
        shown=Cleaned(redactor(settings).text),
    )


def _rules(settings: Settings, provider: Provider) -> Rules:
    chains = [settings.anthropic_api_keys, *(one.api_keys for one in settings.providers)]
    return Rules(
        provider=provider,
        origin=split(settings.anthropic_upstream_url)[0],
        version=settings.anthropic_version,
        strip_credentials=bool(settings.anthropic_api_keys),
        request_timeout_s=settings.request_timeout_s,
        stream_timeout_s=settings.stream_timeout_s,
        affine=any(len(keys) > 1 for keys in chains),
        by_model=any(key.models for keys in chains for key in keys),
    )


def _addresses(settings: Settings, provider: Provider) -> dict[str, tuple[str, int]]:
    """Host and port of every target, by its name."""
    urls = {provider.name: settings.anthropic_upstream_url}
    urls |= {one.name: one.upstream_url for one in settings.providers}
    found = {name: urlsplit(url) for name, url in urls.items()}
    return {
        name: (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        for name, parts in found.items()
    }


def _caller_rules(settings: Settings) -> list[CallerRule]:
    def of(own: int | None, default: int) -> int:
        return default if own is None else own

    return [
        CallerRule(
            key.name,
            of(key.requests_per_minute, settings.gateway_requests_per_minute),
            of(key.concurrent_requests, settings.gateway_concurrent_requests),
            of(key.tokens_per_day, settings.gateway_tokens_per_day),
        )
        for key in settings.gateway_api_keys
    ]


def _board(loop: BackgroundLoop) -> Board | None:
    """This process's place on the node's board, made once; None where no arbiter of ours has laid one out."""
    path = shared(environment())
    if path and "board" not in loop.local:
        loop.local["board"] = Board(path, tell=loop.events.append)
    found: Board | None = loop.local.get("board")
    return found


def _place_on(board: Board | None, workers: int) -> int | None:
    """Which of the node's workers this one is; after a reload the old ones still hold the first sections."""
    return None if board is None or board.index is None else board.index % workers


def _configuration(settings: Settings) -> dict[str, int]:
    return {
        "max_connections": settings.anthropic_max_connections,
        "max_keepalive": settings.anthropic_max_keepalive,
        "chunk_size": settings.anthropic_chunk_size_bytes,
    }
