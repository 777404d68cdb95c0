"""What became of requests and connections, in figures.

Pure.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, cast

import pytest

from app.upstream.lane_news import Events, News
from app.upstream.tally import PoolStats, Tally
from app.upstream.transport_base import Transport
from app.upstream.transport_lane import Census, LaneSlot, LiveLane
from app.upstream.transport_make import Maker, PoolOptions

NOBODY = cast(Transport, None)
Name = Literal["h2", "reqwest", "httpcore"]


def maker(transport: Name = "h2") -> Maker:
    return Maker(PoolOptions("https://upstream.test", transport))


def counting() -> Census:
    return Census(True, News(deque(), "", tells=False))


def lane(number: int = 1, seen: int = 1, mark: int = 0) -> LiveLane:
    made = LiveLane(number, "h2", NOBODY, mark, None if mark else lambda: seen)
    made.seen = seen
    return made


def figures(tally: Tally, census: Census, transport: Name = "h2", *lanes: LiveLane) -> PoolStats:
    return tally.stats(maker(transport), "HTTP/2", census, lanes, 0)


def counts(stats: PoolStats) -> tuple[int, int | None, int | None, int | None]:
    return stats.requests, stats.hits, stats.misses, stats.handshakes


def test_nothing_happened() -> None:
    assert counts(figures(Tally(), counting())) == (0, 0, 0, 0)


def test_the_connection_of_a_request_is_a_miss_and_the_next_request_a_hit() -> None:
    tally, census = Tally(), counting()
    census.on_opened(tls=True)
    tally.requests = 1
    assert counts(figures(tally, census)) == (1, 0, 1, 1)
    tally.requests = 2
    assert counts(figures(tally, census)) == (2, 1, 1, 1)


def test_a_connection_made_ahead_is_a_miss_that_no_request_is_charged_with() -> None:
    tally, census = Tally(), counting()
    census.on_opened(tls=True)
    tally.ahead = 1
    assert counts(figures(tally, census)) == (0, 0, 1, 1)
    tally.requests = 1
    assert counts(figures(tally, census)) == (1, 1, 1, 1)


def test_a_handshake_that_led_to_no_http_2_counts_as_one() -> None:
    told: Events = deque()
    tally, census = Tally(), Census(True, News(told, "", tells=True))
    census.on_refused()
    tally.ahead = 1
    census.on_opened(tls=True)
    tally.requests = 3
    assert counts(figures(tally, census)) == (3, 2, 2, 2)
    assert [event["event"] for event in told] == ["http2_refused"], "whoever opens a connection says so himself"


def test_connections_that_nobody_used_never_make_hits_negative() -> None:
    tally, census = Tally(), counting()
    for _ in range(3):
        census.on_opened(tls=True)
    tally.requests = 1
    assert counts(figures(tally, census)) == (1, 0, 3, 3)


@pytest.mark.parametrize("transport", ["h2", "reqwest", "httpcore"])
def test_what_cannot_be_counted_is_unknown(transport: Name) -> None:
    census = counting()
    census.supported = False
    stats = figures(Tally(), census, transport)
    assert (stats.misses is None) is (transport == "reqwest")
    assert (stats.open_connections is None) is (transport == "reqwest")


def test_our_own_client_is_known_until_the_rust_client_stands_in_for_it() -> None:
    census = counting()
    census.supported = False
    ours, rust = lane(1, 1), lane(2, 0, mark=77)
    census.look([ours])
    assert figures(Tally(), census, "h2", ours).misses == 0
    census.look([ours, rust])
    assert counts(figures(Tally(), census, "h2", ours, rust)) == (0, None, None, None)


def test_lanes_are_summed_up() -> None:
    one, other = lane(1, 2), lane(2, 1)
    one.in_flight, other.in_flight = 3, 4
    other.stalled = 2
    tally = Tally()
    tally.timeouts = 5
    stats = tally.stats(maker(), "HTTP/2", counting(), [one, other], 6)
    assert (stats.open_connections, stats.lanes, stats.in_flight, stats.stalled) == (3, 2, 7, 2)
    assert (stats.waiting, stats.timeouts, stats.transport, stats.http_version) == (6, 5, "h2", "HTTP/2")


def test_a_slot_counts_as_stalled_once_and_is_given_back_lively() -> None:
    given: list[LiveLane] = []
    place = lane()
    slot = LaneSlot(given.append, place)
    for waiting, stalled in ((True, 1), (True, 1), (False, 0), (False, 0), (True, 1)):
        slot.stalled(waiting)
        assert place.stalled == stalled
    slot.release()
    assert (place.stalled, given) == (0, [place])
