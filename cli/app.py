"""The command line `recorder`: every command and group, in the order of `recorder --help`.

Rule: `--help` loads no command's dependencies. Modules of commands import pydantic, structlog, rich and the composition root
inside functions only.
"""

from __future__ import annotations

import typer

from cli import align, audit, demo, doctor, keys, migrate, nodes, parked, serve, sessions, simulator

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

\b
Output is a table on a terminal, tab-separated lines in a pipe, JSON with
--json. Errors are on standard error.
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
