"""The storm: four keys, three of them in trouble, with the gateway and without it, side by side.

    for each round:   direct    a client that takes the keys in turn and tries once
                      sdk       the same, trying again as the official SDKs do, with the key it has
                      gateway   one gateway key, tried once; a fresh gunicorn with one gevent worker

Every variant sends the same requests, ``concurrency`` at once, over HTTP/1.1; the controls over TLS to the
simulator. The script starts with the first request. A fresh gateway has to learn again what ails each key.

Runs on: bench loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

from app.bench import servers
from app.bench.client import Answer, Client
from app.bench.load import HEADERS, PATH, body, closed, on_a_loop
from app.bench.report import Report, Row, Variant
from app.bench.storm_figures import (
    DENIED,
    HEALTHY,
    KEYS,
    LIMITED,
    OVERLOADED,
    Sample,
    Script,
    details,
    faults,
    figures,
    sdk_wait_s,
)
from app.bench.verdict import Aim, judge
from app.simulator.running import Running

_GATEWAY_KEY = "storm-caller"
_SETTLE_S = 30.0
AIMS = (
    Aim("gateway", "success_pct", ">=", 99.9),
    Aim("gateway", "attempts_per_request", "<=", 1.15),
    Aim("gateway", "attempts_while_cooling", "<=", 0, "worst"),
    Aim("gateway", "attempts_after_denial", "<=", 0, "worst"),
)
_ROWS = (
    Row("success_pct", "success seen by the client", "%", 1),
    Row("attempts_per_request", "upstream attempts per request", "", 3),
    Row("p50_ms", "latency of successes, p50", "ms"),
    Row("p95_ms", "latency of successes, p95", "ms"),
    Row("attempts_while_cooling", "attempts to a key known to be cooling"),
    Row("attempts_after_denial", "attempts to the 401 key once known"),
    Row("met_529", "529s met"),
    Row("duration_s", "length of the run", "s", 1),
)
Say = Callable[[str], None]


def run(script: Script, rounds: int, say: Say) -> Report:
    """All rounds of all variants.

    Raises:
        BenchError: A server did not come up.
    """
    variants = [Variant("direct", "no gateway"), Variant("sdk", "SDK retries"), Variant("gateway", "gateway")]
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, servers.simulator() as simulator:
        for number in range(1, rounds + 1):
            for variant in variants:
                say(f"round {number}/{rounds}: {variant.words}")
                lacks = _round(variant, simulator, script, Path(folder))
                found += [f"round {number}, {variant.name}: {text}" for text in lacks]
    begin_s, end_s = script.outage
    title = (
        f"storm: {script.requests:,} requests, {script.concurrency} at once, answers take about "
        f"{script.answer_ms} ms; keys: {LIMITED} (retry-after {script.retry_after_s} s), "
        f"{OVERLOADED} ({begin_s:.1f} to {end_s:.1f} s), {DENIED}, {HEALTHY}; median of {rounds} round(s)"
    )
    return Report(
        "storm",
        title,
        {**asdict(script), "rounds": rounds},
        _ROWS,
        variants,
        judge(AIMS, {variant.name: variant.rounds for variant in variants}),
        found,
    )


def _round(variant: Variant, simulator: Running, script: Script, folder: Path) -> list[str]:
    """One round of one variant; what is missing in it."""
    with contextlib.ExitStack() as stack:
        url = simulator.tls_url
        if variant.name == "gateway":
            keys = ",".join(KEYS)
            settings = {"ANTHROPIC_API_KEYS": keys, "GATEWAY_API_KEYS": _GATEWAY_KEY}
            url = stack.enter_context(servers.gateway(simulator, folder, settings)).url
        samples, duration_s = on_a_loop(_storm(variant.name, url, simulator, script))
        record = simulator.keys()
    variant.rounds.append({**figures(samples, record, script), "duration_s": round(duration_s, 3)})
    variant.details.append(details(samples, record))
    return faults(samples, record, script, direct=variant.name != "gateway")


async def _storm(variant: str, url: str, simulator: Running, script: Script) -> tuple[list[Sample], float]:
    """The samples of one round, and how long it took."""
    async with Client(url, simulator.ca_path, _SETTLE_S + script.answer_ms / 1000) as client:
        with servers.named(variant, url):
            await client.open(min(script.concurrency, script.requests))
        simulator.set_keys(script.programs())
        began_s = time.monotonic()
        send = _sender(variant, client, script)
        samples = await closed(script.requests, script.concurrency, send)
        return samples, time.monotonic() - began_s


def _sender(variant: str, client: Client, script: Script) -> Callable[[int], Awaitable[Sample]]:
    """What sends request ``index`` in that variant."""
    rnd = random.Random(1).random  # noqa: S311 - jitter, the same in every run

    async def ask(index: int, key: str) -> Answer:
        headers = {**HEADERS, "x-api-key": key}
        return await client.request("POST", PATH, headers, body(script.model(index), f"storm, request {index}"))

    async def once(index: int, key: str) -> Sample:
        answer = await ask(index, key)
        return Sample(answer.status, answer.latency_s)

    async def as_an_sdk(index: int) -> Sample:
        began_s, made = time.monotonic(), 0
        while True:
            answer = await ask(index, KEYS[index % len(KEYS)])
            made += 1
            wait_s = sdk_wait_s(answer.status, answer.headers.get("retry-after", ""), made, rnd())
            if wait_s is None:
                return Sample(answer.status, time.monotonic() - began_s, made)
            await asyncio.sleep(wait_s)

    if variant == "sdk":
        return as_an_sdk
    if variant == "gateway":
        return lambda index: once(index, _GATEWAY_KEY)
    return lambda index: once(index, KEYS[index % len(KEYS)])
