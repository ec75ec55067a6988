"""Requests made by Schemathesis out of the service's own OpenAPI description, right ones and wrong ones, and what was answered.

Rule: blocking, for a thread of its own. A case that breaks what the description promises is kept with the request that did it;
an operation that never succeeded was not tried at all, whatever it answered.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import requests
import schemathesis
import schemathesis.specs.openapi.schemas
from schemathesis import checks
from schemathesis.core import failures
from schemathesis.specs.openapi import checks as promises

from tests.e2e import conftest as worlds

# Loaded here and not when the thread wants it: Python 3.11 does not bear two threads that parse at the same time.
_ = schemathesis.specs.openapi.schemas
# What each answer is held against: the statuses, content types, headers and schemas that are described.
CHECKS = [
    promises.status_code_conformance,
    promises.content_type_conformance,
    promises.response_headers_conformance,
    promises.response_schema_conformance,
]
# Of an operation at a time, right ones and wrong ones; those without parameters have few different requests anyway.
AT_ONCE = 10
MOST_WAIT_S = 0.02
TIMEOUT_S = 30.0
OPEN_AT_ONCE = 8
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
# A full disk, and what is not ready: all that the service may not be able to help.
ALLOWED = {("POST", "/sessions", 507), ("GET", "/readyz", 503)}
CALLBACKS, REPLAY = "/trtc/callbacks", "/sessions/{TaskId}/replay"
COS = {"Region": worlds.REGION, "Bucket": worlds.BUCKET, "Path": "fuzz"}
COS |= {"SecretId": worlds.SECRET_ID, "SecretKey": worlds.SECRET_KEY}
# Of TRTC's callbacks: how many are signed, and how many of those say that they were sent just now. The others are the stale ones.
SIGNED, YOUNG = 0.8, 0.8
# How often each part of a signed callback is one that TRTC may send, so that most pass the door and some have one thing wrong.
USUAL = 0.93
# What TRTC tells: group, number, and the role and reason that some of them carry.
TOLD = (
    (1, 102, {}), (1, 103, {"Role": 20}), (1, 103, {"Role": 21}), (1, 104, {"Reason": 1}), (1, 104, {"Reason": 3}),
    (1, 105, {"Role": 20}), (1, 105, {"Role": 21}), (2, 201, {}), (2, 202, {}), (2, 203, {}), (2, 204, {}), (2, 205, {}),
)  # fmt: skip
ROOMS, USERS = (1, 42, 4_294_967_295, "1", "fuzz", "房间"), ("alice", "recorder", "a|b", "名字")


@dataclass(slots=True, kw_only=True)
class Run:
    """A run against one service."""

    url: str
    token: str = ""
    seed: int = 1
    cases: int = 0
    ends: Counter[tuple[str, int]] = field(default_factory=Counter)
    operations: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    failures_5xx: list[str] = field(default_factory=list)
    task_ids: list[str] = field(default_factory=lambda: ["01JBX5Q9V7T3M8K2C4D6F8H0ZW"])
    lasting: str = ""
    slowest_s: float = 0.0
    session: requests.Session = field(default_factory=requests.Session)
    dice: random.Random = field(default_factory=random.Random)

    def all(self, wanted: int) -> None:
        """So many cases, or a few more."""
        self.dice.seed(self.seed)
        checks.load_all_checks()
        document = self.session.get(f"{self.url}/openapi.json", headers=self._authorization(), timeout=TIMEOUT_S).json()
        schema = schemathesis.openapi.from_dict(document)
        operations = [found.ok() for found in schema.get_all_operations()]
        self.operations = [operation.label for operation in operations]
        self._open_lasting()
        for number in itertools.count():
            for operation in operations:
                for mode in MODES:
                    self._some(operation, mode, self.seed + number)
                    if self.cases >= wanted:
                        return

    @property
    def statuses(self) -> set[int]:
        """All that was answered."""
        return {status for _, status in self.ends}

    def never_succeeded(self) -> list[str]:
        """The operations of the description that no answer of 2xx came from: what lies behind their door was not fuzzed."""
        succeeded = {operation for operation, status in self.ends if 200 <= status < 300}
        return [operation for operation in self.operations if operation not in succeeded]

    def table(self) -> list[str]:
        """How many answers of each status every operation gave, a line each."""
        known = sorted(self.statuses)
        heads = f"{'':32}" + "".join(f"{status:>7}" for status in known)
        rows = [f"{name:32}" + "".join(f"{self.ends[name, s] or '·':>7}" for s in known) for name in self.operations]
        return [heads, *rows]

    def _some(self, operation: Any, mode: Any, seed: int) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=AT_ONCE,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            self._ask(case)

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:
            # Nothing can be wrong about a request that has no parameters.
            assert mode is MODES[1], operation.label

    def _ask(self, case: Any) -> None:
        self._arrange(case)
        parts = case.as_transport_kwargs(base_url=self.url, headers=self._authorization())
        try:
            request = self.session.prepare_request(requests.Request(**parts))
        except (requests.RequestException, ValueError, UnicodeError):
            return  # not to be said in HTTP
        if case.path == CALLBACKS and self.dice.random() < SIGNED:
            self._sign(request)
        begun = time.perf_counter()
        answer = self.session.send(request, timeout=TIMEOUT_S, allow_redirects=False)
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begun)
        self.cases += 1
        self.ends[case.operation.label, answer.status_code] += 1
        self._judge(case, answer)
        if answer.status_code == requests.codes.accepted and (case.method, case.path) == ("POST", "/sessions"):
            self._keep(answer.json()["TaskId"])

    def _arrange(self, case: Any) -> None:
        """Half of the cases are about a session that exists, or a start that can be taken; none waits for long."""
        if "wait" in (case.query or {}):
            case.query["wait"] = MOST_WAIT_S
        if case.path == CALLBACKS and isinstance(case.body, dict):
            self._tell(case.body)
        if self.dice.random() < 0.5:
            return
        if "TaskId" in (case.path_parameters or {}):
            case.path_parameters["TaskId"] = self.dice.choice(self.task_ids)
        if case.path == REPLAY and isinstance(case.body, dict):
            case.path_parameters["TaskId"] = self.lasting
            for name in ("N", "Speaker", "From"):
                if self.dice.random() < USUAL:
                    case.body.pop(name, None)
        if (case.method, case.path) == ("POST", "/sessions") and isinstance(case.body, dict):
            case.body |= {"CosConfig": COS, "SubscribeUserIds": []}

    def _open_lasting(self) -> None:
        """A session that stays, with a recording that waits for its stream: what else could be replayed?"""
        start = {"SdkAppId": worlds.APP, "StrRoomId": "lasting", "UserId": "lasting", "UserSig": "any", "CosConfig": COS}
        started = self.session.post(f"{self.url}/sessions", json=start, headers=self._authorization(), timeout=TIMEOUT_S)
        self.lasting = started.json()["TaskId"]
        now_ms = time.time_ns() // 1_000_000
        info = {"RoomId": "lasting", "UserId": "alice", "EventMsTs": now_ms}
        told = {"EventGroupId": 2, "EventType": 203, "CallbackTs": now_ms, "EventInfo": info}
        request = self.session.prepare_request(requests.Request("POST", f"{self.url}{CALLBACKS}", json=told))
        self._sign(request)
        answer = self.session.send(request, timeout=TIMEOUT_S)
        assert answer.status_code == requests.codes.ok, answer.text

    def _tell(self, body: dict[str, Any]) -> None:
        """Most callbacks say what TRTC may say, and that it is said now; what Schemathesis made of a part is left in some."""
        now_ms = time.time_ns() // 1_000_000
        group, number, more = self.dice.choice(TOLD)
        room, user = self.dice.choice(ROOMS), self.dice.choice(USERS)
        info = {"RoomId": room, "UserId": user, "EventMsTs": now_ms - self.dice.randrange(60_000), **more}
        age_ms = self.dice.randrange(-20_000, 60_000) if self.dice.random() < YOUNG else 86_400_000
        usual = {"EventGroupId": group, "EventType": number, "CallbackTs": now_ms - age_ms, "EventInfo": info}
        body |= {name: value for name, value in usual.items() if self.dice.random() < USUAL}

    def _sign(self, request: requests.PreparedRequest) -> None:
        """As TRTC would, with the key of the world's application."""
        body = request.body or b""
        raw = body.encode() if isinstance(body, str) else body
        sign = base64.b64encode(hmac.new(worlds.CALLBACK_KEY.encode(), raw, hashlib.sha256).digest())
        request.headers["SdkAppId"], request.headers["Sign"] = str(worlds.APP), sign.decode()

    def _judge(self, case: Any, answer: requests.Response) -> None:
        told = f"{case.method} {answer.request.url} {str(answer.request.body)[:500]} → {answer.status_code} {answer.text[:500]}"
        if answer.status_code >= 500 and (case.method, case.path, answer.status_code) not in ALLOWED:
            self.failures_5xx.append(told)
        try:
            case.validate_response(answer, checks=CHECKS)
        except failures.FailureGroup as group:
            self.broken.append(f"{'; '.join(str(error) for error in group.exceptions)[:800]} in {told}")

    def _keep(self, task_id: str) -> None:
        """Remember a session to ask about; stop the oldest, so that only a few are open."""
        self.task_ids.append(task_id)
        if len(self.task_ids) > OPEN_AT_ONCE:
            oldest = self.task_ids.pop(0)
            self.session.post(f"{self.url}/sessions/{oldest}/stop", headers=self._authorization(), timeout=TIMEOUT_S)

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}
