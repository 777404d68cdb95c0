"""``python -m app.simulator``: runs a simulator from command-line flags.

Runs on: simulator loop.
"""

from __future__ import annotations

import sys

from app.simulator.options import from_argv
from app.simulator.server import serve

if __name__ == "__main__":
    serve(from_argv(sys.argv[1:]))
