"""Options go to the command line and back; timers run once and in order."""

from __future__ import annotations

import asyncio

import pytest

from app.simulator.options import Options, from_argv, to_argv
from app.simulator.ticker import Ticker


def test_defaults_need_no_flags() -> None:
    assert to_argv(Options()) == []
    assert from_argv([]) == Options()


def test_every_option_is_a_flag() -> None:
    options = Options(
        host="::1",
        plain_port=1,
        tls_port=2,
        ca_dir="d",
        alpn=("http/1.1",),
        max_concurrent_streams=3,
        initial_window_size=4,
        idle_close_s=0.5,
        tls_delay_ms=6,
        replay="r",
    )
    assert from_argv(to_argv(options)) == options


def test_a_wrong_flag_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        from_argv(["--plain-port=x"])
    assert caught.value.code == 2
    assert "plain-port" in capsys.readouterr().err


def test_timers() -> None:
    ran: list[str] = []
    caught: list[object] = []

    def fail() -> None:
        raise ValueError("on purpose")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: caught.append(context.get("exception")))
        ticker = Ticker(loop)
        when = ticker.now() + 0.002
        ticker.at(when, fail)
        ticker.at(when, lambda: ran.append("same slot"))
        ticker.at(when, lambda: ran.append("cancelled")).cancel()
        ticker.after(0, lambda: ran.append("soon"))
        ticker.after(0, lambda: ran.append("never")).cancel()
        ticker.after(60, lambda: ran.append("late"))
        await asyncio.sleep(0.01)
        ticker.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert ran == ["soon", "same slot"]
    assert [type(fault) for fault in caught] == [ValueError]
