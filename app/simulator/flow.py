"""HTTP/2 flow control as plain state: what a stream still has to send, what a peer may still send.

Pure.
"""

from __future__ import annotations

from collections import deque

from app.simulator.frames import MAX_WINDOW, ErrorCode, FrameError


class SendBuffer:
    """The bytes of one stream that wait for the peer's window.

    Attributes:
        window: Bytes the peer lets this stream send; negative after it shrank its initial window.
        size: Bytes that wait.
        ended: Nothing will be added; the stream ends after the last byte.
    """

    __slots__ = ("_pieces", "ended", "size", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.size = 0
        self.ended = False
        self._pieces: deque[bytes] = deque()

    def push(self, data: bytes) -> None:
        """Adds ``data`` behind what waits already."""
        if data:
            self._pieces.append(data)
            self.size += len(data)

    def take(self, limit: int) -> bytes:
        """Removes and returns at most ``limit`` bytes of one piece; they are charged to the window."""
        if limit <= 0 or not self._pieces:
            return b""
        piece = self._pieces[0]
        if len(piece) <= limit:
            self._pieces.popleft()
        else:
            self._pieces[0] = piece[limit:]
            piece = piece[:limit]
        self.size -= len(piece)
        self.window -= len(piece)
        return piece

    def widen(self, increment: int) -> None:
        """Adds a WINDOW_UPDATE's or a settings change's increment.

        Raises:
            FrameError: The window would pass 2**31 - 1 (RFC 9113 section 6.9.1).
        """
        if self.window + increment > MAX_WINDOW:
            raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "flow-control window overflow")
        self.window += increment

    def clear(self) -> None:
        """Forgets everything that waits."""
        self._pieces.clear()
        self.size = 0


class ReceiveWindow:
    """What the peer may still send, refilled in steps of half the window as bytes are consumed."""

    __slots__ = ("_consumed", "_size", "left")

    def __init__(self, size: int) -> None:
        self._size = size
        self._consumed = 0
        self.left = size

    def receive(self, size: int) -> None:
        """Charges ``size`` received bytes.

        Raises:
            FrameError: The peer sent more than it was allowed to.
        """
        self.left -= size
        if self.left < 0:
            raise FrameError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows")

    def consume(self, size: int) -> int:
        """Frees ``size`` bytes; returns the increment to announce now, or 0 to let it gather."""
        self._consumed += size
        if self._consumed * 2 < self._size:
            return 0
        increment, self._consumed = self._consumed, 0
        self.left += increment
        return increment
