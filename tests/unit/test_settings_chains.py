"""Providers that stand in for others: slots, names, circles, and keys along a chain.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.settings import Settings, load, rows
from app.settings_chains import chain, links


def _load(tmp_path: Path, providers: Mapping[str, list[str]], keyed: str = "", **environ: str) -> Settings:
    """Providers by name with their fallbacks; those whose names stand in ``keyed`` hold a key."""
    content: dict[str, dict[str, object]] = {}
    for name, fallbacks in providers.items():
        content[name] = {"fallbacks": fallbacks, "keys": ["hush"] if name in keyed.split() else []}
        if name != "anthropic":
            content[name]["network_config"] = {"base_url": f"https://{name}.example.com"}
    path = tmp_path / "penstock.json"
    path.write_text(json.dumps({"providers": content}))
    return load({"PENSTOCK_CONFIG": str(path), "WEB_CONCURRENCY": "1"} | environ)


def _faults(
    tmp_path: Path, providers: Mapping[str, list[str]], keyed: str = "", **environ: str
) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, providers, keyed, **environ)
    assert "hush" not in "".join(caught.value.faults)
    return caught.value.faults


def _labels() -> dict[str, str]:
    return {row.attribute: row.env[0] for row in rows()}


def test_a_chain_is_walked_nearest_first_and_meets_each_provider_once(tmp_path: Path) -> None:
    settings = _load(tmp_path, {"anthropic": ["a", "b"], "a": ["c"], "b": ["c"], "c": [], "alone": ["c"]})
    found = links(settings, _labels())
    assert list(found) == ["anthropic", "a", "b", "c", "alone"]
    assert chain(found) == ["anthropic", "a", "b", "c"]


def test_fallbacks_of_the_environment_win(tmp_path: Path) -> None:
    providers = {"anthropic": ["a"], "a": [], "b": []}
    settings = _load(tmp_path, providers, ANTHROPIC_FALLBACKS="b, a,b")
    assert settings.anthropic_fallbacks == ("b", "a")


@pytest.mark.parametrize(
    ("fallback", "fault"),
    [
        ("anthropic-ue", "did you mean anthropic-eu?"),
        ("qqqqqq", "there is anthropic-eu."),
        ("sk-ant-hush", "ANTHROPIC_FALLBACKS=[hidden]: "),
    ],
)
def test_unknown_fallbacks(tmp_path: Path, fallback: str, fault: str) -> None:
    (said,) = _faults(tmp_path, {"anthropic-eu": []}, ANTHROPIC_FALLBACKS=fallback)
    assert said.startswith("ANTHROPIC_FALLBACKS=")
    assert "names no provider of the JSON file" in said
    assert fault in said


def test_unknown_fallbacks_without_a_file_and_of_another_provider(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"ANTHROPIC_FALLBACKS=eu: names no provider of the JSON file; there is none"
    ):
        load({"ANTHROPIC_FALLBACKS": "eu"})
    (said,) = _faults(tmp_path, {"eu": ["us"]})
    assert said.startswith("PENSTOCK_CONFIG providers.eu.fallbacks=us: names no provider")


def test_nobody_stands_in_for_itself(tmp_path: Path) -> None:
    assert _faults(tmp_path, {"anthropic": ["anthropic"], "eu": ["eu"]}) == (
        "PENSTOCK_CONFIG providers.anthropic.fallbacks=anthropic: a provider cannot stand in for itself.",
        "PENSTOCK_CONFIG providers.eu.fallbacks=eu: a provider cannot stand in for itself.",
    )


def test_each_circle_is_a_fault_once(tmp_path: Path) -> None:
    providers = {"anthropic": ["a"], "a": ["b"], "b": ["c"], "c": ["a", "anthropic"], "d": ["e"], "e": ["d"]}
    assert _faults(tmp_path, providers) == (
        "PENSTOCK_CONFIG providers.anthropic.fallbacks: fallbacks go round in a circle, "
        "anthropic -> a -> b -> c -> anthropic.",
        "PENSTOCK_CONFIG providers.a.fallbacks: fallbacks go round in a circle, a -> b -> c -> a.",
        "PENSTOCK_CONFIG providers.d.fallbacks: fallbacks go round in a circle, d -> e -> d.",
    )


def test_keys_behind_a_provider_without(tmp_path: Path) -> None:
    (said,) = _faults(tmp_path, {"anthropic": ["a"], "a": ["b"], "b": []}, "b")
    assert said.startswith(
        "PENSTOCK_CONFIG providers.b.keys: set, but anthropic, for which b stands in, has no keys."
    )
    assert "anyone could spend these" in said


def test_a_provider_without_keys_behind_one_with(tmp_path: Path) -> None:
    (said,) = _faults(tmp_path, {"anthropic": ["a", "b"], "a": [], "b": []}, "b", ANTHROPIC_API_KEY="k")
    assert said.startswith(
        "PENSTOCK_CONFIG providers.a.keys: missing, but anthropic, for which a stands in, has keys."
    )
    assert "must not be sent to a provider" in said


def test_keys_in_all_or_in_none_or_outside_the_chain(tmp_path: Path) -> None:
    providers: dict[str, list[str]] = {"anthropic": ["a"], "a": ["b"], "b": [], "alone": []}
    _load(tmp_path, providers)
    _load(tmp_path, providers, "anthropic a b")
    _load(tmp_path, providers, "alone")
    _load(tmp_path, providers, "anthropic a b alone")


def test_every_worker_needs_a_slot(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load({"ANTHROPIC_CONCURRENCY": "3", "WEB_CONCURRENCY": "4"})
    (said,) = caught.value.faults
    assert said.startswith(
        "ANTHROPIC_CONCURRENCY=3: must be at least WEB_CONCURRENCY=4 (unset: the number of cores)"
    )
    load({"ANTHROPIC_CONCURRENCY": "4", "WEB_CONCURRENCY": "4"})
    path = tmp_path / "penstock.json"
    eu = {"network_config": {"base_url": "https://a"}, "concurrency_and_buffer_size": {"concurrency": 3}}
    path.write_text(json.dumps({"providers": {"eu": eu}}))
    with pytest.raises(
        ConfigError, match=r"eu\.concurrency_and_buffer_size\.concurrency=3: must be at least WEB_"
    ):
        load({"PENSTOCK_CONFIG": str(path), "WEB_CONCURRENCY": "4"})


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("ftp://example.com", "http:// or https://"),
        ("https://user@example.com", "not allowed; credentials belong in"),
        ("https://example.com?a=1", "query or fragment"),
        ("http://example.com", "ALLOW_PLAINTEXT_UPSTREAM=true"),
    ],
)
def test_addresses_of_other_providers_follow_the_same_rules(tmp_path: Path, url: str, complaint: str) -> None:
    path = tmp_path / "penstock.json"
    path.write_text(json.dumps({"providers": {"eu": {"network_config": {"base_url": url}}}}))
    environ = {"PENSTOCK_CONFIG": str(path)}
    with pytest.raises(ConfigError) as caught:
        load(environ)
    (said,) = caught.value.faults
    assert said.startswith("PENSTOCK_CONFIG providers.eu.network_config.base_url=")
    assert complaint in said
    if complaint.startswith("ALLOW"):
        load(environ | {"ALLOW_PLAINTEXT_UPSTREAM": "true"})
