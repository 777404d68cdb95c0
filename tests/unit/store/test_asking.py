"""store/asking: every living worker answers, within a bound; nothing is left behind, no question becomes a path.

Members in one process, their looks called by hand; a killed one is a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.store import asking
from app.store.asking import MOST_ANSWER_BYTES, MOST_OPEN, MOST_QUESTION_BYTES, STALE_S, Asking

ROOT = Path(__file__).resolve().parents[3]
CHANNEL = b"word"
HELD = """
import sys, time
from app.store.asking import Asking
one = Asking(sys.argv[1], b"word", {"t": lambda argument: {"pid": 0}}, print)
one.join()
print("there", flush=True)
time.sleep(60)
"""
Answers = Callable[[Any], Any]


class Node:
    """Members that look when told to, or all the time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[dict[str, object]] = []
        self.members: list[Asking] = []
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def member(self, answers: Answers | None = None, channel: bytes = CHANNEL, looks: bool = False) -> Asking:
        """One more; looks by itself if asked to."""
        made = Asking(str(self.folder), channel, {"t": answers or (lambda said: {"said": said})}, self.told.append)
        made.join()
        self.members.append(made)
        if looks:
            self._threads.append(threading.Thread(target=self._look, args=(made,)))
            self._threads[-1].start()
        return made

    def _look(self, member: Asking) -> None:
        while not self._over.wait(0.005):
            member.pump()

    def names(self, kind: str = "") -> list[str]:
        """Files there."""
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(kind))

    def put(self, kind: str, age_s: float = 0.0, data: bytes = b"{}", channel: str = "0" * 16) -> Path:
        """A file as another process would leave it."""
        named = {"q": f"q-{channel}-{'1' * 32}", "a": f"a-{'2' * 32}-1-{'3' * 8}", "t": f"t-{'4' * 32}"}
        path = self.folder / named[kind]
        path.write_bytes(data)
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for member in self.members:
            member.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.end()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for those who do not answer."""
    monkeypatch.setattr(asking, "WAIT_S", 0.1)


def test_all_others_answer_and_nothing_is_left(node: Node) -> None:
    asker = node.member(lambda said: {"own": said}, looks=True)
    for number in range(3):
        node.member(lambda said, number=number: {"number": number, "said": said}, looks=True)  # type: ignore[misc]
    for said in ({"id": "x"}, "y", None):
        found = asker.ask("t", said)
        assert (found.asked, found.trouble) == (3, "")
        assert sorted(one["number"] for one in found.answers) == [0, 1, 2]
        assert all(one["said"] == said for one in found.answers)
    assert len(node.names("m-")) == 4
    assert node.names("q-") + node.names("a-") + node.names("t-") == []


def test_several_may_ask_at_once(node: Node) -> None:
    members = [node.member(looks=True) for _ in range(3)]
    found: list[tuple[str, Any]] = []

    def ask(member: Asking, said: str) -> None:
        found.append((said, member.ask("t", said)))

    threads = [threading.Thread(target=ask, args=(one, str(n))) for n, one in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one["said"] for said, asked in found for one in asked.answers if one["said"] != said] == []
    assert [len(asked.answers) for _, asked in found] == [2, 2, 2]


def test_who_has_another_word_neither_hears_nor_is_counted(node: Node, short: None) -> None:
    heard: list[Any] = []
    other = node.member(lambda said: heard.append(said), channel=b"other")
    member = node.member()
    assert node.member(channel=b"third").ask("t", "x") == ((), 0, "")

    def answer(said: Any) -> Any:
        other.pump()
        return {"said": said}

    node.member(answer, looks=True)
    found = member.ask("t", "x")
    assert (found.asked, found.answers, heard) == (1, ({"said": "x"},), [])


def test_who_does_not_look_is_waited_for_no_longer_than_said(node: Node, short: None) -> None:
    node.member()
    node.member(looks=True)
    began = time.monotonic()
    found = node.member().ask("t", "x")
    assert (found.asked, len(found.answers)) == (2, 1)
    assert time.monotonic() - began >= 0.1
    assert node.names("q-") + node.names("a-") == []


def test_one_who_was_killed_is_not_asked_again(node: Node, short: None) -> None:
    held = subprocess.Popen([sys.executable, "-c", HELD, str(node.folder)], cwd=ROOT, stdout=subprocess.PIPE)
    assert held.stdout is not None
    assert held.stdout.readline() == b"there\n"
    asker = node.member()
    assert asker.ask("t", "x").asked == 1
    held.send_signal(signal.SIGKILL)
    held.communicate()
    assert len(node.names("m-")) == 2
    assert asker.ask("t", "x").asked == 0
    assert len(node.names("m-")) == 1, "its file is gone, too"


def test_one_who_dies_while_it_is_asked_is_waited_for_no_longer(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "WAIT_S", 60.0)
    held = subprocess.Popen([sys.executable, "-c", HELD, str(node.folder)], cwd=ROOT, stdout=subprocess.PIPE)
    assert held.stdout is not None
    assert held.stdout.readline() == b"there\n"
    asker, found = node.member(), []
    thread = threading.Thread(target=lambda: found.append(asker.ask("t", "x")), daemon=True)
    thread.start()
    while not node.names("q-"):
        time.sleep(0.005)
    held.send_signal(signal.SIGKILL)
    held.communicate()
    thread.join(20.0)
    assert [(one.asked, one.answers) for one in found] == [(1, ())]


def test_a_new_worker_clears_up_after_those_who_died(node: Node) -> None:
    (node.folder / f"m-{'0' * 16}-123-{'a' * 8}").touch()
    node.member()
    assert len(node.names("m-")) == 1


def test_who_leaves_is_not_asked(node: Node, short: None) -> None:
    gone, asker = node.member(), node.member()
    gone.close()
    gone.close()
    assert asker.ask("t", "x").asked == 0
    assert gone.ask("t", "x").trouble == asking.NO_DIRECTORY
    gone.pump()
    assert len(node.names("m-")) == 1


def test_without_a_directory_it_says_so() -> None:
    alone = Asking(None, CHANNEL, {}, print)
    alone.join()
    alone.pump()
    assert alone.ask("t", "x") == ((), 0, asking.NO_DIRECTORY)
    alone.close()


def test_a_question_has_its_bound(node: Node) -> None:
    with pytest.raises(ValueError, match=str(MOST_QUESTION_BYTES)):
        node.member().ask("t", "x" * MOST_QUESTION_BYTES)
    assert node.names("q-") + node.names("t-") == []


def test_so_many_questions_at_once_and_no_more(node: Node, short: None) -> None:
    asker = node.member()
    node.member()
    for number in range(MOST_OPEN):
        (node.folder / f"q-{'0' * 16}-{number:032x}").touch()
    found = asker.ask("t", "x")
    assert (found.answers, found.asked, found.trouble) == ((), 1, asking.TOO_MANY)


def test_too_long_an_answer_is_none(node: Node) -> None:
    member = node.member(lambda _: {"long": "x" * MOST_ANSWER_BYTES})
    channel = node.names("m-")[0].split("-")[1]
    node.put("q", data=b'{"topic": "t", "asker": "x"}', channel=channel)
    member.pump()
    (answer,) = node.names("a-")
    assert (node.folder / answer).read_bytes() == b"null", "not even written"
    member.close()
    node.member(lambda _: {"long": "x" * MOST_ANSWER_BYTES}, looks=True)
    found = node.member().ask("t", "x")
    assert (found.asked, found.answers) == (1, ())


def test_no_more_is_read_than_was_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1234")
    assert [asking._read(path, most) for most in (3, 4)] == [None, b"1234"]
    assert asking._read(tmp_path / "missing", 1) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"topic": 1}',
        b'{"topic": ["t"]}',
        b'{"topic": "other"}',
        b'{"topic": "t", "argument": "' + b"x" * MOST_QUESTION_BYTES + b'"}',
    ],
)
def test_nonsense_is_not_answered_and_harms_nobody(node: Node, data: bytes) -> None:
    member = node.member()
    path = node.put("q", data=data, channel=node.names("m-")[0].split("-")[1])
    member.pump()
    assert node.names("a-") == []
    assert path.exists(), "it may still be somebody's"
    assert node.told == []


def test_names_of_other_shapes_are_left_alone(node: Node) -> None:
    member = node.member()
    channel = node.names("m-")[0].split("-")[1]
    strange = [f"q-{channel}-{'1' * 31}", f"q-{channel}-{'1' * 32}.json", f"q-..-{'1' * 32}", "a-x", "readme"]
    for name in strange:
        (node.folder / name).write_bytes(b'{"topic": "t"}')
        os.utime(node.folder / name, (0, 0))
    member.pump()
    assert set(strange) < set(node.names())
    assert len(node.names()) == len(strange) + 1


def test_what_the_dead_left_goes_and_what_is_young_stays(node: Node) -> None:
    member = node.member()
    for kind in "qat":
        node.put(kind, STALE_S + 1)
    member.pump()
    assert [name[0] for name in node.names()] == ["m"]
    for kind in "qat":
        node.put(kind)
    member.pump()
    assert [name[0] for name in node.names()] == ["a", "m", "q", "t"]


def test_what_is_young_is_looked_at_again_though_nothing_happens(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = node.member()
    left = node.put("a")
    os.utime(node.folder, (1, 1))  # settled long ago
    member.pump()
    os.utime(left, (1, 1))
    member.pump()
    assert left.exists(), "unchanged: not even listed"
    now = time.monotonic() + STALE_S
    monkeypatch.setattr(time, "monotonic", lambda: now)
    member.pump()
    assert not left.exists()


def test_a_tick_without_news_is_one_stat(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    member = node.member()
    os.utime(node.folder, (1, 1))
    member.pump()
    listed: list[Path] = []

    def listing(self: Path) -> Iterator[Path]:
        listed.append(self)
        return iter(())

    monkeypatch.setattr(Path, "iterdir", listing)
    member.pump()
    assert listed == []
    os.utime(node.folder)
    member.pump()
    assert listed == [node.folder]
    member.pump()
    assert len(listed) == 2, "a change in the same tick of the file system's clock must not be missed"


def test_an_answer_that_comes_too_late_is_taken_back(node: Node) -> None:
    node.member()
    channel = node.names("m-")[0].split("-")[1]
    question = node.put("q", data=b'{"topic": "t", "asker": "x"}', channel=channel)

    def slow(_: Any) -> Any:
        question.unlink()
        return {}

    node.member(slow).pump()
    assert node.names("a-") == []


def test_an_answer_that_crosses_the_clearing_up_is_taken_back(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    member = node.member()
    channel = node.names("m-")[0].split("-")[1]
    question = node.put("q", data=b'{"topic": "t", "asker": "x"}', channel=channel)
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        question.unlink()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    member.pump()
    assert [name[0] for name in node.names()] == ["m"]


def test_each_question_is_answered_once_and_its_askers_own_not_at_all(node: Node) -> None:
    heard: list[Any] = []
    member = node.member(lambda said: heard.append(said))
    (name,) = node.names("m-")
    _, channel, me = name.split("-", 2)
    node.put("q", data=json.dumps({"topic": "t", "argument": 1, "asker": "x"}).encode(), channel=channel)
    member.pump()
    member.pump()
    assert heard == [1]
    node.put("q", STALE_S + 1, channel=channel)
    member.pump()
    node.put("q", data=json.dumps({"topic": "t", "argument": 2, "asker": me}).encode(), channel=channel)
    member.pump()
    assert heard == [1]


def test_files_are_for_their_user_alone(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda _: 0)
    seen: list[int] = []
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        seen.append(self.stat().st_mode & 0o777)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    node.member(looks=True)
    assert node.member().ask("t", "x").answers
    assert set(seen) == {0o600}
    assert len(seen) == 4


def test_a_directory_that_is_taken_away_is_told_of_once_and_is_no_end(tmp_path: Path) -> None:
    node = Node(tmp_path / "asking")
    node.folder.mkdir(0o700)
    member = node.member()
    for path in node.folder.iterdir():
        path.unlink()
    node.folder.rmdir()
    member.pump()
    member.pump()
    found = member.ask("t", "x")
    assert (found.asked, found.answers) == (0, ())
    assert found.trouble == member.degraded == "the other workers cannot be asked: No such file or directory"
    assert node.told == [{"event": "asking_unavailable", "error": "No such file or directory"}]
    node.folder.mkdir(0o700)
    member.pump()
    assert (member.degraded, node.told[1:]) == ("", [{"event": "asking_restored"}])
    member.close()


def test_one_that_could_not_join_tries_again(tmp_path: Path) -> None:
    node = Node(tmp_path / "asking")
    member = node.member()
    assert member.degraded
    node.folder.mkdir(0o700)
    member.pump()
    assert member.degraded == ""
    assert len(node.names("m-")) == 1
    node.end()


def test_after_a_fork_it_is_another_member(node: Node) -> None:
    member = node.member()
    (parent,) = node.names("m-")
    pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        member.close()
        member.join()
        os._exit(0 if len(node.names("m-")) == 2 and not _holds(node.folder / parent) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def _holds(path: Path) -> bool:
    """Whether this process has that file open."""
    return any(os.path.realpath(fd) == str(path) for fd in Path("/proc/self/fd").iterdir())


def test_a_full_disk_leaves_no_half_question(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.member()
    asker = node.member()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    assert asker.ask("t", "x").trouble == "the other workers cannot be asked: No space left on device"
    assert [name[0] for name in node.names()] == ["m", "m"]
