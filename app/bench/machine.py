"""What the figures were measured on: processor, cores, memory, versions, and how busy it was already.

Runs on: start-up.
"""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("penstock", "flask", "gunicorn", "gevent", "httpx", "uvloop", "httptools")
_PROC = Path("/proc")


def facts(proc: Path = _PROC) -> dict[str, Any]:
    """JSON-able facts; what cannot be found out is None."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _field(proc / "cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_kib": _number(_field(proc / "meminfo", "MemTotal")),
        "load_1m": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _field(path: Path, name: str) -> str | None:
    """The first value of ``name`` in a file of ``name: value`` lines."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None


def _number(text: str | None) -> int | None:
    return int(text.split()[0]) if text else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
