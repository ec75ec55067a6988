"""Assignments: the data that a worker loads for a leased job, read in one transaction."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from sqlalchemy import select

from machine import due_work, encryption, job_key, manifest, model, segments
from store import connections, encrypted_rows, rows, snapshot, statements, tables
from store.sql import Statement, Step, Steps

_RESULT = Statement(select(tables.results.c.body).where(statements.matching(tables.results, "task_id", "revision")))
_SEGMENTS = Statement(
    select(tables.segments).where(statements.matching(tables.segments, "task_id")).order_by(tables.segments.c.epoch)
)
_ORIGIN = Statement(select(tables.callbacks.c.url).where(statements.matching(tables.callbacks, "task_id", "revision")))


class Assignments:
    """The assignments of one database; nothing is written."""

    def __init__(self, database: connections.Connections, *, keyring: encryption.Keyring) -> None:
        self._database = database
        self._keyring = keyring

    async def recording(self, key: job_key.RecordingKey) -> due_work.Assignment | None:
        """The assignment of a recording's job; None if there is no such recording. Raises DecryptionFailed."""

        def steps() -> Steps[due_work.Assignment | None]:
            seen = snapshot.LoadedSnapshot(now_ms=0)  # none of these readings depends on the time
            needs = [("recording", (key,)), ("session", (key.task_id,)), ("secrets", (key.task_id,))]
            yield from snapshot.Loader(self._keyring, seen.now_ms, locks=False).load((seen, need) for need in needs)
            recording, session = seen.recording(key), seen.session(key.task_id)
            if recording is None or session is None:
                return None
            return due_work.Assignment(session=session, recording=recording, secrets=seen.secrets(key.task_id))

        return await self._database.run(steps)

    async def delivery(self, key: job_key.DeliveryKey) -> model.Delivery | None:
        """A delivery with its body and whole URL. Raises DecryptionFailed."""

        def steps() -> Steps[model.Delivery | None]:
            named = {"at_task_id": key.task_id, "at_revision": key.revision}
            found = yield Step(statements.WHOLE_DELIVERY, [named])
            urls = yield Step(statements.SECRET, [{"at_task_id": key.task_id, "at_kind": encrypted_rows.CALLBACK}])
            if not found:
                return None
            whole = [encrypted_rows.decrypt_row(self._keyring, row) for row in urls]
            return replace(rows.delivery(found[0]), url=whole[0] if whole else "")

        return await self._database.run(steps)

    async def manifest(self, key: job_key.DeliveryKey) -> due_work.ManifestAssignment | None:
        """The assignment of a manifest's job; None if there is no such result. Raises DecryptionFailed."""

        def steps() -> Steps[due_work.ManifestAssignment | None]:
            seen = snapshot.LoadedSnapshot(now_ms=0)
            needs = [(name, (key.task_id,)) for name in ("session", "secrets", "recordings")]
            yield from snapshot.Loader(self._keyring, seen.now_ms, locks=False).load((seen, need) for need in needs)
            revision = key.revision - model.MANIFESTS_FROM
            found = yield Step(_RESULT, [{"at_task_id": key.task_id, "at_revision": revision}])
            session = seen.session(key.task_id)
            if session is None or not found:
                return None
            parts: dict[str, list[segments.Segment]] = {}
            for row in (yield Step(_SEGMENTS, [{"at_task_id": key.task_id}])):
                parts.setdefault(row["recording_id"], []).append(rows.segment(row))
            body = manifest.body(found[0]["body"], seen.recordings(key.task_id), parts)
            return due_work.ManifestAssignment(session=session, secrets=seen.secrets(key.task_id), body=body)

        return await self._database.run(steps)

    async def receiver(self, key: job_key.DeliveryKey) -> str:
        """The host and port of a delivery's URL; "" if there is no such delivery."""
        found = await self._database.fetch(_ORIGIN, {"at_task_id": key.task_id, "at_revision": key.revision})
        return urlsplit(found[0]["url"]).netloc if found else ""
