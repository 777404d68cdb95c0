"""Rules about providers and who stands in for whom: slots, keys, fallbacks that exist and do not go in circles.

    anthropic --fallbacks--> anthropic-eu --fallbacks--> anthropic-us        one chain: all hold keys, or none does

Pure.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from app.settings_fields import UpstreamKey, redacted

if TYPE_CHECKING:
    from app.settings import Settings


class Link(NamedTuple):
    """A provider as the rules see it, Anthropic's flat settings and the file's others alike.

    ``at_...`` is what a fault calls the setting.
    """

    name: str
    url: str
    keys: tuple[UpstreamKey, ...]
    concurrency: int
    buffer_size: int
    fallbacks: tuple[str, ...]
    at_url: str
    at_keys: str
    at_concurrency: str
    at_buffer_size: str
    at_fallbacks: str


def links(settings: Settings, labels: Mapping[str, str]) -> dict[str, Link]:
    """All providers by name, ``anthropic`` first.

    Args:
        settings: Of the process.
        labels: What the attributes of Anthropic's settings are called in a fault.
    """
    first = Link(
        "anthropic",
        settings.anthropic_upstream_url,
        settings.anthropic_api_keys,
        settings.anthropic_concurrency,
        settings.anthropic_buffer_size,
        settings.anthropic_fallbacks,
        labels["anthropic_upstream_url"],
        labels["anthropic_api_keys"],
        labels["anthropic_concurrency"],
        labels["anthropic_buffer_size"],
        labels["anthropic_fallbacks"],
    )
    found = {"anthropic": first}
    for one in settings.providers:
        at = f"PENSTOCK_CONFIG providers.{one.name}"
        slots = f"{at}.concurrency_and_buffer_size"
        found[one.name] = Link(
            one.name,
            one.upstream_url,
            one.api_keys,
            one.concurrency,
            one.buffer_size,
            one.fallbacks,
            f"{at}.network_config.base_url",
            f"{at}.keys",
            f"{slots}.concurrency",
            f"{slots}.buffer_size",
            f"{at}.fallbacks",
        )
    return found


def chain(found: Mapping[str, Link]) -> list[str]:
    """Who can come to serve a request: ``anthropic`` and whatever its fallbacks lead to, nearest first."""
    reached, waiting = {"anthropic": None}, deque(["anthropic"])
    while waiting:
        for name in found[waiting.popleft()].fallbacks:
            if name in found and name not in reached:
                reached[name] = None
                waiting.append(name)
    return list(reached)


def buffers(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """A buffer counts what runs as well, so it cannot be smaller than the slots."""
    for one in links(settings, labels).values():
        if one.buffer_size < one.concurrency:
            yield (
                f"{one.at_buffer_size}={one.buffer_size}: buffer_size counts running and waiting together, so it "
                f"must be at least {one.at_concurrency} (concurrency)={one.concurrency}."
            )


def slots(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """A worker without a slot would never send anything."""
    workers = settings.web_concurrency
    for one in links(settings, labels).values():
        if one.concurrency < workers:
            yield (
                f"{one.at_concurrency}={one.concurrency}: must be at least {labels['web_concurrency']}={workers} "
                "(unset: the number of cores); the node's slots are divided among its workers, and each needs one."
            )


def names(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """Fallbacks name providers that exist; one that has faults of its own counts as existing."""
    found = links(settings, labels)
    known = {*found, *(label.removeprefix("providers.") for label in labels if label.startswith("providers."))}
    for one in found.values():
        for name in one.fallbacks:
            if name == one.name:
                yield f"{one.at_fallbacks}={name}: a provider cannot stand in for itself."
            elif name not in known:
                others = sorted(known - {one.name})
                near = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(others) or 'none'}."
                yield f"{one.at_fallbacks}={redacted('', name)}: names no provider of the JSON file; {hint}"


def circles(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """Each circle of fallbacks once, in the order a request would run through it."""
    found = links(settings, labels)
    said: set[frozenset[str]] = set()
    for one in found.values():
        path = _way_back(found, one.name)
        if path and frozenset(path) not in said:
            said.add(frozenset(path))
            yield f"{one.at_fallbacks}: fallbacks go round in a circle, {' -> '.join([*path, one.name])}."


def _way_back(found: Mapping[str, Link], start: str) -> list[str]:
    """The shortest way from ``start`` over others back to it; empty when there is none."""
    seen, waiting = {start}, deque([[start]])
    while waiting:
        path = waiting.popleft()
        for name in found[path[-1]].fallbacks:
            if name == start and len(path) > 1:
                return path
            if name in found and name not in seen:
                seen.add(name)
                waiting.append([*path, name])
    return []


def credentials(settings: Settings, labels: Mapping[str, str]) -> Iterator[str]:
    """Along a chain either all hold keys or none does: callers authenticate for all of it or for nothing."""
    found = links(settings, labels)
    first = found["anthropic"]
    for name in chain(found):
        one = found[name]
        if one.keys and not first.keys:
            yield (
                f"{one.at_keys}: set, but anthropic, for which {name} stands in, has no keys. Its callers bring "
                f"their own key and show this gateway none, so anyone could spend these; set {first.at_keys} too, "
                "or remove these."
            )
        elif first.keys and not one.keys:
            yield (
                f"{one.at_keys}: missing, but anthropic, for which {name} stands in, has keys. Its callers hold "
                "keys of this gateway, which must not be sent to a provider; give it keys, or take it out of the "
                "fallbacks."
            )
