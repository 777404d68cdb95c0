"""Each library's exceptions, in httpx's terms.

Pure.
"""

from __future__ import annotations

import h2.errors
import h2.exceptions
import httpcore
import httpx
import pyqwest
import pytest

from app.upstream import transport_httpcore, transport_reqwest
from app.upstream.transport_base import NotProcessed
from app.upstream.transport_reset import Unprocessed

REFUSED = pyqwest.StreamErrorCode.REFUSED_STREAM
INTERNAL = pyqwest.StreamErrorCode.INTERNAL_ERROR


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionError("refused"), httpx.ConnectError),
        (pyqwest.ConnectTimeout("slow"), httpx.ConnectTimeout),
        (TimeoutError("read"), httpx.ReadTimeout),
        (pyqwest.StreamError("x", REFUSED), NotProcessed),
        (pyqwest.StreamError("x", INTERNAL), httpx.RemoteProtocolError),
        (pyqwest.RemoteProtocolError("cut"), httpx.RemoteProtocolError),
        (pyqwest.WriteError("w"), httpx.WriteError),
        (pyqwest.ReadError("r"), httpx.ReadError),
        (ValueError("bad header"), httpx.LocalProtocolError),
        (OSError("other"), httpx.ReadError),
    ],
)
def test_pyqwest(error: Exception, expected: type[httpx.TransportError]) -> None:
    assert isinstance(error, transport_reqwest.FAILURES)
    made = transport_reqwest.mapped(error)
    assert type(made) is expected
    assert str(made) == str(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpcore.ConnectError("refused"), httpx.ConnectError),
        (httpcore.ConnectTimeout("slow"), httpx.ConnectTimeout),
        (httpcore.PoolTimeout("full"), httpx.PoolTimeout),
        (httpcore.ReadTimeout("r"), httpx.ReadTimeout),
        (httpcore.ReadError("r"), httpx.ReadError),
        (httpcore.WriteTimeout("w"), httpx.WriteTimeout),
        (httpcore.WriteError("w"), httpx.WriteError),
        (httpcore.RemoteProtocolError("cut"), httpx.RemoteProtocolError),
        (httpcore.RemoteProtocolError(Unprocessed(3)), NotProcessed),
        (httpcore.LocalProtocolError("bad"), httpx.LocalProtocolError),
        (httpcore.LocalProtocolError(h2.exceptions.ProtocolError("theirs")), httpx.RemoteProtocolError),
        (httpcore.UnsupportedProtocol("ftp"), httpx.UnsupportedProtocol),
        (OSError("other"), httpx.ReadError),
    ],
)
def test_httpcore(error: Exception, expected: type[httpx.TransportError]) -> None:
    assert isinstance(error, transport_httpcore.FAILURES)
    assert type(transport_httpcore.mapped(error)) is expected


def test_an_error_without_text_says_its_type() -> None:
    assert str(transport_reqwest.mapped(ConnectionError())) == "ConnectionError"
    assert str(transport_httpcore.mapped(httpcore.ReadError())) == "ReadError"
