"""The gateway, looking for alerts five times a second, trying the webhook again soon; callbacks write a line."""

from __future__ import annotations

import sys

from app.factory import create_app
from app.observe import monitor, webhook
from app.observe.alerts import Alert

monitor.EVALUATE_S = 0.2
webhook.WAITS_S = (0.1, 0.2, 0.4)


def shout(alert: Alert) -> None:
    """What an application might do."""
    sys.stdout.write(f"callback: {alert.state} {alert.rule}\n")
    sys.stdout.flush()


def stumble(alert: Alert) -> None:
    """What an application should not do."""
    raise RuntimeError(f"no {alert.rule} today")


monitor.get_performance_monitor().on_alert(stumble)
monitor.get_performance_monitor().on_alert(shout)
app = create_app()
