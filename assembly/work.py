"""The work of a node: capture, transcode, upload and delivery, composed from media, tencent and webhook. Also checks starts.

Rule: addresses and credentials stay inside these calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assembly.identity import clock
from config import settings as ops_settings
from events import codec
from machine import capture_progress, due_work, errors, job_key, model, segments, uploaded_object
from machine.reasons import Reason
from media import capture, ffmpeg_command, ffmpeg_process, segment_fetch, segment_scan, spool, transcode
from tencent import cos, cos_target, cos_upload, credentials, pull_url, usersig
from webhook import sender
from worker import work_ports

USER_SIG_FOR_S = 24 * 3600
TASK_ID_CHARS = 26


class NodeWork:
    """Implements worker.work_ports.Work with the node's spool, ffmpeg, COS and the webhook sender."""

    def __init__(self, settings: ops_settings.Settings, folder: spool.Spool, chain: credentials.CredentialChain) -> None:
        self._settings = settings
        self._spool = folder
        self._chain = chain
        ffmpeg_process.check_tools()
        self._ffmpeg = ffmpeg_command.find(settings.ffmpeg_binary)
        self.uploader = cos.CosUploader()
        self._transcoder = transcode.Transcoder(self._ffmpeg)
        secret = settings.callback_secret.get_secret_value()
        # Bytes that the running captures still need. Set later, because the worker is built after its work.
        self.expected_bytes: Callable[[], int] = lambda: 0
        # Whether there is capacity for a start: on this spool, unless other nodes capture too.
        self.check_capacity: Callable[[], Awaitable[tuple[str, ...]]] = self._check_space
        self._captures: weakref.WeakSet[capture.Capture] = weakref.WeakSet()
        self._webhook = sender.WebhookSender(secret=secret, allow=settings.callback_allow)

    def capture(self, job: due_work.Assignment, epoch: int, on_media: work_ports.OnMedia) -> work_ports.Capture:
        """Make a capture of the speaker's stream into the segment of `epoch`."""
        spec = capture.CaptureSpec(address=self._address(job), path=self._segment_path(job, epoch), mode=job.recording.mode)
        made = capture.Capture(spec, ffmpeg=self._ffmpeg, on_media=on_media)
        self._captures.add(made)
        return made

    def live_pids(self) -> list[int]:
        """Process ids of the running captures' ffmpegs."""
        return [each.pid for each in self._captures if each.pid and not each.ended]

    async def scan(self, job: due_work.Assignment, epoch: int, known_ms: int) -> capture_progress.CaptureProgress:
        """The media of the segment of `epoch`."""
        path, mode = self._segment_path(job, epoch), job.recording.mode
        found = await asyncio.to_thread(segment_scan.scan, path, mode, known_ms)
        return capture_progress.CaptureProgress(
            media_ms=found.media_ms,
            size_bytes=found.size_bytes,
            first_packet_ms=found.first_packet_ms,
            last_packet_ms=found.last_packet_ms,
        )

    async def fetch(self, job: due_work.Assignment, epoch: int, url: str) -> bool:
        """Copy a segment from another node to this spool."""
        token = self._settings.cluster_token.get_secret_value()
        return await segment_fetch.fetch(url, token, str(job.recording.key), epoch, self._segment_path(job, epoch))

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
            )
            for s in parts
        ]
        await asyncio.to_thread(self._spool.remove_parts, value.task_id, value.speaker, value.n, epoch)
        output = self._spool.output_path(value.task_id, value.speaker, value.n, value.mode, epoch)
        made = await self._transcoder.transcode(files, value.mode, output)
        gaps = tuple((round(g.at_s * 1000), round(g.duration_s * 1000)) for g in made.gaps)
        return model.Output(
            duration_ms=made.duration_ms,
            size_bytes=made.size_bytes,
            crc64=made.crc64 or "",
            start_ms=made.start_ms,
            end_ms=made.end_ms,
            gaps=gaps,
            epoch=epoch,
        )

    async def upload(
        self, job: due_work.Assignment, state: dict[str, Any] | None, save: work_ports.SaveState
    ) -> uploaded_object.UploadedObject:
        """Upload the finished file to the bucket."""
        value = job.recording
        epoch = value.output.epoch if value.output else 0
        path = self._spool.output_path(value.task_id, value.speaker, value.n, value.mode, epoch)
        known = cos_upload.UploadState.from_json(json.dumps(state)) if state else None

        async def keep(reached: cos_upload.UploadState) -> None:
            await save(json.loads(reached.to_json()))

        try:
            target, keys = self._target(job), await self._credentials(job.secrets.to_json())
            return await self.uploader.upload(path, target, keys, state=known, save=keep)
        except errors.InvalidParameter as error:
            raise errors.UploadFailed(error.message, reason=Reason.REFUSED, retry=error.retry) from error
        except errors.UploadFailed as error:
            if error.reason == Reason.EXPIRED_TOKEN:
                self._chain.forget()
            raise

    async def deliver(self, delivery: model.Delivery) -> None:
        """Post the result. Its id is the same in every retry."""
        webhook_id = f"{delivery.task_id}.{delivery.revision}"
        await self._webhook.send(delivery.url, delivery.body.encode(), webhook_id=webhook_id, now_s=clock() // 1000)

    async def remove(self, recording: job_key.RecordingKey, until_epoch: int) -> int:
        """Delete the files that epochs up to this one wrote for a recording."""
        return await asyncio.to_thread(self._spool.remove_files, recording.task_id, recording.speaker, recording.n, until_epoch)

    async def remove_outputs(self, recording: job_key.RecordingKey, before_epoch: int, except_epoch: int) -> int:
        """Delete the outputs of transcodes before `before_epoch`, except that of `except_epoch`."""
        names = (recording.task_id, recording.speaker, recording.n)
        return await asyncio.to_thread(self._spool.remove_outputs, *names, before_epoch, except_epoch)

    async def task_ids_on_spool(self) -> list[str]:
        """The TaskIds that have files on the spool."""
        names = await asyncio.to_thread(os.listdir, self._spool.root)
        return [name for name in names if len(name) == TASK_ID_CHARS]

    def _segment_path(self, job: due_work.Assignment, epoch: int) -> Path:
        value = job.recording
        return self._spool.segment_path(value.task_id, value.speaker, value.n, epoch)

    def path_of(self, recording_id: str, epoch: int) -> Path | None:
        """Path of a segment on this node's spool, for another node; None for an invalid id."""
        try:
            key = job_key.parse_recording(recording_id)
        except ValueError:
            return None
        return self._spool.segment_path(key.task_id, key.speaker, key.n, epoch)

    def _target(self, job: due_work.Assignment) -> cos_target.CosTarget:
        request, value = job.session.request, job.recording
        key = cos_target.object_key(request.path, value.task_id, value.speaker, value.n, value.mode)
        return cos_target.CosTarget(region=request.region, bucket=request.bucket, key=key, endpoint=self._settings.cos_server)

    async def _credentials(self, secrets: Mapping[str, str]) -> credentials.Credentials:
        """The keys of the start, or else of the chain. Raises InvalidParameter."""
        explicit = None
        if secrets.get("SecretId"):
            explicit = credentials.Credentials(
                secret_id=secrets["SecretId"], secret_key=secrets["SecretKey"], token=secrets.get("Token", "")
            )
        return await self._chain.resolve(explicit)

    async def check_start(self, data: codec.Data) -> tuple[str, ...]:
        """Check a start before it is decided: capacity, the bucket, the UserSig's age; returns warnings.

        Raises InsufficientSpace, Unavailable and InvalidParameter."""
        warnings = [*await self.check_capacity()]
        left_s = usersig.remaining_s(data.get("UserSig", ""), clock() // 1000)
        if left_s is not None and left_s <= 0:
            warnings.append("The UserSig has expired: pulls will be refused until a repeated start brings a fresh one.")
        if data.get("Callback"):
            self._webhook.check(data["Callback"])
            if not self._settings.callback_secret.get_secret_value():
                warnings.append("The result will be posted unsigned: the service has no CALLBACK_SECRET.")
        config = data["CosConfig"]
        cos_target.check_path(config["Path"])
        keys = await self._credentials(config)
        target = cos_target.CosTarget(
            region=config["Region"], bucket=config["Bucket"], key="probe", endpoint=self._settings.cos_server
        )
        try:
            warnings.append(await self.uploader.check_bucket(target, keys))
        except errors.UploadFailed as error:
            if not error.retry:
                raise errors.InvalidParameter(f"CosConfig.Bucket: {error.detail}", field="CosConfig.Bucket") from error
            warnings.append(f"The bucket could not be checked: {error.detail}")
        return tuple(w for w in warnings if w)

    async def _check_space(self) -> tuple[str, ...]:
        free_bytes, needed_bytes = self._spool.free_bytes(), self.needed_bytes()
        if free_bytes < needed_bytes:
            raise errors.InsufficientSpace(
                f"The spool {self._spool.root} has {free_bytes >> 20} MiB free, and {needed_bytes >> 20} MiB are needed for"
                " MIN_FREE and the captures that run. Make room there, or lower MIN_FREE or CAPTURE_RESERVE."
            )
        return ()

    def needed_bytes(self) -> int:
        """Bytes that must be free on the spool for another capture: MIN_FREE, and the needs of the running captures."""
        return self._min_free_bytes() + self.expected_bytes()

    def _min_free_bytes(self) -> int:
        """MIN_FREE; if unset, at most a tenth of the spool."""
        settings = self._settings
        if "min_free_bytes" in settings.model_fields_set:
            return settings.min_free_bytes
        return min(settings.min_free_bytes, self._spool.total_bytes() // 10)

    def _address(self, job: due_work.Assignment) -> str:
        request, room = job.session.request, job.session.request.room
        user, sig = request.user_id, job.secrets.user_sig
        key = self._settings.trtc_keys.get(room.sdk_app_id)
        if key is not None and (not sig or self._settings.pull_user == "per-speaker"):
            if self._settings.pull_user == "per-speaker":
                # TRTC allows user ids of up to 32 bytes. A digest separates speakers with a common prefix.
                digest = hashlib.sha256(job.recording.speaker.encode()).hexdigest()[:12]
                user = f"{user.encode()[:19].decode(errors='ignore')}-{digest}"
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
