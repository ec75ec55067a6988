"""Notes of the journal: the change of a row, in words for the timeline."""

from __future__ import annotations

from machine import model


def of_recording(old: model.Recording, new: model.Recording) -> str:
    """A recording: all that changed."""
    parts = []
    if new.stop_requested and not old.stop_requested and new.state == old.state:
        parts.append("asked to stop")
    if new.job != old.job:
        parts.append(f"{new.job.kind} {new.job.state}" if new.job else "no job left")
    if new.epoch != old.epoch:
        parts.append(f"epoch {new.epoch}")
    if new.replays != old.replays:
        parts.append(f"attempt {new.attempt}")
    if new.present is not old.present:
        parts.append({True: "speaker present", False: "speaker left", None: "presence unknown"}[new.present])
    if new.publish_pending and not old.publish_pending:
        parts.append("a pull is active; if it brings no media, the next one starts immediately")
    if new.detail and new.detail != old.detail:
        parts.append(new.detail)
    return "; ".join(parts)


def of_session(old: model.Session, new: model.Session, trigger: str) -> str:
    """A session: its new revision, the reason of its end, or the trigger."""
    if new.revision != old.revision:
        return f"revision {new.revision}"
    return new.end_reason if new.end_reason != old.end_reason else trigger
