"""store/sharing: what a worker learns goes to the board and to the outbox, and comes from the board.

Pure.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from app.store.board import Board, board_bytes
from app.store.facts import Fact
from app.store.sharing import OUTBOX_LIMIT, Sharing

FACT = Fact("cooling", "anthropic@x", "blue", 1e12)


class Link:
    """Notes what is asked of it."""

    def __init__(self, outbox: deque[Fact]) -> None:
        self.outbox = outbox
        self.degraded = "redis: gone"
        self.pumped = 0
        self.closed = False

    def pump(self) -> None:
        self.pumped += 1

    def client(self) -> Any:
        return self

    def close(self) -> None:
        self.closed = True


def test_alone_nothing_is_shared_and_nothing_is_degraded() -> None:
    alone = Sharing(None)
    alone.publish(FACT)
    alone.pump()
    alone.close()
    assert (alone.news(), alone.degraded, alone.client()) == ([], "", None)


def test_workers_of_a_node_hear_each_other_over_the_board(tmp_path: Path) -> None:
    path = tmp_path / "board"
    path.write_bytes(bytes(board_bytes()))
    one, two = Sharing(None), Sharing(None)
    one.use(Board(str(path)))
    two.use(Board(str(path)))
    one.publish(FACT)
    assert two.news() == [FACT]
    assert two.news() == [] and one.news() == []


def test_other_nodes_are_told_through_a_bounded_outbox() -> None:
    made: list[Link] = []

    def link(outbox: deque[Fact]) -> Link:
        made.append(Link(outbox))
        return made[-1]

    sharing = Sharing(link)
    for _ in range(OUTBOX_LIMIT + 5):
        sharing.publish(FACT)
    sharing.pump()
    assert len(made[0].outbox) == OUTBOX_LIMIT and made[0].pumped == 1
    assert sharing.degraded == "redis: gone" and sharing.client() is made[0]
    sharing.close()
    assert made[0].closed
