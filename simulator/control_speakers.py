"""Speakers in the control API: entering and changes.

Rule: everything given is checked before anything changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator import bodies, content, live, rooms, speakers

JOINING: bodies.Fields = {"UserId": str, "Audio": bool, "Video": bool, "Size": str, "Number": int}
CHANGING: bodies.Fields = {
    "Audio": bool,
    "Video": bool,
    "Screen": bool,
    "Role": int,
    "Size": str,
    "Stalled": bool,
    "Answers": bool,
    "Declares": str,
    "JumpMs": int,
    "Refuse": int,
    "RefuseBody": str,
}


def find(room: rooms.Room, user_id: str) -> speakers.Speaker:
    """The speaker of this room. Raises rooms.NotHere."""
    speaker = room.speakers.get(user_id)
    if speaker is None:
        raise rooms.NotHere(f"no speaker {user_id} in {room.handle}")
    return speaker


async def join(room: rooms.Room, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let a speaker enter; returns the speaker's view. Raises ValueError."""
    if not body.get("UserId"):
        raise ValueError("UserId is required")
    if not -1 <= body.get("Number", -1) < content.NUMBERS:
        raise ValueError(f"Number is 0 to {content.NUMBERS - 1}")
    speaker = await room.join(
        body["UserId"],
        audio=body.get("Audio", True),
        video=body.get("Video", True),
        size=body.get("Size", content.SIZES[0]),
        number=body.get("Number", -1),
    )
    return speakers.describe(speaker)


async def change(speaker: speakers.Speaker, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Apply all given changes, or none if one is wrong; returns the speaker's view. Raises ValueError."""
    _check(speaker, body)
    if body.get("Role") == speakers.AUDIENCE:
        await speaker.become_audience()
    elif "Role" in body:
        await speaker.become_anchor()
    speaker.publish(audio=body.get("Audio"), video=body.get("Video"))
    if "Screen" in body:
        await speaker.share_screen(body["Screen"])
    if "Size" in body:
        await speaker.resize(body["Size"])
    if "Stalled" in body:
        speaker.stall(answer=body.get("Answers", True)) if body["Stalled"] else speaker.resume()
    if "Declares" in body:
        speaker.declare(body["Declares"])
    speaker.jump(body.get("JumpMs", 0))
    if body.get("Refuse"):
        speaker.refuse(body["Refuse"], body.get("RefuseBody", ""))
    elif "Refuse" in body:
        speaker.accept()
    return speakers.describe(speaker)


def _check(speaker: speakers.Speaker, body: Mapping[str, Any]) -> None:
    choices = {"Role": (speakers.ANCHOR, speakers.AUDIENCE), "Size": content.SIZES, "Declares": live.DECLARATIONS}
    for name, allowed in choices.items():
        if name in body and body[name] not in allowed:
            raise ValueError(f"{name} is one of {', '.join(map(str, allowed))}")
    if body.get("Refuse") and not 200 <= body["Refuse"] < 600:
        raise ValueError("Refuse is a status from 200 to 599, or 0 to accept again")
    if body.get("Role", speaker.role) == speakers.AUDIENCE and (body.get("Audio") or body.get("Video")):
        raise ValueError("an audience member publishes nothing; become an anchor first")
