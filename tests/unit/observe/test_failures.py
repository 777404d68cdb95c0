"""observe/failures: what is an error, and of what type (B44).

Pure.
"""

from __future__ import annotations

import pytest

from app import errors
from app.observe.failures import failure


@pytest.mark.parametrize(
    ("slug", "outcome", "own_key", "found"),
    [
        ("", "200", True, ""),
        ("", "", False, ""),
        ("", "404", True, ""),
        ("", "413", True, ""),
        ("", "401", False, ""),
        ("", "403", False, ""),
        ("", "401", True, "upstream_auth"),
        ("", "403", True, "upstream_auth"),
        ("", "429", False, "upstream_429"),
        ("", "500", False, "upstream_5xx"),
        ("", "599", False, "upstream_5xx"),
        ("", "529", False, "upstream_529"),
        ("", "overloaded_error", False, "upstream_529"),
        ("queue_full", "", False, "queue_full"),
        ("stream_broken", "200", False, "stream_broken"),
        ("internal", "", False, "internal"),
        ("client_gone", "500", False, ""),
        ("caller_limited", "", False, ""),
        ("unknown_route", "", False, ""),
    ],
)
def test_b44_types(slug: str, outcome: str, own_key: bool, found: str) -> None:
    assert failure(slug, outcome, own_key) == found


def test_b44_every_error_of_ours_is_one_unless_it_speaks_of_the_request() -> None:
    def leaves(of: type[errors.GatewayError]) -> list[type[errors.GatewayError]]:
        return [of, *(leaf for below in of.__subclasses__() for leaf in leaves(below))]

    known = leaves(errors.GatewayError)
    assert len(known) > 15
    for one in known:
        clients = issubclass(one, (errors.RequestError, errors.ClientGone))
        assert failure(one.slug, "", False) == ("" if clients else one.slug)
