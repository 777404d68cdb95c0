"""Server settings and worker hooks, derived from the same ``Settings`` as the application.

gunicorn reads this file by itself; GUNICORN_CMD_ARGS and the command line override it. Faulty settings end
the process with exit code 2, one fault a line, before a socket is opened. Nothing here imports ssl or httpx:
gevent patches later, in the worker, and the hooks import the application only then.
Runs on: start-up.
"""

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from app import metrics_dir
from app.errors import ConfigError
from app.observe import node_cells
from app.settings import environment, live_environment, load
from app.settings_rules import STRANGERS, open_to_strangers
from app.store import asking_dir, board_file, counters


def _stop(faults: tuple[str, ...]) -> NoReturn:
    sys.stderr.write("".join(f"{fault}\n" for fault in faults))
    sys.exit(2)


try:
    settings = load()
except ConfigError as error:
    _stop(error.faults)

_metrics_made = metrics_dir.VARIABLE not in environment()
try:  # before anything imports prometheus_client
    _metrics = metrics_dir.share(live_environment())
except OSError as error:
    _stop((f"{metrics_dir.VARIABLE}: {error.strerror or error}: {error.filename}.",))

_host = f"[{settings.host}]" if ":" in settings.host else settings.host
_memory = Path("/dev/shm")  # noqa: S108 - gunicorn's heartbeat file must not wait for a disk

proc_name = "penstock"
bind = f"{_host}:{settings.port}"
worker_class = "gevent"
workers = settings.web_concurrency
worker_connections = settings.worker_connections
if any("gthread" in text for text in (environment().get("GUNICORN_CMD_ARGS", ""), *sys.argv)):
    threads = settings.threads  # more than one would turn a sync worker into a gthread one
keepalive = 100  # s; longer than a PaaS router keeps its idle connections (Heroku 90 s)
graceful_timeout = math.ceil(settings.drain_timeout_s) + 3  # s; the streams' terminal events still go out
timeout = 60  # s of a silent worker, not of a long request
max_requests = 0  # recycling would cut live streams
preload_app = False
control_socket_disable = True
accesslog = None  # one line per exchange is written by the gateway itself
loglevel = settings.log_level
limit_request_line = 8190  # bytes; the most gunicorn can bound
limit_request_fields = 200
limit_request_field_size = 32_768  # bytes
if _memory.is_dir() and os.access(_memory, os.W_OK):
    worker_tmp_dir = str(_memory)


def on_starting(server: Any) -> None:
    """Refuse what the command line made wrong, share a board, let sync workers take as long as they need."""
    for address in server.cfg.address:
        if isinstance(address, tuple) and open_to_strangers(settings, address[0]):
            _stop((f"bind={address[0]}:{address[1]}: {STRANGERS}",))
    _stop_without_places(server.cfg.workers)
    metrics_dir.adopt(live_environment(), _metrics_made)
    board_file.share(live_environment())  # not earlier: --daemon has given the arbiter its pid by now
    if settings.enable_performance_monitor:
        size_bytes = node_cells.node_bytes(server.cfg.workers)
        board_file.share(live_environment(), node_cells.VARIABLE, size_bytes)
    if settings.gateway_api_keys:
        size_bytes = counters.counters_bytes(len(settings.gateway_api_keys))
        board_file.share(live_environment(), counters.VARIABLE, size_bytes)
    if settings.gateway_admin_key is not None and asking_dir.share(live_environment()) is None:
        server.log.warning("%s: none can be made; workers cannot ask each other", asking_dir.VARIABLE)
    if server.cfg.worker_class_str == "sync" and server.timeout == timeout:
        server.timeout = 0  # a sync worker is silent for as long as its request takes


def _stop_without_places(count: int) -> None:
    """A provider's concurrency is divided among the workers, and each needs a place of it."""
    places = [("ANTHROPIC_CONCURRENCY", settings.anthropic_concurrency)]
    places += [(f"concurrency of provider {one.name}", one.concurrency) for one in settings.providers]
    faults = tuple(
        f"workers={count}: at most {most} are possible with {name}={most}, which is divided among them."
        for name, most in places
        if count > most
    )
    if faults:
        _stop(faults)


def post_fork(server: Any, worker: Any) -> None:
    """SIGTERM ends a worker that has no handlers of its own yet; in the arbiter's, inherited, it would be lost."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    metrics_dir.check(live_environment(), _metrics_made)  # before the application makes its metrics there


def post_worker_init(worker: Any) -> None:
    """Start the bridge: gevent has patched, the application is loaded, no request has come yet."""
    from app.factory import start_worker

    start_worker(worker)


def child_exit(server: Any, worker: Any) -> None:
    """A worker is gone, however it went: its gauges go with it, its counters stay; its place is taken again."""
    try:
        metrics_dir.forget(_metrics, worker.pid)
        if len(server.WORKERS) < server.num_workers:
            metrics_dir.add_restart(_metrics)
    except OSError as error:  # whoever took the directory away must not end the arbiter, too
        server.log.error("%s: %s; the metrics are wrong until a restart", metrics_dir.VARIABLE, error)


def worker_int(worker: Any) -> None:
    """SIGINT or SIGQUIT: stop at once."""
    _stop_worker(worker)


def worker_exit(server: Any, worker: Any) -> None:
    """The worker is about to exit."""
    _stop_worker(worker)


def _stop_worker(worker: Any) -> None:
    factory = sys.modules.get("app.factory")  # None: the worker never got as far as the application
    if factory is not None:
        factory.stop_worker(worker)


def pre_request(worker: Any, req: Any) -> None:
    """A request was parsed: keep its raw head within reach of the application."""
    from app.factory import before_request

    before_request(worker, req)


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """A request is over."""
    from app.factory import after_request

    after_request(worker, req)
