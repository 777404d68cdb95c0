"""Frames are cut and built as RFC 9113 says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator import frames
from app.simulator.frames import ErrorCode, FrameError, FrameReader, FrameType


def test_a_frame_carries_length_type_flags_and_stream() -> None:
    data = frames.frame(FrameType.DATA, frames.END_STREAM, 5, b"x" * 70_000)
    assert data[:9] == b"\x01\x11\x70\x00\x01\x00\x00\x00\x05"


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=40))),
    st.integers(1, 50),
)
def test_frames_survive_being_cut_anywhere(wanted: list[tuple[int, int, int, bytes]], step: int) -> None:
    data = frames.PREFACE + b"".join(frames.frame(*row) for row in wanted)
    reader = FrameReader()
    got = []
    for at in range(0, len(data), step):
        got += reader.feed(data[at : at + step])
    assert got == wanted


def test_another_protocols_first_bytes_are_refused() -> None:
    with pytest.raises(FrameError) as caught:
        FrameReader().feed(b"GET / HTTP/1.1\r\n")
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR


def test_a_frame_larger_than_announced_is_refused_by_its_header() -> None:
    reader = FrameReader(max_frame_size=100)
    with pytest.raises(FrameError) as caught:
        reader.feed(frames.PREFACE + frames.frame_header(101, FrameType.DATA, 0, 1))
    assert caught.value.code == ErrorCode.FRAME_SIZE_ERROR


def test_a_large_header_block_continues() -> None:
    data = frames.headers(3, b"a" * 25, end_stream=True, max_frame_size=10)
    got = FrameReader().feed(frames.PREFACE + data)
    assert [(kind, flags, len(payload)) for kind, flags, _, payload in got] == [
        (FrameType.HEADERS, frames.END_STREAM, 10),
        (FrameType.CONTINUATION, 0, 10),
        (FrameType.CONTINUATION, frames.END_HEADERS, 5),
    ]
    assert frames.headers(3, b"ab", end_stream=False)[4] == frames.END_HEADERS


@pytest.mark.parametrize(
    ("flags", "payload", "priority", "content"),
    [
        (0, b"abc", False, b"abc"),
        (frames.PADDED, b"\x02abc\0\0", False, b"abc"),
        (frames.PRIORITY_FLAG, b"12345abc", True, b"abc"),
        (frames.PADDED | frames.PRIORITY_FLAG, b"\x0112345abc\0", True, b"abc"),
        (frames.PADDED, b"\x02\0\0", False, b""),
    ],
)
def test_padding_and_priority_are_taken_off(flags: int, payload: bytes, priority: bool, content: bytes) -> None:
    assert frames.strip_padding(flags, payload, priority=priority) == content


@pytest.mark.parametrize("payload", [b"", b"\x05abc"])
def test_padding_longer_than_its_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        frames.strip_padding(frames.PADDED, payload)


def test_settings_go_there_and_back() -> None:
    values = [(frames.Setting.MAX_CONCURRENT_STREAMS, 7), (frames.Setting.INITIAL_WINDOW_SIZE, 2**31 - 1)]
    ((kind, _, stream_id, payload),) = FrameReader().feed(frames.PREFACE + frames.settings(values))
    assert (kind, stream_id, frames.parse_settings(payload)) == (FrameType.SETTINGS, 0, values)


def test_payloads_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(FrameError):
        frames.parse_settings(b"1234567")
    with pytest.raises(FrameError):
        frames.parse_u32(b"123")
    assert frames.parse_u32(b"\xff\xff\xff\xff") == frames.MAX_WINDOW


def test_the_small_frames() -> None:
    assert frames.ping_ack(b"12345678") == b"\0\0\x08\x06\x01\0\0\0\x0012345678"
    assert frames.window_update(1, 2) == b"\0\0\x04\x08\0\0\0\0\x01\0\0\0\x02"
    assert frames.rst_stream(1, ErrorCode.CANCEL) == b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08"
    assert frames.goaway(9, ErrorCode.NO_ERROR, b"d") == b"\0\0\x09\x07\0\0\0\0\0\0\0\0\x09\0\0\0\0d"
