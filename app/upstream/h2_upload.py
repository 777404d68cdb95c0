"""An upload on its way: reads the source as fast as the peer takes it, ends or resets the stream.

    next piece ──queue──> windows and transport take it ──> next piece … source over ──> END_STREAM
        └──source failed, too slow, length other than declared──> RST_STREAM(CANCEL), never END_STREAM

One piece is held at a time. The task ends with the stream: it is cancelled when that is over for other reasons.
Runs on: loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from app.upstream.h2_connection import H2Connection
from app.upstream.h2_outbox import Body
from app.upstream.h2_stream import H2Stream, Unsent
from app.upstream.transport_base import Source
from app.wire.h2_frames import CANCEL


def upload(
    connection: H2Connection,
    stream: H2Stream,
    source: Source,
    headers: Sequence[tuple[str, str]],
    failing: type[Exception],
) -> None:
    """Start sending ``source``, which raises ``failing``, as the body of ``stream``, whose HEADERS are out."""
    body = stream.body
    if body is None:
        return
    declared = next((value for name, value in headers if name.lower() == "content-length"), None)
    left = int(declared) if declared is not None and declared.isascii() and declared.isdigit() else None
    loop = asyncio.get_running_loop()

    def stuck() -> None:
        _give_up(connection, stream, "The upstream takes no more of the upload.")

    source.watch(stuck)
    stream.feed = loop.create_task(_feed(connection, stream, body, source, left, failing))


async def _feed(
    connection: H2Connection,
    stream: H2Stream,
    body: Body,
    source: Source,
    left: int | None,
    failing: type[Exception],
) -> None:
    taken: asyncio.Future[None] | None = None
    loop = asyncio.get_running_loop()

    def on_taken() -> None:
        if taken is not None and not taken.done():
            taken.set_result(None)

    body.taken = on_taken
    try:
        async for piece in source:
            if left is not None:
                left -= len(piece)
                if left < 0:
                    break
            if not piece:
                continue
            taken = loop.create_future()
            connection.out.queue(body, piece, False)
            await taken
        taken = None
        if left:
            _give_up(connection, stream, "The upload is not as long as was declared.")
        else:
            connection.out.queue(body, b"", True)
    except (failing, TypeError):
        _give_up(connection, stream, "The upload's source failed; the request was aborted.")
    except asyncio.CancelledError:  # its own end, or one that the source raised
        _give_up(connection, stream, "The upload was given up.")
        raise
    finally:
        source.rest()


def _give_up(connection: H2Connection, stream: H2Stream, why: str) -> None:
    stream.fail(Unsent(why))
    connection.let_go(stream, CANCEL)
