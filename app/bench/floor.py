"""The WSGI floor: what gunicorn, gevent and Flask cost for a route that returns a constant.

Served by ``servers.floor``, as ``gunicorn app.bench.floor:app``. The answer is as long as a short messages answer,
with the headers such an answer needs and nothing else.

Runs on: worker.
"""

from __future__ import annotations

import json
from typing import Final

from flask import Flask, Response

_TEXT: Final = "The route that returns this text reads nothing, decides nothing and asks nobody. " * 8
BODY: Final = json.dumps(
    {
        "id": "msg_floor",
        "type": "message",
        "role": "assistant",
        "model": "floor",
        "content": [{"type": "text", "text": _TEXT}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 120},
    }
).encode()

app = Flask("floor")


@app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
@app.route("/<path:path>", methods=["GET", "POST"])
def constant(path: str) -> Response:
    """The same answer to everything."""
    return Response(BODY, content_type="application/json")
