"""Polls the service: new results, or a session until it is Finished.

Rule: after a first answer, requests to an unreachable service (a restart) are retried until it answers. The cursor ensures that
no result is skipped.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cli import client, exits, output

Json = dict[str, Any]

WAIT_S = 20.0
RETRY_S = 1.0


def results(
    service: client.ServiceClient,
    *,
    after: str,
    types: Sequence[str] = (),
    follow: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Json]:
    """Every result after the cursor `after`; with `follow` new ones as well, without end. Raises ClientError."""
    answer = service.results(after=after, types=types)
    while True:
        yield from answer["Results"]
        if not answer["Results"] and not follow:
            return
        wait_s = WAIT_S if follow else 0
        answer = _retried(functools.partial(service.results, after=answer["Next"], types=types, wait_s=wait_s), pause)


def session(
    service: client.ServiceClient, task_id: str, every_s: float, *, pause: Callable[[float], None] = time.sleep
) -> Iterator[Json]:
    """The session, every `every_s`, until it is Finished. Raises ClientError."""
    answer = service.session(task_id)
    yield answer
    while answer["State"] != "Finished":
        pause(every_s)
        answer = _retried(lambda: service.session(task_id), pause)
        yield answer


def _retried(request: Callable[[], Json], pause: Callable[[float], None]) -> Json:
    reported = False
    while True:
        try:
            return request()
        except client.ClientError as error:
            if error.exit_code != exits.UNREACHABLE:
                raise
            if not reported:
                output.failure(f"{error} Retrying until it answers.")
                reported = True
            pause(RETRY_S)
