"""Following a service over time: its results as they come, a session until it is Finished. Imports nothing of ours but this room.

Rule: once it has answered, a service that is away for a while (a restart) is asked again until it is back; nothing is passed
over, because the cursor says where to go on.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cli import client, output

Json = dict[str, Any]

WAIT_S = 20.0
AGAIN_S = 1.0


def results(
    service: client.Client,
    *,
    after: str,
    types: Sequence[str] = (),
    follow: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Json]:
    """Each result behind the cursor `after`; with `follow` without end. Raises ClientError."""
    answer = service.results(after=after, types=types)
    while True:
        yield from answer["Results"]
        if not answer["Results"] and not follow:
            return
        wait_s = WAIT_S if follow else 0
        answer = _again(functools.partial(service.results, after=answer["Next"], types=types, wait_s=wait_s), pause)


def session(
    service: client.Client, task_id: str, every_s: float, *, pause: Callable[[float], None] = time.sleep
) -> Iterator[Json]:
    """The session as it stands, each `every_s`, until it is Finished. Raises ClientError."""
    answer = service.session(task_id)
    yield answer
    while answer["State"] != "Finished":
        pause(every_s)
        answer = _again(lambda: service.session(task_id), pause)
        yield answer


def _again(ask: Callable[[], Json], pause: Callable[[float], None]) -> Json:
    told = False
    while True:
        try:
            return ask()
        except client.ClientError as error:
            if error.exit_code != client.UNREACHABLE:
                raise
            if not told:
                output.failure(f"{error} It is asked again until it answers.")
                told = True
            pause(AGAIN_S)
