"""What stands in deploy/ fits together and fits the code: rules, scrape configuration, dashboard, compose file.

tests/e2e/test_dashboard.py and test_nginx.py put the dashboard, the rules and nginx's sample to work.

Runs on: the test's thread.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import load
from tests.e2e.prometheus import promtool

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))


def _yaml(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_the_rules_and_the_scrape_configuration_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "rules", "prometheus-rules.yml")
    assert "SUCCESS: prometheus.yml is valid" in promtool("check", "config", "prometheus.yml")


def test_the_rules_do_what_their_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", "prometheus-rules.test.yml")


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_prometheus_skips_here_and_fails_the_gate(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install prometheus"):
        promtool("--version")


def test_every_alert_is_seen_firing_and_not_firing() -> None:
    rules = [rule for group in _yaml("prometheus-rules.yml")["groups"] for rule in group["rules"]]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    assert len(alerts) > 10
    cases = [
        case for test in _yaml("prometheus-rules.test.yml")["tests"] for case in test.get("alert_rule_test", ())
    ]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def test_the_dashboard_is_what_its_table_makes() -> None:
    made = subprocess.run(
        [sys.executable, "deploy/dashboard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(made.stdout) == DASHBOARD, "run python deploy/dashboard > deploy/grafana-dashboard.json"


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    assert DASHBOARD["schemaVersion"] >= 36  # Grafana 10 migrates what is older
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert sorted(set(ids)) == ids
    source = DASHBOARD["templating"]["list"][0]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {f"${{{source['name']}}}"}
    assert {target["datasource"]["uid"] for panel in panels for target in panel["targets"]} == {"${datasource}"}
    named = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for panel in panels:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= named | {"__rate_interval", "__range"}, target["expr"]


def test_no_panel_covers_another() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in DASHBOARD["panels"]]
    for (title, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{title} and {other}"
    assert all(place["x"] + place["w"] <= 24 for _, place in places)


def test_the_compose_file_starts_what_is_here() -> None:
    compose = _yaml("compose.yml")
    services = compose["services"]
    assert set(services) == {"gateway", "redis", "prometheus", "grafana"}
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "for this host only"
    assert (DEPLOY / services["gateway"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / services["gateway"]["build"]["dockerfile"]).exists()
    (target,) = _yaml("prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == "gateway:8000"
    inside = {name: yaml.safe_load(one["content"]) for name, one in compose["configs"].items()}
    assert inside["datasource"]["datasources"][0]["url"] == "http://prometheus:9090"
    assert {one["source"] for one in services["grafana"]["configs"]} == set(inside)
    folder = inside["dashboards"]["providers"][0]["options"]["path"]
    assert f"./grafana-dashboard.json:{folder}/penstock.json:ro" in services["grafana"]["volumes"]


def test_the_compose_files_gateway_would_start() -> None:
    gateway = _yaml("compose.yml")["services"]["gateway"]
    given = {"ANTHROPIC_API_KEYS": "sk-ant-one,sk-ant-two", "GATEWAY_API_KEYS": "hush-hush-hush-hush"}
    environ = {
        name: given.get(name, "") if str(value).startswith("${") else value
        for name, value in gateway["environment"].items()
    }
    settings = load(environ | {"HOST": "0.0.0.0"})
    assert len(settings.anthropic_api_keys) == 2
    assert settings.drain_timeout_s + 3 < int(gateway["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("line", re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
def test_the_image_is_made_of_what_is_here(line: str) -> None:
    for name in line.split():
        assert (ROOT / name).exists(), name
