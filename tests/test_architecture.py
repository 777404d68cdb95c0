"""The house rules of the architecture, asserted on the syntax trees: who imports whom, who owns what, how long.

Pure.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Source:
    """One file of the product: where it is and its syntax tree."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def room(self) -> str:
        """``app/upstream/pool.py`` -> ``upstream``; ``app/settings_file.py`` -> ``settings``."""
        parts = self.path.removesuffix(".py").split("/")
        if parts[0] != "app":
            return parts[0]
        name = parts[1]
        return "settings" if name.startswith("settings_") else name

    @cached_property
    def imports(self) -> frozenset[str]:
        """Dotted names imported anywhere, ``from app import errors`` as ``app.errors``, also by import_module."""
        return frozenset(_imports(self.tree))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room a name comes from"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (
                one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)
            )


def _read(path: Path) -> Source:
    return Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


APP = [_read(path) for path in sorted((ROOT / "app").rglob("*.py"))]
ALL = [*APP, _read(ROOT / "wsgi.py"), _read(ROOT / "gunicorn.conf.py")]


def _path(source: Source) -> str:
    return source.path


# Who may import whom: a room imports rooms of a smaller number, and itself.
RANK = {
    "errors": 0,
    "exchange": 1,
    "settings": 2,
    "metrics_dir": 2,
    "flags": 3,
    "size": 3,
    "wire": 4,
    "providers": 5,
    "translate": 5,
    "bridge": 6,
    "policy": 6,
    "observe": 6,
    "store": 6,
    "upstream": 7,
    "gateway": 8,
    "web": 9,
    "assembly": 10,
    "factory": 11,
    "simulator": 11,
    "probe": 11,
    "check": 12,
    "bench": 12,
    "demo": 12,
    "ledger_cli": 12,
    "explain": 12,
    "cli": 13,
    "__main__": 14,
    "wsgi": 14,
    "gunicorn.conf": 14,
    "__init__": 14,
}

# Package -> the only places that may import it, and why.
OWNERS = {
    "flask": (
        r"app/(web/.*|factory|bench/floor)\.py",
        "only web and factory speak WSGI; the rest must run without Flask (floor is what it costs alone)",
    ),
    "werkzeug": (r"app/(web/.*|factory)\.py", "only web and factory speak WSGI; the rest must run without Flask"),
    "httpx": (
        r"app/(upstream/.*|bench/.*)\.py",
        "its exceptions are the transports' tongue; none leaves upstream",
    ),
    "httpcore": (r"app/upstream/transport_\w+\.py", "a client library stays behind the transport interface"),
    "pyqwest": (r"app/upstream/transport_\w+\.py", "a client library stays behind the transport interface"),
    "pyreqwest": (r"app/upstream/transport_\w+\.py", "a client library stays behind the transport interface"),
    "gevent": (r"app/bridge/.*\.py|gunicorn\.conf\.py", "only the bridge knows both worlds"),
    "uvloop": (r"app/(bridge|bench|simulator)/.*\.py", "the bridge owns the loop"),
    "prometheus_client": (r"app/observe/.*\.py", "metrics are read off the Record; its locks are patched ones"),
    "structlog": (r"app/(observe/.*|factory)\.py", "log lines are read off the Record"),
    "opentelemetry": (r"app/observe/span(s|_\w+)\.py", "an optional extra, read off the Record like the rest"),
    "redis": (r"app/store/redis\.py", "shared state has one protocol, and Redis is optional"),
    "limits": (r"app/store/\w+\.py", "what callers have used is shared state, and counted in one place"),
    "dotenv": (r"$^", "the environment is the platform's business"),
    "pydantic_settings": (r"$^", "it imports ssl before gevent has patched"),
}
LOOP_SIDE = ("bridge", "upstream")
PATCHED_LOCKS = {"logging", "queue", "threading", "concurrent", "prometheus_client", "structlog"}
MAY_BE_ASYNC = {"bridge", "upstream", "store", "bench", "simulator"}
NAMELESS = {"utils", "util", "helpers", "helper", "common", "manager", "service", "support", "misc"}
# The rims: room -> how many blind handlers it may hold; observe's: an application's own callback was called.
RIMS = {"web": 1, "bridge": 2, "observe": 1}


@pytest.mark.parametrize("source", ALL, ids=_path)
def test_imports_point_down(source: Source) -> None:
    assert source.room in RANK, f"{source.path}: give the new room a place in RANK, below everything that uses it"
    for name in source.imports:
        if not name.startswith("app."):
            continue
        other = name.split(".")[1]
        other = "settings" if other.startswith("settings_") else other
        if other in RANK and other != source.room:
            assert RANK[other] < RANK[source.room], (
                f"{source.path} imports {name}: imports point down only, or a change below would need one above"
            )


@pytest.mark.parametrize("source", [one for one in APP if one.room in ("bridge", "simulator")], ids=_path)
def test_bridge_and_simulator_know_errors_only(source: Source) -> None:
    others = {name for name in source.imports if name.startswith("app.") and name.split(".")[1] != source.room}
    strangers = sorted(name for name in others if not re.match(r"app\.errors(\.|$)", name))
    reason = (
        "the bridge is generic" if source.room == "bridge" else "a fake that shares code shares the code's faults"
    )
    assert not strangers, f"{source.path} imports {strangers}: {reason}, so it imports nothing but app.errors"


@pytest.mark.parametrize("package", OWNERS)
def test_packages_have_one_owner(package: str) -> None:
    pattern, reason = OWNERS[package]
    users = {one.path for one in ALL if any(name.split(".")[0] == package for name in one.imports)}
    strangers = sorted(path for path in users if not re.fullmatch(pattern, path))
    assert not strangers, f"{strangers} import {package}: {reason}"


@pytest.mark.parametrize("source", ALL, ids=_path)
def test_environment_is_read_in_settings_only(source: Source) -> None:
    if source.path == "app/settings.py":
        return
    read = [
        node.lineno
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv", "os.environb"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and any("env" in a.name for a in node.names))
    ]
    assert not read, (
        f"{source.path}:{read} reads the environment: settings.py does, so that faults are found at start and "
        "`penstock settings` is the whole truth"
    )


@pytest.mark.parametrize("source", ALL, ids=_path)
def test_async_stays_behind_the_bridge(source: Source) -> None:
    if source.room in MAY_BE_ASYNC:
        return
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    found = [node.lineno for node in ast.walk(source.tree) if isinstance(node, kinds)]
    assert not found, f"{source.path}:{found} is async: only {sorted(MAY_BE_ASYNC)} run on a loop"


@pytest.mark.parametrize("source", [one for one in APP if one.room in LOOP_SIDE], ids=_path)
def test_the_loop_takes_no_patched_lock(source: Source) -> None:
    found = sorted({name.split(".")[0] for name in source.imports} & PATCHED_LOCKS)
    assert not found, (
        f"{source.path} imports {found}: a lock that gevent patched and a native thread shares loses wake-ups and "
        "hangs the worker; hand the fact up as data and log or count it on the worker's side"
    )


@pytest.mark.parametrize("room", sorted({one.room for one in ALL}))
def test_blind_handlers_stand_at_the_rims_only(room: str) -> None:
    blind = [
        f"{one.path}:{node.lineno}"
        for one in ALL
        if one.room == room
        for node in ast.walk(one.tree)
        if isinstance(node, ast.ExceptHandler) and _is_blind(node)
    ]
    assert len(blind) <= RIMS.get(room, 0), (
        f"{blind}: `except Exception` hides faults; it stands only where one exchange, or the loop's thread, ends"
    )


def _is_blind(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(ast.unparse(one) in ("Exception", "BaseException") for one in caught)
    reraises = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return broad and not reraises


@pytest.mark.parametrize("source", ALL, ids=_path)
def test_files_and_functions_stay_short(source: Source) -> None:
    lines = source.text.count("\n")
    assert lines <= 400, f"{source.path} has {lines} lines: over 400 it has more than one job; split it by verb"
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 50, (
                f"{source.path}:{node.lineno} {node.name} has {length} lines: over 50 it is no longer one thought"
            )


@pytest.mark.parametrize("source", ALL, ids=_path)
def test_files_are_named_after_what_they_do(source: Source) -> None:
    words = set(re.split(r"[/_.]", source.path))
    assert not words & NAMELESS, f"{source.path}: a name that fits everything collects everything; name the job"


@pytest.mark.parametrize("source", ALL, ids=_path)
def test_every_module_says_its_job_and_where_it_runs(source: Source) -> None:
    doc = ast.get_docstring(source.tree)
    assert doc, f"{source.path} has no docstring: its first line is its one job"
    if source.path.endswith("__init__.py"):
        return
    last = doc.rstrip().splitlines()[-1].strip()
    assert re.fullmatch(r"Pure[.:].*|Runs on: .+", last), (
        f"{source.path}: the last line of its docstring is {last!r}; say 'Pure.' or 'Runs on: worker.' (loop, "
        "start-up), for what may be called there depends on it"
    )


def test_importing_the_package_imports_nothing() -> None:
    names = _read(ROOT / "app" / "__init__.py").imports
    assert not names, f"app/__init__.py imports {sorted(names)}: gevent has to patch before ssl is imported"
