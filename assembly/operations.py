"""What operators do over HTTP beyond sessions: nodes, dead letters, API keys, the audit.

Rule: the objects behind it are those of the commands `recorder parked`, `keys` and `audit`; only the caller differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import store.connections
import store.cordons
from assembly import api_keys, dead_letters
from assembly.identity import clock
from config import settings as settings_module
from machine import errors, model, nodes

ALONE = "This recorder is a single node: no other node could take its captures. Stop it, and it continues at its next start."
Json = dict[str, Any]


class Operations:
    """Implements web.dependencies.Operations. Every method raises Unavailable if the database or the broker does not answer."""

    def __init__(
        self,
        settings: settings_module.Settings,
        connections: store.connections.Connections,
        *,
        alone: bool,
        alive_ms: int,
        clock: Callable[[], int] = clock,
    ) -> None:
        """`alone`: there can be no other node. A node is alive for `alive_ms` after its last heartbeat, by `clock`."""
        self._alone = alone
        self._cordons = store.cordons.Cordons(connections, clock=clock, alive_ms=alive_ms)
        self._parked = dead_letters.DeadLetters(settings, connections)
        self._keys = api_keys.ApiKeys(connections)

    async def list_nodes(self) -> Sequence[nodes.NodeRow]:
        """The living nodes, and the workers that are away."""
        return await self._cordons.list()

    async def cordon(self, node: str, cordon: str, by: model.Caller) -> nodes.NodeRow:
        """Ask a node for a cordon, a drain or neither. Raises NotFound, Refused."""
        if self._alone:
            raise errors.Refused(ALONE)
        return await self._cordons.set(node, cordon, by)

    async def parked(self, limit: int) -> Json:
        """The oldest `limit` dead letters of each place, and the number of all."""
        return await self._parked.list(limit)

    async def show_parked(self, id_: str) -> Json:
        """One dead letter with headers and body, secrets masked. Raises NotFound."""
        return await self._parked.show(id_)

    async def requeue_parked(self, id_: str, by: model.Caller) -> Json:
        """Publish a dead letter again. Raises NotFound, Refused."""
        return await self._parked.requeue(id_, by)

    async def drop_parked(self, id_: str, by: model.Caller) -> Json:
        """Delete a dead letter. Raises NotFound."""
        return await self._parked.drop(id_, by)

    async def list_keys(self) -> Sequence[Json]:
        """Every API key, oldest first."""
        keys: Sequence[Json] = (await self._keys.list())["Keys"]
        return keys

    async def create_key(self, name: str, scopes: Sequence[str], quota: int, by: model.Caller) -> Json:
        """Create an API key; `Key` is its text. Raises ValueError for an invalid name or scope."""
        return await self._keys.create(name, scopes, quota, by)

    async def revoke_key(self, id_: str, by: model.Caller) -> Json:
        """Revoke an API key. Raises NotFound."""
        return await self._keys.revoke(id_, by)

    async def audit(self, before: int, limit: int) -> tuple[Sequence[Json], int]:
        """A page of the audit, newest first, and the `before` of the next one; 0: none."""
        return await self._keys.audit_page(before, limit)


def of(
    settings: settings_module.Settings, connections: store.connections.Connections, clock: Callable[[], int], alive_ms: int
) -> Operations:
    """The operations of a node with these settings. `clock` is the database's."""
    alone = not settings.amqp_url.get_secret_value()
    return Operations(settings, connections, alone=alone, alive_ms=alive_ms, clock=clock)
