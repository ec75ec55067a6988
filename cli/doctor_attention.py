"""The check `attention` of `recorder doctor`: the causes that the service lists, from all pages of stuck sessions.

Rule: it reads at most PAGES pages, so that the examination ends within seconds, and tells where it stopped.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

from cli import client
from cli.doctor_case import Case, Finding, ok, warn

PAGE = 100
PAGES = 10
LIST = "recorder sessions --stuck"


def check_attention(case: Case) -> Finding:
    """Nothing needs attention: no session is stuck, a worker is alive, and the workers' disks have space."""
    if case.service_fault:
        return ok("not asked: see service")
    told = _Told()
    try:
        told.read(case.service)
    except client.ClientError as error:
        if not told.found:
            return warn(str(error), "What needs attention is not known.", LIST)
        told.rest = [f"the rest is not known: {error}"]
    found = ", ".join([*(told.found or ["nothing is stuck"]), *told.rest])
    return warn(found, "These do not go on, or lose media, without you.", LIST) if told.found else ok(found)


@dataclass(slots=True)
class _Told:
    """The causes that the service tells, the number of sessions for each rule, and what was not read."""

    causes: dict[str, None] = field(default_factory=dict)
    rules: collections.Counter[str] = field(default_factory=collections.Counter)
    rest: list[str] = field(default_factory=list)

    def read(self, service: client.ServiceClient) -> None:
        """Read the pages. Raises ClientError; what was read before stays."""
        before, sessions = "", 0
        for _ in range(PAGES):
            answer = service.sessions(stuck="true", limit=str(PAGE), before=before)
            # A service of an earlier version lists no causes.
            self.causes |= {one["Cause"]: None for one in answer.get("Attention", [])}
            for session in answer["Sessions"]:
                self.rules.update({reason["Rule"] for reason in session["Stuck"]})
            before, sessions = answer["Next"], sessions + len(answer["Sessions"])
            if not before:
                return
        self.rest = [f"and more: {sessions} stuck sessions were read, and none before {before}"]

    @property
    def found(self) -> list[str]:
        """Each cause, and each rule with its number of sessions."""
        return [*self.causes, *(f"{rule} ({count})" for rule, count in sorted(self.rules.items()))]
