"""The decision which lane a request takes.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from app.upstream.lanes import NO_LIMIT, WAIT, Kind, Lane, Open, Rules, Use, ahead, choose, expired

RULES = Rules(max_connections=3, max_keepalive=2, keepalive_expiry_s=30.0, streams_per_connection=4)


def h2(number: int, in_flight: int = 0, stalled: int = 0, idle_since: float = 0.0) -> Lane:
    return Lane(number, "h2", "open", in_flight, stalled, idle_since)


def test_the_first_lane_is_filled_first() -> None:
    first, second = h2(1, in_flight=3), h2(2)
    assert choose([first, second], "h2", RULES) == Use(first)


def test_a_full_lane_makes_another_open() -> None:
    assert choose([h2(1, in_flight=4)], "h2", RULES) == Open()


def test_nothing_open_yet() -> None:
    assert choose([], "h2", RULES) == Open()
    assert choose([], "h1", RULES) == Open()


def test_a_lane_with_a_stalled_stream_is_avoided() -> None:
    stalled, other = h2(1, in_flight=1, stalled=1), h2(2, in_flight=3)
    assert choose([stalled, other], "h2", RULES) == Use(other)
    assert choose([stalled], "h2", RULES) == Open()


def test_a_stalled_stream_on_our_own_client_is_no_reason_to_go_elsewhere() -> None:
    own = Lane(1, "h2", "open", in_flight=2, stalled=2, own=True)
    assert choose([own, h2(2)], "h2", RULES) == Use(own)


def test_no_more_than_the_peer_allows_on_a_lane() -> None:
    narrow = Lane(1, "h2", "open", in_flight=2, limit=2, own=True)
    assert choose([narrow], "h2", RULES) == Open()
    other = Lane(2, "h2", "open", in_flight=1, limit=2, own=True)
    assert choose([narrow, other], "h2", RULES) == Use(other)
    narrow.limit = 3
    assert choose([narrow, other], "h2", RULES) == Use(narrow)


def test_a_peer_that_allows_more_is_not_asked_for_more_than_the_rules() -> None:
    assert choose([Lane(1, "h2", "open", in_flight=4, limit=100, own=True)], "h2", RULES) == Open()


def test_at_the_cap_those_beyond_the_peers_limit_wait() -> None:
    lanes = [Lane(n, "h2", "open", in_flight=2, limit=2, own=True) for n in range(3)]
    assert choose(lanes, "h2", RULES) == WAIT


def test_a_lane_of_limit_0_takes_nobody_and_makes_room() -> None:
    over = Lane(1, "h2", "open", limit=0, own=True)
    assert choose([over], "h2", RULES) == Open()
    mine = Lane(2, "h1", "open", in_flight=2)
    assert choose([over, mine], "h1", RULES) == Use(mine, instead=over)


def test_at_the_cap_the_least_stalled_lane_is_used() -> None:
    lanes = [h2(1, 3, 3), h2(2, 3, 1), h2(3, 4, 0)]
    assert choose(lanes, "h2", RULES) == Use(lanes[1])


def test_at_the_cap_and_full_everyone_waits() -> None:
    assert choose([h2(n, 4) for n in range(3)], "h2", RULES) == WAIT
    assert choose([Lane(1, "h1", "open", 3)], "h1", RULES) == WAIT
    assert choose([Lane(1, "h1", "open", 3)], "h2", RULES) == WAIT


def test_http_1_counts_a_connection_for_each_request() -> None:
    lane = Lane(1, "h1", "open", 2)
    assert choose([lane], "h1", RULES) == Use(lane)
    assert choose([lane], "h2", RULES) == Open()
    assert choose([lane], "exact", RULES) == Open()


def test_an_idle_http_2_lane_makes_room_for_a_download() -> None:
    idle = h2(1)
    busy = [h2(2, 1), h2(3, 1)]
    assert choose([idle, *busy], "h1", RULES) == Open(instead=idle)
    assert choose([h2(1, 1), *busy], "h1", RULES) == WAIT


def test_idle_lanes_expire_and_the_oldest_surplus_goes() -> None:
    lanes = [h2(1, idle_since=95.0), h2(2, idle_since=60.0), h2(3, in_flight=1), h2(4, idle_since=99.0)]
    assert expired(lanes, RULES, 100.0) == [lanes[1]]
    assert expired([lanes[0], lanes[3]], RULES, 100.0) == []
    assert expired(lanes, RULES, 1000.0) == [lanes[1], lanes[0], lanes[3]]


@dataclass
class World:
    """Requests that come and go, as the pool plays them."""

    rules: Rules
    own: bool = False
    limit: int = NO_LIMIT
    lanes: list[Lane] = field(default_factory=list)
    held: list[Lane] = field(default_factory=list)

    def connections(self) -> int:
        return sum(lane.connections for lane in self.lanes)

    def arrive(self, kind: Kind) -> None:
        before = self.connections()
        match choose(self.lanes, kind, self.rules):
            case Use(lane, instead):
                assert lane.kind == kind
                self.close(instead)
                if kind == "h2":
                    assert self.room(lane)
                    better = [other for other in self.lanes if other.kind == "h2" and not other.stalled]
                    room = [other for other in better if self.room(other)]
                    if lane.stalled and not lane.own:
                        assert not room
                        assert before >= self.rules.max_connections
                self.take(lane)
            case Open(instead):
                self.close(instead)
                own = self.own and kind == "h2"
                lane = Lane(len(self.lanes) + 1, kind, "open", limit=self.limit if own else NO_LIMIT, own=own)
                self.lanes.append(lane)
                self.take(lane)
            case _:
                assert before >= self.rules.max_connections, "it waits though a connection may be opened"
        assert self.connections() <= self.rules.max_connections

    def room(self, lane: Lane) -> bool:
        return lane.in_flight < min(self.rules.streams_per_connection, lane.limit)

    def close(self, instead: Lane | None) -> None:
        if instead is not None:
            assert not instead.in_flight
            self.lanes.remove(instead)

    def take(self, lane: Lane) -> None:
        lane.in_flight += 1
        self.held.append(lane)

    def leave(self, index: int) -> None:
        if self.held:
            lane = self.held.pop(index % len(self.held))
            lane.in_flight -= 1
            lane.stalled = min(lane.stalled, lane.in_flight)

    def stall(self, index: int) -> None:
        if self.held:
            lane = self.held[index % len(self.held)]
            lane.stalled = min(lane.in_flight, lane.stalled + 1)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(["h2", "h2", "h2", "h1", "exact"])),
        st.tuples(st.just("leave"), st.integers(0, 50)),
        st.tuples(st.just("stall"), st.integers(0, 50)),
    ),
    max_size=80,
)


@given(st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(1, 6), STEPS)
def test_never_over_the_cap_and_nobody_waits_while_one_may_be_opened(
    cap: int, streams: int, own: bool, limit: int, steps: list[tuple[str, object]]
) -> None:
    world = World(Rules(max_connections=cap, streams_per_connection=streams), own, limit)
    for verb, what in steps:
        getattr(world, verb)(what)


def own(number: int, limit: int = NO_LIMIT) -> Lane:
    return Lane(number, "h2", "open", limit=limit, own=True)


def test_as_many_lanes_ahead_as_carry_the_slots() -> None:
    rules = Rules(max_connections=9, max_keepalive=9, streams_per_connection=100)
    for slots, limit, more in (
        (1, NO_LIMIT, 1),
        (100, 100, 1),
        (101, 100, 2),
        (300, 100, 3),
        (300, 50, 6),
        (9, 0, 9),
    ):
        assert ahead([], slots, rules, limit) == ([], more), (slots, limit)


def test_lanes_that_are_there_count_with_what_they_carry() -> None:
    rules = Rules(max_connections=9, max_keepalive=9, streams_per_connection=100)
    first, second, third = own(1), own(2, 50), own(3)
    assert ahead([first, second, third], 150, rules, 50) == ([first, second], 0)
    assert ahead([first, second], 300, rules, 50) == ([first, second], 3)
    refused = own(4, 0)
    other = Lane(5, "h1", "open", in_flight=1)
    assert ahead([refused, other, first], 200, rules, 100) == ([first], 1)
    assert ahead([first], 0, rules, 100) == ([], 0)


def test_no_more_ahead_than_may_be_open_or_stay_open() -> None:
    file = Lane(1, "h1", "open", in_flight=2)
    assert ahead([], 100, Rules(max_connections=5, max_keepalive=9), 10) == ([], 5)
    assert ahead([], 100, Rules(max_connections=9, max_keepalive=5), 10) == ([], 5)
    assert ahead([file], 100, Rules(max_connections=5, max_keepalive=9), 10) == ([], 3)
    assert ahead([own(1), own(2)], 900, Rules(max_connections=1), 10)[1] == 0
