"""What an operator does next with a session or a recording, in a sentence with the command to type. Pure. May import `machine`.

Rule: a command given here works as it stands when pasted into a shell.
"""

from __future__ import annotations

import shlex

from machine import model, states


def for_session(session: model.Session) -> str:
    """One sentence; "" when there is nothing to do."""
    match session.state:
        case states.OPEN:
            return f"`recorder stop {session.task_id}` ends it now."
        case states.CLOSING:
            return "Nothing: it finishes by itself when every recording has ended."
        case _:
            return ""


def for_recording(recording: model.Recording) -> str:
    """One sentence; "" when there is nothing to do."""
    if recording.state == states.FAILED:
        return _after_failure(recording)
    if recording.state == states.DONE:
        return ""
    if recording.never_seen:
        return "Nothing: the speaker is subscribed and was not seen yet; it is tried again by itself."
    if recording.failures and recording.state == states.UPLOADING:
        return (
            "It is tried again by itself. If the credentials are the cause, set COS_SECRET_ID and COS_SECRET_KEY and type"
            f" `{_replay(recording)}`."
        )
    if recording.failures:
        return "It is tried again by itself. If the UserSig is the cause, start the session again with a fresh one."
    return ""


def send_again(task_id: str, recording: model.Recording | None = None) -> str:
    """What to type where a job does not move."""
    command = _replay(recording) if recording else f"recorder replay {task_id}"
    return f"`recorder doctor` says whether something is missing here; `{command}` gives the command out again."


def look_around(task_id: str) -> str:
    """What to type where a result is not even tried."""
    return f"`recorder doctor` says whether something is missing here; the result itself is in `recorder show {task_id} --json`."


def fetch_result(task_id: str) -> str:
    """What to type for a result that was not taken and is not sent again."""
    return f"Nothing posts it again. `recorder show {task_id} --json` has it under Results; hand it on from there."


def mend_receiver(task_id: str) -> str:
    """What to type for a result that is refused and sent again."""
    return f"It is sent again by itself. Mend the receiver; meanwhile `recorder show {task_id} --json` has the result."


def _after_failure(recording: model.Recording) -> str:
    command = _replay(recording)
    if recording.files_removed:
        return f"Its files were removed when KEEP_FAILED was over. `{command} --from=joining` enters the room again."
    match recording.code:
        case states.FAILED_RECORDING if not recording.media_ms:
            return f"Nothing was captured. Once the cause is gone, `{command}` enters the room again."
        case states.FAILED_RECORDING:
            return f"What was captured is kept. `{command}` turns it into a file and uploads it."
        case states.FAILED_TRANSCODE:
            return f"The segments are kept. `{command}` tries the transcode again."
        case _:
            return (
                f"The finished file is kept. `{command}` uploads it again; if the credentials are the cause,"
                " set COS_SECRET_ID and COS_SECRET_KEY before."
            )


def _replay(recording: model.Recording) -> str:
    # The speaker is joined with "=": an id that begins with a dash is not an option then.
    return f"recorder replay {recording.task_id} --speaker={shlex.quote(recording.speaker)} --n={recording.n}"
