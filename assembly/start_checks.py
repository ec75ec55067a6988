"""Checks of a start before it is decided: capacity, the callback URL and its host, the object key, the bucket, the UserSig's age.

Rules: a start that cannot be recorded is refused with the setting or field to change. Everything else is a warning. What other
machines answer is awaited for LIMIT_S in total; then the start proceeds with a warning.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from assembly import identity
from assembly import work as node_work
from config import settings as settings_module
from events import codec
from machine import attention, errors, start_warnings
from media import free_space
from tencent import cos_target, credentials, usersig

LIMIT_S = 2.0
PROBE_S = 0.5


class SpoolSpace:
    """Free space of a spool against the needs of its captures. `expected_bytes` is set once the worker exists."""

    def __init__(self, settings: settings_module.Settings, free: free_space.FreeSpace) -> None:
        self._settings = settings
        self._free = free
        self.expected_bytes: Callable[[], int] = lambda: 0

    async def check(self) -> tuple[str, ...]:
        """Raise InsufficientSpace if there is no space for another capture, Unavailable for a spool that hangs; returns no
        warnings."""
        await self._free.measure()
        free_bytes, needed_bytes = self._free.free_bytes(), self.needed_bytes()
        if free_bytes < needed_bytes:
            raise errors.InsufficientSpace(
                f"The spool {self._free.root} has {free_bytes >> 20} MiB free, and {needed_bytes >> 20} MiB are needed for"
                " MIN_FREE and the captures that run. Make room there, or lower MIN_FREE or CAPTURE_RESERVE."
            )
        return ()

    async def view(self, now_ms: int, skew_ms: int) -> attention.NodeView:
        """This node as others see one by its heartbeat. A spool that hangs is waited for only shortly: probes ask."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROBE_S):
                await self._free.measure()
        try:
            free_bytes, needed_bytes = self._free.free_bytes(), self.needed_bytes()
        except errors.Unavailable:
            free_bytes, needed_bytes = None, 0
        return attention.NodeView(node="", seen_ms=now_ms, free_bytes=free_bytes, needed_bytes=needed_bytes, skew_ms=skew_ms)

    def needed_bytes(self) -> int:
        """Bytes that must be free for another capture: MIN_FREE, and the needs of the running captures."""
        return self._min_free_bytes() + self.expected_bytes()

    def _min_free_bytes(self) -> int:
        """MIN_FREE; if unset, at most a tenth of the spool."""
        settings = self._settings
        if "min_free_bytes" in settings.model_fields_set:
            return settings.min_free_bytes
        return min(settings.min_free_bytes, self._free.total_bytes() // 10)


class StartChecks:
    """Checks starts. `check_capacity` looks at this node's spool, or at all workers if there are several nodes."""

    def __init__(
        self,
        settings: settings_module.Settings,
        work: node_work.NodeWork,
        chain: credentials.CredentialChain,
        check_capacity: Callable[[], Awaitable[tuple[str, ...]]],
        clock: Callable[[], int] = identity.clock,
    ) -> None:
        self._settings = settings
        self._work = work
        self._chain = chain
        self._check_capacity = check_capacity
        self._clock = clock

    async def check(self, data: codec.Data) -> tuple[str, ...]:
        """Check the data of a start; returns warnings. Raises InsufficientSpace, Unavailable and InvalidParameter."""
        until = asyncio.get_running_loop().time() + LIMIT_S
        warnings = [*await self._check_capacity()]
        left_s = usersig.remaining_s(data.get("UserSig", ""), self._clock() // 1000)
        if left_s is not None and left_s <= 0:
            warnings.append(
                f"{start_warnings.EXPIRED_USER_SIG}: pulls will be refused until a repeated start brings a fresh one."
            )
        url = data.get("Callback", "")
        if url:
            self._work.webhook.check(url)
            if not self._settings.callback_secret.get_secret_value():
                warnings.append("The result will be posted unsigned: the service has no CALLBACK_SECRET.")
        cos_target.check_longest_key(data["CosConfig"]["Path"], data.get("SubscribeUserIds", ()))
        receiver = asyncio.create_task(self._check_receiver(url, until), name="start-check-receiver")
        try:
            async with asyncio.timeout_at(until):
                warnings.append(await self._check_bucket(data["CosConfig"]))
        except TimeoutError:
            warnings.append(f"{start_warnings.BUCKET_UNCHECKED} within {LIMIT_S:g} s; the recording starts all the same.")
        except BaseException:
            receiver.cancel()
            raise
        warnings.append(await receiver)
        return tuple(w for w in warnings if w)

    async def _check_receiver(self, url: str, until: float) -> str:
        """A warning about the host of the callback URL, or ""."""
        if not url:
            return ""
        try:
            async with asyncio.timeout_at(until):
                reason = await self._work.webhook.unreachable(url)
        except TimeoutError:  # a slow lookup says nothing about the host
            late = f"its host could not be looked up within {LIMIT_S:g} s; the result is posted all the same."
            return f"{start_warnings.CALLBACK} {late}"
        return (
            f"{start_warnings.CALLBACK} {reason}. As it is, the result cannot be posted there; GET /results has it too."
            if reason
            else ""
        )

    async def _check_bucket(self, config: codec.Data) -> str:
        """A warning about the bucket, or "". Raises InvalidParameter without credentials, or for a bucket that refuses them, and
        Unavailable while a role's service fails."""
        try:
            keys = await self._chain.resolve(config)
        except credentials.NoCredentials as error:
            if error.temporary:
                raise errors.Unavailable(error.message) from error
            # No retry brings keys, so the publisher of a bus request gets a refusal and no silence.
            raise errors.InvalidParameter(error.message, field=error.field) from error
        target = cos_target.CosTarget(
            region=config["Region"], bucket=config["Bucket"], key="probe", endpoint=self._settings.cos_server
        )
        try:
            return await self._work.uploader.check_bucket(target, keys)
        except errors.UploadFailed as error:
            if not error.retry:
                raise errors.InvalidParameter(f"CosConfig.Bucket: {error.detail}", field="CosConfig.Bucket") from error
            return f"{start_warnings.BUCKET_UNCHECKED}: {error.detail}"
