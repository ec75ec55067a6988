"""Injected COS faults: which requests fail, how often, and how.

Rule: a fault applies after the signature was verified, so a script cannot hide a wrong key. The first matching fault that is not
used up applies, one per request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fnmatch import fnmatchcase

STATUS, DELAY, RESET, COMMIT_THEN_RESET, EXPIRED_TOKEN, WRONG_CRC = (
    "status",
    "delay",
    "reset",
    "commit-then-reset",
    "expired-token",
    "wrong-crc",
)
ACTIONS = (STATUS, DELAY, RESET, COMMIT_THEN_RESET, EXPIRED_TOKEN, WRONG_CRC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One rule. `operation`, `bucket`, `key` and `signer` (the SecretId) are patterns (`*`, `?`); the operations are those of
    service.py.

    The first `skip` matching requests pass, the next `times` are struck (0 = all further ones).

    status            answer `status` with COS's XML and `code`; nothing is done
    delay             wait `delay_s`, then do and answer as usual
    reset             break the connection off after the body's first bytes; nothing is done
    commit-then-reset do it, then break off instead of answering
    expired-token     403 ExpiredToken; nothing is done
    wrong-crc         do it, but answer with a CRC-64 that is not the object's
    """

    action: str
    operation: str = "*"
    bucket: str = "*"
    key: str = "*"
    signer: str = "*"
    skip: int = 0
    times: int = 1
    status: int = 503
    code: str = "ServiceUnavailable"
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request and its result: status 0 = the connection was aborted; `fault` is the applied action."""

    operation: str
    bucket: str
    key: str
    status: int
    code: str = ""
    fault: str = ""


class Script:
    """The faults in force, with how often each has matched."""

    def __init__(self) -> None:
        self._faults: tuple[Fault, ...] = ()
        self._matched: list[int] = []

    def set(self, *faults: Fault) -> None:
        """Replace all faults (none given = none). Raises ValueError for an unknown action, or a status that is no error."""
        for fault in faults:
            if fault.action not in ACTIONS:
                raise ValueError(f"Action is one of {', '.join(ACTIONS)}")
            if not 400 <= fault.status < 600:
                raise ValueError("Status is 400 to 599")
        self._faults, self._matched = faults, [0] * len(faults)

    @property
    def rules(self) -> tuple[Fault, ...]:
        """The faults in force, in the order they are tried."""
        return self._faults

    def strike(self, operation: str, bucket: str, key: str, signer: str = "") -> Fault | None:
        """The fault for this request, counted as used."""
        request = (operation, bucket, key, signer)
        for index, fault in enumerate(self._faults):
            patterns = (fault.operation, fault.bucket, fault.key, fault.signer)
            if not all(map(fnmatchcase, request, patterns)):
                continue
            self._matched[index] += 1
            over = self._matched[index] - fault.skip
            if over > 0 and (not fault.times or over <= fault.times):
                return fault
        return None


def journal() -> deque[Served]:
    """An empty list of the latest 10,000 requests."""
    return deque(maxlen=10_000)
