"""Which requests go out through httpcore.

Pure.
"""

from __future__ import annotations

import pytest

from app.exchange import Headers, Outbound
from app.upstream.transport_exact import exact_only, plain_target

ACCEPT: Headers = (("accept", "*/*"),)


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/v1/messages",
        "/v1/messages?beta=true&x=%2F%zz",
        "/v1/files/a.b/%E2%82%AC",
        "/v1/.hidden/...?..",
        "/v1/a;b=c/d:e@f!$&'()*+,=~|^[]",
        "/v1/x?a=/../&b=?",
        "/a//b",
        "/v1/x%2eb/y.",
    ],
)
def test_ordinary_targets_stay(target: str) -> None:
    assert plain_target(target)
    assert not exact_only(Outbound("GET", "https://x", target, ACCEPT, b""), http1=False)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/x?q='",
        '/v1/x?q="',
        "/v1/x?q=<",
        "/v1/{id}",
        "/v1/`x",
        "/v1/a b",
        "/v1/a\\b",
        "/v1/\xe9",
        "/v1/a\tb",
        "/v1/a#b",
        "/v1/../x",
        "/v1/./x",
        "/v1/%2e%2E/x",
        "/v1/.%2e",
        "/v1/x/..",
        "//host/x",
        "*",
        "https://elsewhere/x",
        "",
        "/v1/x\n",
    ],
)
def test_targets_the_url_parser_changes_are_exact(target: str) -> None:
    assert exact_only(Outbound("GET", "https://x", target, ACCEPT, b""), http1=False)


@pytest.mark.parametrize("method", ["get", "OPTIONS", "PROPFIND", "QUERY", "G\xc9T"])
def test_unusual_methods_are_exact(method: str) -> None:
    assert exact_only(Outbound(method, "https://x", "/", ACCEPT, b""), http1=False)


@pytest.mark.parametrize("pair", [("x", "\xe9"), ("\xe9", "x")])
def test_headers_beyond_ascii_are_exact(pair: tuple[str, str]) -> None:
    assert exact_only(Outbound("GET", "https://x", "/", (*ACCEPT, pair), b""), http1=False)


def test_a_missing_accept_matters_over_http_1_only() -> None:
    request = Outbound("POST", "https://x", "/", (("X-Accept", "1"),), b"")
    assert exact_only(request, http1=True)
    assert not exact_only(request, http1=False)
    assert not exact_only(Outbound("POST", "https://x", "/", (("Accept", "a/b"),), b""), http1=True)
