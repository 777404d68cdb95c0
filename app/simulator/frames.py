"""HTTP/2 frames as bytes: builders for those a server sends, an incremental reader for those it gets.

    +--------------------+----------+-----------+---------------------+---------
    | length (24)        | type (8) | flags (8) | R, stream id (1+31) | payload      RFC 9113 section 4.1
    +--------------------+----------+-----------+---------------------+---------

Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_SIZE = 16_384

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY_FLAG = 0x20

_HEADER = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_U32 = struct.Struct(">I")


class FrameType(IntEnum):
    """Frame types of RFC 9113 section 6."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class ErrorCode(IntEnum):
    """Error codes of RFC 9113 section 7 that this server sends or tells apart."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9


class Setting(IntEnum):
    """Settings of RFC 9113 section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class FrameError(Exception):
    """The peer broke the protocol: the connection ends with ``code``."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        self.code = code
        super().__init__(message)


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The nine bytes in front of a payload of ``length`` bytes."""
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return frame_header(len(payload), kind, flags, stream_id) + payload


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame with (identifier, value) pairs."""
    return frame(FrameType.SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values))


SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0)


def ping_ack(payload: bytes) -> bytes:
    """The answer to a PING that carried ``payload`` (8 bytes)."""
    return frame(FrameType.PING, ACK, 0, payload)


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE by ``increment`` bytes; stream 0 is the connection."""
    return frame(FrameType.WINDOW_UPDATE, 0, stream_id, _U32.pack(increment))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """A RST_STREAM."""
    return frame(FrameType.RST_STREAM, 0, stream_id, _U32.pack(code))


def goaway(last_stream_id: int, code: ErrorCode, debug: bytes = b"") -> bytes:
    """A GOAWAY: streams above ``last_stream_id`` were not and will not be processed."""
    return frame(FrameType.GOAWAY, 0, 0, _U32.pack(last_stream_id) + _U32.pack(code) + debug)


def headers(stream_id: int, block: bytes, *, end_stream: bool, max_frame_size: int = DEFAULT_FRAME_SIZE) -> bytes:
    """A header block as HEADERS, followed by CONTINUATION frames where it is larger than a frame."""
    end = END_STREAM if end_stream else 0
    if len(block) <= max_frame_size:
        return frame(FrameType.HEADERS, END_HEADERS | end, stream_id, block)
    out = [frame(FrameType.HEADERS, end, stream_id, block[:max_frame_size])]
    for at in range(max_frame_size, len(block), max_frame_size):
        last = END_HEADERS if at + max_frame_size >= len(block) else 0
        out.append(frame(FrameType.CONTINUATION, last, stream_id, block[at : at + max_frame_size]))
    return b"".join(out)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The (identifier, value) pairs of a SETTINGS payload.

    Raises:
        FrameError: The length is no multiple of six.
    """
    if len(payload) % 6:
        raise FrameError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS payload is no multiple of 6 bytes")
    return list(_SETTING.iter_unpack(payload))


def parse_u32(payload: bytes) -> int:
    """The 31-bit number that fills a WINDOW_UPDATE or RST_STREAM payload.

    Raises:
        FrameError: The payload is not four bytes long.
    """
    if len(payload) != 4:
        raise FrameError(ErrorCode.FRAME_SIZE_ERROR, "payload must be 4 bytes")
    return int(_U32.unpack(payload)[0]) & MAX_WINDOW


def strip_padding(flags: int, payload: bytes, *, priority: bool = False) -> bytes:
    """The content of a DATA or HEADERS payload, without padding and (for HEADERS) priority fields.

    Raises:
        FrameError: The padding is longer than the payload.
    """
    start, end = 0, len(payload)
    if flags & PADDED:
        start = 1
        end -= payload[0] if payload else 1
    if priority and flags & PRIORITY_FLAG:
        start += 5
    if start > end:
        raise FrameError(ErrorCode.PROTOCOL_ERROR, "padding is longer than the payload")
    return payload[start:end]


class FrameReader:
    """Cuts received bytes into (type, flags, stream id, payload), after the client's connection preface."""

    def __init__(self, max_frame_size: int = DEFAULT_FRAME_SIZE) -> None:
        self._max = max_frame_size
        self._rest = b""
        self._preface = False

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """The frames that are complete now.

        Raises:
            FrameError: Wrong preface, or a frame larger than was announced.
        """
        if self._rest:
            data = self._rest + data
        at = 0
        if not self._preface:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise FrameError(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 connection preface")
            if len(data) < len(PREFACE):
                self._rest = data
                return []
            self._preface = True
            at = len(PREFACE)
        frames = []
        total = len(data)
        while total - at >= HEADER_BYTES:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, at)
            length = high << 8 | low
            if length > self._max:
                raise FrameError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
            end = at + HEADER_BYTES + length
            if end > total:
                break
            frames.append((kind, flags, stream_id & MAX_WINDOW, data[at + HEADER_BYTES : end]))
            at = end
        self._rest = data[at:]
        return frames
