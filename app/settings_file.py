"""The JSON settings file (PENSTOCK_CONFIG): its shape, read onto settings attributes.

    {"providers": {"anthropic": {
        "keys": ["env.MY_KEY", {"name": "blue", "value": "env.BLUE", "weight": 2, "models": ["claude-*"]}],
        "concurrency_and_buffer_size": {"concurrency": 100, "buffer_size": 500},
        "network_config": {"base_url": "https://…", "default_request_timeout_in_seconds": 600, "max_retries": 2,
                           "retry_backoff_initial": 1000, "retry_backoff_max": 12000}}},
     "config": {"initial_pool_size": 300, "drop_excess_requests": false}}

The shape and its units (backoffs in milliseconds, ``max_retries`` not counting the first try) are those of
Bifrost's config file, so that one can be used as it is. Keys that mean nothing here are faults.
Runs on: start-up.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

# A leaf: settings attribute, conversion to its unit, and what a fault writes behind the key's name for it.
Plan = Mapping[str, "Plan | tuple[str, Callable[[object], object], str]"]


@dataclass
class Found:
    """What a file says: values and labels by settings attribute, the variables it names, and its faults."""

    values: dict[str, object] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def _same(value: object) -> object:
    return value


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _from_ms(value: object) -> object:
    number = _number(value)
    return value if number is None else number / 1000


def _plus_first_try(value: object) -> object:
    number = _number(value)
    return value if number is None else number + 1


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
        },
    },
    "config": {
        "initial_pool_size": ("initial_pool_size", _same, ""),
        "drop_excess_requests": ("drop_excess_requests", _same, ""),
    },
}
KEY_FIELDS: Final = ("name", "value", "weight", "models")


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
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        found.faults.append(f"PENSTOCK_CONFIG={path}: is not JSON{where}; allowed is one object in UTF-8.")
    else:
        _walk(content, SHAPE, "", found)
        _resolve_keys(found, environ)
    return found


def _walk(node: object, shape: Plan, place: str, found: Found) -> None:
    """Follow ``shape`` through ``node``; note values, and every key the shape does not know."""
    if not isinstance(node, dict):
        found.faults.append(f"PENSTOCK_CONFIG {place or 'file'}: must be an object.")
        return
    for key, value in node.items():
        here = f"{place}.{key}" if place else str(key)
        known = shape.get(key)
        if known is None:
            found.faults.append(_unknown(here, key, shape))
        elif isinstance(known, tuple):
            attribute, convert, converted = known
            found.values[attribute] = convert(value)
            found.labels[attribute] = f"PENSTOCK_CONFIG {here}{converted}"
        else:
            _walk(value, known, here, found)


def _unknown(here: str, key: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(known)}."
    return f"PENSTOCK_CONFIG {here}: unknown key; {hint}"


def _resolve_keys(found: Found, environ: Mapping[str, str]) -> None:
    """Replace ``env.NAME`` by what the environment holds; drop keys that are not usable, with a fault each."""
    if "anthropic_api_keys" not in found.values:
        return
    given, place = found.values.pop("anthropic_api_keys"), found.labels["anthropic_api_keys"]
    if not isinstance(given, list):
        found.faults.append(f"{place}: must be a list of strings or objects with {', '.join(KEY_FIELDS)}.")
        return
    keys = [_key(entry, f"{place}[{index}]", environ, found) for index, entry in enumerate(given)]
    found.values["anthropic_api_keys"] = [key for key in keys if key is not None]


def _key(entry: object, place: str, environ: Mapping[str, str], found: Found) -> dict[str, object] | None:
    key = {"value": entry} if isinstance(entry, str) else entry
    if not isinstance(key, dict) or not isinstance(key.get("value"), str) or not key["value"].strip():
        found.faults.append(f"{place}: must be a string or an object with a value (and name, weight, models).")
        return None
    unknown = [name for name in key if name not in KEY_FIELDS]
    found.faults += [
        _unknown(f"{place.removeprefix('PENSTOCK_CONFIG ')}.{name}", name, KEY_FIELDS) for name in unknown
    ]
    secret = key["value"].strip()
    if secret.startswith("env."):
        name = secret.removeprefix("env.")
        found.named.append(name)
        if name not in environ:
            found.faults.append(f"{place}: env.{name} names a variable that is not set.")
            return None
        secret = environ[name]
    weight, models = key.get("weight", 1.0), key.get("models", [])
    if (number := _number(weight)) is None or not 0 < number <= 1000:
        found.faults.append(f"{place}.weight={weight}: allowed is a number above 0, to 1000.")
        weight = 1.0
    if not isinstance(models, list) or not all(isinstance(model, str) for model in models):
        found.faults.append(f"{place}.models: allowed is a list of model names or patterns.")
        models = []
    return {"value": secret, "name": str(key.get("name") or ""), "weight": weight, "models": tuple(models)}
