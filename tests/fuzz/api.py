"""API fuzzing: Schemathesis makes valid and invalid requests from the service's OpenAPI document, and checks every response.

Rule: it blocks, so it runs in a thread of its own. A response that breaks the document is recorded with its request. An operation
that never succeeded counts as untested, whatever it responded.
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

# Loaded here and not in the thread: Python 3.11 fails when two threads parse at the same time.
_ = schemathesis.specs.openapi.schemas
# Every response must match the documented statuses, content types, headers and schemas.
CHECKS = [
    promises.status_code_conformance,
    promises.content_type_conformance,
    promises.response_headers_conformance,
    promises.response_schema_conformance,
]
# Cases per operation and mode in a row; operations without parameters have few different requests anyway.
AT_ONCE = 10
MOST_WAIT_S = 0.02
TIMEOUT_S = 30.0
OPEN_AT_ONCE = 8
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
# A full disk, a service that is not ready, a speaker without media yet: the only 5xx that the service may give.
ALLOWED = {("POST", "/sessions", 507), ("GET", "/readyz", 503), ("GET", "/sessions/{TaskId}/live", 503)}
CALLBACKS, REPLAY, RESEND = "/trtc/callbacks", "/sessions/{TaskId}/replay", "/sessions/{TaskId}/resend"
# Operations whose success needs what these requests cannot make: a speaker who is live, further nodes, dead letters, a first key.
# tests/e2e/test_live_view.py, tests/integration/test_nodes_api.py and test_operators_api.py see them succeed.
REFUSED = (
    "GET /sessions/{TaskId}/live",
    *(f"POST /nodes/{{Node}}/{action}" for action in ("cordon", "drain", "uncordon")),
    *("GET /parked/{Id}", "GET /keys", "POST /keys", "POST /keys/{Id}/revoke"),
)
COS = {"Region": worlds.REGION, "Bucket": worlds.BUCKET, "Path": "fuzz"}
COS |= {"SecretId": worlds.SECRET_ID, "SecretKey": worlds.SECRET_KEY}
# Shares of TRTC's callbacks: those with a signature, and among these those with a current time. The others are stale.
SIGNED, YOUNG = 0.8, 0.8
# The share of valid values for each part of a signed callback: most callbacks are accepted and some have one fault.
USUAL = 0.93
# TRTC's callback events: group, number, and the role or reason that some of them carry.
CALLBACK_EVENTS = (
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
    ended: str = ""
    slowest_s: float = 0.0
    session: requests.Session = field(default_factory=requests.Session)
    dice: random.Random = field(default_factory=random.Random)

    def all(self, wanted: int) -> None:
        """Run at least `wanted` cases."""
        self.dice.seed(self.seed)
        checks.load_all_checks()
        document = self.session.get(f"{self.url}/openapi.json", headers=self._authorization(), timeout=TIMEOUT_S).json()
        schema = schemathesis.openapi.from_dict(document)
        operations = [found.ok() for found in schema.get_all_operations()]
        self.operations = [operation.label for operation in operations]
        self._open_lasting()
        self._end_one()
        for number in itertools.count():
            for operation in operations:
                for mode in MODES:
                    self._some(operation, mode, self.seed + number)
                    if self.cases >= wanted:
                        return

    @property
    def statuses(self) -> set[int]:
        """Every status that a response had."""
        return {status for _, status in self.ends}

    def never_succeeded(self) -> list[str]:
        """The operations without a 2xx response, of which only refusals were fuzzed, apart from `REFUSED`."""
        succeeded = {operation for operation, status in self.ends if 200 <= status < 300}
        return [operation for operation in self.operations if operation not in succeeded and operation not in REFUSED]

    def table(self) -> list[str]:
        """A line per operation with its number of responses of each status."""
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
        def send(case: Any) -> None:
            self._send(case)

        try:
            send()
        except hypothesis.errors.Unsatisfiable:
            # A request without parameters cannot be invalid.
            assert mode is MODES[1], operation.label

    def _send(self, case: Any) -> None:
        self._arrange(case)
        parts = case.as_transport_kwargs(base_url=self.url, headers=self._authorization())
        try:
            request = self.session.prepare_request(requests.Request(**parts))
        except (requests.RequestException, ValueError, UnicodeError):
            return  # HTTP cannot express it
        if case.path == CALLBACKS and self.dice.random() < SIGNED:
            self._sign(request)
        begun = time.perf_counter()
        answer = self.session.send(request, timeout=TIMEOUT_S, allow_redirects=False)
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begun)
        self.cases += 1
        self.ends[case.operation.label, answer.status_code] += 1
        self._judge(case, answer)
        if answer.status_code == requests.codes.accepted and (case.method, case.path) == ("POST", "/sessions"):
            self._remember(answer.json()["TaskId"])

    def _arrange(self, case: Any) -> None:
        """Point half of the cases at an existing session, or make their start acceptable; no request waits for long."""
        if "wait" in (case.query or {}):
            case.query["wait"] = MOST_WAIT_S
        if case.path == CALLBACKS and isinstance(case.body, dict):
            self._fill_callback(case.body)
        if self.dice.random() < 0.5:
            return
        if "TaskId" in (case.path_parameters or {}):
            case.path_parameters["TaskId"] = self.dice.choice(self.task_ids)
        if case.path == RESEND:
            case.path_parameters["TaskId"] = self.ended
        if case.path == REPLAY and isinstance(case.body, dict):
            case.path_parameters["TaskId"] = self.lasting
            for name in ("N", "Speaker", "From"):
                if self.dice.random() < USUAL:
                    case.body.pop(name, None)
        if (case.method, case.path) == ("POST", "/sessions") and isinstance(case.body, dict):
            self._fill_start(case)

    def _fill_start(self, case: Any) -> None:
        """Replace most parts of a start by values that the service accepts; some parts stay as Schemathesis made them."""
        usual = {"SdkAppId": worlds.APP, "StrRoomId": self.dice.choice(("1", "fuzz", "房间")), "UserId": self.dice.choice(USERS)}
        usual |= {"UserSig": "any", "CosConfig": COS, "SubscribeUserIds": [], "Callback": "https://receiver.invalid/result"}
        case.body |= {name: value for name, value in usual.items() if self.dice.random() < USUAL}
        for name in ("RoomId", "CallbackEvents", "UserData", "UnSubscribeUserIds"):
            if self.dice.random() < USUAL:
                case.body.pop(name, None)
        if case.headers is not None and self.dice.random() < USUAL:
            case.headers.pop("Idempotency-Key", None)

    def _end_one(self) -> None:
        """End a session, whose result can be sent again: whether another one has ended by then depends on the machine."""
        start = {"SdkAppId": worlds.APP, "StrRoomId": "ended", "UserId": "ended", "UserSig": "any", "CosConfig": COS}
        start |= {"Callback": "https://receiver.invalid/result"}
        started = self.session.post(f"{self.url}/sessions", json=start, headers=self._authorization(), timeout=TIMEOUT_S)
        self.ended = started.json()["TaskId"]
        answer = self.session.post(f"{self.url}/sessions/{self.ended}/stop", headers=self._authorization(), timeout=TIMEOUT_S)
        assert answer.status_code == requests.codes.accepted, answer.text

    def _open_lasting(self) -> None:
        """Open a session that stays open, with a recording that waits for its stream: replays need one."""
        start = {"SdkAppId": worlds.APP, "StrRoomId": "lasting", "UserId": "lasting", "UserSig": "any", "CosConfig": COS}
        started = self.session.post(f"{self.url}/sessions", json=start, headers=self._authorization(), timeout=TIMEOUT_S)
        self.lasting = started.json()["TaskId"]
        now_ms = time.time_ns() // 1_000_000
        info = {"RoomId": "lasting", "UserId": "alice", "EventMsTs": now_ms}
        callback = {"EventGroupId": 2, "EventType": 203, "CallbackTs": now_ms, "EventInfo": info}
        request = self.session.prepare_request(requests.Request("POST", f"{self.url}{CALLBACKS}", json=callback))
        self._sign(request)
        answer = self.session.send(request, timeout=TIMEOUT_S)
        assert answer.status_code == requests.codes.ok, answer.text

    def _fill_callback(self, body: dict[str, Any]) -> None:
        """Replace most parts of a callback by values that TRTC may send, with a current time; some parts stay as Schemathesis
        made them."""
        now_ms = time.time_ns() // 1_000_000
        group, number, more = self.dice.choice(CALLBACK_EVENTS)
        room, user = self.dice.choice(ROOMS), self.dice.choice(USERS)
        info = {"RoomId": room, "UserId": user, "EventMsTs": now_ms - self.dice.randrange(60_000), **more}
        age_ms = self.dice.randrange(-20_000, 60_000) if self.dice.random() < YOUNG else 86_400_000
        usual = {"EventGroupId": group, "EventType": number, "CallbackTs": now_ms - age_ms, "EventInfo": info}
        body |= {name: value for name, value in usual.items() if self.dice.random() < USUAL}

    def _sign(self, request: requests.PreparedRequest) -> None:
        """Sign as TRTC does, with the key of the world's application."""
        body = request.body or b""
        raw = body.encode() if isinstance(body, str) else body
        sign = base64.b64encode(hmac.new(worlds.CALLBACK_KEY.encode(), raw, hashlib.sha256).digest())
        request.headers["SdkAppId"], request.headers["Sign"] = str(worlds.APP), sign.decode()

    def _judge(self, case: Any, answer: requests.Response) -> None:
        exchange = (
            f"{case.method} {answer.request.url} {str(answer.request.body)[:500]} → {answer.status_code} {answer.text[:500]}"
        )
        if answer.status_code >= 500 and (case.method, case.path, answer.status_code) not in ALLOWED:
            self.failures_5xx.append(exchange)
        try:
            case.validate_response(answer, checks=CHECKS)
        except failures.FailureGroup as group:
            self.broken.append(f"{'; '.join(str(error) for error in group.exceptions)[:800]} in {exchange}")

    def _remember(self, task_id: str) -> None:
        """Remember a session for later requests; stop the oldest, so that only a few are open."""
        self.task_ids.append(task_id)
        if len(self.task_ids) > OPEN_AT_ONCE:
            oldest = self.task_ids.pop(0)
            self.session.post(f"{self.url}/sessions/{oldest}/stop", headers=self._authorization(), timeout=TIMEOUT_S)

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}
