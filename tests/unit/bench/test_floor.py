"""The floor answers everything alike."""

from __future__ import annotations

import json

import pytest

from app.bench.floor import BODY, app


@pytest.mark.parametrize("path", ["/", "/v1/messages", "/a/b/c"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_path_has_the_same_answer(path: str, method: str) -> None:
    answer = app.test_client().open(path, method=method, data=b"{}")
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert answer.data == BODY
    assert json.loads(BODY)["type"] == "message"
    assert 700 < len(BODY) < 1100
