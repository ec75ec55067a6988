"""Dead letters, API keys and the audit over HTTP, and who may use them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from events import codec
from machine import api_keys
from tests import engines, waiting
from tests.integration import api_service
from tests.integration.api_service import Service
from tests.integration.test_nodes_api import beat
from tests.integration.test_openapi import fault, schema_of
from web import scopes

MASTER = "master-token"


@pytest.fixture
async def service(database: engines.Database) -> AsyncIterator[Service]:
    async with api_service.running(database, (MASTER,)) as running:
        yield running


async def park(service: Service, *names: str) -> None:
    """Park a message for each name, with a secret in its body and in its reason."""
    for name in names:
        event = codec.make("stop", id=name, time_ms=1, data={"TaskId": "01JBX5Q9V7T3M8K2C4D6F8H0ZW"})
        await service.store.outbox.send("event", event, "")
        (sent,) = [m for m in await service.store.outbox.unsent() if name.encode() in m.body]
        await service.store.outbox.mark_sent(sent.seq, f"cannot be handled: UserSig=PLANTED-{name}")


async def test_parked_messages_are_requeued_and_dropped(service: Service) -> None:
    """The list has each message with its reason, secrets masked; one is shown with its body. Requeued ones are delivered again,
    dropped ones are gone, and one that is gone has its reason in the answer. Each action is in the audit with the key's name."""
    await park(service, "one", "two", "three")
    status, listed = await service.ask("GET", "/parked")
    assert (status, listed["Count"]) == (200, 3)
    assert "PLANTED" not in json.dumps(listed)
    first, second, third = [message["Id"] for message in listed["Messages"]]
    status, shown = await service.ask("GET", f"/parked/{first}")
    assert (status, shown["Key"], "TaskId" in shown["Body"]) == (200, "event.stop", True)
    _, text = await service.key("operate")
    operates = {"Authorization": f"Bearer {text}"}
    status, done = await service.ask("POST", "/parked/requeue", json={"Ids": [first, second, "row-999"]}, headers=operates)
    assert (status, done["Done"], [each["Code"] for each in done["Outcomes"]]) == (200, 2, ["ok", "ok", "NotFound"])
    status, done = await service.ask("POST", "/parked/drop", json={"Ids": [third]}, headers=operates)
    assert (status, done["Done"]) == (200, 1)
    assert (await service.ask("GET", "/parked"))[1]["Count"] == 0
    assert (await service.ask("GET", f"/parked/{first}"))[0] == 404
    assert len(await service.store.outbox.unsent()) == 2
    _, audit = await service.ask("GET", "/audit", params={"limit": "3"})
    assert [(line["Action"], line["Who"][-6:]) for line in audit["Audit"]] == [
        ("parked-drop", "school"),
        ("parked-requeue", "school"),
        ("parked-requeue", "school"),
    ]


async def test_an_administrator_makes_and_revokes_keys(service: Service) -> None:
    """The text of a key is in the answer to its creation and in no list. It works with its scopes until it is revoked."""
    _, admin = await service.key(api_keys.ADMIN)
    headers = {"Authorization": f"Bearer {admin}"}
    wanted = {"Name": "lessons", "Scopes": ["start", "read"], "Quota": 5}
    status, made = await service.ask("POST", "/keys", json=wanted, headers=headers)
    assert (status, made["Scopes"], made["Quota"]) == (201, ["read", "start"], 5)
    reads = {"Authorization": f"Bearer {made['Key']}"}
    _, listed = await service.ask("GET", "/keys", headers=headers)
    assert [key["Name"] for key in listed["Keys"]] == ["school", "lessons"]
    assert made["Key"] not in json.dumps(listed)
    # The service reads its keys at most once a second, and knew this one not before.
    await waiting.until(lambda: allowed(service, reads), what="the key to work")
    status, revoked = await service.ask("POST", f"/keys/{made['Id']}/revoke", headers=headers)
    assert (status, bool(revoked["Revoked"])) == (200, True)

    async def refused() -> bool:
        return not await allowed(service, reads)

    await waiting.until(refused, what="the key to be refused")
    assert (await service.ask("POST", "/keys/unknown/revoke", headers=headers))[0] == 404
    for wrong, field in (({"Scopes": ["all"]}, ": Scopes"), ({"Scopes": []}, "Scopes"), ({"Name": " "}, ": A name")):
        status, answer = await service.ask("POST", "/keys", json=wanted | wrong, headers=headers)
        assert (status, answer["Code"], field in f": {answer['Message']}") == (400, "InvalidParameter", True), answer


async def allowed(service: Service, headers: dict[str, str]) -> bool:
    """Whether a key may list sessions."""
    status, _ = await service.ask("GET", "/sessions", headers=headers)
    return status == 200


async def test_no_other_key_administers(service: Service) -> None:
    """Keys with all other scopes see no key and make none; a key of `admin` alone reads no sessions."""
    _, others = await service.key(*(scope for scope in api_keys.SCOPES if scope != api_keys.ADMIN))
    _, admin = await service.key(api_keys.ADMIN)
    for text, denied in ((others, ("/keys",)), (admin, ("/parked", "/audit", "/nodes", "/sessions"))):
        for path in denied:
            assert (await service.ask("GET", path, headers={"Authorization": f"Bearer {text}"}))[0] == 403, path
    body = {"Name": "x", "Scopes": ["admin"]}
    assert (await service.ask("POST", "/keys", json=body, headers={"Authorization": f"Bearer {others}"}))[0] == 403


async def test_the_first_key_is_not_made_over_http(database: engines.Database) -> None:
    """Without keys and tokens everybody on this machine may operate, and nobody administers: one key ends everybody's access."""
    assert scopes.TABLE["POST", "/keys"] == api_keys.ADMIN
    async with api_service.running(database) as service:
        assert (await service.ask("GET", "/parked"))[0] == 200
        status, answer = await service.ask("POST", "/keys", json={"Name": "x", "Scopes": ["admin"]})
        assert (status, answer["Code"], "recorder keys create" in answer["Message"]) == (403, "Forbidden", True)
        assert (await service.ask("GET", "/sessions"))[0] == 200


async def test_the_audit_is_read_in_pages(service: Service) -> None:
    """Pages of the audit follow each other without a gap or a repeat, to the first entry."""
    for room in range(1, 6):
        await service.open_session(RoomId=room)
    whole = (await service.ask("GET", "/audit"))[1]
    assert (len(whole["Audit"]), whole["Next"]) == (5, 0)
    found, before = [], 0
    while True:
        _, page = await service.ask("GET", "/audit", params={"limit": "2", "before": str(before)})
        found += page["Audit"]
        before = page["Next"]
        if not before:
            break
    assert found == whole["Audit"]


async def test_answers_to_operators_are_as_described(service: Service) -> None:
    """Real answers have every described field and no other, with all that nodes, keys, messages and entries can have."""
    await beat(service.store, "w1", "w2")
    await park(service, "one", "two")
    _, listed = await service.ask("GET", "/parked")
    first, second = (message["Id"] for message in listed["Messages"])
    _, made = await service.ask("POST", "/keys", json={"Name": "lessons", "Scopes": ["read"]})
    task_id = await service.open_session()
    asked = [
        ("get", "/nodes", 200, "/nodes", None),
        ("post", "/nodes/{Node}/drain", 200, "/nodes/w1/drain", None),
        ("post", "/nodes/{Node}/drain", 409, "/nodes/w2/drain", None),
        ("get", "/parked", 200, "/parked", None),
        ("get", "/parked/{Id}", 200, f"/parked/{first}", None),
        ("post", "/parked/requeue", 200, "/parked/requeue", {"Ids": [first]}),
        ("post", "/parked/drop", 200, "/parked/drop", {"Ids": [second, first]}),
        ("post", "/keys", 201, "/keys", {"Name": "more", "Scopes": ["start", "operate"]}),
        ("post", "/keys/{Id}/revoke", 200, f"/keys/{made['Id']}/revoke", None),
        ("get", "/keys", 200, "/keys", None),
        ("post", "/bulk/replay", 200, "/bulk/replay", {"TaskIds": [task_id]}),
        ("post", "/bulk/stop", 200, "/bulk/stop", {"TaskIds": [task_id]}),
        ("post", "/bulk/resend", 200, "/bulk/resend", {"TaskIds": [task_id]}),
        ("get", "/audit", 200, "/audit", None),
    ]
    for method, path, status, real, body in asked:
        got, answer = await service.ask(method.upper(), real, **({"json": body} if body is not None else {}))
        assert got == status, (real, answer)
        assert fault(service.document, schema_of(service.document, method, path, status), answer) == "", real
