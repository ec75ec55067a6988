"""One node: builds the parts of its roles from the settings, starts them in dependency order, drains and stops them.

Rules: a part that ends unexpectedly ends the node. No other module builds a long-lived object from the settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

import bus.local
import machine.encryption
import store.api_keys
import store.attention
import store.audit
import store.backlog
import store.connections
import store.database_lock
import store.overview
import store.queries
import store.schema
import store.store
from assembly import database, encryption_keys, gauges, live_views, node_report, operations, policy, slots, start_checks, tracing
from assembly import object_places as places
from assembly import work as node_work
from assembly.identity import VERSION, new_id
from config import settings as settings_module
from handlers import admission, callback_intake, dispatch, sweeper, unit_of_work
from machine import database_clock, job_key, model, nodes, states, supervised_task
from media import file_threads, free_space, spool
from tencent import credentials, trtc_callbacks
from web import app as web_app
from web import attention_watch, http_server
from webhook import forwarder, sender
from worker import capacity, command_handlers, cpu_usage, follow_watch, janitor, worker

log = structlog.get_logger()

# Deliveries that may wait for their receivers' turns, under leases. Behind them, other receivers' results wait in the queue.
MAX_LINE = 10_000


class Node:
    """One process with any mix of the roles api, machine and worker; the embedded engine has all three."""

    def __init__(
        self,
        settings: settings_module.Settings,
        environment: Mapping[str, str],
        *,
        log_warnings: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`log_warnings` says what an operator must know about the log itself."""
        self.settings = settings
        self._log_warnings = log_warnings
        self._distributed = bool(settings.amqp_url.get_secret_value())
        self._environment = environment
        self._policy = policy.of(settings)
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[supervised_task.SupervisedTask] = []
        self._ready = False
        self._draining = False
        self._clock = database_clock.DatabaseClock()
        self._started_ms = 0
        self.node = ""
        self._connections: store.connections.Connections | None = None
        self.store: store.store.Store
        self._keyring: machine.encryption.Keyring
        self.worker: worker.Worker | None = None
        self.capacity: capacity.Capacity | None = None
        self.bus: Any
        self.forwarder: forwarder.CallbackForwarder
        self._http: http_server.HttpServer

    async def start(self) -> None:
        """Start every part. Raises errors.Unavailable with the remedy."""
        if not self._distributed:
            lock = store.database_lock.DatabaseLock(self.settings.database_file, wait_s=self.settings.drain_s)
            await lock.start()
            self._stack.push_async_callback(lock.stop)
        folder = self._open_spool()
        await self._open_store()
        for _ in range(3):  # the first answer waits for a connection
            await self._clock.measure(self.store.nodes.now_ms)
        self._started_ms = self._clock()
        chain = credentials.CredentialChain(self._environment, clock=self._clock)
        work = node_work.NodeWork(self.settings, folder, chain, self._clock)
        await work.uploader.start()
        self._stack.push_async_callback(work.uploader.stop)
        self._stack.push_async_callback(work.live_uploads.stop)
        self._stack.push_async_callback(work.followers.stop)
        free = free_space.FreeSpace(folder)
        self._stack.push_async_callback(free.stop)
        await free.measure()
        if "worker" in self.settings.roles:
            await work.bound_spool(free)
        space = start_checks.SpoolSpace(self.settings, free)
        workers = admission.Admission(self.store, clock=self._clock, alive_ms=2 * self._policy.lease_ms)
        check_capacity = workers.check if self._distributed else space.check
        checks = start_checks.StartChecks(self.settings, work, chain, check_capacity, self._clock)
        decider = dispatch.Decider(self.store, self._context(), checks.check)
        parts = [*self._workers(work, space), *self._machines(), self._bus(decider, work), *self._capacity(work, free, space)]
        intake = callback_intake.CallbackIntake(self.store.presence, decider.decide)
        self.forwarder = self._forwarder(lambda: intake.busy)
        parts.append(self.forwarder)
        api = self._api(decider, intake, work, space)
        watch = attention_watch.AttentionWatch(api)
        own = gauges.of(self.settings, api, watch, space, self._clock, check_capacity, self.worker, self.capacity)
        parts.append(own)
        self._tasks.append(own.task)
        if "api" in self.settings.roles:
            parts.append(watch)
            self._tasks.append(watch.task)
        if end_tracing := tracing.start(self._environment, self.node):
            self._stack.push_async_callback(file_threads.BULK.run, end_tracing)
        for part in parts:
            await part.start()
            self._stack.push_async_callback(part.stop)
        api = dataclasses.replace(api, gauges=own.gauges)
        application = web_app.create(api, watch=watch, public="api" in self.settings.roles)
        self._http = http_server.HttpServer(application, host=self.settings.host, port=self.settings.port)
        await self._http.start()
        self._stack.push_async_callback(self._http.stop)
        self._ready = True
        log.info("service.started", node=self.node, roles=self.settings.roles, address=self.url)

    async def stop(self) -> None:
        """Drain the captures to other nodes, if there are any, then stop the parts in reverse order. It may be called twice.
        Unfinished work resumes at the next start, or on another node."""
        self._ready = False
        if self._distributed and self.worker is not None:
            await self._drain(self.worker)
        await self._stack.aclose()
        log.info("service.stopped", node=self.node)

    @property
    def database_hangs(self) -> bool:
        """Whether `stop` left calls on SQLite's file behind that do not return."""
        return self._connections is not None and self._connections.hangs

    @property
    def url(self) -> str:
        """URL of the API."""
        host = self.settings.host.strip("[]").replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - replaced, not bound
        return f"http://[{host}]:{self._http.port}" if ":" in host else f"http://{host}:{self._http.port}"

    def progress(self) -> Mapping[job_key.RecordingKey, int]:
        """Media captured so far by running captures: recording → ms."""
        return self.worker.progress() if self.worker is not None else {}

    async def run(self) -> None:
        """Wait until a background task ends unexpectedly, and raise its error."""
        tasks = [*self._tasks, *self.bus.tasks]
        failed = [task.failed for task in tasks if task.failed is not None]
        server = self._http.task
        await asyncio.wait([*failed, *([server] if server else [])], return_when=asyncio.FIRST_COMPLETED)
        for future in failed:
            if future.done():
                future.result()
        raise RuntimeError("The HTTP server ended unexpectedly.")

    # --- parts ------------------------------------------------------------------------------------------------------------
    def _open_spool(self) -> spool.Spool:
        settings = self.settings
        shared = settings.spool_shared and self._distributed
        folder = spool.Spool(settings.spool, settings.data_dir if shared else None)
        if "worker" in settings.roles:
            folder.start()
            # A file system that hangs does not keep the process.
            self._stack.push_async_callback(file_threads.LIVE.run_within, file_threads.ANSWER_S, folder.stop)
        self.node = folder.node_id or f"node-{new_id().lower()}"
        return folder

    async def _open_store(self) -> None:
        settings = self.settings
        opened = store.connections.open_database(settings.database, database.pool_size(settings))
        self._connections = opened
        self._keyring = encryption_keys.keyring(settings)
        self.store = store.store.Store(opened, clock=self._clock, keyring=self._keyring)
        self._stack.push_async_callback(self.store.stop)
        if self._distributed:
            await store.schema.check(opened)
            await self.store.check_encrypted()
        else:
            await self.store.start()

    def _context(self) -> unit_of_work.Context:
        keys = self.settings.trtc_keys
        return unit_of_work.Context(
            policy=self._policy,
            new_id=new_id,
            shared_spool=self._shared,
            several=self._distributed,
            object_url=places.url,
            manifest_url=places.manifest_url,
            mints=lambda sdk_app_id: sdk_app_id in keys,
            user_per_speaker=self.settings.pull_user == "per-speaker",
        )

    @property
    def _shared(self) -> bool:
        return self.settings.spool_shared or not self._distributed

    def _workers(self, work: node_work.NodeWork, space: start_checks.SpoolSpace) -> list[Any]:
        if "worker" not in self.settings.roles:
            return []
        place = "" if self._shared else self.node
        made = worker.Worker(
            self.store,
            work,
            node=self.node,
            policy=self._policy,
            clock=self._clock,
            shared_spool=self._shared,
            deliveries=slots.of(self.settings)["send-callback"],
        )
        self.worker = made
        reserve_bytes = self.settings.capture_reserve_bytes
        space.expected_bytes = lambda: made.running(states.CAPTURE) * work.bound_bytes or made.expected_bytes(reserve_bytes)
        cleaner = janitor.Janitor(self.store, work, policy=self._policy, clock=self._clock, node=place)
        watch = follow_watch.FollowWatch(self.store, work, node=self.node, jobs=made.leases.jobs)
        self._tasks += [made.leases.task, cleaner.task, watch.task]
        return [made, cleaner, watch]

    def _machines(self) -> list[Any]:
        sweep = sweeper.Sweeper(
            self.store,
            node=self.node,
            policy=self._policy,
            clock=self._clock,
            url=self._advertised,
            spare=self._spare,
            report=self._report,
            sweeps="machine" in self.settings.roles,
        )
        self._tasks += [sweep.sweep, sweep.cleaning]
        return [sweep]

    def _bus(self, decider: dispatch.Decider, work: node_work.NodeWork) -> Any:
        async def on_command(command: Any) -> None:
            if self.worker is None or self.capacity is None:
                return
            do = functools.partial(command_handlers.handle, self.worker, command)
            followed = command.type == capacity.START_TRANSCODE and work.follows(job_key.RecordingKey.of(command.data))
            await self.capacity.admit(command.type, do, command.data["TaskId"], followed=followed)

        handlers: Any = {"on_event": decider.decide_from_bus, "on_command": on_command, "on_invalid": decider.refuse_invalid}
        if not self._distributed:
            self.bus = bus.local.LocalBus(self.store, clock=self._clock, **handlers)
        else:
            from bus import rabbit  # the embedded engine loads no AMQP

            self.bus = rabbit.RabbitBus(
                self.store,
                url=self.settings.amqp_url.get_secret_value(),
                node=self.node,
                roles=self.settings.roles,
                clock=self._clock,
                **handlers,
                keyring=self._keyring,
                prefix=self.settings.amqp_prefix,
                shared_spool=self._shared,
            )
        return self.bus

    def _capacity(self, work: node_work.NodeWork, free: free_space.FreeSpace, space: start_checks.SpoolSpace) -> list[Any]:
        made = self.worker
        if made is None:
            return []
        settings = self.settings
        limits = capacity.CaptureLimits(
            captures=settings.max_captures, cpu=settings.max_cpu, load=settings.max_load, free_bytes=space.needed_bytes
        )
        taken = slots.of(settings)
        taken["send-callback"] += MAX_LINE
        live = cpu_usage.LiveCpu(cpu_usage.reading(work.live_pids), cpus=cpu_usage.usable())
        self.capacity = capacity.Capacity(
            limits if self._distributed else None,
            slots=taken,
            pause=self.bus.pause,
            resume=self.bus.resume,
            running=lambda kind: made.running(kind) - (work.gave_up if kind == capacity.FOLLOWED else 0),
            running_of=made.running_of,
            follows=lambda: work.followers.count > 0,
            freed=made.freed,
            live=live,
            measure=free.measure,
            free_bytes=free.free_bytes,
            fault=made.spool_fault.reason,
            cordon=lambda: self.store.nodes.cordon,
            hand_over=made.hand_over,
            stalled=slots.stalled(self.store, made, taken),
        )
        self._tasks.append(self.capacity.task)
        return [self.capacity]

    async def _drain(self, made: worker.Worker) -> None:
        """Stop consuming and close the captures' segments. Their outcomes are in the outbox, which every node relays."""
        self._draining = True
        log.info("service.draining", node=self.node, captures=len(made.progress()))
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self.bus.stop_consuming()
                await made.drain()
        except TimeoutError:
            log.warning("service.drain_unfinished", node=self.node, drain_s=self.settings.drain_s)

    def _problems(self) -> list[str]:
        """Reasons why this node is not ready."""
        return list(self.bus.problems()) if self._ready else ["The service is starting or stopping."]

    def _spare(self) -> model.SpareCapacity | None:
        """Capacity that this node advertises for admission; None if it takes no captures."""
        if self.capacity is None or not self._distributed or self._draining:
            return None
        return self.capacity.spare()

    def _report(self) -> nodes.NodeReport:
        """What operators see of this node. Its first heartbeat comes before its HTTP server has a port."""
        port = self._http.port if self._ready else self.settings.port
        return node_report.of(self.settings, self.worker, port=port, started_ms=self._started_ms)

    def _advertised(self) -> str:
        """URL at which other nodes fetch this node's segments; "" if they need none."""
        if "worker" not in self.settings.roles or self._shared:
            return ""
        return self.settings.node_url or (self.url if self._ready else "")

    def _forwarder(self, busy: Callable[[], bool]) -> forwarder.CallbackForwarder:
        receivers = {app: url.get_secret_value() for app, url in self.settings.trtc_callback_forward.items()}
        webhooks = sender.WebhookSender(allow=self.settings.callback_allow, timeout_s=forwarder.TIMEOUT_S)
        made = forwarder.CallbackForwarder(webhooks, receivers, busy=busy)
        self._tasks += made.tasks
        return made

    def _api(
        self,
        decider: dispatch.Decider,
        intake: callback_intake.CallbackIntake,
        work: node_work.NodeWork,
        space: start_checks.SpoolSpace,
    ) -> web_app.Api:
        settings = self.settings
        keys = {app: key.get_secret_value() for app, key in settings.trtc_callback_keys.items()}
        api_keys = store.api_keys.Keys(self.store.connections, clock=self._clock)

        def verify(sdk_app_id: int, raw: bytes, sign: str) -> bool:
            return sdk_app_id in keys and trtc_callbacks.verify(keys[sdk_app_id], raw, sign)

        views = live_views.LiveViews(settings, work, self.store, node=self.node, shared_spool=self._shared, clock=self._clock)
        return web_app.Api(
            decide=decider.decide,
            take_callback=intake.take,
            forward_callback=self.forwarder.take,
            queries=store.queries.SessionQueries(self.store.connections),
            ping=self.store.connections.ping,
            ready=self._problems,
            warnings=lambda: [*self.bus.warnings(), *self._log_warnings(), *node_report.cordoned(self.node, self.store.nodes)],
            operations=operations.of(settings, self.store.connections, self._clock, 2 * self._policy.lease_ms),
            attention_queries=store.attention.AttentionQueries(self.store.connections),
            overview_queries=store.overview.OverviewQueries(self.store.connections),
            backlog=store.backlog.BacklogQuery(
                self.store.connections, clock=self._clock, alive_ms=2 * self._policy.lease_ms
            ).read,
            findings=self.bus.findings,
            own_node=None if self._distributed else lambda: space.view(self._clock(), self._clock.skew_ms),
            new_id=new_id,
            clock=self._clock,
            tokens=tuple(t.get_secret_value() for t in settings.api_tokens),
            keys=api_keys.all,
            note_key_used=api_keys.note_used,
            keyring=self._keyring,
            audit=store.audit.Audit(self.store.connections, clock=self._clock).add,
            requests_per_minute=settings.api_rate,
            quota=settings.api_sessions,
            verify_callback=verify,
            knows_callbacks=lambda sdk_app_id: sdk_app_id in keys,
            callback_window_ms=round(settings.trtc_callback_window_s * 1000),
            map_callback=trtc_callbacks.to_event,
            progress=self.progress,
            listeners=[] if self._distributed else self.bus.listeners,
            draining=lambda: not self._ready,
            policy=self._policy,
            distributed=self._distributed,
            cluster_token=settings.cluster_token.get_secret_value(),
            metrics_token=settings.metrics_token.get_secret_value(),
            segment_file=views.segment_file,
            live_view=views.view,
            live_segment=views.segment,
            file_url=views.file_url,
            file_origin=work.file_origin,
            version=VERSION,
        )
