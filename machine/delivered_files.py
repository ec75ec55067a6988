"""Delivered files: what a replay leaves as it is, and the earlier files of a recording that needed several.

Rule: the object of a delivered file keeps its content, and its entry stays in the result. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from machine import coverage, model, states


def kept(recording: model.Recording) -> tuple[model.DeliveredFile, ...]:
    """The delivered files of a recording whose replay begins."""
    if not recording.url or recording.output is None:
        return recording.delivered
    file = model.DeliveredFile(
        n=recording.object_number, url=recording.url, code=recording.code, detail=recording.detail, output=recording.output
    )
    return (*(other for other in recording.delivered if other.n != file.n), file)


def has_object(recording: model.Recording) -> bool:
    """Whether the object of the recording's next file was delivered already."""
    return any(file.n == recording.object_number for file in recording.delivered)


def object_n(recording: model.Recording, output: model.Output | None) -> int:
    """The number in the object key of a new file. The same bytes as before need no second object."""
    for file in recording.delivered:
        same = output is not None and (output.crc64, output.size_bytes) == (file.output.crc64, file.output.size_bytes)
        if same and file.output.crc64:
            return file.n
    return recording.object_n


def with_earlier(recording: model.Recording, output: model.Output) -> tuple[model.DeliveredFile, ...]:
    """The delivered files, and those before this output, each with a judgement of its own."""
    known, found = {file.url for file in recording.delivered}, list(recording.delivered)
    for file in output.earlier:
        if file.url not in known:
            judged = coverage.of(model.changed(recording, output=file.output))
            code, detail = (states.PARTIAL, judged.cause) if judged.partial else (states.SUCCESS, "")
            found.append(replace(file, code=code, detail=detail))
    return tuple(found)
