"""providers: which endpoint a path belongs to; every path belongs to one (B1).

Pure.
"""

from __future__ import annotations

import pytest

from app.providers.table import PROVIDERS

PATHS = {
    "/v1/messages": ("messages", False),
    "/v1/messages/": ("messages", False),
    "/v1/messages/count_tokens": ("count_tokens", False),
    "/v1/messages/batches": ("batches", True),
    "/v1/messages/batches/b_1/results": ("batches", True),
    "/v1/messagesbatches": ("other", False),
    "/v1/files": ("files", True),
    "/v1/files/f_1/content": ("files", True),
    "/v1/filesystem": ("other", False),
    "/v1/skills/s": ("skills", True),
    "/v1/models": ("models", False),
    "/v1/models/claude": ("models", False),
    "/v1/complete": ("complete", False),
    "/v1/anything/new": ("other", False),
    "/v1/%6dessages": ("other", False),
}


@pytest.mark.parametrize("path", list(PATHS))
def test_b1_every_path_has_an_endpoint(path: str) -> None:
    endpoint = PROVIDERS["anthropic"].endpoint(path)
    assert (endpoint.name, endpoint.transfer) == PATHS[path]


def test_the_table_is_by_name_and_names_credentials_in_lower_case() -> None:
    for name, provider in PROVIDERS.items():
        assert provider.name == name
        assert provider.key_header in provider.credential_headers
        assert all(header == header.lower() for header in provider.credential_headers)
        assert provider.endpoints[-1].pattern.fullmatch("whatever")
