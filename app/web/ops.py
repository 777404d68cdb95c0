"""Answer the operator: health, readiness, metrics (B5).

    /health              200 while the process answers
    /ready               200, or 503 while draining or when the upstream cannot be reached; always with reasons
    /metrics             Prometheus, all workers of the node
    /anthropic/metrics   JSON of this worker; its ``performance`` is of all workers of the node

Runs on: worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from flask import Response

from app.observe.exposition import CONTENT_TYPE, exposition
from app.upstream.target import TargetStats
from app.web.health import Health


def _json(payload: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(payload), status, mimetype="application/json")


def _target(target: TargetStats) -> dict[str, Any]:
    """Slots, breaker and keys of one target."""
    return {
        "provider": target.name,
        "slots": asdict(target.slots),
        "breaker": {"state": target.breaker, "retry_in_s": round(target.breaker_retry_in_s, 3)},
        "credentials": [asdict(one) for one in target.credentials],
    }


class Ops:
    """The operator's views.

    Args:
        health: What this worker knows of itself.
        configuration: ``max_connections``, ``max_keepalive``, ``chunk_size`` as set.
        shared_dir: Through which workers share their metrics; None: they do not.
        performance: What the performance monitor shows, JSON-ready.
    """

    def __init__(
        self,
        health: Health,
        configuration: dict[str, int],
        shared_dir: str | None,
        performance: Callable[[], dict[str, Any]],
    ) -> None:
        self._performance = performance
        self._health = health
        self._configuration = configuration
        self._shared_dir = shared_dir

    def alive(self) -> Response:
        """``/health``."""
        return _json({"status": "ok"})

    def ready(self) -> Response:
        """``/ready``."""
        state = self._health.state()
        status = 200 if state["status"] in {"ready", "degraded"} else 503
        response = _json(state, status)
        if status == 503:
            response.headers["retry-after"] = "1"
        return response

    def prometheus(self) -> Response:
        """``/metrics``."""
        self._health.publish()
        return Response(exposition(self._shared_dir), content_type=CONTENT_TYPE)

    def adapter(self) -> Response:
        """``/anthropic/metrics``: of this worker, ``performance`` of all; keys as operators know them."""
        health = self._health
        bridge = health.bridge()
        traffic = health.traffic()
        stats = [target.pool for target in traffic.targets]
        return _json(
            {
                "timestamp": datetime.now(UTC).isoformat(),
                "adapter_metrics": {
                    "status": health.state(traffic)["status"],
                    "initialized": bridge.main.alive,
                    "request_count": health.life.served,
                    "connection_stats": {
                        "hits": sum(s.hits for s in stats),
                        "misses": sum(s.misses for s in stats),
                        "timeouts": sum(s.timeouts for s in stats),
                    },
                    "configuration": self._configuration,
                },
                "router_metrics": {
                    "router_status": bridge.degraded or "active",
                    "thread_pool_active": bridge.pool_active,
                    "thread_pool_size": bridge.pool_size,
                },
                "traffic": {
                    "retry_budget_left": traffic.retries_left,
                    "targets": [_target(target) for target in traffic.targets],
                },
                "performance": self._performance(),
            }
        )

    def routes(self, with_metrics: bool) -> list[tuple[str, str, Callable[[], Response]]]:
        """Path, endpoint name and view of each."""
        found = [("/health", "health", self.alive), ("/ready", "ready", self.ready)]
        if with_metrics:
            found += [("/metrics", "metrics", self.prometheus), ("/anthropic/metrics", "adapter", self.adapter)]
        return found
