"""`recorder nodes`: lists nodes, cordons and drains workers. A client of the HTTP API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli import client, exits, output, times

HELP = """\
List the nodes; cordon and drain workers.

A cordoned worker takes no new captures and goes on with everything that it has. A drained one also hands its captures over to
other workers, as at an orderly stop: each continues as the next segment. Transcodes and uploads go on, because they finish the
files on its disk. Both hold over restarts of the node, until `recorder nodes uncordon`.
"""
HEADINGS = ("Node", "State", "Host", "Roles", "Captures", "Free MiB", "Clock ms", "LastHeartbeat", "Busy")

Json = dict[str, Any]
Name = Annotated[str, typer.Argument(metavar="NODE", help="Name of the node, as shown by `recorder nodes list`.")]

group = typer.Typer(name="nodes", help=HELP, no_args_is_help=True)


@group.command("list")
def list_(utc: times.Utc = False, as_json: output.AsJson = False) -> None:
    """List the living nodes, and the workers that are away."""
    with exits.handled(as_json=as_json):
        found = client.of_environment().nodes()
        output.as_json(found) if as_json else output.rows(HEADINGS, (_cells(node) for node in found["Nodes"]))


@group.command()
def cordon(node: Name, as_json: output.AsJson = False) -> None:
    """Give a worker no new captures."""
    _act(node, "cordon", as_json=as_json)


@group.command()
def drain(node: Name, as_json: output.AsJson = False) -> None:
    """Hand a worker's captures over to other workers.

    Another worker must be there. `recorder nodes list` shows when none is left: it is then drained.
    """
    _act(node, "drain", as_json=as_json)


@group.command()
def uncordon(node: Name, as_json: output.AsJson = False) -> None:
    """Give a cordoned or drained worker captures again."""
    _act(node, "uncordon", as_json=as_json)


def _act(node: str, action: str, *, as_json: bool) -> None:
    with exits.handled(as_json=as_json):
        done = client.of_environment().act_on_node(node, action)
        output.as_json(done) if as_json else output.line(f"{done['Node']} {done['State']}, {done['Captures']} captures")


def _cells(node: Json) -> list[str]:
    limit = node["Slots"].get("capture", {}).get("Limit")
    free_mib = "" if node["FreeBytes"] is None else str(node["FreeBytes"] >> 20)
    ahead = "" if node["ClockAheadMs"] is None else str(node["ClockAheadMs"])
    captures = f"{node['Captures']} of {limit}" if limit else str(node["Captures"])
    cells = [node["Node"], node["State"], node["Host"], ",".join(node["Roles"]), captures, free_mib, ahead]
    return [*cells, times.shown(node["LastHeartbeat"]), node["Busy"]]
