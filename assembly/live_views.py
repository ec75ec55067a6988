"""What the console plays: the growing segment of a recording, here or on another node, and links to finished files.

Rule: the number of live views of a node is bounded.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path

from assembly import work as node_work
from config import settings as settings_module
from machine import errors, job_key, session_view, states
from media import live_view
from store import queries as store_queries
from store import store as store_module

NOT_NOW = "No media of this recording is being captured at this moment; its state tells whether it will be."
TOO_MANY = "This node serves as many live views as LIVE_VIEWS allows; close one, or raise the setting."


class LiveViews:
    """Live views for the API of this node, and the segments of this node for the views of others."""

    def __init__(
        self,
        settings: settings_module.Settings,
        work: node_work.NodeWork,
        store: store_module.Store,
        *,
        node: str,
        shared_spool: bool,
        clock: Callable[[], int],
    ) -> None:
        self._most = settings.live_views
        self._token = settings.cluster_token.get_secret_value()
        self._has_spool = "worker" in settings.roles
        self._work = work
        self._store = store
        self._queries = store_queries.SessionQueries(store.connections)
        self._node = node
        self._shared_spool = shared_spool
        self._clock = clock
        self._away_after_ms = round(2 * settings.lease_s * 1000)
        self._open = 0

    @contextlib.asynccontextmanager
    async def view(self, key: job_key.RecordingKey) -> AsyncIterator[live_view.LiveView]:
        """The live view of a recording, started. Raises NotFound, Refused and Unavailable."""
        with self._place():
            session = await self._queries.session(key.task_id)
            if session is None:
                raise errors.NotFound
            if session.state == states.FINISHED:
                raise errors.Refused("The recording has ended: its session is Finished.")
            growing = await self._growing(key)
            if growing is None:
                raise errors.Unavailable(NOT_NOW)
            made = live_view.LiveView(self._work.ffmpeg, await self._source(growing, session.request.mode))
            try:
                await made.start()
                yield made
            except OSError as error:
                raise errors.Unavailable(f"The segment cannot be read: {error.strerror}.") from error
            finally:
                await made.close()

    @contextlib.asynccontextmanager
    async def segment(self, recording_id: str, epoch: int, mode: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The end of a segment on this node's spool as FLV, for another node. Raises NotFound and Unavailable."""
        with self._place():
            found = await self._work.segment_file(recording_id, epoch)
            if found is None or mode not in live_view.MODES:
                raise errors.NotFound("This node has no such segment.")
            async with contextlib.aclosing(self._local(job_key.parse_recording(recording_id), epoch, found[0], mode)) as source:
                yield source

    async def segment_file(self, recording_id: str, epoch: int, suffix: str) -> tuple[Path, int] | None:
        """As `NodeWork.segment_file`, for other nodes; None without the role worker, whose spool is nobody's."""
        return await self._work.segment_file(recording_id, epoch, suffix) if self._has_spool else None

    async def file_url(self, key: job_key.RecordingKey) -> str:
        """A URL by which a browser plays the finished file of a recording. Raises NotFound, Refused and Unavailable."""
        found = await self._store.assignments.recording(key)
        if found is None or not found.recording.url:
            raise errors.NotFound("This recording has no file in the bucket.")
        return await self._work.file_url(found)

    async def _source(self, growing: session_view.SegmentView, mode: str) -> AsyncGenerator[bytes, None]:
        key, epoch = growing.recording, growing.epoch
        if self._shared_spool or growing.node == self._node:
            found = await self._work.segment_file(key.text, epoch)
            if found is None:
                raise errors.Unavailable(NOT_NOW)
            return self._local(key, epoch, found[0], mode)
        url = await self._store.nodes.url(growing.node, self._clock() - self._away_after_ms)
        if not url:
            raise errors.Unavailable(f"The segment is on {growing.node}, which sends no heartbeat or has no address for others.")
        return live_view.fetched(url, self._token, {"recording": key.text, "epoch": str(epoch), "mode": mode})

    def _local(self, key: job_key.RecordingKey, epoch: int, path: Path, mode: str) -> AsyncGenerator[bytes, None]:
        async def is_over() -> bool:
            growing = await self._growing(key)
            return growing is None or growing.epoch != epoch

        return live_view.segment(path, mode, is_over)

    async def _growing(self, key: job_key.RecordingKey) -> session_view.SegmentView | None:
        """The segment that a capture writes now."""
        found = await self._queries.segments(key.task_id, only=[key.text], limit=1)
        return found[-1] if found and not found[-1].reason else None

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._open >= self._most:
            raise errors.Unavailable(TOO_MANY)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
