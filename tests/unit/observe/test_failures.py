"""observe/failures: what is an error, and of what type (B44).

Pure.
"""

from __future__ import annotations

import pytest

from app import errors
from app.exchange import Attempt, Record
from app.observe.failures import failure, failure_of


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


@pytest.mark.parametrize(
    ("slug", "outcome", "stream_error", "found"),
    [
        ("", "200", "overloaded_error", "upstream_529"),
        ("", "200", "api_error", "upstream_error_event"),
        ("", "200", "error", "upstream_error_event"),
        ("", "overloaded_error", "overloaded_error", "upstream_529"),
        ("client_gone", "200", "overloaded_error", "upstream_529"),
        ("client_gone", "200", "api_error", "upstream_error_event"),
        ("internal", "200", "api_error", "internal"),
        ("stream_broken", "200", "api_error", "stream_broken"),
    ],
)
def test_b44_a_stream_that_ended_in_an_error_event_failed(
    slug: str, outcome: str, stream_error: str, found: str
) -> None:
    """Whether or not its client hung up upon it."""
    assert failure(slug, outcome, False, stream_error) == found


def test_b44_a_record_is_judged_by_its_last_try() -> None:
    fine = Record(
        "r", "messages", "POST", "/v1/messages", 200, "", attempts=(Attempt("529", 1.0), Attempt("200", 1.0))
    )
    refused = fine._replace(status=401, attempts=(Attempt("401", 1.0),))
    cases = [
        (fine, ""),
        (fine._replace(stream_error="api_error"), "upstream_error_event"),
        (fine._replace(stream_error="api_error", client_left=True), "upstream_error_event"),
        (fine._replace(slug="stream_broken"), "stream_broken"),
        (fine._replace(slug="stream_broken", client_left=True), ""),
        (fine._replace(attempts=fine.attempts[:1]), "upstream_529"),
        (refused, ""),
        (refused._replace(credential="k"), "upstream_auth"),
        (fine._replace(attempts=(), slug="queue_full"), "queue_full"),
        (fine._replace(attempts=()), ""),
    ]
    for record, found in cases:
        assert failure_of(record) == found, record


def test_b44_every_error_of_ours_is_one_unless_it_speaks_of_the_request() -> None:
    def leaves(of: type[errors.GatewayError]) -> list[type[errors.GatewayError]]:
        return [of, *(leaf for below in of.__subclasses__() for leaf in leaves(below))]

    known = leaves(errors.GatewayError)
    assert len(known) > 15
    for one in known:
        clients = issubclass(one, (errors.RequestError, errors.ClientGone))
        assert failure(one.slug, "", False) == ("" if clients else one.slug)
