"""The gateway with two routes that break its background loop: stop it, or keep it busy for good."""

from __future__ import annotations

from app.bridge.call import Bridge
from app.bridge.wait import original
from app.factory import create_app

app = create_app()


def _bridge() -> Bridge:
    found: Bridge = app.extensions["penstock"].bridge()
    return found


@app.post("/break/stop")
def stop() -> str:
    """The loop ends, as if something had torn its thread down."""
    _bridge().main.stop()
    return "stopped"


@app.post("/break/wedge")
def wedge() -> str:
    """The loop's thread hangs in a call that never returns (in time)."""
    _bridge().main.post(original("time", "sleep"), 60)
    return "wedged"
