"""Make deploy/grafana-dashboard.json, whose panels are the rows of the table in panels.py.

    python deploy/dashboard > deploy/grafana-dashboard.json

Grafana wants some forty lines of JSON for each panel, of which four differ. Those stand in the table; what is
imported into Grafana (10 or newer) is the JSON. tests/e2e/test_dashboard.py asks a real Prometheus every query.

Runs on: start-up.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from panels import ROWS, Panel

SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24

COLOURS: Final = {
    "/^2|^healthy$|closed$/": "green",
    "/^4/": "orange",
    "/^5|benched$| open$|failed$/": "red",
}


def _defaults(panel: Panel) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel.unit, "min": 0, "noValue": "–"}
    if panel.most is not None:
        found["max"] = panel.most
    if panel.kind == "stat":
        colours = ("green", "orange", "red")
        steps = [
            {"color": colour, "value": value}
            for colour, value in zip(colours, (None, *panel.limits), strict=False)
        ]
        found |= {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        found["color"] = {"mode": "palette-classic"}
        found["custom"] = {
            "drawStyle": "line",
            "lineInterpolation": "stepAfter" if panel.unit == "short" else "linear",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return found


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
            "textMode": "auto",
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
            "yAxis": {"unit": "s"},
            "tooltip": {"show": True, "yHistogram": True},
            "legend": {"show": True},
        }
    return {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": ["lastNotNull", "max"],
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _target(place: int, legend: str, expr: str, panel: Panel) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + place),
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend or panel.title,
        "range": True,
        "format": "heatmap" if panel.kind == "heatmap" else "time_series",
    }


def _panel(number: int, panel: Panel, x: int, y: int, height: int) -> dict[str, Any]:
    overrides = [
        {
            "matcher": {"id": "byRegexp", "options": pattern},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for pattern, colour in COLOURS.items()
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
        "fieldConfig": {
            "defaults": _defaults(panel),
            "overrides": overrides if panel.stacked or "result" in str(panel.queries) else [],
        },
        "options": _options(panel),
        "targets": [_target(place, *line, panel) for place, line in enumerate(panel.queries.items())],
    }


def _panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": place,
                "panels": [],
            }
        )
        y, x, height = y + 1, 0, 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            height = 4 if panels[0].kind == "stat" else 8
            found.append(_panel(len(found) + 1, panel, x, y, height))
            x += panel.width
        y += height
    return found


def _variable(name: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "options": [],
    }


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana imports it."""
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "options": [],
        "refresh": 1,
    }
    return {
        "uid": "penstock",
        "title": "Penstock",
        "description": "Traffic, latency, queue, keys, connections, tokens and cost, workers, alerts.",
        "tags": ["penstock", "llm"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                source,
                _variable("instance", "penstock_workers"),
                _variable("route", "penstock_requests_total"),
                _variable("model", "penstock_requests_total"),
                _variable("provider", "penstock_slots_capacity"),
            ]
        },
        "panels": _panels(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n")
