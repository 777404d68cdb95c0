"""Say what a target is made of, read it off the settings, and give this worker its share of the node's totals.

Pure.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.policy.breaker import BreakerRules
from app.policy.key_state import Key
from app.providers.base import Provider
from app.settings import Settings, UpstreamKey


@dataclass(frozen=True, slots=True)
class Secret:
    """One upstream key: its policy side, and the header pair it is sent in."""

    key: Key
    pair: tuple[str, str]

    def __repr__(self) -> str:
        return f"Secret({self.key.label!r})"


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What a target is made of; from the settings.

    Attributes:
        name: Of the provider.
        origin: ``scheme://host[:port]``, from settings only.
        base_path: In front of every target path, or "".
        secrets: Our own keys; empty passes the caller's through.
        concurrency: Exchanges at once, of this loop.
        buffer_size: Running and waiting together, of this loop.
        drop: Refuse what is beyond the buffer.
        breaker: Rules of its breakers.
        fallbacks: Names of the targets to try instead.
    """

    name: str
    origin: str
    base_path: str
    secrets: tuple[Secret, ...]
    concurrency: int
    buffer_size: int
    drop: bool
    breaker: BreakerRules
    fallbacks: tuple[str, ...] = ()


def place_of(options: TargetOptions) -> str:
    """The name of a target among all workers: two with other origins never mean the same, and it stays short."""
    return f"{options.name}@{hashlib.blake2b(options.origin.encode(), digest_size=6).hexdigest()}"


def mark_of(secret: Secret) -> str:
    """What a key is called among all workers and nodes: labels may differ, or mean other keys, elsewhere."""
    return hashlib.blake2b(secret.pair[1].encode(), digest_size=8, person=b"penstock-key").hexdigest()


def share_of(total: int, workers: int, index: int | None) -> int:
    """One worker's part of a node's ``total``, at least 1; the shares of all of them add up to it.

    Args:
        total: Of the node.
        workers: That divide it.
        index: Of this worker; None where it is not known, then the smallest share.
    """
    part, rest = divmod(total, workers)
    return max(1, part + (index is not None and index < rest))


def split(url: str) -> tuple[str, str]:
    """Origin and base path of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")


def targets_of(settings: Settings, provider: Provider, workers: int, index: int | None) -> list[TargetOptions]:
    """All targets, the first one first.

    Args:
        settings: Of the process.
        provider: What they all speak.
        workers: That divide the node's totals.
        index: Of this worker, if known.
    """
    rows = [
        (
            provider.name,
            settings.anthropic_upstream_url,
            settings.anthropic_api_keys,
            settings.anthropic_concurrency,
            settings.anthropic_buffer_size,
            settings.anthropic_fallbacks,
        )
    ]
    rows += [
        (one.name, one.upstream_url, one.api_keys, one.concurrency, one.buffer_size, one.fallbacks)
        for one in settings.providers
    ]
    found = []
    for name, url, keys, concurrency, buffer_size, fallbacks in rows:
        origin, base_path = split(url)
        found.append(
            TargetOptions(
                name=name,
                origin=origin,
                base_path=base_path,
                secrets=tuple(_secret(key, provider) for key in keys),
                concurrency=share_of(concurrency, workers, index),
                buffer_size=share_of(buffer_size, workers, index),
                drop=settings.drop_excess_requests,
                breaker=BreakerRules(
                    window_s=settings.breaker_window_s,
                    min_calls=settings.breaker_min_calls,
                    failure_rate=settings.breaker_failure_rate,
                    open_s=settings.breaker_open_s,
                ),
                fallbacks=tuple(fallbacks),
            )
        )
    return found


def _secret(key: UpstreamKey, provider: Provider) -> Secret:
    return Secret(Key(key.name, key.weight, key.models), (provider.key_header, key.get_secret_value()))
