"""TaskIds as people type them: whole, or the first characters of one.

Rule: a beginning of at least 6 characters counts if one session has it. TaskIds sort by time, so the sessions of a beginning are
neighbors in the list, and one request finds them.
"""

from __future__ import annotations

import re

from cli import client, exits, times

LENGTH = 26
SHORTEST = 6
LISTED = 10
_BEGINNING = re.compile(rf"[0-7][0-9A-HJKMNP-TV-Z]{{{SHORTEST - 1},{LENGTH - 2}}}")


def resolve(service: client.ServiceClient, typed: str) -> str:
    """The TaskId that `typed` stands for. A text that cannot be a beginning of one is returned unchanged. Raises ClientError."""
    beginning = typed.strip().upper()
    if not _BEGINNING.fullmatch(beginning):
        return beginning if len(beginning) == LENGTH else typed
    newer = beginning + "Z" * (LENGTH - len(beginning))
    page = service.sessions(before=newer, limit=str(LISTED + 1))["Sessions"]
    found = [each for each in page if each["TaskId"].startswith(beginning)]
    if not found:
        raise client.ClientError(f"No TaskId begins with {beginning}; `recorder sessions` lists them.", exits.NOT_FOUND)
    if len(found) > 1:
        lines = [f"{s['TaskId']}  {s['State']}, opened {times.shown(s['OpenedTime'])}" for s in found[:LISTED]]
        more = [f"… and older ones: recorder sessions --before {found[LISTED - 1]['TaskId']}"] if len(found) > LISTED else []
        text = "\n".join([f"Several TaskIds begin with {beginning}; type more of one:", *lines, *more])
        raise client.ClientError(text, exits.USAGE, {"Message": text, "TaskIds": [s["TaskId"] for s in found[:LISTED]]})
    return str(found[0]["TaskId"])
