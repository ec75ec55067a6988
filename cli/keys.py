"""`recorder keys`: creates, lists and revokes API keys, and rotates the encryption keys.

Rules: the commands open the database, not the service, so that the first key needs no other and a revoked key stops nothing. The
text of an API key is printed once, at its creation; an encryption key is never printed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import direct, output, times

if TYPE_CHECKING:
    from assembly.api_keys import ApiKeys

HELP = """\
Manage API keys, and rotate encryption keys.

`create`, `list` and `revoke` manage keys of the API. `rotate` encrypts all secrets of the database under the first key of
SECRET_KEYS, or of the key file in DATA_DIR. These commands need the service's settings in the environment and work whether it
runs or not.
"""
HEADINGS = ("Id", "Name", "Scopes", "Quota", "Created", "Used", "Revoked")
TIMES = ("Created", "Used", "Revoked")
FIRST = (
    "It is the first key: from now on every request to the API needs one, also on this machine, and even after every key is"
    " revoked. Commands read theirs from RECORDER_TOKEN. Callbacks of TRTC go on as before."
)
SCOPES = (
    "Comma-separated. read: sessions and results; start: start sessions; operate: stop and replay them, post results again,"
    " nodes and parked messages; watch: see and hear speakers, live and in finished files; admin: keys, over HTTP. An application"
    " that reads and stops as well needs read,start,operate."
)
FORGET_LOST = (
    "A key is lost: delete the secrets that no key decrypts. Their sessions need fresh credentials, by a replay. Their results"
    " are no longer posted, and stay readable."
)

group = typer.Typer(name="keys", help=HELP, no_args_is_help=True)


@group.command()
def create(
    name: Annotated[str, typer.Option(help="Name of the owner, 1 to 64 characters; shown in lists and in the audit.")],
    scopes: Annotated[str, typer.Option(help=SCOPES)] = "read",
    quota: Annotated[int, typer.Option(min=0, max=10**6, help="Limit of Open sessions; 0: the limit of API_SESSIONS.")] = 0,
    as_json: output.AsJson = False,
) -> None:
    """Create an API key and print it, once.

    It works immediately. Only its SHA-256 is stored. From the first key on, every request needs a key or a token.
    """
    from assembly import api_keys

    chosen = [part.strip() for part in scopes.split(",") if part.strip()]
    known: list[object] = []

    async def add(keys: ApiKeys) -> dict[str, Any]:
        known.extend((await keys.list())["Keys"])
        return await keys.create(name, chosen, quota)

    try:
        made = direct.run_opened(api_keys.opened, add)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        output.as_json(made)
        return
    output.line(made["Key"])
    output.failure(f"This is key {made['Id']} with scopes {made['Scopes']}. It is not shown again.")
    if not known and not os.environ.get("API_TOKENS"):
        output.failure(FIRST)


@group.command("list")
def list_(utc: times.Utc = False, as_json: output.AsJson = False) -> None:
    """List the API keys, revoked ones included.

    `Used` is accurate to a minute.
    """
    from assembly import api_keys

    found = direct.run_opened(api_keys.opened, lambda keys: keys.list())
    if as_json:
        output.as_json(found)
    elif found["Keys"]:
        output.rows(HEADINGS, (_cells(key) for key in found["Keys"]))
    else:
        output.failure("There is no key. Create one with `recorder keys create --name=… --scopes=…`.")


def _cells(key: dict[str, Any]) -> list[str]:
    return [times.shown(key[name]) if name in TIMES else str(key[name]) for name in HEADINGS]


@group.command()
def revoke(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids as shown by `recorder keys list`.")],
    as_json: output.AsJson = False,
) -> None:
    """Revoke API keys for good.

    The service refuses them within a second.
    """
    from assembly import api_keys

    async def each(keys: ApiKeys) -> None:
        for id_ in ids:
            revoked = await keys.revoke(id_)
            output.as_json_line(revoked) if as_json else output.line(f"{revoked['Id']} {revoked['Name']}: revoked")

    direct.run_opened(api_keys.opened, each)


@group.command()
def rotate(
    forget_lost: Annotated[bool, typer.Option("--forget-lost", help=FORGET_LOST)] = False, as_json: output.AsJson = False
) -> None:
    """Re-encrypt all secrets under the first encryption key.

    It may be repeated. Afterwards the other encryption keys can be removed.
    """
    from assembly import key_rotation

    done = direct.run(lambda settings: key_rotation.rotate(settings, forget_lost=forget_lost))
    if as_json:
        output.as_json({"Sealed": done.rows, "Forgotten": done.forgotten, "Key": done.key_id, "Parked": done.dead_letters})
        return
    output.line(f"{done.rows} re-encrypted under key {done.key_id}.")
    if done.forgotten:
        output.line(f"{done.forgotten} forgotten.")
    if done.dead_letters:
        output.failure(f"{done.dead_letters} parked messages need an older key: requeue or drop them before you remove it.")
