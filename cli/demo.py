"""`recorder demo`: simulator and service in one process record one room.

Rule: everything is written under one folder, and only a folder of an earlier demo is emptied.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cli import exits

MARKER = ".recorder-demo"
NEXT = 'Next: "Record a room" in README.md, with a simulator and a service of your own; docs/go-live.md leads to a TRTC account.'


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for all files; emptied first.")] = Path("var/demo"),
    seconds: Annotated[float, typer.Option(help="Seconds that the room is live.", min=3, max=3600)] = 10.0,
) -> None:
    """Record a simulated room with two speakers.

    Prints progress and the result. Needs no account and no network.
    """
    from assembly import logs

    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise typer.BadParameter(f"{folder} holds files that no demo wrote; name another folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    with (folder / "service.log").open("w", encoding="utf-8") as log_file:
        logs.configure(level="info", form="json", stream=log_file)
        code = asyncio.run(run_demo(folder, seconds, os.environ))
    raise typer.Exit(code)


async def run_demo(folder: Path, live_s: float, environment: Mapping[str, str]) -> int:
    """Record one room that is live for `live_s`. Returns 0 if the result is as expected, else 1."""
    from rich import console, markup

    from assembly import node
    from config import settings
    from simulator import demo as script
    from simulator import server

    on_terminal = sys.stdout.isatty()
    screen = console.Console(highlight=False, force_terminal=on_terminal, soft_wrap=not on_terminal)
    screen.print(
        f"A simulator of Tencent and a recorder start on this machine; they write only under {markup.escape(str(folder))}."
    )
    simulator = server.Simulator(folder=folder / "tencent", accounts=[script.ACCOUNT], buckets=[script.BUCKET])
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(simulator.stop)
        await simulator.start()
        own = {"PORT": "0", "DATA_DIR": str(folder / "data"), "SPOOL_DIR": str(folder / "spool"), "MIN_FREE": "100MiB"}
        inherited = {name: environment[name] for name in ("HOME", "PATH", "FFMPEG_BINARY") if name in environment}
        service = node.Node(settings.load(inherited | own | script.settings(simulator)), inherited)
        stack.push_async_callback(service.stop)
        await service.start()
        run = script.Demo(
            simulator=simulator,
            service_url=service.url,
            live_s=live_s,
            progress=lambda: {str(recording): media_ms for recording, media_ms in service.progress().items()},
            screen=screen,
        )
        try:
            await run.run()
        except script.WrongResult as error:
            told = markup.escape(f"{error} The log is {folder / 'service.log'}.")
            screen.print(f"[bold red]The demo failed:[/] {told}", soft_wrap=True)
            return exits.REFUSED
    screen.print("\n[bold green]Two speakers live, two files in the bucket, one result delivered.[/]")
    screen.print(NEXT, soft_wrap=True)
    return exits.OK
