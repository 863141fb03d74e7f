"""What those who watch the daemon ask: GET /ready and GET /metrics."""

from __future__ import annotations

from importlib import import_module

import trio

from daemon.http.answers import Answer, json
from daemon.http.calls import Call
from events.limits import MS


async def ready(call: Call) -> Answer:
    """GET /ready: whether requests are served as promised; 503 with the reasons where they are not."""
    reasons = call.local.desk.unready()
    if not reasons:
        return json({"ready": True})
    rows = []
    for each in reasons:
        row = {"reason": each.reason, "message": each.message, "age_s": each.age_ns // MS / 1000}
        if each.request:
            row |= {"request": each.request, "model": each.model}
        rows.append(row)
    return json({"ready": False, "reasons": rows}, 503)


async def metrics(call: Call) -> Answer:
    """GET /metrics, in Prometheus's text format, or OpenMetrics where that is asked for."""
    await trio.to_thread.run_sync(import_module, "daemon.families")  # 0.1 s, once
    from daemon import families

    body, content_type = await families.render(call.local.desk.figures(), call.header("Accept"))
    return Answer(200, body, content_type)
