"""A process with a bus of either kind that one message kills with SIGKILL: `python -m tests.deadly_node PLAN`.

PLAN is a JSON object: {"Engine", "Url", "Path", "Prefix", "Amqp", "Name", "Folder", "Tries", "Alone"}. Every other message that
is handled leaves a file in the folder, named by its id.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bus import attempts, local
from events import codec
from tests import buses, engines

DEADLY = "deadly"


async def live(plan: dict[str, Any]) -> None:
    """Take messages until one of them is the last."""
    attempts.MAX_ATTEMPTS, attempts.ISOLATE_FROM = plan["Tries"], plan["Alone"]
    database = engines.Database(engine=plan["Engine"], url=plan["Url"], path=Path(plan["Path"]))
    store = database.open(lambda: time.time_ns() // 1_000_000)

    async def handler(event: codec.Event) -> None:
        if event.id == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(plan["Folder"]) / event.id).touch()

    bus: buses.Bus
    if plan["Prefix"]:
        bus = buses.node(
            store, time.time_ns, plan["Prefix"], on_event=handler, on_command=handler, name=plan["Name"], url=plan["Amqp"]
        )
    else:
        bus = local.LocalBus(store, clock=time.time_ns, on_event=handler, on_command=handler)
    await bus.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
