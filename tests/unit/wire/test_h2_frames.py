"""Frames byte for byte, and the ranges their numbers must keep.

Pure.
"""

from __future__ import annotations

import pytest
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame
from hypothesis import given
from hypothesis import strategies as st

from app.wire import h2_frames as h2


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (h2.settings(((2, 0), (4, 65_535))), "00000c040000000000 000200000000 00040000ffff"),
        (h2.SETTINGS_ACK, "000000040100000000"),
        (h2.ping(b"12345678"), "000008060000000000 3132333435363738"),
        (h2.ping(b"12345678", ack=True), "000008060100000000 3132333435363738"),
        (h2.window_update(5, 32_768), "000004080000000005 00008000"),
        (h2.rst_stream(3, h2.CANCEL), "000004030000000003 00000008"),
        (h2.goaway(h2.PROTOCOL_ERROR, b"x"), "000009070000000000 00000000 00000001 78"),
        (h2.headers(1, b"ab", True, 16_384), "000002010500000001 6162"),
        (h2.headers(1, b"abc", False, 1), "000001010000000001 61 000001090000000001 62 000001090400000001 63"),
        (h2.frame(h2.DATA, 1, 7, b"z"), "000001000100000007 7a"),
    ],
)
def test_frames_byte_for_byte(made: bytes, wanted: str) -> None:
    assert made == bytes.fromhex(wanted)


@given(st.binary(max_size=200), st.integers(1, 64), st.booleans())
def test_a_header_block_survives_being_cut(block: bytes, size: int, end: bool) -> None:
    data = memoryview(h2.headers(9, block, end, size))
    got, kinds = b"", []
    while data:
        one, length = Frame.parse_frame_header(data[:9])
        one.parse_body(data[9 : 9 + length])
        assert isinstance(one, HeadersFrame | ContinuationFrame)
        assert one.stream_id == 9
        assert length <= size
        kinds.append(one)
        got += one.data
        data = data[9 + length :]
    assert got == block
    assert ["END_HEADERS" in kind.flags for kind in kinds] == [False] * (len(kinds) - 1) + [True]
    assert ("END_STREAM" in kinds[0].flags) == end


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ("0001", h2.FRAME_SIZE_ERROR),
        ("000200000001", h2.PROTOCOL_ERROR),
        ("000480000000", h2.FLOW_CONTROL_ERROR),
        ("000500003fff", h2.PROTOCOL_ERROR),
        ("000501000000", h2.PROTOCOL_ERROR),
    ],
)
def test_settings_out_of_range_end_the_connection(payload: str, code: int) -> None:
    with pytest.raises(h2.ConnectionFault) as caught:
        h2.parse_settings(bytes.fromhex(payload))
    assert caught.value.code == code


def test_settings_in_range_and_unknown_ones() -> None:
    payload = bytes.fromhex("00047fffffff 000500ffffff 000200000000 f00100000007")
    assert h2.parse_settings(payload) == [(4, 2**31 - 1), (5, 2**24 - 1), (2, 0), (0xF001, 7)]


@pytest.mark.parametrize(
    ("flags", "payload", "content"),
    [
        (0, b"abc", b"abc"),
        (h2.PADDED, b"\x02abc\0\0", b"abc"),
        (h2.PADDED, b"\x00abc", b"abc"),
        (h2.PADDED, b"\x03\0\0\0", b""),
        (h2.PRIORITY_FLAG, b"12345abc", b"abc"),
        (h2.PADDED | h2.PRIORITY_FLAG, b"\x0112345abc\0", b"abc"),
    ],
)
def test_padding_comes_off(flags: int, payload: bytes, content: bytes) -> None:
    assert h2.unpadded(flags, payload) == content


@pytest.mark.parametrize(
    ("flags", "payload"), [(h2.PADDED, b""), (h2.PADDED, b"\x01"), (h2.PRIORITY_FLAG, b"1234")]
)
def test_padding_longer_than_its_frame_ends_the_connection(flags: int, payload: bytes) -> None:
    with pytest.raises(h2.ConnectionFault):
        h2.unpadded(flags, payload)


def test_short_numbers_end_the_connection() -> None:
    for parse, payload in ((h2.parse_u32, b"123"), (h2.parse_u32, b"12345"), (h2.parse_goaway, b"1234567")):
        with pytest.raises(h2.ConnectionFault) as caught:
            parse(payload)
        assert caught.value.code == h2.FRAME_SIZE_ERROR
    assert h2.parse_goaway(bytes.fromhex("8000000700000002") + b"debug") == (7, 2)


@given(st.integers(-(2**31), h2.MAX_WINDOW), st.integers(0, h2.MAX_WINDOW), st.sampled_from([0, 1]))
def test_windows_grow_within_their_bounds(window: int, increment: int, stream_id: int) -> None:
    fault = h2.StreamFault if stream_id else h2.ConnectionFault
    if increment and window + increment <= h2.MAX_WINDOW:
        assert h2.widened(window, increment, stream_id) == window + increment
        return
    with pytest.raises(fault) as caught:
        h2.widened(window, increment, stream_id)
    assert caught.value.code == (h2.FLOW_CONTROL_ERROR if increment else h2.PROTOCOL_ERROR)  # type: ignore[attr-defined]


def test_codes_have_names() -> None:
    assert (h2.code_name(8), h2.code_name(99)) == ("CANCEL", "error 99")
