"""simulator: pretends to be the Anthropic API; serves the demo, the tests and the benches.

    accept -> h1 | h2 (+ h2_stream, flow, frames, hpack_cache) -> sink -> app -> scripts, streams, files, batches
                                                                         scenarios say which script

Context: what a gateway must survive (GOAWAY, refused streams, truncation, slow readers) cannot be scripted on
the real API, and a fake that is slower than the gateway measures itself. Choice: one asyncio process with its
own HTTP/2 frame layer over the ``hpack`` library, answers' header blocks encoded once. Price: frame and flow
control code to keep right, tested here on its own.

Entry points: ``server.serve`` (the command), ``server.Simulator`` (on a running loop), ``process.running`` and
``thread.running_in_thread`` (elsewhere).

Runs on: simulator loop.
"""
