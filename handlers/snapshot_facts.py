"""Facts of a decision about a recording, read from the snapshot only when a rule asks for them.

Rule: most decisions ask for none of the facts that cost a query, so an event costs the same however many segments there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from machine import internal_events, model, ports, states


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    """The facts of one decision about the recording `value` (machine.recording_facts.Facts)."""

    snapshot: ports.Snapshot
    value: model.Recording
    policy: model.Policy
    shared_spool: bool
    sdk_app_id: int
    outcome: internal_events.RecordingOutcome | None
    from_stage: str
    next_n: Callable[[], int]

    @property
    def free_n(self) -> int:
        """A number of the speaker's that no recording and no object has."""
        return self.next_n()

    @property
    def now_ms(self) -> int:
        """The time of the decision."""
        return self.snapshot.now_ms

    @property
    def callbacks_come(self) -> bool:
        """TRTC's callbacks were seen for this application."""
        return self.snapshot.callback_ms(self.sdk_app_id) > 0

    @property
    def has_segments(self) -> bool:
        """Segments of any epoch hold media."""
        return not self.value.files_removed and self.snapshot.has_segments(self.value.key)

    @property
    def has_output(self) -> bool:
        """A verified file exists."""
        return self.value.output is not None and not self.value.files_removed

    @property
    def home(self) -> str:
        """The node that holds most of the segments; "": any node can reach them."""
        if self.shared_spool:
            return ""
        nodes = self.snapshot.segment_nodes(self.value.key)
        return max(nodes, key=lambda node: (nodes[node], node), default="")

    @property
    def target_away(self) -> bool:
        """The node that the present job is for sends no heartbeat."""
        job = self.value.job
        if self.shared_spool or job is None or not job.node or job.state not in (states.WAITING, states.QUEUED):
            return False
        return self.snapshot.node_seen_ms(job.node) < self.now_ms - 2 * self.policy.lease_ms
