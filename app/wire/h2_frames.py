"""HTTP/2 frames as a client writes and reads them: numbers, builders, payload parsers, window arithmetic.

    +--------------------+----------+-----------+---------------------+---------
    | length (24)        | type (8) | flags (8) | R, stream id (1+31) | payload      RFC 9113 section 4.1
    +--------------------+----------+-----------+---------------------+---------

``HEADER`` packs length and type as one number, ``length << 8 | type``: one unpack yields everything. Names of
numbers are those of RFC 9113 sections 6 and 7.
Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER: Final = struct.Struct(">IBI")
HEADER_BYTES: Final = 9
MAX_WINDOW: Final = 2**31 - 1
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_SIZE: Final = 16_384
LARGEST_FRAME_SIZE: Final = 2**24 - 1

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11
HTTP_1_1_REQUIRED: Final = 13

CODE_NAMES: Final = {
    NO_ERROR: "NO_ERROR",
    PROTOCOL_ERROR: "PROTOCOL_ERROR",
    INTERNAL_ERROR: "INTERNAL_ERROR",
    FLOW_CONTROL_ERROR: "FLOW_CONTROL_ERROR",
    4: "SETTINGS_TIMEOUT",
    STREAM_CLOSED: "STREAM_CLOSED",
    FRAME_SIZE_ERROR: "FRAME_SIZE_ERROR",
    REFUSED_STREAM: "REFUSED_STREAM",
    CANCEL: "CANCEL",
    COMPRESSION_ERROR: "COMPRESSION_ERROR",
    10: "CONNECT_ERROR",
    ENHANCE_YOUR_CALM: "ENHANCE_YOUR_CALM",
    12: "INADEQUATE_SECURITY",
    HTTP_1_1_REQUIRED: "HTTP_1_1_REQUIRED",
}

_SETTING = struct.Struct(">HI")
_U32 = struct.Struct(">I")
_TWO_U32 = struct.Struct(">II")


class ConnectionFault(Exception):
    """The peer broke the protocol: the connection ends with GOAWAY(``code``) (RFC 9113 section 5.4.1)."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


class StreamFault(Exception):
    """The peer broke the protocol on one stream: it ends with RST_STREAM(``code``) (section 5.4.2)."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


def code_name(code: int) -> str:
    """``CANCEL`` for 8; the number where it has no name."""
    return CODE_NAMES.get(code, f"error {code}")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One whole frame; ``payload`` in bytes."""
    return HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame with (identifier, value) pairs."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values))


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def ping(payload: bytes, *, ack: bool = False) -> bytes:
    """A PING with 8 bytes, or the answer to one."""
    return frame(PING, ACK if ack else 0, 0, payload)


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE by ``increment`` bytes; stream 0 is the connection."""
    return HEADER.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id) + _U32.pack(increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM."""
    return HEADER.pack(4 << 8 | RST_STREAM, 0, stream_id) + _U32.pack(code)


def goaway(code: int, debug: bytes = b"") -> bytes:
    """A client's GOAWAY: no stream of the peer's was processed, since push is refused."""
    return frame(GOAWAY, 0, 0, _TWO_U32.pack(0, code) + debug)


def headers(stream_id: int, block: bytes, end_stream: bool, max_frame_size: int) -> bytes:
    """A header block as HEADERS, followed by CONTINUATION frames where it is larger than a frame (section 4.3)."""
    end = END_STREAM if end_stream else 0
    if len(block) <= max_frame_size:
        return HEADER.pack(len(block) << 8 | HEADERS, END_HEADERS | end, stream_id) + block
    out = [frame(HEADERS, end, stream_id, block[:max_frame_size])]
    for at in range(max_frame_size, len(block), max_frame_size):
        last = END_HEADERS if at + max_frame_size >= len(block) else 0
        out.append(frame(CONTINUATION, last, stream_id, block[at : at + max_frame_size]))
    return b"".join(out)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """The (identifier, value) pairs of a SETTINGS payload, each value within its range (section 6.5.2).

    Raises:
        ConnectionFault: Wrong length, or a value out of range.
    """
    if len(payload) % 6:
        raise ConnectionFault(FRAME_SIZE_ERROR, "SETTINGS of a length that is no multiple of 6.")
    pairs: list[tuple[int, int]] = list(_SETTING.iter_unpack(payload))
    for key, value in pairs:
        if key == ENABLE_PUSH and value:
            raise ConnectionFault(PROTOCOL_ERROR, "A server cannot enable push.")
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(FLOW_CONTROL_ERROR, f"Initial window of {value} bytes.")
        if key == MAX_FRAME_SIZE and not DEFAULT_FRAME_SIZE <= value <= LARGEST_FRAME_SIZE:
            raise ConnectionFault(PROTOCOL_ERROR, f"Maximum frame size of {value} bytes.")
    return pairs


def parse_u32(payload: bytes) -> int:
    """The 32-bit number that fills a WINDOW_UPDATE or RST_STREAM payload.

    Raises:
        ConnectionFault: The payload is not four bytes long.
    """
    if len(payload) != 4:
        raise ConnectionFault(FRAME_SIZE_ERROR, "A number of other than 4 bytes.")
    return int(_U32.unpack(payload)[0])


def parse_goaway(payload: bytes) -> tuple[int, int]:
    """Last stream id and error code of a GOAWAY; its debug data is not looked at (section 6.8).

    Raises:
        ConnectionFault: The payload is shorter than eight bytes.
    """
    if len(payload) < 8:
        raise ConnectionFault(FRAME_SIZE_ERROR, "GOAWAY of less than 8 bytes.")
    last, code = _TWO_U32.unpack_from(payload)
    return int(last) & MAX_WINDOW, int(code)


def unpadded(flags: int, payload: bytes) -> bytes:
    """The content of a DATA or HEADERS payload without padding and priority fields (sections 6.1, 6.2).

    Pass the flags of a HEADERS frame as they are, those of a DATA frame masked with ``PADDED``.

    Raises:
        ConnectionFault: The padding is as long as the payload or longer.
    """
    start, end = 0, len(payload)
    if flags & PADDED:
        start = 1
        end -= payload[0] if payload else 1
    if flags & PRIORITY_FLAG:
        start += 5
    if start > end:
        raise ConnectionFault(PROTOCOL_ERROR, "Padding longer than its frame.")
    return payload[start:end]


def widened(window: int, increment: int, stream_id: int) -> int:
    """A send window in bytes after a WINDOW_UPDATE (section 6.9.1); it may have been negative.

    Raises:
        ConnectionFault: A connection's increment of 0, or its window would exceed 2^31-1.
        StreamFault: The same for a stream.
    """
    if increment == 0:
        code, text = PROTOCOL_ERROR, "WINDOW_UPDATE by nothing."
    elif window + increment > MAX_WINDOW:
        code, text = FLOW_CONTROL_ERROR, "A window of more than 2^31-1 bytes."
    else:
        return window + increment
    raise StreamFault(code, text) if stream_id else ConnectionFault(code, text)
