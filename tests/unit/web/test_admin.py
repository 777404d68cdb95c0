"""web/admin: the last exchanges, for the admin key alone, in every mount; and that key goes nowhere else.

Runs on: worker.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import Client, TestResponse

from app.factory import GatewayMiddleware, _without_effect, create_app, create_blueprint
from app.settings import Settings
from app.store import asking
from app.store.asking import Asked
from app.web.admin import Admin

if TYPE_CHECKING:
    from tests.unit.web.conftest import Upstream

Make = Callable[..., Settings]
KEY = "admin-key-of-these-tests"
ADMIN = {"x-api-key": KEY}
IDS = ["a-request-of-some-client-1", "slashed//id/with+plus==000", "/starts-with-a-slash-00000"]


@pytest.fixture
def client(settings: Make, upstream: Upstream) -> FlaskClient:
    """The gateway as an application of its own, nothing served yet."""
    return create_app(settings(GATEWAY_ADMIN_KEY=KEY, RECENT_RECORDS="3")).test_client()


def is_error(answer: TestResponse, status: int, kind: str, slug: str) -> str:
    """An error of the gateway's own; its message."""
    assert (answer.status_code, answer.headers["x-penstock-error"]) == (status, slug)
    assert answer.json is not None
    assert answer.json["error"]["type"] == kind
    return str(answer.json["error"]["message"])


def serve(client: FlaskClient, request_id: str, mount: str = "") -> None:
    headers = {"x-request-id": request_id, "x-api-key": "sk-callers-own"}
    answer = client.post(f"{mount}/v1/messages?q=secret", data=b'{"model":"m"}', headers=headers)
    assert (answer.status_code, answer.data) == (200, b"{}")  # read: it is over
    answer.close()


@pytest.mark.parametrize("key", [ADMIN, {"authorization": f"Bearer {KEY}"}])
def test_one_exchange_is_shown_to_who_holds_the_key(client: FlaskClient, key: dict[str, str]) -> None:
    serve(client, IDS[0])
    answer = client.get(f"/admin/records/{IDS[0]}", headers=key)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert answer.json is not None
    (found,) = answer.json["records"]
    assert (found["request_id"], found["path"], found["model"], found["status"]) == (
        IDS[0],
        "/v1/messages",
        "m",
        200,
    )
    assert answer.json | {"records": [], "since": "", "note": ""} == {
        "request_id": IDS[0],
        "records": [],
        "kept": 1,
        "since": "",
        "workers_asked": 1,
        "workers_answered": 1,
        "note": "",
    }
    assert answer.json["since"] == found["time"]
    assert answer.json["note"] == asking.NO_DIRECTORY, "it says that it knows of itself alone"
    assert b"secret" not in answer.data and b"sk-" not in answer.data


@pytest.mark.parametrize("request_id", IDS)
@pytest.mark.parametrize("mount", ["app", "blueprint", "middleware", "bare blueprint"])
def test_every_id_is_found_in_every_mount(settings: Make, upstream: Upstream, mount: str, request_id: str) -> None:
    own, prefix = settings(GATEWAY_ADMIN_KEY=KEY), "/llm"
    if mount == "app":
        client, prefix = create_app(own).test_client(), ""
    elif mount == "middleware":
        made: Any = Client(GatewayMiddleware(Flask("host"), "/llm", own))
        client = made
    else:
        host = Flask("host")
        prefix = "/llm" if mount == "blueprint" else ""
        host.register_blueprint(create_blueprint(url_prefix=prefix or None, settings=own))
        client = host.test_client()
    serve(client, request_id, prefix)
    answer = client.get(f"{prefix}/admin/records/{request_id}", headers=ADMIN)
    assert answer.json is not None, answer.data
    assert [one["request_id"] for one in answer.json["records"]] == [request_id]
    listed = client.get(f"{prefix}/admin/records?limit=1", headers=ADMIN)
    assert listed.json is not None
    assert [one["request_id"] for one in listed.json["records"]] == [request_id]
    assert client.get(f"{prefix}/admin/records").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": KEY + "x"},
        {"x-api-key": "sk-callers-own"},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
    ],
)
@pytest.mark.parametrize("path", ["/admin/records", f"/admin/records/{IDS[0]}", "/admin/records/%00"])
def test_nobody_else_sees_anything(client: FlaskClient, path: str, headers: dict[str, str]) -> None:
    serve(client, IDS[0])
    for method in ("GET", "POST", "HEAD"):
        answer = client.open(path, method=method, headers=headers)
        assert (answer.status_code, answer.headers["x-penstock-error"]) == (401, "unauthenticated")
    message = is_error(client.get(path, headers=headers), 401, "authentication_error", "unauthenticated")
    assert "admin key" in message and KEY not in message


def test_keys_are_compared_in_constant_time(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def digest(given: bytes, known: bytes) -> bool:
        compared.append((given, known))
        return given == known

    monkeypatch.setattr(hmac, "compare_digest", digest)
    client.get("/admin/records", headers={"x-api-key": "x"})
    client.post("/v1/messages", headers={"x-api-key": "y"})
    assert compared == [(b"x", KEY.encode()), (b"y", KEY.encode())]


@pytest.mark.parametrize("mount", ["app", "blueprint"])
def test_without_a_key_set_there_are_no_such_pages(settings: Make, upstream: Upstream, mount: str) -> None:
    host = Flask("host")
    if mount == "app":
        host, prefix = create_app(settings()), ""
    else:
        host.register_blueprint(create_blueprint(url_prefix="/llm", settings=settings()))
        prefix = "/llm"
    for path in ("/admin/records", f"/admin/records/{IDS[0]}"):
        is_error(host.test_client().get(prefix + path, headers=ADMIN), 404, "not_found_error", "unknown_route")
    assert not settings().gateway_admin_key


def test_without_a_key_set_nothing_is_remembered(settings: Make, upstream: Upstream) -> None:
    with_key, without = create_app(settings(GATEWAY_ADMIN_KEY=KEY)), create_app(settings())
    observers = [len(app.extensions["penstock"].remembered.observers) for app in (with_key, without)]
    pumps = [len(app.extensions["penstock"].remembered.pumps) for app in (with_key, without)]
    assert (observers, pumps) == ([1, 0], [0, 0])
    assert (
        create_app(settings(GATEWAY_ADMIN_KEY=KEY, RECENT_RECORDS="0")).extensions["penstock"].remembered.observers
        == ()
    )


def test_a_record_that_is_not_kept_is_said_so(client: FlaskClient) -> None:
    path = f"/admin/records/{IDS[0]}"
    message = is_error(client.get(path, headers=ADMIN), 404, "not_found_error", "unknown_record")
    assert "1 of 1 workers answered; exchanges they keep: none yet." in message
    for number in range(5):
        serve(client, f"a-request-of-some-client-x{number}")
    message = is_error(client.get(path, headers=ADMIN), 404, "not_found_error", "unknown_record")
    assert "exchanges they keep: 3, since 20" in message
    assert IDS[0] not in message


@pytest.mark.parametrize(
    "hostile",
    [
        "..%2f..%2fetc%2fpasswd",
        "a.b",
        "x" * 201,
        "x" * 10_000,
        "%00",
        "%0a",
        "a%20b",
        "%F0%9F%92%A5",
        "%ff",
        "a;b",
        "<b>",
        "",
    ],
)
def test_hostile_ids_are_refused_and_not_repeated(client: FlaskClient, hostile: str) -> None:
    message = is_error(
        client.get(f"/admin/records/{hostile}", headers=ADMIN), 400, "invalid_request_error", "invalid_request"
    )
    assert message == "A request id has 1 to 200 characters, of these: A-Z a-z 0-9 + / = _ -"


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "1e1", "1.0", "٣", "9" * 5000])
def test_a_limit_is_a_number_in_its_range(client: FlaskClient, limit: str) -> None:
    answer = client.get("/admin/records", query_string={"limit": limit}, headers=ADMIN)
    assert "1 to 100" in is_error(answer, 400, "invalid_request_error", "invalid_request")


@pytest.mark.parametrize("path", ["/admin/records", f"/admin/records/{IDS[0]}"])
def test_they_are_read_only(client: FlaskClient, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert client.open(path, method=method, headers=ADMIN).status_code == 405
    serve(client, IDS[0])
    head = client.head(path, headers=ADMIN)
    assert (head.status_code, head.data) == (200, b"")


def test_they_are_no_exchanges_and_not_passed_on(client: FlaskClient, upstream: Upstream) -> None:
    serve(client, IDS[0])
    for _ in range(3):
        answer = client.get("/admin/records", headers=ADMIN)
        assert answer.json is not None
        assert answer.json["kept"] == 1
    assert len(upstream.seen) == 1
    assert client.application.extensions["penstock"].life.served == 1


@pytest.mark.parametrize(
    "environ",
    [{}, {"ANTHROPIC_API_KEYS": "ours"}, {"ANTHROPIC_API_KEYS": "ours", "GATEWAY_API_KEYS": "callers"}],
    ids=["pass-through", "open", "guarded"],
)
@pytest.mark.parametrize("headers", [ADMIN, {"authorization": f"bearer {KEY} "}], ids=["x-api-key", "bearer"])
def test_the_admin_key_is_no_callers_key(
    settings: Make, upstream: Upstream, environ: dict[str, str], headers: dict[str, str]
) -> None:
    client = create_app(settings(GATEWAY_ADMIN_KEY=KEY, **environ)).test_client()
    answer = client.post("/v1/messages", data=b"{}", headers=headers)
    message = is_error(answer, 401, "authentication_error", "unauthenticated")
    assert KEY not in message
    assert upstream.seen == []
    listed = client.get("/admin/records", headers=ADMIN).json
    assert listed is not None
    assert [(one["status"], one["slug"], one["caller"]) for one in listed["records"]] == [
        (401, "unauthenticated", "")
    ]


def test_other_keys_pass_through_as_ever(client: FlaskClient, upstream: Upstream) -> None:
    serve(client, IDS[0])
    assert ("x-api-key", "sk-callers-own") in upstream.last.headers


def answer_of(worker: int, *times: str) -> Any:
    """What a worker tells."""
    rows = [{"time": time, "worker": worker, "request_id": "x"} for time in times]
    return {"worker": worker, "kept": 10, "since": min(times, default=None), "records": rows}


def test_what_all_workers_know_comes_newest_first(settings: Make) -> None:
    def ask(topic: str, argument: Any) -> Asked:
        assert (topic, argument) in [("records", {"id": "x"}), ("records", {"latest": 2})]
        return Asked((answer_of(2, "2026-03", "2026-01"), answer_of(3)), 3)

    admin = Admin(KEY.encode(), lambda argument: answer_of(1, "2026-02"), ask)
    app = Flask("host")
    with app.test_request_context("/admin/records?limit=2", headers=ADMIN):
        one, latest = admin.one("x"), admin.latest()
    found = json.loads(one.data)
    assert [(row["time"], row["worker"]) for row in found["records"]] == [
        ("2026-03", 2),
        ("2026-02", 1),
        ("2026-01", 2),
    ]
    assert (found["kept"], found["since"]) == (30, "2026-01")
    assert (found["workers_asked"], found["workers_answered"]) == (4, 3)
    assert "note" not in found
    assert [row["time"] for row in json.loads(latest.data)["records"]] == ["2026-03", "2026-02"]


def test_workers_that_cannot_ask_each_other_are_no_secret(client: FlaskClient) -> None:
    client.application.extensions["penstock"].remembered.asking.degraded = "the other workers cannot be asked: x"
    ready = client.get("/ready")
    assert ready.json is not None
    assert (ready.status_code, ready.json["status"]) == (200, "degraded")
    assert "the other workers cannot be asked: x" in ready.json["reasons"]


def test_a_key_that_opens_nothing_is_said_so(settings: Make) -> None:
    (said,) = _without_effect(settings(GATEWAY_ADMIN_KEY=KEY, RECENT_RECORDS="0"))
    assert said.startswith("GATEWAY_ADMIN_KEY: ") and "RECENT_RECORDS" in said and KEY not in said
    assert _without_effect(settings(GATEWAY_ADMIN_KEY=KEY)) == _without_effect(settings(RECENT_RECORDS="0")) == []
