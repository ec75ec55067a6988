"""`recorder simulator`: runs the stand-in for Tencent."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import exits, serve


def simulator(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 9000,
    folder: Annotated[Path, typer.Option(help="Folder of the objects and of the test pictures.")] = Path("var/simulator"),
    app: Annotated[int, typer.Option(help="SdkAppId of its TRTC application.", min=1, max=2**32 - 1)] = 1400000001,
    callback_url: Annotated[str, typer.Option(help="URL that receives TRTC callbacks.")] = "http://127.0.0.1:8080/trtc/callbacks",
    callback_key: Annotated[str, typer.Option(help="Key that signs TRTC callbacks.")] = "simulator-callback-key",
    user_sig_key: Annotated[str, typer.Option(help="Key that verifies UserSigs; without it every UserSig is accepted.")] = "",
    secret_id: Annotated[str, typer.Option(help="SecretId of COS and of TRTC's server API.")] = "AKIDsimulator",  # noqa: S107 - the stand-in's
    secret_key: Annotated[str, typer.Option(help="SecretKey for this SecretId.")] = "simulator-secret-key",  # noqa: S107 - likewise
    bucket: Annotated[
        list[str] | None, typer.Option(help="An existing bucket; may be repeated. Without it every bucket exists.")
    ] = None,
    announce_pulls: Annotated[
        bool, typer.Option(help="Send the callbacks of an audience member that enters and leaves for each pull.")
    ] = False,
    one_pull_per_user: Annotated[bool, typer.Option(help="A user's second pull in a room ends the first.")] = False,
) -> None:
    """Run a simulator of TRTC and COS.

    It offers live rooms, TRTC callbacks, TRTC's server API and COS, for development without an account.
    """
    from assembly import logs
    from simulator import callbacks, server, welcome
    from simulator.cos import signature

    logs.configure(level="info", form="auto")
    known = callbacks.App(sdk_app_id=app, callback_url=callback_url, callback_key=callback_key, user_sig_key=user_sig_key)
    account = signature.Account(secret_id=secret_id, secret_key=secret_key)
    made = server.Simulator(
        host,
        port,
        folder,
        apps=[known],
        accounts=[account],
        buckets=bucket or None,
        announce_pulls=announce_pulls,
        one_pull_per_user=one_pull_per_user,
    )
    greeting = welcome.Welcome(simulator=made, sdk_app_id=app, account=account, write=typer.echo)
    try:
        asyncio.run(serve.run_until_signal([made, greeting]))
    except OSError as error:
        sys.stderr.write(f"recorder: The simulator cannot run: {error}. Choose another --port or --folder.\n")
        raise typer.Exit(exits.REFUSED) from error
