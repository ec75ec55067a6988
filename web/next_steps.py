"""The operator's next step for a session or a recording: one sentence with its command. Pure.

Rule: a command in a sentence works when it is pasted into a shell.
"""

from __future__ import annotations

import shlex

from machine import model, states


def for_session(session: model.Session) -> str:
    """One sentence; "" if no step is needed."""
    match session.state:
        case states.OPEN:
            return f"`recorder stop {session.task_id}` ends it now."
        case states.CLOSING:
            return "Nothing: it finishes when every recording has ended."
        case _:
            return ""


def for_recording(recording: model.Recording, session: model.Session) -> str:
    """One sentence; "" if no step is needed."""
    if recording.state == states.FAILED:
        return _after_failure(recording, open_=session.state == states.OPEN)
    if recording.state == states.DONE:
        return ""
    if recording.never_seen:
        return "Nothing: the subscribed speaker was not seen yet; the pull is retried automatically."
    if recording.failures and recording.state == states.UPLOADING:
        return (
            "It is retried automatically. If the credentials are the cause, set COS_SECRET_ID and COS_SECRET_KEY and type"
            f" `{_replay(recording)}`."
        )
    if recording.failures:
        return "It is retried automatically. If the UserSig is the cause, start the session again with a fresh one."
    return ""


def for_blocked_job(task_id: str, recording: model.Recording | None = None) -> str:
    """For a job that makes no progress."""
    command = _replay(recording) if recording else f"recorder replay {task_id}"
    return f"`recorder doctor` checks this installation; `{command}` issues the command again."


def for_node_away(recording: model.Recording) -> str:
    """For a recording whose files are on a node that is away."""
    node = (recording.job and recording.job.node) or "that node"
    return f"Start {node} again. If that is later than NODE_RETURN, `{_replay(recording)}` then includes its files."


def for_blocked_delivery(task_id: str) -> str:
    """For a result that was never tried."""
    return f"`recorder doctor` checks this installation; the result itself is in `recorder show {task_id} --json`."


def for_failed_delivery(task_id: str) -> str:
    """For a result that was refused and is not retried."""
    return (
        f"When the receiver is fixed, `recorder resend {task_id}` posts it again; `recorder show {task_id} --json` has it under"
        " Results."
    )


def for_failed_manifest(task_id: str) -> str:
    """For a manifest that was given up."""
    return (
        f"When the cause is fixed, `recorder resend {task_id}` writes it again, with the node's own credentials if those of the"
        f" session were wiped; `recorder show {task_id} --json` has the result and the segments."
    )


def for_refused_delivery(task_id: str) -> str:
    """For a result that is refused and retried."""
    return f"It is retried automatically. Fix the receiver; until then `recorder show {task_id} --json` has the result."


def _after_failure(recording: model.Recording, *, open_: bool) -> str:
    command = _replay(recording)
    if recording.files_removed:
        return "Its files were removed after KEEP_FAILED: there is nothing to replay."
    match recording.code:
        case states.FAILED_RECORDING if not recording.media_ms and not open_:
            return "Nothing was captured, and the session is closed: there is nothing to replay. Start a new session."
        case states.FAILED_RECORDING if not recording.media_ms:
            return f"Nothing was captured. When the cause is fixed, `{command}` enters the room again, as another recording."
        case states.FAILED_RECORDING:
            return f"The captured segments are kept. `{command}` makes a file of them and uploads it."
        case states.FAILED_TRANSCODE:
            return f"The segments are kept. `{command}` retries the transcode."
        case _:
            return (
                f"The finished file is kept. `{command}` uploads it again; if the credentials are the cause,"
                " set COS_SECRET_ID and COS_SECRET_KEY before."
            )


def _replay(recording: model.Recording) -> str:
    # "=" joins the speaker to its option: an id that begins with a dash would be an option of its own.
    return f"recorder replay {recording.task_id} --speaker={shlex.quote(recording.speaker)} --n={recording.n}"
