"""Keep this worker's cells where the node's other workers can read them, and read theirs.

Runs on: worker.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from app.observe.cells import Cell, Rings, decode, encode
from app.observe.node_cells import CELL_BYTES, NodeCells, Section
from app.observe.windows import Cells

ALIVE_S: Final = 20.0
"""A worker that has not said so for so long is not."""
_HEAD_S: Final = 5.0

Tell = Callable[[dict[str, object]], None]


class Look(NamedTuple):
    """What all workers of the node have seen.

    Attributes:
        cells: Of each process, of those that are gone, too.
        born_at: Since when there is anything.
        workers: How many are alive.
        growth_mb: Of the one that has grown most; None: none is old enough.
    """

    cells: list[Cells]
    born_at: float
    workers: int
    growth_mb: float | None


class NodeRings:
    """Of one process.

    Args:
        path: The file that the node's workers share; None: there is none.
        born_at: Since when this process counts.
        tell: Takes the event ``performance_not_shared``, once.

    Attributes:
        rings: Its own cells.
        file: The shared file; None where this process is alone.
        growth_mb: Growth of this process.
        trouble: Why the others cannot see what this one counts, or "".
    """

    def __init__(self, path: str | None, born_at: float, tell: Tell) -> None:
        self.rings = Rings()
        self.file: NodeCells | None = None
        self.growth_mb: float | None = None
        self.trouble = ""
        self._born_at = born_at
        self._tell = tell
        self._head_at = 0.0
        self._decoded: dict[tuple[int, int], tuple[bytes, tuple[int, Cell] | None]] = {}
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                self.fail(error.strerror or type(error).__name__)

    def _open(self, path: str) -> None:
        self.file = NodeCells(path)
        mine = self.file.claim()
        if mine is None:
            self.fail("all places are taken by other workers")
            return
        for slot, payload in mine.cells.items():
            found = decode(payload)
            if found is not None:
                self.rings.cells[slot] = found
        self._born_at = min(self._born_at, mine.head.get("born_at", self._born_at))

    def write(self, now: float) -> None:
        """Let the others see what has changed."""
        file = self.file
        if file is None or file.index is None:
            return
        try:
            for slot in self.rings.take_changed():
                tick, cell = self.rings.cells[slot]
                file.write_cell(slot, encode(tick, cell, CELL_BYTES))
            if now >= self._head_at:
                self._head_at = now + _HEAD_S
                file.write_head(
                    {"born_at": self._born_at, "at": now, "pid": os.getpid(), "growth_mb": self.growth_mb}
                )
        except OSError as error:
            self.fail(error.strerror or type(error).__name__)

    def write_watch(self, found: dict[str, Any]) -> None:
        """Note what the watch has found, for whoever is asked and whoever watches next."""
        if self.file is None:
            return
        try:
            self.file.write_watch(found)
        except OSError as error:
            self.fail(error.strerror or type(error).__name__)

    def look(self, now: float) -> Look:
        """What all have seen."""
        sections = self.file.others() if self.file is not None else []
        alive = [section.head for section in sections if now - section.head["at"] < ALIVE_S]
        growth = [self.growth_mb, *(head["growth_mb"] for head in alive)]
        return Look(
            [self.rings.cells, *(self._decode(section) for section in sections)],
            min([self._born_at, *(float(section.head["born_at"]) for section in sections)]),
            1 + len(alive),
            max((round(one, 3) for one in growth if one is not None), default=None),
        )

    def close(self) -> None:
        """Let another worker go on with what this one has written."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def fail(self, why: str) -> None:
        """The others cannot be told."""
        if not self.trouble:
            self._tell({"event": "performance_not_shared", "error": why})
        self.trouble = f"performance: this worker cannot share what it measures: {why}"

    def _decode(self, section: Section) -> dict[int, tuple[int, Cell]]:
        found: dict[int, tuple[int, Cell]] = {}
        for slot, payload in section.cells.items():
            known = self._decoded.get((section.number, slot))
            if known is None or known[0] != payload:
                known = self._decoded[section.number, slot] = (payload, decode(payload))
            if known[1] is not None:
                found[slot] = known[1]
        return found
