"""The command line `recorder` and the process around a node: signals, exit codes. Imports everything; nobody imports it.

Rules: whatever ends unexpectedly ends the process (its supervisor starts it anew, and it goes on where it was). A command imports
what it is made of when it is run: to load a whole node takes a second, and most commands only ask one over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import os
import resource
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli import api_keys as key_commands
from cli import client, keys, parked
from cli import doctor_checks as doctor
from cli import sessions as ops_cli
from config import logs
from config import settings as ops_settings
from machine import errors, failpoints

if TYPE_CHECKING:
    from assembly import api_keys, dead_letters

DEMO_MARK = ".recorder-demo"


async def run_until_signal(parts: Sequence[Any], runs: Sequence[Callable[[], Any]] = ()) -> None:
    """Start parts, wait for SIGTERM or SIGINT (or for one of `runs` to end), stop them in the opposite order."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    async with contextlib.AsyncExitStack() as stack:
        for part in parts:
            stack.push_async_callback(part.stop)
            await part.start()
        tasks = [asyncio.create_task(run()) for run in runs]
        waiting = asyncio.create_task(asked.wait())
        done, pending = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()


def watch_children() -> None:
    """Wait for ffmpegs by descriptor instead of by a thread for each, as Python does by itself from 3.12 on."""
    if sys.version_info < (3, 12) and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # forbidden here: a thread for each then
            os.close(os.pidfd_open(os.getpid()))
            asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


def run_service(environment: Mapping[str, str]) -> int:
    """Run the service until it is told to stop. Returns the exit code: 0 stopped, 1 failed, 2 wrong settings."""
    # What is loaded now stays to the end: to look through it for garbage again and again costs a fifth of the start.
    gc.disable()
    from assembly import node

    gc.freeze()
    gc.enable()
    try:
        settings = ops_settings.load(environment)
    except ops_settings.SettingsError as error:
        sys.stderr.write(f"recorder: {error}\n")
        return 2
    logs.configure(level=settings.log_level, form=settings.log_format)
    # Nobody's keys in a core dump: not ours, and not those of the children.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    service = node.Service(settings, environment)
    watch_children()
    try:
        asyncio.run(run_until_signal([service], [service.run]))
    except errors.RecorderError as error:
        sys.stderr.write(f"recorder: {error.message}\n")
        return 1
    return 0


async def run_demo(folder: Path, live_s: float, environment: Mapping[str, str]) -> int:
    """Simulator and service in one process, one recorded room. Returns the exit code: 0 all as it should be, 1 not."""
    from rich import console

    from assembly import node
    from simulator import demo, server

    screen = console.Console(highlight=False)
    screen.print(f"A stand-in for Tencent and a recorder start on this machine; everything they write is under {folder}.")
    simulator = server.Simulator(folder=folder / "tencent", accounts=[demo.ACCOUNT], buckets=[demo.BUCKET])
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(simulator.stop)
        await simulator.start()
        own = {"PORT": "0", "DATA_DIR": str(folder / "data"), "SPOOL_DIR": str(folder / "spool"), "MIN_FREE": "100MiB"}
        kept = {name: environment[name] for name in ("HOME", "PATH", "FFMPEG_BINARY") if name in environment}
        service = node.Service(ops_settings.load(kept | own | demo.settings(simulator)), kept)
        stack.push_async_callback(service.stop)
        await service.start()
        run = demo.Demo(simulator=simulator, service_url=service.url, live_s=live_s, progress=service.progress, screen=screen)
        try:
            await run.run()
        except demo.WrongResult as error:
            screen.print(f"[bold red]The demo failed:[/] {error} The log is {folder / 'service.log'}.", soft_wrap=True)
            return 1
    screen.print("\n[bold green]Two speakers live, two files in the bucket, one result delivered.[/]")
    return 0


@ops_cli.app.command("serve")
def serve_command(
    roles: Annotated[str, typer.Option(help="What this process does: a list of api, machine, worker. Wins over ROLES.")] = "",
) -> None:
    """Run the service; settings come from the environment (docs/settings.md)."""
    raise typer.Exit(run_service({**os.environ, **({"ROLES": roles} if roles else {})}))


async def migrate(settings: ops_settings.Settings) -> str:
    """Bring the database's schema to what this program needs, and seal what older ones kept plain; returns its revision."""
    import store.encrypted_rows
    import store.engine
    import store.schema
    from assembly import encryption_keys

    ring = encryption_keys.keyring(settings)
    engine = store.engine.open_engine(settings.database)
    try:
        await store.engine.migrate(engine)
        kept = store.encrypted_rows.EncryptedRows(engine, ring)
        await kept.check()
        await kept.encrypt_plain()
    finally:
        await engine.dispose()
    return store.schema.HEAD


@ops_cli.app.command("migrate")
def migrate_command() -> None:
    """Bring the database's schema up to date: once, before the nodes of a new version start."""
    try:
        settings = ops_settings.load(os.environ)
        revision = asyncio.run(migrate(settings))
    except (ops_settings.SettingsError, errors.RecorderError, OSError) as error:
        sys.stderr.write(f"recorder: {error}\n")
        raise typer.Exit(2 if isinstance(error, ops_settings.SettingsError) else 1) from error
    typer.echo(f"The schema is at revision {revision}.")


Opened = TypeVar("Opened", "dead_letters.DeadLetters", "api_keys.ApiKeys")


@contextlib.asynccontextmanager
async def opened(kind: Callable[[ops_settings.Settings], Opened]) -> AsyncIterator[Opened]:
    """What a command works on, of the recorder that the environment describes."""
    # What goes wrong is said once, by the command itself.
    logs.configure(level="error", stream=io.StringIO())
    made = kind(ops_settings.load(os.environ))
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def open_parking() -> contextlib.AbstractAsyncContextManager[dead_letters.DeadLetters]:
    """What `recorder parked` works on."""
    from assembly import dead_letters

    return opened(dead_letters.DeadLetters)


def open_api_keys() -> contextlib.AbstractAsyncContextManager[api_keys.ApiKeys]:
    """What `recorder keys` and `recorder audit` work on."""
    from assembly import api_keys

    return opened(api_keys.ApiKeys)


def parking_exit_code(error: Exception) -> int | None:
    """What `recorder parked` ends with for an error; None for one that it does not expect."""
    match error:
        case errors.NotFound():
            return client.NOT_FOUND
        case errors.Unavailable():
            return client.UNREACHABLE
        case errors.RecorderError():
            return client.REFUSED
    return None


ops_cli.app.add_typer(parked.commands(open_parking, parking_exit_code))


async def rotate_keys(forget_lost: bool) -> keys.Rotated:
    """Seal everything in the database anew under the first key. What was forgotten, and a rotation that left something, are
    written down as well."""
    from assembly import api_keys, encryption_keys, identity

    logs.configure(level="error", stream=io.StringIO())
    settings = ops_settings.load(os.environ)
    async with encryption_keys.rows(settings) as kept, open_api_keys() as audited:
        forgotten = await kept.forget_lost(api_keys.operator(), identity.clock()) if forget_lost else 0
        try:
            sealed = await kept.rotate()
        except errors.RecorderError as error:
            await audited.note("keys-rotate", kept.key_id, error.code)
            raise
        await audited.note("keys-rotate", kept.key_id)
    return keys.Rotated(
        sealed=sealed, forgotten=forgotten, key_id=kept.key_id, parked=await encryption_keys.parked_elsewhere(settings)
    )


keys_group = keys.commands(rotate_keys, parking_exit_code)
key_commands.add_to(keys_group, open_api_keys, parking_exit_code)
key_commands.add_audit(ops_cli.app, open_api_keys, parking_exit_code)
ops_cli.app.add_typer(keys_group)


@ops_cli.app.command("doctor")
def doctor_command(as_json: ops_cli.AsJson = False) -> None:
    """Look at settings and surroundings: what is wrong, what it means, what to type. Ends with 1 if something fails."""
    import store.inspection
    from assembly import encryption_keys, identity
    from media import ffmpeg_command, spool
    from tencent import credentials, pull_url

    logs.configure(level="error")

    def source() -> str:
        return asyncio.run(credentials.CredentialChain(os.environ, clock=identity.clock).resolve()).source

    given = doctor.Given(
        find_ffmpeg=ffmpeg_command.find,
        ffmpeg_version=ffmpeg_command.version,
        check_template=pull_url.check_template,
        pull_template=pull_url.DEFAULT_TEMPLATE,
        check_owner=spool.check_owner,
        schema=store.inspection.look,
        sealing=encryption_keys.look,
        credentials=source,
        version=identity.VERSION,
        fault=errors.RecorderError,
    )
    raise typer.Exit(ops_cli.report(doctor.examine(os.environ, given), as_json=as_json))


@ops_cli.app.command("demo")
def demo_command(
    folder: Annotated[Path, typer.Option(help="Where everything is written; emptied first.")] = Path("var/demo"),
    seconds: Annotated[float, typer.Option(help="How long the room is live.", min=3, max=3600)] = 10.0,
) -> None:
    """Record a simulated room with two speakers, and show the result. Needs no account and no network."""
    folder = folder.absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / DEMO_MARK).exists():
        raise typer.BadParameter(f"{folder} holds something that is not an earlier demo's; name another folder.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / DEMO_MARK).touch()
    with (folder / "service.log").open("w", encoding="utf-8") as log_file:
        logs.configure(level="info", form="json", stream=log_file)
        code = asyncio.run(run_demo(folder, seconds, os.environ))
    raise typer.Exit(code)


@ops_cli.app.command("simulator")
def simulator_command(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 9000,
    folder: Annotated[Path, typer.Option(help="Where objects and pictures are kept.")] = Path("var/simulator"),
    app: Annotated[int, typer.Option(help="SdkAppId of the application it knows.", min=1, max=2**32 - 1)] = 1400000001,
    callback_url: Annotated[str, typer.Option(help="Where TRTC's callbacks go.")] = "http://127.0.0.1:8080/trtc/callbacks",
    callback_key: Annotated[str, typer.Option(help="Key that signs them.")] = "simulator-callback-key",
    user_sig_key: Annotated[str, typer.Option(help="Key of the application's UserSigs; without it any UserSig is good.")] = "",
    secret_id: Annotated[str, typer.Option(help="SecretId that COS and TRTC's server API know.")] = "AKIDsimulator",  # noqa: S107 - the stand-in's
    secret_key: Annotated[str, typer.Option(help="SecretKey of it.")] = "simulator-secret-key",  # noqa: S107 - likewise
    bucket: Annotated[
        list[str] | None, typer.Option(help="A bucket there is; may be repeated. Without: any name is one.")
    ] = None,
    announce_pulls: Annotated[bool, typer.Option(help="Each pull enters and leaves the room as an audience member.")] = False,
    one_pull_per_user: Annotated[bool, typer.Option(help="A second pull of a user in a room ends the first.")] = False,
) -> None:
    """Run a small stand-in for Tencent: live rooms, TRTC's callbacks and server API, COS. For development without an account."""
    from simulator import callbacks, server, welcome
    from simulator.cos import signature

    logs.configure(level="info", form="auto")
    known = callbacks.App(sdk_app_id=app, callback_url=callback_url, callback_key=callback_key, user_sig_key=user_sig_key)
    account = signature.Account(secret_id=secret_id, secret_key=secret_key)
    simulator = server.Simulator(
        host,
        port,
        folder,
        apps=[known],
        accounts=[account],
        buckets=bucket or None,
        announce_pulls=announce_pulls,
        one_pull_per_user=one_pull_per_user,
    )
    greeting = welcome.Welcome(simulator=simulator, sdk_app_id=app, account=account, write=typer.echo)
    try:
        asyncio.run(run_until_signal([simulator, greeting]))
    except OSError as error:
        sys.stderr.write(f"recorder: The simulator cannot run: {error}. Choose another --port or --folder.\n")
        raise typer.Exit(1) from error


def main(harness: Callable[[str], None] | None = None) -> None:
    """The command `recorder`. `harness` is called at every fault point; without one they are nothing."""
    failpoints.install(harness)
    ops_cli.app()
