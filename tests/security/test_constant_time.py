"""Constant time: every secret that a stranger may guess is compared in constant time.

Rule: the tests watch `hmac.compare_digest` during HTTP requests, so a comparison by other means fails them.
"""

from __future__ import annotations

import hmac
from typing import Any

import pytest

from machine import api_keys
from tests import engines
from tests.integration import api_service
from tests.integration.callback_sender import signed
from tests.integration.test_access import bearer

TOKENS = ("first-token", "second-token")
CLUSTER = "the nodes' own token"


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[set[Any]]:
    """The pairs that hmac.compare_digest compared."""
    pairs: list[set[Any]] = []
    genuine = hmac.compare_digest

    def spy(one: Any, other: Any) -> bool:
        pairs.append({one, other})
        return genuine(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    return pairs


async def test_secrets_are_compared_in_constant_time(database: engines.Database, compared: list[set[Any]]) -> None:
    """Right or wrong, tokens of API_TOKENS (all of them), API keys, TRTC's signature and CLUSTER_TOKEN are decided by a
    comparison in constant time."""
    body = b"{}"
    async with api_service.running(database, TOKENS, cluster_token=CLUSTER) as service:
        id_, key = await service.key("read")
        wrong = key[:-1] + ("a" if key[-1] != "a" else "b")
        right = signed(body)["Sign"]
        for sign in (right, right.swapcase()):
            await service.ask("POST", "/trtc/callbacks", data=body, headers=signed(body) | {"Sign": sign})
            assert {right.encode(), sign.encode()} in compared
        for shown in (f"Bearer {CLUSTER}", "Bearer another"):
            query = {"recording": "x", "epoch": "1"}
            await service.ask("GET", "/internal/segments", params=query, headers={"Authorization": shown})
            assert {shown.encode(), f"Bearer {CLUSTER}".encode()} in compared
        for shown, status in ((TOKENS[0], 200), (TOKENS[1], 200), ("third-token", 401), (key, 200), (wrong, 401)):
            compared.clear()
            assert (await service.ask("GET", "/sessions", headers=bearer(shown)))[0] == status, shown
            digest = api_keys.digest(shown)
            asked_about = [api_keys.digest(token) for token in TOKENS]
            asked_about += [api_keys.digest(key)] if api_keys.id_of(shown) == id_ else []
            assert compared == [{digest, other} for other in asked_about], shown
