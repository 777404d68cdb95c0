"""upstream/target_options: what targets are made of, and a worker's share of a node's totals (B36).

Pure.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.providers.table import PROVIDERS
from app.settings import load
from app.upstream.target_options import share_of, split, targets_of

PROVIDER = PROVIDERS["anthropic"]


@given(total=st.integers(1, 10_000), workers=st.integers(1, 64))
def test_b36_shares_add_up_to_the_nodes_total(total: int, workers: int) -> None:
    shares = [share_of(total, workers, index) for index in range(workers)]
    assert sum(shares) == max(total, workers)
    assert max(shares) - min(shares) <= 1 and min(shares) >= 1
    assert share_of(total, workers, None) == min(shares)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://a.test", ("https://a.test", "")),
        ("https://a.test:8443/base/", ("https://a.test:8443", "/base")),
        ("http://[::1]:80/x", ("http://[::1]:80", "/x")),
    ],
)
def test_b11_a_base_path_is_kept_apart(url: str, parts: tuple[str, str]) -> None:
    assert split(url) == parts


def test_every_provider_of_the_file_becomes_a_target(tmp_path: Path) -> None:
    file = tmp_path / "penstock.json"
    eu = {
        "keys": [{"name": "eu", "value": "sk-eu", "weight": 2}],
        "concurrency_and_buffer_size": {"concurrency": 8, "buffer_size": 16},
        "network_config": {"base_url": "https://eu.test/v"},
    }
    first = {
        "keys": [{"name": "scarce", "value": "sk-one", "models": ["claude-*-preview"]}, "sk-two"],
        "concurrency_and_buffer_size": {"concurrency": 10, "buffer_size": 21},
        "fallbacks": ["eu"],
    }
    file.write_text(json.dumps({"providers": {"anthropic": first, "eu": eu}}))
    settings = load({"PENSTOCK_CONFIG": str(file), "WEB_CONCURRENCY": "4", "DROP_EXCESS_REQUESTS": "true"})
    one, other = targets_of(settings, PROVIDER, 4, 1)
    assert (one.name, one.fallbacks, one.concurrency, one.buffer_size, one.drop) == (
        "anthropic",
        ("eu",),
        3,
        5,
        True,
    )
    assert [secret.key.label for secret in one.secrets] == ["scarce", "key-2"]
    assert one.secrets[0].key.models == ("claude-*-preview",)
    assert one.secrets[1].pair == ("x-api-key", "sk-two")
    assert "sk-" not in repr(one), "secrets never show"
    assert (other.origin, other.base_path, other.concurrency) == ("https://eu.test", "/v", 2)
    assert other.secrets[0].key.weight == 2.0
