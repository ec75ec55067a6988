"""Command handlers: the one table from command type to handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from events import codec
from worker import worker

COMMAND_HANDLERS: dict[str, Callable[[worker.Worker, codec.Event], Awaitable[None]]] = {
    "start-capture": worker.Worker.start_capture,
    "stop-capture": worker.Worker.stop_capture,
    "start-transcode": worker.Worker.start_transcode,
    "start-upload": worker.Worker.start_upload,
    "send-callback": worker.Worker.send_callback,
}


async def handle(node: worker.Worker, command: codec.Event) -> None:
    """Hand a command to its handler. Returns once the job's lease is taken or refused; the job goes on under its lease."""
    await COMMAND_HANDLERS[command.type](node, command)
