"""Retries on RabbitMQ: a message waits without a consumer, and then returns to the queue that it came from.

    consumer ──► exchange and queue recorder.retry.<ms> ──(expires)──► exchange recorder.retried ──► the same queue
                 (of a request: recorder.requests.retry.<ms>)

Rules:
- The copy is confirmed before the original is acknowledged. A crash in between leaves both, and the second is a repeat.
- The header `QUEUE` names the queue to return to. By its routing key a message could reach the queues of other nodes as well.
- A message keeps its routing key, and so its name in the table of counts.
- Only the recorder's user may write to `recorder.retried`, or declare a queue that dead-letters there (docs/bus.md).
"""

from __future__ import annotations

from dataclasses import replace

from aio_pika import abc

from bus import dead_letter_envelope, publisher
from bus import topology as topologies
from machine import supervised_task


def returned(message: abc.AbstractIncomingMessage, topology: topologies.Topology) -> bool:
    """Whether a message comes from one of the recorder's own queues of retries."""
    deaths = message.headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    queue = str(last.get("queue")) if isinstance(last, dict) else ""
    return message.exchange == topology.retried and queue in {level.name for level in topology.retries}


def original(message: abc.AbstractIncomingMessage, topology: topologies.Topology) -> dead_letter_envelope.Original:
    """The message as its publisher sent it: without the headers of earlier retries."""
    found = dead_letter_envelope.original(message)
    if not returned(message, topology):
        return found
    # With its old x-death, RabbitMQ would take the second retry for a cycle and drop the message.
    kept = {n: v for n, v in found.headers.items() if n != topologies.RETRY_QUEUE and not dead_letter_envelope.added_by_broker(n)}
    return replace(found, headers=kept)


def outgoing(
    message: abc.AbstractIncomingMessage, queue: topologies.Queue, topology: topologies.Topology, backoff_s: float
) -> publisher.Outgoing:
    """Make the copy that returns to `queue` after about `backoff_s`."""
    found, pause_ms = original(message, topology), round(supervised_task.jittered_s(backoff_s) * 1000)
    # A queue expires messages only at its head, so each one holds pauses of similar lengths.
    waiting = topology.retries_of(queue)
    level = next((each for limit_ms, each in zip(topologies.RETRY_MS, waiting, strict=True) if pause_ms <= limit_ms), waiting[-1])
    return publisher.Outgoing(
        exchange=level.name,
        key=found.key,
        body=found.body,
        properties=dict(found.properties) | {"expiration": pause_ms / 1000},
        headers=dict(found.headers) | {topologies.RETRY_QUEUE: queue.name},
    )
