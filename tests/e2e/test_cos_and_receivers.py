"""Faults of COS and of result receivers: every kind of fault, every step of an upload, tokens that expire midway, and receivers
that are slow, broken, redirecting or gone. Every recording ends Done, nothing leaks or doubles, and each result is delivered
once. Every fault at every step: `tests/integration/test_simulator_cos_faults.py`, with the uploader alone.

An empty box at the end of the MP4 makes files larger, and parts are as small as COS allows, so an upload has a first, a middle
and a last part.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from simulator.cos import faults, signature
from tests import backends, service_process, waiting
from tests.chaos import fault_figures
from tests.e2e.conftest import BUCKET, REGION, SECRET_ID, SECRET_KEY, World, live_for, receiver
from tests.e2e.scenes import Scene

SMALL_PARTS = (
    "from tencent import cos; cos.CosUploader.__init__.__kwdefaults__['first_part_bytes'] = 1 << 20; "
    "import service; service.main()"
)
PADDING_BYTES = 0x220000
STEPS: dict[str, dict[str, Any]] = {
    "create": {"operation": "initiate"},
    "first": {"operation": "upload-part"},
    "middle": {"operation": "upload-part", "skip": 1},
    "last": {"operation": "upload-part", "skip": 2},
    "complete": {"operation": "complete"},
    "head": {"operation": "head-object"},
}
WRONGS: dict[str, dict[str, Any]] = {
    "500": {"action": faults.STATUS, "status": 500, "code": "InternalError"},
    "503": {"action": faults.STATUS, "times": 2},
    "reset": {"action": faults.RESET},
    "late": {"action": faults.DELAY, "delay_s": 1.5},
    "lost": {"action": faults.COMMIT_THEN_RESET},
}
OUTLASTING = {"action": faults.STATUS, "times": 5}
"""More faults than the retries of one upload call: the recording waits in Uploading and is retried."""
PASSING: dict[str, dict[str, Any]] = WRONGS | {"outlasting": OUTLASTING}
PAIRS = {
    backends.EMBEDDED: list(zip(PASSING, [*STEPS][1:] + [*STEPS][:1], strict=True)),
    backends.DISTRIBUTED: list(zip(PASSING, STEPS, strict=True)),
}
"""Each fault and each step once, in other pairs on the other engine."""
TEMPORARY = signature.Account(secret_id="AKIDtemporary", secret_key="temporary-key", token="temporary-token")
FRESH = {"SecretId": SECRET_ID, "SecretKey": SECRET_KEY}


def padding(folder: Path) -> str:
    """An ffmpeg that enlarges every MP4 by an empty box at its end."""
    script = folder / "padding-ffmpeg"
    size = "".join(f"\\x{byte:02x}" for byte in PADDING_BYTES.to_bytes(4, "big"))
    script.write_text(
        "#!/bin/bash\n"
        'case "$*" in *pipe:0*)\n'
        "  for a; do [[ $a == *.part ]] && out=$a; done\n"
        f'  {imageio_ffmpeg.get_ffmpeg_exe()} "$@" || exit\n'
        f"  {{ printf '{size}free'; head -c {PADDING_BYTES - 8} /dev/zero; }} >> \"$out\"; exit\n"
        "esac\n"
        f'exec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def rules(engine: str) -> list[faults.Fault]:
    """One speaker per combination of a fault and a step."""
    passing = [faults.Fault(**(PASSING[name] | STEPS[at]), key=f"*/{name}-{at}_1.mp4") for name, at in PAIRS[engine]]
    expired = [
        faults.Fault(action=faults.EXPIRED_TOKEN, times=0, key=f"*/expired-{at}_1.mp4", signer=TEMPORARY.secret_id, **STEPS[at])
        for at in STEPS
    ]
    # A refused HEAD has no error code, so the uploader asks for it by a GET, which the same token is refused for.
    by_get = faults.Fault(action=faults.EXPIRED_TOKEN, times=0, operation="list-objects", signer=TEMPORARY.secret_id)
    return [*passing, *expired, by_get]


async def enter(scene: Scene, names: list[str], **start: Any) -> list[tuple[Scene, str]]:
    """Start a session, let these speakers enter and record them for a moment. Returns the audit's expectation."""
    await scene.start("02", **start)
    await asyncio.gather(*(scene.join(name) for name in names))
    await scene.recordings(*["Recording"] * len(names), timeout_s=150)
    await live_for(1)
    return [(scene, name) for name in names]


async def at_every_step(world: World) -> list[tuple[Scene, str]]:
    """Faults that pass, and faults that outlast the retries of one call."""
    names = [f"{name}-{at}" for name, at in PAIRS[world.engine]]
    scene = Scene(world, "every-step")
    expected = await enter(scene, names)
    await scene.room.dismiss()
    await world.service.finished(scene.task_id, 200)
    await scene.files("RoomDestroyed")
    return expected


async def tokens_expire(world: World, name: str, *, by_replay: bool) -> list[tuple[Scene, str]]:
    """A token that expires at each of these steps, renewed by a repeated start while the room is live, or by a later replay."""
    config = {"Region": REGION, "Bucket": BUCKET, "Path": "lessons", "SecretId": TEMPORARY.secret_id}
    config |= {"SecretKey": TEMPORARY.secret_key, "Token": TEMPORARY.token}
    scene = Scene(world, name)
    names = [f"expired-{at}" for at in STEPS]
    expected = await enter(scene, names, CosConfig=config)
    for speaker in list(scene.room.speakers.values()):
        await speaker.leave()
    if by_replay:
        await scene.room.dismiss()
    await scene.recordings(*["Uploading"] * len(names), timeout_s=150)
    await scene.noted("ExpiredToken", timeout_s=150, times=len(names))
    if by_replay:
        await world.service.post(f"/sessions/{scene.task_id}/replay", {"CosConfig": FRESH})
    else:
        again = await world.service.post("/sessions", world.request(name, Mode="02", CosConfig=config | FRESH | {"Token": ""}))
        assert (again["TaskId"], again["Repeated"]) == (scene.task_id, True)
    await scene.recordings(*["Done"] * len(names), timeout_s=150)
    await scene.room.dismiss()
    await scene.files("RoomDestroyed")
    return expected


async def receivers(world: World, name: str, status: int, delay_s: float) -> list[tuple[Scene, str]]:
    """A receiver that gives this response once; it must then get the same body under the same id."""
    scene = Scene(world, name)
    inbox = world.simulator.receiver
    inbox.answer_with(receiver(name), status, delay_s=delay_s)
    expected = await enter(scene, ["alice"])
    await scene.room.dismiss()
    await waiting.until(scene.results, 150, f"the first post to {name}", every_s=0.1)
    inbox.answer_with(receiver(name), 200)
    wanted = "failed" if status == 410 else "delivered"

    async def settled() -> bool:
        return [c["State"] for c in (await world.service.session(scene.task_id))["Callbacks"]] == [wanted]

    await waiting.until(settled, 100, f"the callback of {name} to be {wanted}", every_s=0.3)
    posts = inbox.received[receiver(name)]
    ids = {{header.lower(): value for header, value in post.headers.items()}["webhook-id"] for post in posts}
    assert (len(posts), len(ids), len({post.body for post in posts})) == (1 if status == 410 else 2, 1, 1)
    return expected


@pytest.mark.timeout(300)
async def test_every_fault_of_cos_and_of_receivers(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One service survives six uploads with a fault at one step each, twelve expired tokens, and four faulty receivers."""
    monkeypatch.setattr(service_process.ServiceProcess, "program", SMALL_PARTS)
    world.simulator.cos.accounts[TEMPORARY.secret_id] = TEMPORARY
    struck_once = rules(world.engine)
    world.simulator.cos.faults.set(*struck_once)
    await world.serve(FFMPEG_BINARY=padding(tmp_path), LINGER="1s")
    done = await asyncio.gather(
        at_every_step(world),
        tokens_expire(world, "by-start", by_replay=False),
        tokens_expire(world, "by-replay", by_replay=True),
        receivers(world, "slow", 200, delay_s=11),
        receivers(world, "broken", 500, delay_s=0),
        receivers(world, "moved", 302, delay_s=0),
        receivers(world, "gone", 410, delay_s=0),
    )
    struck = {(s.key.rsplit("/", 1)[-1], s.operation) for s in world.simulator.cos.served if s.fault}
    assert len({key for key, _ in struck}) == len(struck_once), "a fault that struck nobody"
    parts = [
        s
        for s in world.simulator.cos.served
        if s.operation == "upload-part" and s.status == 200 and s.key.endswith("alice_1.mp4")
    ]
    assert len(parts) == 3 * 4, "files of three parts"
    assert not world.simulator.receiver.received["elsewhere"]
    assert world.backend is not None
    await fault_figures.audited(world, world.backend.database, [each for found in done for each in found])
