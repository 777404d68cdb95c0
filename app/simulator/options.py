"""What a simulator can be told when it starts.

Pure.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one simulator; each is also a flag of ``python -m app.simulator``."""

    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    plain_port: int = field(default=0, metadata={"help": "port for plain HTTP/1.1; 0 = any free one"})
    tls_port: int = field(default=0, metadata={"help": "port for TLS; 0 = any free one"})
    ca_dir: str = field(
        default="", metadata={"help": "folder for ca.pem; empty = a temporary one, removed at the end"}
    )
    alpn: tuple[str, ...] = field(
        default=("h2", "http/1.1"), metadata={"help": "protocols offered over TLS, comma-separated"}
    )
    max_concurrent_streams: int = field(
        default=128, metadata={"help": "HTTP/2 streams per connection; refused above"}
    )
    initial_window_size: int = field(default=1_048_576, metadata={"help": "bytes of upload in flight per request"})
    idle_close_s: float = field(
        default=0.0, metadata={"help": "seconds before an idle connection is closed; 0 = never"}
    )
    tls_delay_ms: int = field(default=0, metadata={"help": "milliseconds before each TLS handshake"})
    replay: str = field(default="", metadata={"help": "JSONL of recorded exchanges for x-sim-replay"})


def to_argv(options: Options) -> list[str]:
    """The flags that make ``options``."""
    argv = []
    for spec in fields(Options):
        value = getattr(options, spec.name)
        if value != spec.default:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            argv.append(f"--{spec.name.replace('_', '-')}={text}")
    return argv


def from_argv(argv: Sequence[str], prog: str = "python -m app.simulator") -> Options:
    """Options from command-line flags; a wrong flag ends the process with exit code 2."""
    parser = argparse.ArgumentParser(prog=prog, description="A fake Anthropic provider with scripted faults.")
    for spec in fields(Options):
        default = spec.default if spec.default is not MISSING else None
        kind = _names if isinstance(default, tuple) else type(default)
        parser.add_argument(
            f"--{spec.name.replace('_', '-')}", type=kind, default=default, help=spec.metadata["help"]
        )
    return Options(**vars(parser.parse_args(argv)))


def _names(text: str) -> tuple[str, ...]:
    """A comma-separated list."""
    return tuple(name for name in text.split(",") if name)
