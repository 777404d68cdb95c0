"""How many slots a given load needs: Little's law, per node and per worker, and the JSON that sets them.

    exchanges at once = requests per second x seconds each takes        (all nodes; Little 1961, L = lambda W)
    buffer = 1.5 x that, since load comes in bursts and what waits holds a place too

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Final

from app.settings import Settings

BURST: Final = Fraction(3, 2)


@dataclass(frozen=True, slots=True)
class Size:
    """Slots and places of one node, and how many nodes and workers there are."""

    concurrency: int
    buffer_size: int
    workers: int
    nodes: int

    def per_worker(self, total: int) -> int:
        """The largest share of a node's total."""
        return -(-total // self.workers)


def size(rps: float, seconds: float, workers: int, nodes: int) -> Size:
    """What one node needs.

    Args:
        rps: Requests per second over all nodes.
        seconds: How long one exchange takes on average.
        workers: Per node.
        nodes: That share the load evenly.

    Raises:
        ValueError: A node would need more slots than can be set.
    """
    # as written: 0.1 x 30 in binary is a little over 3, and would take a slot more
    at_once = Fraction(str(rps)) * Fraction(str(seconds))
    concurrency = max(ceil(at_once / nodes), workers)
    most = _most("anthropic_concurrency")
    if concurrency > most:
        raise ValueError(f"{concurrency} exchanges at once per node; {most} are possible, so it takes more nodes.")
    return Size(concurrency, ceil(concurrency * BURST), workers, nodes)


def config(found: Size) -> dict[str, object]:
    """The JSON to paste into the file of PENSTOCK_CONFIG on each node."""
    slots = {"concurrency": found.concurrency, "buffer_size": found.buffer_size}
    return {
        "providers": {"anthropic": {"concurrency_and_buffer_size": slots}},
        "config": {"initial_pool_size": found.concurrency, "drop_excess_requests": False},
    }


def meaning(found: Size) -> Iterator[str]:
    """What it comes to per node and per worker, and which of the other settings do not carry it, in lines."""
    running, held = found.per_worker(found.concurrency), found.per_worker(found.buffer_size)
    yield (
        f"per node, of {found.nodes}: {found.concurrency} exchanges at once, {found.buffer_size} with those that "
        f"wait; set WEB_CONCURRENCY={found.workers}"
    )
    yield f"per worker, of {found.workers}: {running} at once, {held} with those that wait"
    yield _need("worker_connections", "WORKER_CONNECTIONS", held)
    streams = _default("anthropic_streams_per_connection")
    connections = -(-running // streams)
    yield (
        _need("anthropic_max_connections", "ANTHROPIC_MAX_CONNECTIONS", connections)
        + f", with ANTHROPIC_STREAMS_PER_CONNECTION={streams}; {running} where the upstream has no HTTP/2"
    )
    if connections > _default("anthropic_max_keepalive"):  # no more than these are warmed
        yield _need("anthropic_max_keepalive", "ANTHROPIC_MAX_KEEPALIVE", connections)


def _need(attribute: str, name: str, needed: int) -> str:
    """One setting against what a worker needs of it."""
    default, most = _default(attribute), _most(attribute)
    start = f"{name}: a worker needs {needed}"
    if needed <= default:
        return f"{start}, the default of {default} carries it"
    if needed <= most:
        return f"warning: {start}, the default is {default}: set {name}={needed}"
    return f"warning: {start}, more than the {most} it can be: take more workers or nodes"


def _default(attribute: str) -> int:
    return int(Settings.model_fields[attribute].default)


def _most(attribute: str) -> int:
    return next(int(rule.le) for rule in Settings.model_fields[attribute].metadata if hasattr(rule, "le"))
