"""Flow control: nothing passes a window, nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator.flow import ReceiveWindow, SendBuffer
from app.simulator.frames import MAX_WINDOW, FrameError


@given(st.lists(st.binary(max_size=30)), st.lists(st.integers(-2, 20), min_size=1, max_size=30))
def test_pieces_come_out_whole_and_in_order(pieces: list[bytes], limits: list[int]) -> None:
    out = SendBuffer(1000)
    for piece in pieces:
        out.push(piece)
    taken = b""
    for limit in limits:
        part = out.take(limit)
        assert len(part) <= max(limit, 0)
        taken += part
    assert out.window == 1000 - len(taken)
    while part := out.take(7):
        taken += part
    assert taken == b"".join(pieces)
    assert out.size == 0


def test_a_window_may_go_negative_and_come_back() -> None:
    out = SendBuffer(10)
    out.push(b"x" * 10)
    out.take(10)
    out.widen(-8)
    assert out.window == -8
    out.widen(20)
    assert out.window == 12


def test_a_window_above_the_protocols_limit_is_refused() -> None:
    out = SendBuffer(1)
    with pytest.raises(FrameError):
        out.widen(MAX_WINDOW)


def test_forgotten_bytes_do_not_count() -> None:
    out = SendBuffer(10)
    out.push(b"abc")
    out.clear()
    assert (out.size, out.take(10)) == (0, b"")


def test_a_receive_window_is_refilled_by_halves() -> None:
    window = ReceiveWindow(100)
    window.receive(80)
    assert window.consume(30) == 0
    assert window.left == 20
    assert window.consume(30) == 60
    assert window.left == 80


def test_a_peer_that_ignores_the_window_is_caught() -> None:
    window = ReceiveWindow(100)
    window.receive(100)
    with pytest.raises(FrameError):
        window.receive(1)
