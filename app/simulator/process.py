"""Runs a simulator in a process of its own, so that it shares no interpreter with what it is used to test.

Runs on: the caller's thread.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from app.simulator.options import Options, to_argv
from app.simulator.running import Running

_STOP_S = 5.0
_ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def running(options: Options | None = None) -> Iterator[Running]:
    """A simulator in a subprocess, from its first line on stdout until the block is left.

    Raises:
        RuntimeError: It ended before it was ready; its own message is on stderr.
    """
    options = options or Options()
    if options.replay:
        options = replace(options, replay=str(Path(options.replay).resolve()))
    if options.ca_dir:
        options = replace(options, ca_dir=str(Path(options.ca_dir).resolve()))
    command = [sys.executable, "-m", "app.simulator", *to_argv(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=_ROOT)  # noqa: S603 - fixed command
    stdout = process.stdout
    if stdout is None:
        raise RuntimeError("the simulator has no stdout")
    try:
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the simulator ended with code {process.wait(_STOP_S)} before it was ready")
        told = json.loads(line)
        yield Running(told["plain"], told["tls"], told["ca"], told["pid"])
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        stdout.close()
