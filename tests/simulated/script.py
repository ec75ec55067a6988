"""The outer world of one history, from a seed: rooms, speakers, a start and its end, COS and the receiver.

Rules: a script has no faults; the plays with and without faults share it. In a `roomy` script everything lasts so long that no
fault within the bounds of fault_profile.py may change its end: speakers stay at least 240 s, are away for less than 8 s or more
than 200 s, and none arrives within 240 s before the end.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

from machine import model

APP = 1400000001
RECORDER = "rec"
SPEAKERS = ("al", "bo", "cy")
WANTED = {"00": ("audio",), "01": ("video",), "02": ("audio", "video")}
COS = {"Region": "ap-shanghai", "Bucket": "b-12345", "Path": "p", "SecretId": "i", "SecretKey": "k"}
POLICY = model.Policy(
    max_duration_ms=40 * model.MINUTE,
    idle_timeout_ms=10 * model.MINUTE,
    upload_retry_for_ms=6 * model.HOUR,
    capture_backoff_ms=(1_000, 4_000, 15_000, 60_000),
    blind_capture_backoff_ms=(1_000, 8_000, 60_000),
)
S = model.SECOND


@dataclass(frozen=True, slots=True)
class Act:
    """Something happens `at_ms` after the beginning. `name` is a method of the world."""

    at_ms: int
    name: str
    about: tuple[Any, ...] = ()


@dataclass(slots=True)
class Script:
    """The outer world of one history.

    `outages` are those of COS. The files of `bad` speakers cannot be transcoded (True: reported as retryable). The bucket refuses
    uploads for good until `cured_ms`. The receiver of results is `deaf` for a while."""

    seed: int
    roomy: bool
    mode: str = "00"
    room: dict[str, Any] = field(default_factory=dict)
    blind: bool = False
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    callback: str = ""
    manifest: bool = False
    ends_by: str = "stop"
    end_ms: int = 0
    bad: dict[str, bool] = field(default_factory=dict)
    cured_ms: int = 0
    outages: tuple[tuple[int, int], ...] = ()
    deaf: tuple[int, int] = (0, 0)
    replay: bool = False
    replay_from: str = ""
    speakers: tuple[str, ...] = ()
    long_aways: dict[str, int] = field(default_factory=dict)
    acts: list[Act] = field(default_factory=list)

    def request(self) -> dict[str, Any]:
        """The body of the start."""
        body: dict[str, Any] = {
            "SdkAppId": APP,
            **self.room,
            "UserId": RECORDER,
            "UserSig": "s",
            "CosConfig": COS,
            "Mode": self.mode,
        }
        lists = {"SubscribeUserIds": list(self.subscribe), "UnSubscribeUserIds": list(self.unsubscribe)}
        more = {"Callback": self.callback} if self.callback else {}
        return body | {name: ids for name, ids in lists.items() if ids} | more | ({"Manifest": True} if self.manifest else {})

    def records(self, speaker: str) -> bool:
        """Whether the session takes this speaker."""
        return speaker not in self.unsubscribe and (not self.subscribe or speaker in self.subscribe)


START_MS = 60 * S


def write(seed: int, *, roomy: bool) -> Script:
    """The script of a seed."""
    chance = random.Random(seed * 2 + roomy)
    made = Script(seed=seed, roomy=roomy)
    made.mode = chance.choice(("00", "01", "02"))
    made.room = {"RoomId": 88} if chance.random() < 0.6 else {"StrRoomId": "88"}
    made.speakers = SPEAKERS[: chance.choices((0, 1, 2, 3), (4, 50, 36, 10))[0]]
    made.blind = bool(made.speakers) and chance.random() < 0.06
    if made.blind or chance.random() < 0.1:
        made.subscribe = made.speakers or ("al",)
    elif chance.random() < 0.08:
        made.unsubscribe = ("bo",)
    made.callback = "https://example.com/done" if chance.random() < 0.4 else ""
    made.bad = {speaker: chance.random() < 0.5 for speaker in made.speakers if chance.random() < 0.06}
    made.manifest = random.Random(f"manifest {seed}").random() < 0.3
    made.acts.append(Act(START_MS, "start"))
    stays = [_stays(chance, made) for _ in made.speakers]
    _end(chance, made, stays, [of for speaker, of in zip(made.speakers, stays, strict=True) if made.records(speaker)])
    for speaker, of_speaker in zip(made.speakers, stays, strict=True):
        gaps_ms = [back_ms - gone_ms for (_, gone_ms), (back_ms, _) in itertools.pairwise(of_speaker)]
        made.long_aways[speaker] = sum(gap_ms > 100 * S for gap_ms in gaps_ms)
        for from_ms, to_ms in of_speaker:
            _stay(chance, made, speaker, from_ms, to_ms)
    _surroundings(chance, made)
    made.acts.sort(key=lambda act: act.at_ms)
    return made


def _stays(chance: random.Random, made: Script) -> list[tuple[int, int]]:
    """The times at which a speaker is there."""
    early = chance.random() < 0.3 and not made.blind
    from_ms = chance.randrange(5 * S, 30 * S) if early else START_MS + chance.randrange(2 * S, 60 * S)
    shortest, longest = (240 * S, 340 * S) if made.roomy else (2 * S, 80 * S)
    stays = [(from_ms, max(from_ms, START_MS) + chance.randrange(shortest, longest))]
    while chance.random() < 0.35 and len(stays) < 3:
        away_ms = chance.randrange(2 * S, 8 * S)
        if chance.random() < 0.4 and not made.blind:
            away_ms = chance.randrange(200 * S, 240 * S) if made.roomy else chance.randrange(1 * S, 70 * S)
        back_ms = stays[-1][1] + away_ms
        stays.append((back_ms, back_ms + chance.randrange(shortest, 300 * S if made.roomy else longest)))
    return stays


def _end(chance: random.Random, made: Script, stays: list[list[tuple[int, int]]], recorded: list[list[tuple[int, int]]]) -> None:
    """Choose how and when the session closes, by the recorded speakers; those who are there stay a little longer."""
    kinds, weights = ("stop", "destroy", "remove", "idle", "max"), (40, 32, 10, 14, 4)
    made.ends_by = chance.choices(kinds, weights)[0] if recorded else chance.choice(("stop", "idle"))
    if made.ends_by == "remove" and made.subscribe:
        made.ends_by = "destroy"
    last_ms = max((of[-1][1] for of in recorded), default=START_MS)
    newest_ms = max((of[-1][0] for of in recorded), default=START_MS)
    match made.ends_by:
        case "idle":
            return
        case "max":
            recorded[0][-1] = (recorded[0][-1][0], START_MS + 2_500 * S)
            return
        case "remove":
            made.end_ms = last_ms + (chance.randrange(200 * S, 260 * S) if made.roomy else chance.randrange(60 * S))
        case _ if chance.random() < 0.4:
            made.end_ms = last_ms + chance.randrange(1 * S, 130 * S)
        case _:
            least_ms = 240 * S if made.roomy else 0
            made.end_ms = max(newest_ms, START_MS) + least_ms + chance.randrange(1 * S, 40 * S)
    made.acts.append(Act(made.end_ms, {"stop": "stop", "destroy": "destroy", "remove": "remove"}[made.ends_by]))
    for of in stays:
        over = made.end_ms if made.ends_by == "destroy" else made.end_ms + chance.randrange(1 * S, 20 * S)
        of[:] = [(from_ms, min(to_ms, over)) for from_ms, to_ms in of if from_ms < made.end_ms]


def _stay(chance: random.Random, made: Script, speaker: str, from_ms: int, to_ms: int) -> None:
    """One stay: tracks go on, perhaps off and on again, perhaps the stream breaks; then the speaker leaves, or the room is
    dismissed."""
    wanted = WANTED[made.mode]
    first = wanted[0]
    made.acts.append(Act(from_ms, "switch_on", (speaker, first)))
    other = {"audio": "video", "video": "audio"}[first]
    span_ms = to_ms - from_ms
    if chance.random() < 0.3:
        made.acts.append(Act(from_ms + chance.randrange(1 + span_ms // 2), "switch_on", (speaker, other)))
    if chance.random() < 0.2:
        off_ms = from_ms + span_ms // 4
        made.acts.append(Act(off_ms, "switch_off", (speaker, first)))
        made.acts.append(Act(min(off_ms + chance.randrange(2 * S, 40 * S), to_ms - 1), "switch_on", (speaker, first)))
    if chance.random() < 0.2:
        made.acts.append(Act(from_ms + span_ms * 3 // 4, "break_off", (speaker,)))
    if to_ms < made.end_ms or not made.end_ms or made.ends_by != "destroy" or chance.random() < 0.3:
        made.acts.append(Act(to_ms, "leave", (speaker,)))


def _surroundings(chance: random.Random, made: Script) -> None:
    """COS, the receiver, and a replay."""
    over_ms = max(act.at_ms for act in made.acts)
    if chance.random() < 0.25:
        from_ms = chance.randrange(over_ms + 60 * S)
        made.outages = ((from_ms, from_ms + chance.randrange(60 * S, 3_600 * S)),)
    if made.callback and chance.random() < 0.3:
        made.deaf = (over_ms, over_ms + chance.randrange(60 * S, 7_200 * S))
    if chance.random() < 0.05:
        made.cured_ms = over_ms + 3 * model.HOUR
    made.replay = bool(made.cured_ms or made.bad) and chance.random() < 0.6
    if made.replay:
        made.replay_from = chance.choice(("", "transcoding", "uploading"))
        made.acts.append(Act(over_ms + 4 * model.HOUR, "replay"))
