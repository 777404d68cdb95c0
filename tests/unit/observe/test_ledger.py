"""observe/ledger and its command: log lines added up, exactly, by any columns; bad lines are told and harmless.

Pure, but for the files that the command reads.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli import main
from app.observe.ledger import COLUMNS, FIGURES, Ledger, as_json, table, usd

USED = {
    "input_tokens": 10,
    "output_tokens": 20,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 7,
    "cache_creation.ephemeral_5m_input_tokens": 60,
    "cache_creation.ephemeral_1h_input_tokens": 40,
    "output_tokens_details.thinking_tokens": 15,
    "server_tool_use.web_search_requests": 2,
    "server_tool_use.web_fetch_requests": 1,
}


def line(**more: Any) -> bytes:
    whole = {
        "event": "exchange",
        "time": "2026-11-21T09:30:00.123456Z",
        "caller": "web",
        "credential": "blue",
        "model": "claude-opus-5-5",
        "provider": "anthropic",
        "route": "messages",
        "tokens": USED,
        "usage_complete": True,
        "cost_micro_usd": 1234,
    }
    return json.dumps(whole | more).encode() + b"\n"


def read(*lines: bytes, by: tuple[str, ...] = ("day", "caller", "credential", "model")) -> Ledger:
    ledger = Ledger(by)
    ledger.read(lines)
    return ledger


def test_a_lines_figures_are_split_by_kind() -> None:
    ledger = read(line())
    (row,) = ledger.rows.values()
    assert [getattr(row, name) for name in FIGURES] == [1, 10, 20, 60, 40, 7, 3, 0, 0, 1234]
    assert list(ledger.rows) == [("2026-11-21", "web", "blue", "claude-opus-5-5")]


def test_what_was_left_or_has_no_price_or_used_nothing_is_told_apart() -> None:
    ledger = read(
        line(usage_complete=False),
        line(cost_micro_usd=None),
        line(tokens={}, usage_complete=False, cost_micro_usd=None),
        line(tokens=None, usage_complete=False, cost_micro_usd=None),
        by=("day",),
    )
    (row,) = ledger.rows.values()
    assert (row.exchanges, row.partial, row.unpriced, row.cost_micro_usd, row.input) == (4, 1, 1, 1234, 20)


def test_a_write_without_a_lifetime_is_one_of_five_minutes() -> None:
    (row,) = read(line(tokens={"cache_creation_input_tokens": 9})).rows.values()
    assert (row.cache_write_5m, row.cache_write_1h) == (9, 0)


@pytest.mark.parametrize("by", [("model",), ("caller", "day"), ("route", "provider"), COLUMNS])
def test_rows_are_made_by_the_columns_that_are_asked_for(by: tuple[str, ...]) -> None:
    random_ = random.Random(4)  # noqa: S311 - repeatable
    lines, counts, costs = [], Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for _ in range(500):
        named = {name: random_.choice(["a", "b", ""]) for name in COLUMNS if name != "day"}
        day = random_.choice(["2026-11-20", "2026-11-21"])
        cost = random_.randrange(10**15)
        key = tuple((named | {"day": day})[name] for name in by)
        counts[key] += 1
        costs[key] += cost
        lines.append(line(time=f"{day}T23:59:59.9Z", cost_micro_usd=cost, **named))
    ledger = read(*lines, by=by)
    assert {key: row.exchanges for key, row in ledger.rows.items()} == counts
    assert {key: row.cost_micro_usd for key, row in ledger.rows.items()} == costs
    assert ledger.total().cost_micro_usd == sum(costs.values())
    assert ledger.total().exchanges == 500


@pytest.mark.parametrize("before", [b"", b"web-1  | ", b"2026-11-21T09:30:00+00:00 app[web.1]: ", b"  "])
def test_what_a_platform_puts_before_a_line_is_passed_over(before: bytes) -> None:
    assert read(before + line()).total().exchanges == 1


def test_other_events_and_empty_lines_are_none_of_its_business() -> None:
    ledger = read(b'{"event": "connection_opened"}\n', b"\n", b"  \n", b"{}\n", line())
    assert (ledger.total().exchanges, ledger.bad) == (1, 0)


@pytest.mark.parametrize(
    "bad",
    [
        b"[2026-11-21 09:30:00 +0000] [7] [INFO] Booting worker\n",
        b'{"event": "exchange", "time": "2026-11-21T0\n',
        b"\xff\xfe\n",
        b"[1]\n",
        line(time=None),
        line(time="yesterday"),
        line(caller=None),
        line(model=["x"]),
        line(tokens=[1]),
        line(tokens={"input_tokens": -1}),
        line(tokens={"input_tokens": 1.5}),
        line(tokens={"input_tokens": True}),
        line(cost_micro_usd=-1),
        line(cost_micro_usd=1.5),
        line(cost_micro_usd="1"),
    ],
)
def test_a_bad_line_is_counted_and_harmless(bad: bytes) -> None:
    ledger = read(line(), bad, line())
    assert (ledger.total().exchanges, ledger.total().cost_micro_usd, ledger.bad) == (2, 2468, 1)


@pytest.mark.parametrize(
    ("micro_usd", "text"),
    [
        (0, "0.000000"),
        (1, "0.000001"),
        (999_999, "0.999999"),
        (1_000_000, "1.000000"),
        (10**21 + 5, f"{10**15}.000005"),
    ],
)
def test_micro_usd_are_written_exactly(micro_usd: int, text: str) -> None:
    assert usd(micro_usd) == text


def test_the_table_lines_up_and_cannot_be_written_through() -> None:
    ledger = read(line(model="\x1b[31mred"), line(caller="", cost_micro_usd=10_000_000))
    lines = table(ledger)
    assert all("\x1b" not in one for one in lines)
    assert lines[0].split()[:5] == ["day", "caller", "credential", "model", "exchanges"]
    assert lines[2].split()[:4] == ["2026-11-21", "-", "blue", "claude-opus-5-5"]
    assert lines[3].split()[3] == "?[31mred"
    assert lines[-1].split() == ["total", "2", "20", "40", "120", "80", "14", "6", "0", "0", "10.001234"]
    assert len({len(one) for one in lines}) == 1


def test_as_json_it_says_the_same() -> None:
    found = as_json(read(line(), b"nonsense", by=("model",)))
    assert found["by"] == ["model"] and found["bad_lines"] == 1
    figures = dict(zip(FIGURES, [1, 10, 20, 60, 40, 7, 3, 0, 0, 1234], strict=True)) | {"cost_usd": "0.001234"}
    assert found["rows"] == [{"model": "claude-opus-5-5"} | figures]
    assert found["total"] == figures


def test_the_command_reads_files_packed_ones_and_standard_input(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.json", tmp_path / "b.json.gz"
    plain.write_bytes(line())
    packed.write_bytes(gzip.compress(line() + b"nonsense\n"))
    runner = CliRunner()
    by_file = runner.invoke(
        main, ["ledger", "--log", str(plain), "--log", str(packed), "--by", "day, model", "--json"]
    )
    assert by_file.exit_code == 0
    assert json.loads(by_file.stdout)["total"]["cost_usd"] == "0.002468"
    assert by_file.stderr == "Passed over, being no log lines of Penstock: 1.\n"
    piped = runner.invoke(main, ["ledger"], input=line() * 3)
    assert piped.exit_code == 0 and piped.stderr == ""
    assert piped.stdout.splitlines()[-1].split()[-1] == "0.003702"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--by", "days"], "days: unknown; allowed are day, caller, credential, model, provider, route"),
        (["--by", ""], "allowed are day, caller"),
        (["--by", "day,day"], "each once"),
        (["--log", "/nowhere/at/all"], "does not exist"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["ledger", *arguments], input="")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
