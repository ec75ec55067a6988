"""The work of a node, joined from media and cloud: what worker.worker asks for, and the look at a start before it is decided.

May import every room but the simulator. Rule: addresses and credentials never leave these calls.
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

from assembly import segment_fetch
from assembly.identity import clock
from config import settings as ops_settings
from events import codec
from machine import due_work, errors, model
from machine.reasons import Reason
from media import capture, ffmpeg_command, ffmpeg_process, segment_scan, spool, transcode
from tencent import cos, cos_target, cos_upload, credentials, pull_url, usersig
from webhook import sender
from worker import work_ports

USER_SIG_FOR_S = 24 * 3600
TASK_ID_CHARS = 26


class Steps:
    """The work of a node, joined from media and cloud: what worker.worker asks for."""

    def __init__(self, settings: ops_settings.Settings, folder: spool.Spool, chain: credentials.CredentialChain) -> None:
        self._settings = settings
        self._spool = folder
        self._chain = chain
        ffmpeg_process.check_tools()
        self._ffmpeg = ffmpeg_command.find(settings.ffmpeg_binary)
        self.uploader = cos.CosUploader()
        self._transcoder = transcode.Transcoder(self._ffmpeg)
        secret = settings.callback_secret.get_secret_value()
        # What running captures still need; the worker that knows them is built after its steps.
        self.expected_bytes: Callable[[], int] = lambda: 0
        # Whether there is room for a start: on this spool, unless other nodes capture too.
        self.admit: Callable[[], Awaitable[tuple[str, ...]]] = self._check_space
        self._captures: weakref.WeakSet[capture.Capture] = weakref.WeakSet()
        self._webhook = sender.WebhookSender(secret=secret, allow=settings.callback_allow)

    def capture(self, job: due_work.Assignment, epoch: int, on_media: work_ports.OnMedia) -> work_ports.Capture:
        """A capture of the speaker's stream into the segment of `epoch`."""
        spec = capture.CaptureSpec(address=self._address(job), path=self.segment_path(job, epoch), mode=job.recording.mode)
        made = capture.Capture(spec, ffmpeg=self._ffmpeg, on_media=on_media)
        self._captures.add(made)
        return made

    def live_pids(self) -> list[int]:
        """The processes of the captures that run here."""
        return [each.pid for each in self._captures if each.pid and not each.ended]

    async def scan(self, job: due_work.Assignment, epoch: int, known_ms: int) -> work_ports.Scan:
        """What the segment holds."""
        return await asyncio.to_thread(segment_scan.scan, self.segment_path(job, epoch), job.recording.mode, known_ms)

    async def fetch(self, job: due_work.Assignment, epoch: int, url: str) -> bool:
        """Copy a segment from another node to this one's spool."""
        token = self._settings.cluster_token.get_secret_value()
        return await segment_fetch.fetch(url, token, job.recording.id, epoch, self.segment_path(job, epoch))

    async def transcode(self, job: due_work.Assignment, epoch: int, found: Sequence[Any]) -> work_ports.Finished:
        """Segments to the finished file."""
        value = job.recording
        files = [
            transcode.SegmentFile(
                path=self.segment_path(job, s.epoch),
                first_packet_ms=s.first_packet_ms,
                last_packet_ms=s.last_packet_ms,
                media_ms=s.media_ms or None,
                registered_ms=s.registered_ms,
            )
            for s in found
        ]
        await asyncio.to_thread(self._spool.remove_parts, value.task_id, value.speaker, value.n, epoch)
        output = self._spool.output_path(value.task_id, value.speaker, value.n, value.mode, epoch)
        made = await self._transcoder.transcode(files, value.mode, output)
        gaps = tuple((round(g.at_s * 1000), round(g.duration_s * 1000)) for g in made.gaps)
        return work_ports.Finished(
            output=model.Output(
                duration_ms=made.duration_ms,
                size_bytes=made.size_bytes,
                crc64=made.crc64 or "",
                start_ms=made.start_ms,
                end_ms=made.end_ms,
                gaps=gaps,
                epoch=epoch,
            )
        )

    async def upload(
        self, job: due_work.Assignment, state: dict[str, Any] | None, save: work_ports.SaveState
    ) -> work_ports.Uploaded:
        """The finished file into the bucket."""
        value = job.recording
        epoch = value.output.epoch if value.output else 0
        path = self._spool.output_path(value.task_id, value.speaker, value.n, value.mode, epoch)
        known = cos_upload.UploadState.from_json(json.dumps(state)) if state else None

        async def keep(reached: cos_upload.UploadState) -> None:
            await save(json.loads(reached.to_json()))

        try:
            target, keys = self.target(job), await self.credentials(job.secrets.to_json())
            done = await self.uploader.upload(path, target, keys, state=known, save=keep)
        except errors.InvalidParameter as error:
            raise errors.UploadFailed(error.message, reason=Reason.REFUSED, retry=error.retry) from error
        except errors.UploadFailed as error:
            if error.reason == Reason.EXPIRED_TOKEN:
                self._chain.forget()
            raise
        return work_ports.Uploaded(size_bytes=done.size_bytes, crc64=done.crc64, url=done.url)

    async def deliver(self, callback: model.Delivery) -> None:
        """Post the result; its id is the same over retries."""
        webhook_id = f"{callback.task_id}.{callback.revision}"
        await self._webhook.send(callback.url, callback.body.encode(), webhook_id=webhook_id, now_s=clock() // 1000)

    async def remove(self, recording_id: str, until_epoch: int) -> int:
        """Delete what epochs up to this one wrote of a recording."""
        return await asyncio.to_thread(self._spool.remove_files, *model.split_id(recording_id), until_epoch)

    async def remove_outputs(self, recording_id: str, before_epoch: int, but_epoch: int) -> int:
        """Delete what transcodes before `before_epoch` made, but for the one of `but_epoch`."""
        return await asyncio.to_thread(self._spool.remove_outputs, *model.split_id(recording_id), before_epoch, but_epoch)

    async def kept_sessions(self) -> list[str]:
        """The TaskIds of which something lies on the spool."""
        names = await asyncio.to_thread(os.listdir, self._spool.root)
        return [name for name in names if len(name) == TASK_ID_CHARS]

    def segment_path(self, job: due_work.Assignment, epoch: int) -> Path:
        """Where the segment of `epoch` lies."""
        value = job.recording
        return self._spool.segment_path(value.task_id, value.speaker, value.n, epoch)

    def path_of(self, recording_id: str, epoch: int) -> Path | None:
        """Where a segment lies on this node's spool, for another node; None for an id that is none."""
        try:
            task_id, speaker, n = model.split_id(recording_id)
        except ValueError:
            return None
        return self._spool.segment_path(task_id, speaker, n, epoch)

    def target(self, job: due_work.Assignment) -> cos_target.CosTarget:
        """The object that the recording becomes."""
        request, value = job.session.request, job.recording
        key = cos_target.object_key(request.path, value.task_id, value.speaker, value.n, value.mode)
        return cos_target.CosTarget(region=request.region, bucket=request.bucket, key=key, endpoint=self._settings.cos_server)

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
        InsufficientSpace, Unavailable, InvalidParameter."""
        warnings = [*await self.admit()]
        left_s = usersig.remaining_s(data.get("UserSig", ""), clock() // 1000)
        if left_s is not None and left_s <= 0:
            warnings.append("The UserSig has expired: pulls will be refused until a repeated start brings a fresh one.")
        if data.get("Callback"):
            self._webhook.check(data["Callback"])
            if not self._settings.callback_secret.get_secret_value():
                warnings.append("The result will be posted unsigned: the service has no CALLBACK_SECRET.")
        config = data["CosConfig"]
        cos_target.check_path(config["Path"])
        keys = await self.credentials(config)
        target = cos_target.CosTarget(
            region=config["Region"], bucket=config["Bucket"], key="probe", endpoint=self._settings.cos_server
        )
        try:
            warnings.append(await self.uploader.check_bucket(target, keys))
        except errors.UploadFailed as error:
            if not error.retry:
                raise errors.InvalidParameter(f"CosConfig.Bucket: {error.detail}", field="CosConfig.Bucket") from error
            warnings.append(f"The bucket could not be looked at: {error.detail}")
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
        """What must be free on the spool for another capture: MIN_FREE, and what those that run still need."""
        return self._min_free_bytes() + self.expected_bytes()

    def _min_free_bytes(self) -> int:
        """MIN_FREE; where nobody set it, at most a tenth of a small spool."""
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
                # TRTC knows user ids of up to 32 bytes; a digest keeps those of two speakers apart however they begin.
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
