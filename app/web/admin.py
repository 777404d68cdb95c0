"""Show the last exchanges to whoever holds the admin key, whichever worker of the node served them.

    /admin/records              the last ones of all workers, in short; ?limit=1 to 100
    /admin/records/<request id> all that is known of the exchanges with that id, the gateway's or the upstream's

Neither is an exchange itself: not passed on, not counted, not logged. Without a key set there are no such pages.

Runs on: worker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

from flask import Response, request

from app.errors import GatewayError, InvalidRequest, MethodNotAllowed, Unauthenticated, UnknownRecord
from app.observe.lookup import ID, NO_ID
from app.observe.recent import MOST_LISTED, TOPIC, Recent
from app.settings import Settings, environment
from app.store import asking_dir
from app.store.asking import Asked, Asking
from app.store.board_file import shared
from app.web.auth import authenticate
from app.web.proxy import request_headers, request_id_of
from app.web.render import render_error

_LISTED: Final = 20
_LIMIT: Final = re.compile(r"[0-9]{1,3}")
_WRONG_KEY: Final = "Present the gateway's admin key as x-api-key or as Authorization: Bearer."

Answer = Callable[[Any], dict[str, Any]]


class Remembered:
    """What an assembly needs of all this: nothing at all where no admin key is set.

    Args:
        settings: Say whether, and how many exchanges.
        tell: Takes events.
        settle: Has the Records made that are still to come.

    Attributes:
        admin_key: Opens the pages; b"" if there is none.
        asking: This worker's part in asking and answering.
        observers: Are shown all Records.
        pumps: Called every quarter second.
        pages: Path, endpoint name and view of each, for ``proxy.add_rule``: an id may hold slashes.
    """

    def __init__(
        self,
        settings: Settings,
        tell: Callable[[dict[str, object]], None],
        settle: Callable[[], None],
    ) -> None:
        secret = settings.gateway_admin_key
        self.admin_key = b"" if secret is None else secret.get_secret_value().encode()
        recent = Recent(settings.recent_records, settle)
        folder = shared(environment(), asking_dir.VARIABLE) if secret is not None else None
        self.asking = Asking(folder, self.admin_key, {TOPIC: recent.answer}, tell)
        admin = Admin(self.admin_key, recent.answer, self.asking.ask)
        self.observers = (recent.observe,) if secret is not None and recent.most else ()
        self.pumps = (self.asking.pump,) if folder is not None else ()
        self.pages = admin.routes() if secret is not None else []


class Admin:
    """The pages.

    Args:
        key: Opens them.
        answer: What this worker knows; see ``Recent.answer``.
        ask: Asks the other workers; see ``Asking.ask``.
    """

    def __init__(self, key: bytes, answer: Answer, ask: Callable[[str, Any], Asked]) -> None:
        self._keys = (("admin", key),)
        self._answer = answer
        self._ask = ask

    def one(self, request_id: str) -> Response:
        """``/admin/records/<request id>``."""
        return self._guarded(lambda: self._one(request_id))

    def latest(self) -> Response:
        """``/admin/records``."""
        return self._guarded(self._latest)

    def routes(self) -> list[tuple[str, str, Callable[..., Response]]]:
        """Path, endpoint name and view of each."""
        return [
            ("/admin/records", "records", self.latest),
            ("/admin/records/<penstock_rest:request_id>", "record", self.one),
        ]

    def _guarded(self, view: Callable[[], dict[str, Any]]) -> Response:
        """Answer those who may ask."""
        environ = request.environ
        try:
            if not self._admits(environ):
                raise Unauthenticated(_WRONG_KEY)
            if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
                raise MethodNotAllowed
            found = view()
        except GatewayError as error:
            return render_error(error, request_id_of(environ))
        headers = {"cache-control": "no-store"}
        return Response(json.dumps(found), 200, headers, mimetype="application/json")

    def _admits(self, environ: dict[str, Any]) -> bool:
        try:
            authenticate(request_headers(environ), self._keys)
        except Unauthenticated:
            return False
        return True

    def _one(self, request_id: str) -> dict[str, Any]:
        if not ID.fullmatch(request_id):
            raise InvalidRequest(NO_ID)
        found = self._gathered({"id": request_id})
        if not found["records"]:
            raise UnknownRecord(_not_kept(found))
        return {"request_id": request_id, **found}

    def _latest(self) -> dict[str, Any]:
        limit = request.args.get("limit", str(_LISTED))
        if not _LIMIT.fullmatch(limit) or not 1 <= int(limit) <= MOST_LISTED:
            raise InvalidRequest(f"limit is a number from 1 to {MOST_LISTED}.")
        found = self._gathered({"latest": int(limit)})
        found["records"] = found["records"][: int(limit)]
        return found

    def _gathered(self, argument: dict[str, Any]) -> dict[str, Any]:
        """What this worker and the others know, newest first, and who was asked."""
        asked = self._ask(TOPIC, argument)
        told = [self._answer(argument), *asked.answers]
        rows = [row for one in told for row in one["records"]]
        rows.sort(key=lambda row: str(row["time"]), reverse=True)
        found = {
            "records": rows,
            "kept": sum(one["kept"] for one in told),
            "since": min((one["since"] for one in told if one["since"]), default=None),
            "workers_asked": 1 + asked.asked,
            "workers_answered": len(told),
        }
        return found | {"note": asked.trouble} if asked.trouble else found


def _not_kept(found: dict[str, Any]) -> str:
    """Why there is nothing, for people."""
    answered, asked = found["workers_answered"], found["workers_asked"]
    kept = f"{found['kept']:,}, since {found['since']}" if found["kept"] else "none yet"
    text = f"No exchange with that id is kept. {answered} of {asked} workers answered; exchanges they keep: {kept}"
    return f"{text}. Note: {found['note']}." if "note" in found else f"{text}."
