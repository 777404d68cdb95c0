"""Ask the other workers of one node something, through files in a directory that all of them look at.

    asker     q-<channel>-<question>            written, waited on, removed
    others    a-<question>-<member>             one answer each, at their next look
    all       m-<channel>-<member>              locked for as long as the worker lives, however it ends

    tick --directory unchanged--> one ``stat``, nothing else
         --changed--------------> its listing: new questions of this channel are answered, what is old is removed

Context: whichever worker an operator meets must find what another one served, at no cost to the requests.
Choice: files, written under another name and renamed, so that nobody reads half of one. The keepers look a few
    times a second; the asker polls. Who lives is known by locks, which the kernel takes back from the dead. Of
    what is asked nothing becomes part of a path: names are random numbers, and digests.
Price: an answer takes a quarter second. A node of two gunicorns has two directories.

Runs on: worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

WAIT_S: Final = 1.0
"""So long an answer is waited for: the keepers look four times as often."""
STALE_S: Final = 10.0
"""A file that is older was left by somebody who died."""
MOST_OPEN: Final = 8
"""Questions at once, of all workers."""
MOST_QUESTION_BYTES: Final = 4096
MOST_ANSWER_BYTES: Final = 1 << 20
_POLL_S: Final = 0.02
_LIFE_TURNS: Final = 10  # of the asker's polls: then it sees who has died meanwhile
_SETTLED_S: Final = 0.1  # a time stamp this old will not be given to another change of the directory
_NAME: Final = re.compile(
    r"(?:q-(?P<asked_on>[0-9a-f]{16})-(?P<asked>[0-9a-f]{32})"
    r"|a-(?P<answers>[0-9a-f]{32})-[0-9]+-[0-9a-f]{8}"
    r"|m-(?P<channel>[0-9a-f]{16})-(?P<member>[0-9]+-[0-9a-f]{8})"
    r"|t-[0-9a-f]{32})"
)

NO_DIRECTORY: Final = "other processes, if there are any, were not asked: under our gunicorn.conf.py they would be"
TOO_MANY: Final = "the other workers were not asked: too many questions are open"
UNAVAILABLE: Final = "the other workers cannot be asked"


class Asked(NamedTuple):
    """What came of a question.

    Attributes:
        answers: Of the other workers, in no order.
        asked: How many other workers there were.
        trouble: Why somebody was not asked, or "".
    """

    answers: tuple[Any, ...]
    asked: int
    trouble: str = ""


class Asking:
    """One worker's part in it.

    Args:
        folder: The directory; None: there is none, and nobody to ask.
        channel: Who may ask whom: only those with the same secret word hear each other.
        topics: What is answered, and by what: from a JSON value to a JSON value; raises nothing.
        tell: Takes the events ``asking_unavailable`` and ``asking_restored``.

    Attributes:
        degraded: Why the others cannot be asked, or "".
    """

    def __init__(
        self,
        folder: str | None,
        channel: bytes,
        topics: Mapping[str, Callable[[Any], Any]],
        tell: Callable[[dict[str, object]], None],
    ) -> None:
        self.degraded = ""
        self._folder = folder
        self._channel = hashlib.blake2b(channel, digest_size=8, person=b"penstock-asking").hexdigest()
        self._topics = topics
        self._tell = tell
        self._pid = 0
        self._member = ""
        self._lock = -1
        self._seen = 0
        self._again_at = math.inf
        self._answered: set[str] = set()

    def join(self) -> None:
        """Be known to the others; in each process at its start, and again until that comes off."""
        if self._folder is None or (self._lock >= 0 and self._pid == os.getpid()):
            return
        self._pid = os.getpid()
        if self._lock >= 0:  # inherited: it would keep the parent alive for the others
            os.close(self._lock)
        self._lock, self._seen, self._again_at = -1, 0, math.inf
        member = f"{self._pid}-{secrets.token_hex(4)}"
        made = self._path(f"t-{secrets.token_hex(16)}")
        try:
            lock = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            made.rename(self._path(f"m-{self._channel}-{member}"))  # nobody sees it before it is locked
            self._lock, self._member = lock, member
            self._living(self._names())
        except OSError as error:
            self._failed(error)

    def close(self) -> None:
        """Be asked no more, and ask no more."""
        if self._folder is None or self._pid != os.getpid() or self._lock < 0:
            return
        with contextlib.suppress(OSError):
            self._path(f"m-{self._channel}-{self._member}").unlink()
        os.close(self._lock)
        self._lock, self._folder = -1, None

    def ask(self, topic: str, argument: Any) -> Asked:
        """Ask all other workers and wait for their answers, ``WAIT_S`` at most.

        Args:
            topic: What it is about; one of the ``topics``.
            argument: JSON value; with the topic ``MOST_QUESTION_BYTES`` at most.

        Raises:
            ValueError: The question is too long.
        """
        data = json.dumps({"topic": topic, "argument": argument, "asker": self._member}).encode()
        if len(data) > MOST_QUESTION_BYTES:
            raise ValueError(f"a question has at most {MOST_QUESTION_BYTES} bytes")
        if self._folder is None:
            return Asked((), 0, NO_DIRECTORY)
        try:
            names = self._names()
            others = self._living(names)
            if not others:
                return Asked((), 0, self.degraded)
            if sum(name.startswith("q-") for name in names) >= MOST_OPEN:
                return Asked((), len(others), TOO_MANY)
            return Asked(self._answers(data, others), len(others), self.degraded)
        except OSError as error:
            self._failed(error)
            return Asked((), 0, self.degraded)

    def pump(self) -> None:
        """Answer what the others ask, if anything has happened; the keeper calls it every quarter second."""
        if self._folder is None:
            return
        self.join()
        try:
            changed_ns = os.stat(self._folder).st_mtime_ns  # noqa: PTH116 - a third of a Path's time, ever again
            if changed_ns != self._seen or time.monotonic() >= self._again_at:
                self._look(changed_ns)
        except OSError as error:
            self._failed(error)
            return
        if self.degraded and self._lock >= 0:
            self.degraded = ""
            self._tell({"event": "asking_restored"})

    def _look(self, changed_ns: int) -> None:
        """Answer what is new, remove what is old, and see when to look again."""
        now = time.time()
        self._seen = changed_ns if now - changed_ns / 1e9 > _SETTLED_S else 0
        self._again_at = math.inf
        open_questions = set()
        for name in self._names():
            found = _NAME.fullmatch(name)
            if found is None or found["member"]:
                continue
            if self._swept(name, now):
                continue
            self._again_at = time.monotonic() + STALE_S  # if nobody else removes it
            if (question := found["asked"]) and found["asked_on"] == self._channel:
                open_questions.add(question)
                if question not in self._answered:
                    self._answer(name, question)
        self._answered = open_questions

    def _swept(self, name: str, now: float) -> bool:
        """Whether that file is no more; what is old was left behind, and is removed."""
        path = self._path(name)
        try:
            old = now - path.stat().st_mtime > STALE_S
        except FileNotFoundError:
            return True
        if old:
            path.unlink(missing_ok=True)
        return old

    def _answer(self, name: str, question: str) -> None:
        """Answer one question, whoever's; an asker does not wait for its own answer."""
        asked = _object(_read(self._path(name), MOST_QUESTION_BYTES))
        topic = asked.get("topic")
        if asked.get("asker") == self._member or not isinstance(topic, str) or topic not in self._topics:
            return
        data = json.dumps(self._topics[topic](asked.get("argument"))).encode()
        if len(data) > MOST_ANSWER_BYTES:
            data = b"null"
        answer = f"a-{question}-{self._member}"
        self._write(answer, data)
        if not self._path(name).exists():  # the asker has cleared up in between
            self._path(answer).unlink(missing_ok=True)

    def _answers(self, data: bytes, others: set[str]) -> tuple[Any, ...]:
        """Put the question, gather the answers, and leave nothing behind."""
        question = secrets.token_hex(16)
        name = f"q-{self._channel}-{question}"
        self._write(name, data)
        try:
            return tuple(self._gathered(question, set(others)))
        finally:
            self._path(name).unlink(missing_ok=True)
            for left in self._names():
                if left.startswith(f"a-{question}-"):
                    self._path(left).unlink(missing_ok=True)

    def _gathered(self, question: str, waited_for: set[str]) -> Iterator[Any]:
        until = time.monotonic() + WAIT_S
        for turn in itertools.count(1):
            for member in sorted(waited_for):
                raw = _read(self._path(f"a-{question}-{member}"), MOST_ANSWER_BYTES)
                if raw is not None:
                    waited_for.discard(member)
                    if found := _object(raw):
                        yield found
            if turn % _LIFE_TURNS == 0:
                waited_for &= self._living(self._names())
            if not waited_for or time.monotonic() >= until:
                return
            time.sleep(_POLL_S)

    def _living(self, names: list[str]) -> set[str]:
        """The other members of this channel; the files of those that are gone are removed."""
        found = set()
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None or match["member"] in (None, self._member):
                continue
            if self._alive(self._path(name)) and match["channel"] == self._channel:
                found.add(match["member"])
        return found

    @staticmethod
    def _alive(path: Path) -> bool:
        """Whether somebody holds it."""
        try:
            probe = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(probe)
        path.unlink(missing_ok=True)
        return False

    def _write(self, name: str, data: bytes) -> None:
        """All of it, or nothing that anybody reads."""
        made = self._path(f"t-{secrets.token_hex(16)}")
        try:
            with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            made.rename(self._path(name))
        except OSError:
            made.unlink(missing_ok=True)
            raise

    def _names(self) -> list[str]:
        return [path.name for path in self._path("").iterdir()]

    def _path(self, name: str) -> Path:
        assert self._folder is not None  # noqa: S101 - asked only then
        return Path(self._folder, name)

    def _failed(self, error: OSError) -> None:
        """The directory is gone, or full: told once."""
        if not self.degraded:
            self.degraded = f"{UNAVAILABLE}: {error.strerror or error}"
            self._tell({"event": "asking_unavailable", "error": error.strerror or str(error)})


def _read(path: Path, most_bytes: int) -> bytes | None:
    """A file's content; None if there is none, or too much."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        data = file.read(most_bytes + 1)
        return data if len(data) <= most_bytes else None
    return None


def _object(raw: bytes | None) -> dict[str, Any]:
    """A JSON object; empty where it is none."""
    try:
        found = json.loads(raw or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
