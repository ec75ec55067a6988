"""Generator of the generated pages: state machine, failpoints, events, settings, metrics and AsyncAPI. `--check` only compares.

Rule: every fact has one source. The wording of a row is the docstring of the condition or action that it names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from config import settings_table
from docs import asyncapi
from events import codec
from machine import decision_table, failpoints, metrics, recording, session, states

FOLDER = Path(__file__).parent
# Limits of database columns: they apply to every number and help no reader.
COLUMN_LIMITS = (2**53 - 1, 2**31 - 1)
NOTICE = "<!-- Generated from the code by `make docs`; edit the code instead. -->\n"
DIRECTIONS = {
    "in": "Events from users and from TRTC callbacks",
    "inside": "Events from workers and deadlines",
    "command": "Commands",
    "out": "Results",
}


def state_machine() -> str:
    """docs/state-machine.md."""
    parts = [
        "# State machines\n",
        NOTICE,
        "Read each table from top to bottom: the first row whose conditions hold decides. Every event has a row in every state."
        " It moves the machine, stays with effects, or is ignored with a reason.\n",
        "## Recording\n",
        _described((states.__doc__ or "").split("Session:")[0].split("\n\n", 1)[1]),
        _chart(recording.ROWS, states.JOINING, states.FINAL),
        _rows(recording.ROWS, recording.RecordingRules),
        "## Session\n",
        _chart(session.ROWS, states.OPEN, (states.FINISHED,)),
        _rows(session.ROWS, session.SessionRules),
    ]
    return "\n".join(parts)


def _described(text: str) -> str:
    """The states of the module's header as list items. A name starts at the margin; continuation lines are indented."""
    intro, _, body = text.partition("\n\n")
    items: list[str] = []
    for line in body.strip().splitlines():
        if line.startswith(" "):
            items[-1] += " " + line.strip()
        else:
            name, _, meaning = line.partition(" ")
            items.append(f"- **{name}**: {meaning.strip()}")
    return "\n".join([intro, "", *items, ""])


def _chart(rows: Sequence[decision_table.DecisionRow], initial: str, final: Sequence[str]) -> str:
    moves: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for source in row.at if row.to else ():
            names = moves.setdefault((source, str(row.to)), [])
            if row.on not in names:
                names.append(row.on)
    lines = [f"    {a} --> {b} : {', '.join(names)}" for (a, b), names in moves.items()]
    ends = [f"    {state} --> [*]" for state in final]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {initial}", *lines, *ends, "```\n"])


def _rows(rows: Sequence[decision_table.DecisionRow], rules: type) -> str:
    lines = ["| event | in | when | then |", "|---|---|---|---|"]
    for row in rows:
        when = [_wording(rules, name) for name in row.when] + [f"not: {_wording(rules, name)}" for name in row.unless]
        done = "; ".join(_wording(rules, name) for name in row.do)
        then = (
            f"ignored: {row.ignore}"
            if row.ignore
            else "; ".join(x for x in (f"**→ {row.to}**" if row.to else "stays", done) if x)
        )
        lines.append(f"| `{row.on}` | {', '.join(row.at)} | {'; '.join(when)} | {then} |")
    return "\n".join(lines) + "\n"


def _wording(rules: type, name: str) -> str:
    text = (getattr(rules, name).__doc__ or name).split("\n")[0].rstrip(".")
    first = text.split(maxsplit=1)[0]
    return text if len(first) > 1 and first.isupper() else text[:1].lower() + text[1:]


def failpoint_table() -> str:
    """docs/failpoints.md."""
    points = failpoints.POINTS
    some = (failpoints.DISTRIBUTED_ONLY, failpoints.BOUNDED_ONLY)
    distributed, bounded = (", ".join(f"`{name}`" for name in points if name in names) for names in some)
    parts = [
        "# Failpoints\n",
        NOTICE,
        "A failpoint is a named boundary at which a test kills, freezes or fails the service. The table gives the consequence of"
        " a crash at each one. `make chaos` strikes every point; [architecture.md](architecture.md) explains the steps between"
        " them.\n",
        f"Only the distributed engine has the points {distributed}. Only a bounded spool has the points {bounded}.\n",
        "| failpoint | consequence of a crash there |",
        "|---|---|",
        *(f"| `{name}` | {consequence} |" for name, consequence in points.items()),
    ]
    return "\n".join(parts) + "\n"


def metric_list() -> str:
    """docs/metrics.md."""
    parts = [
        "# Metrics\n",
        NOTICE,
        "`GET /metrics` of every node, in Prometheus' text format. [operate.md](operate.md#metrics-and-alerts) describes how to"
        " scrape it, and has the alerts. A histogram has the series `_bucket`, `_count` and `_sum`. The process itself is in"
        " `process_*`.\n",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | {each.type} | {', '.join(f'`{label}`' for label in each.labels)} | {each.meaning} |"
            for name, each in metrics.CATALOG.items()
        ),
    ]
    return "\n".join(parts) + "\n"


def events() -> str:
    """docs/events.md."""
    parts = [
        "# Messages\n",
        NOTICE,
        "Messages are CloudEvents 1.0 in structured JSON (`application/cloudevents+json`). `type` is the name below; `subject` is"
        " a TaskId or `TaskId/speaker/n`. [`events/schemas.json`](../events/schemas.json) holds the schemas.\n",
    ]
    document = codec.schemas()["$defs"]
    for direction, title in DIRECTIONS.items():
        parts.append(f"## {title}\n")
        for name in codec.types(direction):
            parts += [f"### `{name}`\n", document[name]["description"] + "\n", _fields(document[name], document)]
    return "\n".join(parts)


def _fields(schema: dict[str, Any], document: dict[str, Any]) -> str:
    lines = ["| field | type | required | meaning |", "|---|---|---|---|", *_field_lines(schema, document, "")]
    return "\n".join(lines) + "\n"


def _field_lines(schema: dict[str, Any], document: dict[str, Any], prefix: str) -> Iterable[str]:
    for name, field in schema.get("properties", {}).items():
        resolved = _resolve(field, document)
        required = "yes" if name in schema.get("required", ()) else ""
        meaning = field.get("description") or resolved.get("description", "")
        yield f"| `{prefix}{name}` | {_type(resolved)} | {required} | {meaning} |"
        inner = _resolve(resolved.get("items", {}), document) if resolved.get("type") == "array" else resolved
        brackets = "[]" if resolved.get("type") == "array" else ""
        yield from _field_lines(inner, document, f"{prefix}{name}{brackets}.")


def _resolve(field: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in field:
        found: dict[str, Any] = document[field["$ref"].rsplit("/", 1)[1]]
        return found
    return field


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " · ".join(f"`{v}`" for v in field["enum"])
    if "anyOf" in field and "type" not in field:
        return " or ".join(_type(v) if "type" in v else f"`{v.get('const', 'Ms')!r}`" for v in field["anyOf"]).replace(
            "`'Ms'`", "integer"
        )
    limits = [
        f"{word} {field[key]}"
        for key, word in (("minimum", "≥"), ("maximum", "≤"), ("maxLength", "at most"), ("maxItems", "at most"))
        if key in field and field[key] not in COLUMN_LIMITS
    ]
    return " ".join([str(field.get("type", "")), *limits])


def documents() -> dict[str, str]:
    """File name → text."""
    read = "The recorder reads its settings once, at the start, from environment variables. It reports all faults at once."
    return {
        "state-machine.md": state_machine(),
        "failpoints.md": failpoint_table(),
        "events.md": events(),
        "settings.md": f"# Settings\n\n{NOTICE}\n{read}\n\n{settings_table.reference()}\n",
        "metrics.md": metric_list(),
        "asyncapi.yaml": asyncapi.document(),
    }


def main(arguments: Sequence[str]) -> int:
    """Write the documents, or compare them with --check. Returns 0 if they are equal, else 1."""
    stale = [name for name, text in documents().items() if _stale(FOLDER / name, text)]
    if "--check" in arguments:
        for name in stale:
            sys.stderr.write(f"docs/{name} does not match the code; run `make docs`.\n")
        return 1 if stale else 0
    for name in stale:
        (FOLDER / name).write_text(documents()[name], encoding="utf-8")
    return 0


def _stale(path: Path, text: str) -> bool:
    return not path.exists() or path.read_text(encoding="utf-8") != text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
