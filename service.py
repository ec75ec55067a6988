"""Composition root and command line: builds the objects, runs them, drains them. Imports everything; nobody imports it.

Rule: whatever ends unexpectedly ends the process (its supervisor starts it anew, and it goes on where it was); no other file
builds a long-lived object out of the settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
from rich import console
from ulid import ULID

import bus.local
import store.engine
import store.inspection
import store.reading
import store.store
from cloud import cos, cos_upload, credentials, objects, pull, trtc_callbacks, usersig, webhook
from events import codec
from handlers import adapters, applying, deciding, doing, sweeper, worker
from machine import background, errors, model
from media import capture, ffmpeg, segments, spool, transcode
from ops import cli as ops_cli
from ops import doctor, logs
from ops import settings as ops_settings
from web import app as web_app
from web import serving

log = structlog.get_logger()

VERSION = "0.1.0"
USER_SIG_FOR_S = 24 * 3600
TASK_ID_CHARS = 26
DEMO_MARK = ".recorder-demo"


def clock() -> int:
    """Unix time in ms."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A ULID: sorts by the time it was made."""
    return str(ULID())


class Steps:
    """The work of a node, joined from media and cloud: what handlers.worker asks for."""

    def __init__(self, settings: ops_settings.Settings, folder: spool.Spool, chain: credentials.CredentialChain) -> None:
        self._settings = settings
        self._spool = folder
        self._chain = chain
        self._ffmpeg = ffmpeg.find(settings.ffmpeg_binary)
        self.uploader = cos.CosUploader()
        self._transcoder = transcode.Transcoder(self._ffmpeg)
        secret = settings.callback_secret.get_secret_value()
        # What running captures still need; the worker that knows them is built after its steps.
        self.expected_bytes: Callable[[], int] = lambda: 0
        self._webhook = webhook.WebhookSender(secret=secret, allow=settings.callback_allow)

    def capture(self, job: adapters.Assignment, epoch: int, on_media: adapters.OnMedia) -> adapters.Capture:
        """A capture of the speaker's stream into the segment of `epoch`."""
        spec = capture.CaptureSpec(address=self._address(job), path=self.segment_path(job, epoch), mode=job.recording.mode)
        return capture.Capture(spec, ffmpeg=self._ffmpeg, on_media=on_media)

    async def scan(self, job: adapters.Assignment, epoch: int) -> adapters.Scan:
        """What the segment holds."""
        return await asyncio.to_thread(segments.scan, self.segment_path(job, epoch), job.recording.mode)

    async def transcode(self, job: adapters.Assignment, found: Sequence[Any]) -> adapters.Finished:
        """Segments to the finished file."""
        value = job.recording
        files = [
            transcode.SegmentFile(
                path=self.segment_path(job, s.epoch), first_packet_ms=s.first_packet_ms, last_packet_ms=s.last_packet_ms
            )
            for s in found
        ]
        output = self._spool.output_path(value.task_id, value.speaker, value.n, value.mode)
        made = await self._transcoder.transcode(files, value.mode, output)
        gaps = tuple((round(g.at_s * 1000), round(g.duration_s * 1000)) for g in made.gaps)
        return adapters.Finished(
            output=model.Output(
                duration_ms=made.duration_ms,
                size_bytes=made.size_bytes,
                crc64=made.crc64 or "",
                start_ms=made.start_ms,
                end_ms=made.end_ms,
                gaps=gaps,
            )
        )

    async def upload(self, job: adapters.Assignment, state: dict[str, Any] | None, save: adapters.SaveState) -> adapters.Uploaded:
        """The finished file into the bucket."""
        value = job.recording
        path = self._spool.output_path(value.task_id, value.speaker, value.n, value.mode)
        known = cos_upload.UploadState.from_json(json.dumps(state)) if state else None

        async def keep(reached: cos_upload.UploadState) -> None:
            await save(json.loads(reached.to_json()))

        try:
            target, keys = self.target(job), await self.credentials(job.secrets.to_json())
            done = await self.uploader.upload(path, target, keys, state=known, save=keep)
        except errors.InvalidParameter as error:
            raise errors.UploadFailed(error.message, reason="refused", retry=error.retry) from error
        except errors.UploadFailed as error:
            if error.reason == "expired-token":
                self._chain.forget()
            raise
        return adapters.Uploaded(size_bytes=done.size_bytes, crc64=done.crc64, url=done.url)

    async def call_back(self, callback: model.Callback) -> None:
        """Post the result; its id is the same over retries."""
        webhook_id = f"{callback.task_id}.{callback.revision}"
        await self._webhook.send(callback.url, callback.body.encode(), webhook_id=webhook_id, now_s=clock() // 1000)

    async def remove(self, recording_id: str) -> None:
        """Delete a recording's files."""
        await asyncio.to_thread(self._spool.remove_recording, *model.split_id(recording_id))

    async def kept_sessions(self) -> list[str]:
        """The TaskIds of which something lies on the spool."""
        return [path.name for path in self._spool.root.iterdir() if path.is_dir() and len(path.name) == TASK_ID_CHARS]

    async def remove_session(self, task_id: str) -> None:
        """Delete everything of a session."""
        await asyncio.to_thread(self._spool.remove_session, task_id)

    def segment_path(self, job: adapters.Assignment, epoch: int) -> Path:
        """Where the segment of `epoch` lies."""
        value = job.recording
        return self._spool.segment_path(value.task_id, value.speaker, value.n, epoch)

    def target(self, job: adapters.Assignment) -> objects.CosTarget:
        """The object that the recording becomes."""
        request, value = job.session.request, job.recording
        key = objects.object_key(request.path, value.task_id, value.speaker, value.n, value.mode)
        return objects.CosTarget(region=request.region, bucket=request.bucket, key=key, endpoint=self._settings.cos_server)

    async def credentials(self, secrets: Mapping[str, str]) -> credentials.Credentials:
        """The start's own keys, or what the chain finds. Raises InvalidParameter."""
        explicit = None
        if secrets.get("SecretId"):
            explicit = credentials.Credentials(
                secret_id=secrets["SecretId"], secret_key=secrets["SecretKey"], token=secrets.get("Token", "")
            )
        return await self._chain.resolve(explicit)

    async def inspect(self, data: codec.Data) -> tuple[str, ...]:
        """Look at a start before it is decided: free space, the bucket, the UserSig's age. Answers warnings; raises
        InsufficientSpace, InvalidParameter."""
        free_bytes, needed_bytes = self._spool.free_bytes(), self._min_free_bytes() + self.expected_bytes()
        if free_bytes < needed_bytes:
            raise errors.InsufficientSpace(
                f"The spool {self._spool.root} has {free_bytes >> 20} MiB free, and {needed_bytes >> 20} MiB are needed for"
                " MIN_FREE and the captures that run. Make room there, or lower MIN_FREE or CAPTURE_RESERVE."
            )
        warnings = []
        left_s = usersig.remaining_s(data.get("UserSig", ""), clock() // 1000)
        if left_s is not None and left_s <= 0:
            warnings.append("The UserSig has expired: pulls will be refused until a repeated start brings a fresh one.")
        if data.get("Callback"):
            webhook.check_url(data["Callback"])
            if not self._settings.callback_secret.get_secret_value():
                warnings.append("The result will be posted unsigned: the service has no CALLBACK_SECRET.")
        config = data["CosConfig"]
        objects.check_path(config["Path"])
        keys = await self.credentials(config)
        target = objects.CosTarget(
            region=config["Region"], bucket=config["Bucket"], key="probe", endpoint=self._settings.cos_server
        )
        try:
            warnings.append(await self.uploader.check_bucket(target, keys))
        except errors.UploadFailed as error:
            if not error.retry:
                raise errors.InvalidParameter(f"CosConfig.Bucket: {error.detail}", field="CosConfig.Bucket") from error
            warnings.append(f"The bucket could not be looked at: {error.detail}")
        return tuple(w for w in warnings if w)

    def _min_free_bytes(self) -> int:
        """MIN_FREE; where nobody set it, at most a tenth of a small spool."""
        settings = self._settings
        if "min_free_bytes" in settings.model_fields_set:
            return settings.min_free_bytes
        return min(settings.min_free_bytes, self._spool.total_bytes() // 10)

    def _address(self, job: adapters.Assignment) -> str:
        request, room = job.session.request, job.session.request.room
        user, sig = request.user_id, job.secrets.user_sig
        key = self._settings.trtc_keys.get(room.sdk_app_id)
        if key is not None and (not sig or self._settings.pull_user == "per-speaker"):
            if self._settings.pull_user == "per-speaker":
                # TRTC knows user ids of up to 32 bytes; a digest keeps those of two speakers apart however they begin.
                digest = hashlib.sha256(job.recording.speaker.encode()).hexdigest()[:12]
                user = f"{user.encode()[:19].decode(errors='ignore')}-{digest}"
            sig = usersig.mint(room.sdk_app_id, key.get_secret_value(), user, USER_SIG_FOR_S)
        return pull.pull_address(
            self._settings.pull_address or pull.DEFAULT_TEMPLATE,
            sdk_app_id=room.sdk_app_id,
            room_id=room.room_id or None,
            str_room_id=room.str_room_id,
            user_id=user,
            user_sig=sig,
            speaker=job.recording.speaker,
        )


class Service:
    """One node of the embedded engine: API, machine and worker in one process."""

    def __init__(self, settings: ops_settings.Settings, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self._environment = environment
        self._stack = contextlib.AsyncExitStack()
        self._sides: list[background.Background] = []
        self._ready = False
        self.store: store.store.Store
        self.worker: worker.Worker
        self._http: serving.HttpServer

    async def start(self) -> None:
        """Start everything, in the order in which it is needed. Raises errors.Unavailable with what to do."""
        settings, policy = self.settings, _policy(self.settings)
        folder = spool.Spool(settings.spool)
        folder.start()
        self._stack.callback(folder.stop)
        engine = _open_engine(settings)
        self.store = store.store.Store(engine, clock=clock, new_id=new_id)
        await self.store.start()
        self._stack.push_async_callback(self.store.stop)
        steps = Steps(settings, folder, credentials.CredentialChain(self._environment, clock=clock))
        await steps.uploader.start()
        self._stack.push_async_callback(steps.uploader.stop)
        context = applying.Context(policy=policy, new_id=new_id, mints=lambda app: app in settings.trtc_keys)
        decider = deciding.Decider(self.store, context, steps.inspect)
        self.worker = worker.Worker(self.store, steps, node=folder.node_id, policy=policy, clock=clock)
        steps.expected_bytes = lambda: self.worker.expected_bytes(settings.capture_reserve_bytes)
        relay = bus.local.LocalBus(
            self.store,
            clock=clock,
            on_event=decider.decide_from_bus,
            on_command=lambda command: doing.do(self.worker, command),
        )
        sweep = sweeper.Sweeper(self.store, node=folder.node_id, policy=policy, clock=clock)
        janitor = worker.Janitor(self.store, steps, policy=policy, clock=clock)
        for part in (sweep, self.worker, relay, janitor):
            await part.start()
            self._stack.push_async_callback(part.stop)
        self._sides = [sweep.sweep, self.worker.renewal, relay.relay, janitor.cleaning]
        self._http = serving.HttpServer(self._api(decider, engine, relay), host=settings.host, port=settings.port)
        await self._http.start()
        self._stack.push_async_callback(self._http.stop)
        self._ready = True
        log.info("service.started", node=folder.node_id, spool=str(folder.root), address=self.url)

    async def stop(self) -> None:
        """End what runs, in the opposite order; harmless to repeat. What is unfinished goes on at the next start."""
        self._ready = False
        await self._stack.aclose()
        log.info("service.stopped")

    @property
    def url(self) -> str:
        """Where the API listens."""
        host = "127.0.0.1" if self.settings.host in ("", "0.0.0.0") else self.settings.host  # noqa: S104 - compared, not bound
        return f"http://{host}:{self._http.port}"

    async def run(self) -> None:
        """Until a side task ends unexpectedly: raises what it raised."""
        failed = [side.failed for side in self._sides if side.failed is not None]
        serves = [self._http.task] if self._http.task is not None else []
        await asyncio.wait([*failed, *serves], return_when=asyncio.FIRST_COMPLETED)
        for future in failed:
            if future.done():
                future.result()
        raise RuntimeError("The HTTP server ended by itself.")

    def _api(self, decider: deciding.Decider, engine: Any, relay: bus.local.LocalBus) -> Any:
        settings = self.settings
        keys = {app: key.get_secret_value() for app, key in settings.trtc_callback_keys.items()}

        def verify(sdk_app_id: int, raw: bytes, sign: str) -> bool:
            return sdk_app_id in keys and trtc_callbacks.verify(keys[sdk_app_id], raw, sign)

        api = web_app.Api(
            decide=decider.decide,
            reading=store.reading.Reading(engine),
            ping=self.store.ping,
            ready=lambda: [] if self._ready else ["The service is starting or stopping."],
            new_id=new_id,
            clock=clock,
            tokens=tuple(t.get_secret_value() for t in settings.api_tokens),
            verify_callback=verify,
            map_callback=trtc_callbacks.to_event,
            progress=self.worker.progress,
            listeners=relay.listeners,
            draining=lambda: not self._ready,
            policy=_policy(settings),
            version=VERSION,
        )
        return web_app.create(api)


def _open_engine(settings: ops_settings.Settings) -> Any:
    settings.database_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return store.engine.open_engine(settings.database)


def _policy(settings: ops_settings.Settings) -> model.Policy:
    names = ("linger", "idle_timeout", "join_timeout", "max_duration", "result_wait", "upload_retry_for", "keep_failed", "lease")
    return model.Policy(**{f"{name}_ms": round(getattr(settings, f"{name}_s") * 1000) for name in names})


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


def run_service(environment: Mapping[str, str]) -> int:
    """Run the service until it is told to stop. Returns the exit code: 0 stopped, 1 failed, 2 wrong settings."""
    try:
        settings = ops_settings.load(environment)
    except ops_settings.SettingsError as error:
        sys.stderr.write(f"recorder: {error}\n")
        return 2
    logs.configure(level=settings.log_level, form=settings.log_format)
    service = Service(settings, environment)
    try:
        asyncio.run(run_until_signal([service], [service.run]))
    except errors.RecorderError as error:
        sys.stderr.write(f"recorder: {error.message}\n")
        return 1
    return 0


async def run_demo(folder: Path, live_s: float, environment: Mapping[str, str]) -> int:
    """Simulator and service in one process, one recorded room. Returns the exit code: 0 all as it should be, 1 not."""
    from simulator import demo, server

    screen = console.Console(highlight=False)
    screen.print(f"A stand-in for Tencent and a recorder start on this machine; everything they write is under {folder}.")
    simulator = server.Simulator(folder=folder / "tencent", accounts=[demo.ACCOUNT], buckets=[demo.BUCKET])
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(simulator.stop)
        await simulator.start()
        own = {"PORT": "0", "DATA_DIR": str(folder / "data"), "SPOOL_DIR": str(folder / "spool"), "MIN_FREE": "100MiB"}
        kept = {name: environment[name] for name in ("HOME", "PATH", "FFMPEG_BINARY") if name in environment}
        service = Service(ops_settings.load(kept | own | demo.settings(simulator)), kept)
        stack.push_async_callback(service.stop)
        await service.start()
        run = demo.Demo(
            simulator=simulator, service_url=service.url, live_s=live_s, progress=service.worker.progress, screen=screen
        )
        try:
            await run.run()
        except demo.WrongResult as error:
            screen.print(f"[bold red]The demo failed:[/] {error} The log is {folder / 'service.log'}.", soft_wrap=True)
            return 1
    screen.print("\n[bold green]Two speakers live, two files in the bucket, one result delivered.[/]")
    return 0


@ops_cli.app.command("serve")
def serve_command() -> None:
    """Run the service; settings come from the environment (docs/settings.md)."""
    raise typer.Exit(run_service(os.environ))


@ops_cli.app.command("doctor")
def doctor_command(as_json: ops_cli.AsJson = False) -> None:
    """Look at settings and surroundings: what is wrong, what it means, what to type. Ends with 1 if something fails."""
    logs.configure(level="error")

    def source() -> str:
        return asyncio.run(credentials.CredentialChain(os.environ, clock=clock).resolve()).source

    given = doctor.Given(
        find_ffmpeg=ffmpeg.find,
        ffmpeg_version=ffmpeg.version,
        check_template=pull.check_template,
        pull_template=pull.DEFAULT_TEMPLATE,
        schema=store.inspection.look,
        credentials=source,
        version=VERSION,
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


def main() -> None:
    """The command `recorder`."""
    ops_cli.app()
