from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from app.bench.figures import Figures
from app.bench.latency import Target
from app.bench.peers import Bench, Column, report
from app.bench.peers_cli import command
from app.bench.peers_figures import Plan
from app.bench.peers_scripts import PEERS, Found
from app.bench.report import Variant
from app.simulator.running import Running

NOWHERE = Running("http://127.0.0.1:1", "https://localhost:1", "ca.pem", 1)
GOOD: Figures = {"error_pct": 0.0, "stream_error_pct": 0.0, "rps": 10.0}


def bench(rounds: dict[str, list[Figures]], faults: dict[str, str] | None = None) -> Bench:
    """A bench that has measured these rounds."""
    columns = {
        name: Column(Target(name, name, ""), Variant(name, name, found), fault=(faults or {}).get(name, ""))
        for name, found in rounds.items()
    }
    return Bench(Plan(rounds=1), NOWHERE, columns, lambda text: None)


def ours() -> dict[str, list[Figures]]:
    return {"direct": [{**GOOD}], "floor": [{"error_pct": 0.0}], "gateway": [{**GOOD}]}


def test_all_is_well() -> None:
    found = report(Plan(), bench({**ours(), "nginx": [{**GOOD}]}), {"nginx": Found("nginx 1")}, asked=True)
    assert (list(found.faults), list(found.notes)) == ([], ["nginx: nginx 1"])
    assert found.settings["peers"] == {"nginx": {"version": "nginx 1", "faults": []}}


@pytest.mark.parametrize(("asked", "wanted"), [(True, ["flask: it is ill"]), (False, [])])
def test_a_peer_that_cannot_be_measured_is_the_runs_fault_if_it_was_asked_for(
    asked: bool, wanted: list[str]
) -> None:
    run = bench({**ours(), "nginx": [{**GOOD}], "flask": []}, {"flask": "it is ill"})
    found = report(Plan(), run, {"nginx": Found("nginx 1"), "flask": Found(fault="it is ill")}, asked=asked)
    assert list(found.faults) == wanted
    assert "fault of flask: it is ill" in found.notes
    assert found.settings["peers"]["flask"] == {"version": "", "faults": ["it is ill"]}
    assert [one.name for one in found.variants if not one.rounds] == ["flask"]


def test_a_peer_that_fails_requests_is_named_with_its_round() -> None:
    run = bench({**ours(), "nginx": [{**GOOD}, {**GOOD, "error_pct": 7.0, "rps": None}]})
    found = report(Plan(), run, {"nginx": Found("nginx 1")}, asked=False)
    assert found.settings["peers"]["nginx"]["faults"] == ["round 2: 7 % of the requests failed"]
    assert list(found.faults) == []


def test_no_peer_at_all_is_the_runs_fault() -> None:
    found = report(Plan(), bench({**ours(), "nginx": []}, {"nginx": "gone"}), {"nginx": Found()}, asked=False)
    assert list(found.faults) == ["no peer could be measured"]


def test_faults_of_controls_and_of_ours_are_the_runs() -> None:
    rounds = {**ours(), "gateway": [{**GOOD, "stream_error_pct": 5.0}], "nginx": [{**GOOD}]}
    found = report(Plan(), bench(rounds), {"nginx": Found("nginx 1")}, asked=False)
    assert list(found.faults) == ["gateway: round 1: 5 % of the streams failed"]


def test_servers_that_were_busy_are_noted() -> None:
    run = bench({**ours(), "nginx": [{**GOOD}]})
    run.restless.append("round 1, nginx")
    found = report(Plan(), run, {"nginx": Found("nginx 1")}, asked=False)
    assert "the servers were still busy when it began: round 1, nginx" in found.notes


@pytest.mark.parametrize("only", ["nginx,", " flask , nginx,flask", ",".join(PEERS)])
def test_peers_are_asked_for_by_name(only: str) -> None:
    option = next(param for param in command.params if param.name == "only")
    assert isinstance(option, click.Option)
    found = option.type.convert(only, option, None)
    assert set(found) == {name.strip() for name in only.split(",") if name.strip()}
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("only", "words"), [("nginx,caddy", "caddy: there is nginx,"), (",", "nothing: there is")]
)
def test_who_is_no_peer_is_refused(only: str, words: str) -> None:
    result = CliRunner().invoke(command, ["--only", only])
    assert result.exit_code == 2
    assert words in result.output
