"""The JSON settings file (PENSTOCK_CONFIG): its shape, read onto settings attributes.

    {"providers": {
        "anthropic": {
            "keys": ["env.MY_KEY", {"name": "blue", "value": "env.BLUE", "weight": 2, "models": ["claude-*"]}],
            "concurrency_and_buffer_size": {"concurrency": 100, "buffer_size": 500},
            "network_config": {"base_url": "https://…", "default_request_timeout_in_seconds": 600,
                               "max_retries": 2, "retry_backoff_initial": 1000, "retry_backoff_max": 12000},
            "fallbacks": ["anthropic-eu"]},
        "anthropic-eu": {"keys": […], "network_config": {"base_url": "https://…"},
                         "concurrency_and_buffer_size": {…}, "fallbacks": […]}},
     "gateway": {"keys": ["env.WEB", {"name": "batch", "value": "env.BATCH", "requests_per_minute": 60,
                                      "concurrent_requests": 10, "tokens_per_day": 1000000}]},
     "config": {"initial_pool_size": 300, "drop_excess_requests": false}}

The shape and its units (backoffs in milliseconds, ``max_retries`` not counting the first try) are those of
Bifrost's config file, so that one can be used as it is. Keys that mean nothing here are faults. Times and tries
are the same for all providers, so only ``anthropic`` takes them.
Runs on: start-up.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from app.settings_fields import ProviderSettings, plain, redacted, row
from app.settings_keys import GATEWAY, UPSTREAM, Found, number, resolve, unknown

# A leaf: attribute, conversion to its unit, and what a fault writes behind the key's name for it. ANY: whatever
# else stands here is kept in ``Found.others`` under its name.
Leaf = tuple[str, Callable[[object], object], str]
Plan = Mapping[str, "Plan | Leaf"]
ANY: Final = "*"


def _same(value: object) -> object:
    return value


def _from_ms(value: object) -> object:
    found = number(value)
    return value if found is None else found / 1000


def _plus_first_try(value: object) -> object:
    found = number(value)
    return value if found is None else found + 1


SHAPE: Final[Plan] = {
    "providers": {
        "anthropic": {
            "keys": ("anthropic_api_keys", _same, ""),
            "concurrency_and_buffer_size": {
                "concurrency": ("anthropic_concurrency", _same, ""),
                "buffer_size": ("anthropic_buffer_size", _same, ""),
            },
            "network_config": {
                "base_url": ("anthropic_upstream_url", _same, ""),
                "default_request_timeout_in_seconds": ("request_timeout_s", _same, ""),
                "max_retries": ("retry_max_attempts", _plus_first_try, " + 1"),
                "retry_backoff_initial": ("retry_429_interval_s", _from_ms, " / 1000"),
                "retry_backoff_max": ("retry_backoff_max_s", _from_ms, " / 1000"),
            },
            "fallbacks": ("anthropic_fallbacks", _same, ""),
        },
        ANY: {},
    },
    "gateway": {"keys": ("gateway_api_keys", _same, "")},
    "config": {
        "initial_pool_size": ("initial_pool_size", _same, ""),
        "drop_excess_requests": ("drop_excess_requests", _same, ""),
    },
}
OTHER: Final[Plan] = {
    "keys": ("api_keys", _same, ""),
    "concurrency_and_buffer_size": {
        "concurrency": ("concurrency", _same, ""),
        "buffer_size": ("buffer_size", _same, ""),
    },
    "network_config": {"base_url": ("upstream_url", _same, "")},
    "fallbacks": ("fallbacks", _same, ""),
}


def read(path: str, environ: Mapping[str, str]) -> Found:
    """Read the file at ``path``.

    Args:
        path: The file.
        environ: Where ``"env.NAME"`` in keys is looked up.

    Returns:
        Values by settings attribute, unchecked, plus faults of the file itself. Never raises for bad content.
    """
    found = Found()
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        found.faults.append(f"PENSTOCK_CONFIG={path}: cannot be read ({error.strerror}).")
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        found.faults.append(f"PENSTOCK_CONFIG={path}: is not JSON{where}; allowed is one object in UTF-8.")
    else:
        _walk(content, SHAPE, "", found)
        _names(found, "anthropic_fallbacks")
        resolve(found, "anthropic_api_keys", UPSTREAM, environ)
        resolve(found, "gateway_api_keys", GATEWAY, environ)
        _providers(found, environ)
    return found


def _walk(node: object, shape: Plan, place: str, found: Found) -> None:
    """Follow ``shape`` through ``node``; note values, and every key the shape does not know."""
    if not isinstance(node, dict):
        found.faults.append(f"PENSTOCK_CONFIG {place or 'file'}: must be an object.")
        return
    for key, value in node.items():
        here = f"{place}.{key}" if place else str(key)
        known = None if key == ANY else shape.get(key)
        if known is None and ANY in shape:
            found.others[key] = value
        elif known is None:
            found.faults.append(unknown(here, key, shape))
        elif isinstance(known, tuple):
            attribute, convert, converted = known
            found.values[attribute] = convert(value)
            found.labels[attribute] = f"PENSTOCK_CONFIG {here}{converted}"
        else:
            _walk(value, known, here, found)


def _names(found: Found, attribute: str) -> None:
    """Drop a list of names that is none, with a fault; a string would be read as a list of one."""
    given = found.values.get(attribute, [])
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        del found.values[attribute]
        found.failed.append(attribute)
        found.faults.append(f"{found.labels[attribute]}: must be a list of provider names.")


def _providers(found: Found, environ: Mapping[str, str]) -> None:
    """Turn what stands under other names than ``anthropic`` into providers; those with faults are left out."""
    if not found.others:
        return
    read = [_provider(name, node, environ, found) for name, node in found.others.items()]
    found.values["providers"] = tuple(one for one in read if one is not None)
    found.labels["providers"] = "PENSTOCK_CONFIG providers"
    found.labels.update({f"providers.{name}": f"PENSTOCK_CONFIG providers.{name}" for name in found.others})


def _provider(name: str, node: object, environ: Mapping[str, str], found: Found) -> ProviderSettings | None:
    place = f"providers.{redacted('', name)}"
    one = Found(values={"name": name}, labels={"name": f"PENSTOCK_CONFIG {place}: its name"})
    _walk(node, OTHER, place, one)
    _names(one, "fallbacks")
    resolve(one, "api_keys", UPSTREAM, environ)
    found.named += one.named
    found.faults += one.faults
    if "upstream_url" not in one.values and isinstance(node, dict):
        near = difflib.get_close_matches(name, ("anthropic",), n=1, cutoff=0.9)
        hint = f"; did you mean {near[0]}?" if near else "."
        found.faults.append(
            f"PENSTOCK_CONFIG {place}.network_config.base_url: is required, an http or https URL{hint}"
        )
    try:
        made = ProviderSettings.model_validate(one.values)
    except ValidationError as error:
        failed = dict.fromkeys(str(fault["loc"][0]) for fault in error.errors(include_input=False))
        found.faults += [_fault(attribute, one) for attribute in failed if attribute in one.values]
        return None
    return None if one.faults else made


def _fault(attribute: str, one: Found) -> str:
    shown = redacted("", plain(one.values[attribute]))
    allowed = row(attribute, ProviderSettings.model_fields[attribute]).allowed
    return f"{one.labels[attribute]}={shown}: allowed is {allowed}."
