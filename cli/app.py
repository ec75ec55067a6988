"""The command line `recorder`: every command and group, in the order of `recorder --help`.

Rule: `--help` loads no command's dependencies. Modules of commands import pydantic, structlog, rich and the composition root
inside functions only.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cli import align, audit, demo, doctor, keys, migrate, nodes, output, parked, serve, sessions, simulator

HELP = "Records live TRTC rooms, one file per speaker. Most commands ask the service at RECORDER_URL with RECORDER_TOKEN."
EPILOG = """\
\b
Exit codes:
  0    done
  1    refused or failed, or `doctor` found a failure
  2    wrong usage or settings
  3    the service cannot be reached or is not ready
  4    no such session, recording, key, node or message
  130  interrupted (Ctrl-C)
  141  the reader of the output has gone (`recorder results | head`)

\b
Output is tables or cards on a terminal, tab-separated lines in a pipe, JSON
with --json. Times are local, or UTC with --utc. Errors are on standard error.
Where a TaskId is expected, its first 6 characters or more are enough.
"""

app = typer.Typer(
    name="recorder",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from assembly import identity

        output.line(f"recorder {identity.VERSION}")
        raise typer.Exit


@app.callback()
def recorder(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that belong to no command."""


app.command()(sessions.start)
app.command()(sessions.stop)
app.command()(sessions.sessions)
app.command()(sessions.show)
app.command()(sessions.results)
app.command()(sessions.replay)
app.command()(sessions.resend)
app.command()(align.align)
app.command()(serve.serve)
app.command()(migrate.migrate)
app.command()(doctor.doctor)
app.add_typer(keys.group)
app.command()(audit.audit)
app.add_typer(nodes.group)
app.add_typer(parked.group)
app.command()(demo.demo)
app.command()(simulator.simulator)
