"""A plain streaming proxy: Flask in front, one pooled requests.Session behind.

The shape is that of requests' page "Advanced Usage" (Session, ``stream=True``) and Flask's "Streaming Contents".
Imports nothing of Penstock.

Runs on: gunicorn's gevent worker, which has patched the sockets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.cookiejar import DefaultCookiePolicy

import requests
from flask import Flask, Response, request
from requests.adapters import HTTPAdapter

UPSTREAM = os.environ["PEER_UPSTREAM"].rstrip("/")
HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
NOT_PASSED_ON = HOP_BY_HOP | {"host", "content-length"}
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]

session = requests.Session()
session.mount("https://", HTTPAdapter(pool_connections=4, pool_maxsize=1000))
session.verify = os.environ["PEER_CA"]
session.trust_env = False  # else ~/.netrc and proxy variables are looked up for every request
session.headers.clear()  # the caller's headers are sent, no defaults besides
session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # one caller's cookies are not another's

app = Flask(__name__)


def pieces(answer: requests.Response) -> Iterator[bytes]:
    """The bytes as they come, undecoded; the connection goes back to the pool, or is closed when left early."""
    with answer:
        yield from answer.raw.stream(None, decode_content=False)


@app.route("/", defaults={"path": ""}, methods=METHODS)
@app.route("/<path:path>", methods=METHODS)
def proxy(path: str) -> Response:
    """Any method, any path: body up, bytes down as they come."""
    headers = {name: value for name, value in request.headers if name.lower() not in NOT_PASSED_ON}
    answer = session.request(
        request.method,
        UPSTREAM + request.full_path.rstrip("?"),
        headers=headers,
        data=request.get_data(),
        stream=True,
        allow_redirects=False,
        timeout=(5, 600),
    )
    passed = [(name, value) for name, value in answer.raw.headers.items() if name.lower() not in HOP_BY_HOP]
    return Response(pieces(answer), answer.status_code, passed, direct_passthrough=True)
