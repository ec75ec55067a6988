"""The work of a node: capture, transcode, upload and delivery, composed from media, tencent and webhook.

Rule: addresses and credentials stay inside these calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from assembly import live_uploads, object_places, piece_uploads, piece_work, slots, spool_policy
from config import settings as settings_module
from events import requests
from machine import (
    capture_progress,
    database_clock,
    due_work,
    errors,
    job_key,
    model,
    pull_users,
    segments,
    states,
    uploaded_object,
)
from machine.reasons import Reason
from media import (
    capture,
    capture_engines,
    ffmpeg_command,
    ffmpeg_process,
    file_threads,
    followers,
    free_space,
    pieces,
    resource_limits,
    segment_fetch,
    segment_scan,
    spool,
    spool_probe,
    transcode,
)
from tencent import cos, cos_requests, cos_target, cos_upload, credentials, file_parts, pull_url, usersig
from webhook import sender
from worker import cpu_usage, work_ports

USER_SIG_FOR_S = 24 * 3600
TASK_ID_CHARS = 26
# A browser asks for more of a file while it plays it.
FILE_URL_S = 900
# The share of a recording's space that its file may take while COS is slow. The rest is media that may still move.
_QUEUED_SHARE = 4
NO_CREDENTIALS = (
    "The session's credentials were deleted when it no longer needed them, and this node has none of its own that could sign a"
    " link. Set TENCENTCLOUD_SECRET_ID and TENCENTCLOUD_SECRET_KEY, or give the node a role."
)


class NodeWork:
    """Implements worker.work_ports.Work with the node's spool, ffmpeg, COS and the webhook sender."""

    def __init__(
        self,
        settings: settings_module.Settings,
        folder: spool.Spool,
        chain: credentials.CredentialChain,
        clock: database_clock.DatabaseClock | None = None,
    ) -> None:
        self._settings = settings
        self._spool = folder
        self._probe = spool_probe.SpoolProbe(folder)
        self._chain = chain
        self._clock = clock or database_clock.DatabaseClock()
        ffmpeg_process.check_tools()
        self._ffmpeg = ffmpeg_command.find(settings.ffmpeg_binary)
        cos_requests.sign_by(self._clock)
        usersig.mint_by(self._clock)
        self.uploader = cos.CosUploader(slots.of(settings)["start-upload"], read=file_threads.BULK.run)
        self._transcoder = transcode.Transcoder(self._ffmpeg)
        self._whole = asyncio.Semaphore(slots.whole(settings))
        self.gave_up = 0  # transcodes in progress that began as followed ones, and are of whole segments now
        secret = settings.callback_secret.get_secret_value()
        memory_bytes = resource_limits.node_memory_bytes() // 2  # the other half is for captures, transcodes and the service
        cpus = math.ceil(cpu_usage.usable())
        self.followers = followers.Followers(self._ffmpeg, processes=cpus, memory_bytes=memory_bytes)
        self.live_uploads = live_uploads.LiveUploads()
        self.bound_bytes = 0  # of the spool for each recording; 0: it keeps everything
        self._captures = capture_engines.CaptureEngines(settings.capture, ffmpeg=self._ffmpeg, clock=self._clock)
        self.webhook = sender.WebhookSender(secret=secret, allow=settings.callback_allow)

    def capture(self, job: due_work.Assignment, epoch: int, on_media: work_ports.OnMedia) -> work_ports.Capture:
        """Make a capture of the speaker's stream into the segment of `epoch`."""
        make_folder = functools.partial(self._segment_path, job, epoch, make=True)
        spec = capture.CaptureSpec(
            address=self._address(job), path=self._segment_path(job, epoch), mode=job.recording.mode, make_folder=make_folder
        )
        if self.bound_bytes:
            self._follow_bounded(job, epoch, spec.path)
        elif self._settings.follow and self._settings.capture == capture_engines.NATIVE:  # ffmpeg's segments tell no arrivals
            self._follow(job, epoch, spec.path)
        return self._captures.make(spec, job.recording.key.text, on_media)

    async def bound_spool(self, free: free_space.FreeSpace) -> None:
        """Find out what the recordings that begin now may leave on the spool."""
        self.bound_bytes = await spool_policy.at_start(self._settings, free)

    def follows(self, recording: job_key.RecordingKey) -> bool:
        """Whether a follower of this node writes the finished file of this recording."""
        return self.followers.follows(recording.text)

    def followed(self) -> list[job_key.RecordingKey]:
        """The recordings that this node follows, or whose growing files it uploads."""
        names = {*self.followers.recordings(), *self.live_uploads.recordings()}
        return [job_key.parse_recording(name) for name in sorted(names)]

    async def unfollow(self, recording: job_key.RecordingKey, upload: dict[str, Any] | None) -> None:
        """Follow a recording no longer. What was sent of its file is aborted, unless `upload`, its saved state, names it."""
        await self.followers.drop(recording.text)
        await self.live_uploads.leave(recording.text, upload["upload_id"] if upload else "")

    @property
    def ffmpeg(self) -> str:
        """The ffmpeg binary."""
        return self._ffmpeg

    def _follow(self, job: due_work.Assignment, epoch: int, segment: Path) -> None:
        """Write and upload the file of a recording while it runs."""
        value = job.recording
        names = (value.task_id, value.speaker, value.n)
        # Named by the capture's epoch: a transcode, whose epoch is later, removes what a follower has left.
        output = self._spool.output_path(*names, value.mode, epoch, make=False)
        followed = followers.Followed(
            recording=value.key.text,
            mode=value.mode,
            part=output.with_name(f"{output.name}.part"),
            earlier=functools.partial(self._spool.segments, *names),
            begun=value.media_ms > 0,
        )
        self.followers.capturing(followed, segment)
        target = self._target(job)

        async def connect() -> cos_requests.Client:
            return self.uploader.connect(target, await self._chain.resolve(job.secrets.to_json()))

        self.live_uploads.begin(value.key.text, self.uploader.live(followed.part, target), target, connect)

    def _follow_bounded(self, job: due_work.Assignment, epoch: int, segment: Path) -> None:
        """As `_follow`, in pieces whose bytes are released."""
        value = job.recording
        followed = followers.Followed(
            recording=value.key.text,
            mode=value.mode,
            part=segment.with_name(f"{epoch:08d}.p1.{states.EXTENSION[value.mode]}"),
            earlier=functools.partial(self._spool.segments, value.task_id, value.speaker, value.n),
            bound_bytes=self.bound_bytes // _QUEUED_SHARE,
        )
        self.followers.capturing(followed, segment)

        async def connect(target: cos_target.CosTarget) -> cos_requests.Client:
            return self.uploader.connect(target, await self._chain.resolve(job.secrets.to_json()))

        places = piece_uploads.Places(folder=segment.parent, target=functools.partial(self._target, job), connect=connect)
        self.live_uploads.begin_pieces(value.key.text, piece_uploads.PieceUploads(self.uploader, places))

    async def _finish_followed(
        self, recording: str, epoch: int, files: Sequence[transcode.SegmentFile], output: Path
    ) -> transcode.TranscodeOutput | None:
        """The file of a recording that was followed; None if its segments have to be transcoded."""
        await self.live_uploads.pause(recording)
        finished = await self.followers.finish(recording, files, output)
        if finished is None:
            return None
        self.live_uploads.finished(recording, epoch, finished.moved_bytes)
        return finished.made

    async def _transcode_whole(
        self, files: Sequence[transcode.SegmentFile], mode: str, output: Path
    ) -> transcode.TranscodeOutput:
        """Transcode segments that nobody followed; such a transcode takes a CPU."""
        async with self._whole:
            return await self._transcoder.transcode(files, mode, output)

    def live_pids(self) -> list[int]:
        """Process ids of the running captures' ffmpegs."""
        return self._captures.live_pids()

    async def scan(self, job: due_work.Assignment, epoch: int, known_ms: int) -> capture_progress.CaptureProgress:
        """The media of the segment of `epoch`. A file's times are those of this machine's clock."""
        path, mode = self._segment_path(job, epoch), job.recording.mode
        found = await file_threads.BULK.run(segment_scan.scan, path, mode, known_ms)
        return capture_progress.CaptureProgress(
            media_ms=found.media_ms,
            size_bytes=found.size_bytes,
            first_packet_ms=self._corrected(found.first_packet_ms),
            last_packet_ms=self._corrected(found.last_packet_ms),
        )

    def _corrected(self, at_ms: int | None) -> int | None:
        return at_ms - self._clock.skew_ms if at_ms is not None else None

    async def fetch(self, job: due_work.Assignment, epoch: int, url: str) -> bool:
        """Copy a segment from another node to this spool."""
        token = self._settings.cluster_token.get_secret_value()
        with transcode.storage_errors():
            path = await file_threads.BULK.run(functools.partial(self._segment_path, job, epoch, make=True))
        return await segment_fetch.fetch(url, token, job.recording.key.text, epoch, path)

    async def transcode(self, job: due_work.Assignment, epoch: int, parts: Sequence[segments.Segment]) -> model.Output:
        """Make the finished file from its segments."""
        value = job.recording
        files = [
            transcode.SegmentFile(
                path=self._segment_path(job, s.epoch),
                first_packet_ms=s.first_packet_ms,
                last_packet_ms=s.last_packet_ms,
                media_ms=s.media_ms or None,
                registered_ms=s.registered_ms,
                anchors=s.anchors,
                ahead_ms=self._clock.skew_ms,
            )
            for s in parts
        ]
        names = (value.task_id, value.speaker, value.n)
        with transcode.storage_errors():
            output = await file_threads.BULK.run(self._spool.output_path, *names, value.mode, epoch)
        followed = self.follows(value.key)
        made = await self._finish_followed(value.key.text, epoch, files, output)
        with transcode.storage_errors():
            await file_threads.BULK.run(self._spool.remove_parts, *names, epoch)
        target = functools.partial(self._target, job)
        work = piece_work.Job(files=files, mode=value.mode, epoch=epoch, output=output, target=target)
        with self._counted(followed and made is None):
            if (whole := await piece_work.finish(work, self._transcode_whole)) is not None:
                await self.live_uploads.drop(value.key.text, abort=False)
                return whole
            if made is None:
                made = await self._transcode_whole(files, value.mode, output)
                await self.live_uploads.drop(value.key.text)  # only now: COS may be slow
        return made.stored(epoch)

    @contextlib.contextmanager
    def _counted(self, gave_up: bool) -> Iterator[None]:
        self.gave_up += gave_up
        try:
            yield
        finally:
            self.gave_up -= gave_up

    async def upload(
        self, job: due_work.Assignment, state: dict[str, Any] | None, save: work_ports.SaveState
    ) -> uploaded_object.UploadedObject:
        """Upload the finished file to the bucket."""
        value = job.recording
        epoch = value.output.epoch if value.output else 0
        path = self._spool.output_path(value.task_id, value.speaker, value.n, value.mode, epoch, make=False)
        known = cos_upload.UploadState.from_json(json.dumps(state)) if state else None
        verified = _verified(value.output)

        async def keep(reached: cos_upload.UploadState) -> None:
            await save(json.loads(reached.to_json()))

        try:
            keys = await self._chain.resolve(job.secrets.to_json())
            await self._upload_earlier(job, path.parent, keys)
            target = self._target(job, object_places.number(value))
            known = known or self.live_uploads.state(value.key.text, epoch, target)
            known = known or await file_threads.BULK.run(piece_uploads.load, piece_work.upload_path(path), target)
            done = await self.uploader.upload(path, target, keys, state=known, save=keep, verified=verified)
            await self.live_uploads.drop(value.key.text, abort=False)
            return done
        except errors.InvalidParameter as error:
            raise errors.UploadFailed(error.message, reason=Reason.REFUSED, retry=error.retry) from error
        except errors.UploadFailed as error:
            if error.reason == Reason.EXPIRED_TOKEN:
                self._chain.forget()
            if error.reason == Reason.FILE_MISSING and (lost := await file_threads.BULK.run(self._spool.lost)):
                raise errors.UploadFailed(lost, reason=Reason.SPOOL_LOST, retry=True) from error
            raise

    async def _upload_earlier(self, job: due_work.Assignment, folder: Path, keys: credentials.Credentials) -> None:
        """Complete the objects of the recording's earlier files."""
        earlier = job.recording.output.earlier if job.recording.output else ()
        for piece in (await file_threads.BULK.run(pieces.of, folder))[: len(earlier)]:
            target = self._target(job, piece.number)

            async def keep(reached: cos_upload.UploadState, piece: pieces.Piece = piece) -> None:
                await file_threads.BULK.run(piece_uploads.save, piece.upload_path, self._target(job, piece.number), reached)

            known = await file_threads.BULK.run(piece_uploads.load, piece.upload_path, target)
            verified = _verified(piece.output)
            await self.uploader.upload(piece.path, target, keys, state=known, save=keep, verified=verified)

    async def file_url(self, job: due_work.Assignment) -> str:
        """A URL by which a browser plays the uploaded file for FILE_URL_S. Raises Refused without credentials for it."""
        try:
            keys = await self._chain.resolve(job.secrets.to_json())
        except credentials.NoCredentials as error:
            raise errors.Refused(NO_CREDENTIALS) from error
        return cos_requests.presigned(self._target(job, object_places.number(job.recording)), keys, FILE_URL_S)

    def file_origin(self, request: requests.StartRequest) -> str:
        """The origin of these URLs."""
        endpoint = self._settings.cos_server
        target = cos_target.CosTarget(region=request.region, bucket=request.bucket, key="any", endpoint=endpoint)
        return cos_target.origin(target)

    async def deliver(self, delivery: model.Delivery) -> None:
        """Post the result. Its id is the same in every retry."""
        webhook_id = f"{delivery.task_id}.{delivery.revision}"
        await self.webhook.send(delivery.url, delivery.body.encode(), webhook_id=webhook_id, now_s=self._clock() // 1000)

    async def write_manifest(self, manifest: due_work.ManifestAssignment) -> None:
        """Write a manifest to the bucket, in the place of an older one."""
        request, task_id = manifest.session.request, manifest.session.task_id
        try:
            target = object_places.in_bucket(request, cos_target.manifest_key(request.path, task_id), self._settings.cos_server)
            keys = await self._chain.resolve(manifest.secrets.to_json())
            await self.uploader.put(manifest.body, target, keys)
        except errors.InvalidParameter as error:
            raise errors.DeliveryFailed(error.message, reason=Reason.REFUSED, retry=error.retry) from error
        except errors.UploadFailed as error:
            if error.reason == Reason.EXPIRED_TOKEN:
                self._chain.forget()
            raise errors.DeliveryFailed(error.detail, reason=error.reason, retry=error.retry) from error

    async def probe_spool(self) -> str:
        """Why the spool cannot be written and read now; "" if it can."""
        return await self._probe.run()

    async def remove(self, recording: job_key.RecordingKey, until_epoch: int) -> int:
        """Delete the files that epochs up to this one wrote for a recording."""
        await self.followers.drop(recording.text)
        await self.live_uploads.drop(recording.text)
        names = (recording.task_id, recording.speaker, recording.n)
        return await file_threads.BULK.run(self._spool.remove_files, *names, until_epoch)

    async def remove_outputs(self, recording: job_key.RecordingKey, before_epoch: int, except_epoch: int) -> int:
        """Delete the outputs of transcodes before `before_epoch`, except that of `except_epoch`."""
        names = (recording.task_id, recording.speaker, recording.n)
        return await file_threads.BULK.run(self._spool.remove_outputs, *names, before_epoch, except_epoch)

    async def task_ids_on_spool(self) -> list[str]:
        """The TaskIds that have files on the spool."""
        names = await file_threads.BULK.run(os.listdir, self._spool.root)
        return [name for name in names if len(name) == TASK_ID_CHARS]

    def _segment_path(self, job: due_work.Assignment, epoch: int, *, make: bool = False) -> Path:
        value = job.recording
        return self._spool.segment_path(value.task_id, value.speaker, value.n, epoch, make=make)

    async def segment_file(self, recording_id: str, epoch: int, suffix: str = "") -> tuple[Path, int] | None:
        """A file of a segment on this node's spool for another node, named as the segment and `suffix`: its path and when it was
        last written (Unix ms). None for an invalid id, and if there is no such file."""
        try:
            key = job_key.parse_recording(recording_id)
        except ValueError:
            return None
        path = self._spool.segment_path(key.task_id, key.speaker, key.n, epoch, make=False)
        path = path.with_name(path.name + suffix)
        try:
            found = await file_threads.LIVE.run(path.stat)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return path, found.st_mtime_ns // 1_000_000

    def _target(self, job: due_work.Assignment, number: int = 1) -> cos_target.CosTarget:
        return object_places.target(job.session.request, job.recording, self._settings.cos_server, number)

    def _address(self, job: due_work.Assignment) -> str:
        request, room = job.session.request, job.session.request.room
        user, sig = request.user_id, job.secrets.user_sig
        key = self._settings.trtc_keys.get(room.sdk_app_id)
        if key is not None and (not sig or self._settings.pull_user == "per-speaker"):
            if self._settings.pull_user == "per-speaker":
                user = pull_users.of(job.session, job.recording)
            sig = usersig.mint(room.sdk_app_id, key.get_secret_value(), user, USER_SIG_FOR_S)
        return pull_url.pull_address(
            self._settings.pull_address or pull_url.DEFAULT_TEMPLATE,
            sdk_app_id=room.sdk_app_id,
            room_id=room.room_id or None,
            str_room_id=room.str_room_id,
            user_id=user,
            user_sig=sig,
            speaker=job.recording.speaker,
        )


def _verified(output: model.Output | None) -> file_parts.VerifiedFile | None:
    if output is None or not output.crc64:
        return None
    return file_parts.VerifiedFile(size_bytes=output.size_bytes, crc64=output.crc64)
