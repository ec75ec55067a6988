"""The clock of one track of one segment: when each packet was live, from its tag, its duration and its arrival.

Rules:
- A packet arrives late and never early. So (arrival - media time) has a lower envelope, and that envelope is the clock. It may
  drift as far as quartzes drift.
- A packet decides about media up to ENVELOPE_MS before it. So a recording is placed for good while it still grows
  (media/following.py).
- Inside a stretch, the media itself gives the distances: the samples of audio packets, the tags of video.
- Where tags claim a hole, a step back or a jump, or packets stop arriving, a new stretch begins. The tags place it if the
  arrivals agree. Otherwise it follows the stretch before (nothing is missing) if they agree with that, else they place it.
- A step back that the arrivals confirm is data sent twice: it lies over media that is already there.
- Memory is bounded for any stream.
"""

from __future__ import annotations

import bisect
import collections
import copy
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

# Audio tags count whole milliseconds and jitter a little; less than this part of a packet is no hole.
_HOLE_PART, _LEAST_HOLE_MS = 0.75, 12.0
_BACK_MS = 50.0
# The tags of audio may run a little faster than its samples; the base follows within some hundred packets.
_FOLLOW = 0.002
_FAR_MS, _FEW_FRAMES = 150.0, 3
_LATE_MS = 200.0
# Pictures whose tags stand for longer are placed by their arrivals.
STOOD_MS = 200.0
# The usual distance of pictures follows the present one, and a single pause moves it little.
_LEARN, _MOST_LEARNT = 0.1, 3
SETTLED_MS = 60_000  # then it is known: later pictures must not move the first ones
# The last picture is shown for as long as those before it were, but who knows when a still screen would have changed.
_LAST_PICTURES, _LONGEST_LAST_MS = 9, 1_000
WINDOW_MS = 2_000.0
ENVELOPE_MS = 120_000.0
_LOOK_MS = 30_000.0
_MOST_LOOKED = 200  # a hostile stream begins a stretch with each packet
_EXACT_MS, _ROUGH_MS, _FEW = 120.0, 300.0, 6  # how exactly arrivals of many packets give their envelope, and those of a few
_NOISE_MS = 40.0  # a claim that is so close to the envelope needs no better one
_DRIFT = 0.0003  # three in ten thousand; quartzes differ by a tenth of that
_MOST_STRETCHES = _MOST_KNOTS = 200_000
_USUAL_FRAME_MS = 40.0
# A hole in audio, or a step back, moves all packets behind it; jitter moves one, and that of pictures is larger.
_LOOK_AHEAD, _LOOK_AHEAD_OF_AUDIO = 5, 2
_WRAP = 1 << 32


@dataclass(slots=True, kw_only=True)
class Stretch:
    """Packets whose distances their media gives. `first`: the number of its first packet; `tag_ms`: the tag of that packet;
    `claimed_ms`: how much later than the end of the stretch before the tags say it begins; `late`: it begins because packets
    stopped arriving. `knots`: (media time since the begin, least arrival - media time of two seconds). `at_ms`: its begin on the
    axis of its run. `damaged`: unreadable bytes precede it. `standing`: its tag stands, and only the arrival tells its place."""

    first: int
    tag_ms: int
    claimed_ms: float
    late: bool
    damaged: bool
    counted: bool
    begin_ms: float  # arrival of the first packet
    latest_ms: float = 0.0  # arrival of the last packet
    standing: bool = False
    length_ms: float = 0.0
    packets: int = 0
    knots: list[tuple[float, float]] = field(default_factory=list)
    at_ms: float = 0.0
    single_ms: float = 0.0  # of a single picture: the usual distance SETTLED_MS later

    @property
    def ends_ms(self) -> float:
        """Its end on the axis of its run."""
        return self.at_ms + self.length_ms


@dataclass(slots=True, kw_only=True)
class Run:
    """Stretches that one clock places. `points`: (position on the axis of the run, live time), in order of both. `repeated`: an
    earlier segment has its packets, so that they have no place here."""

    stretches: list[Stretch]
    points: list[tuple[float, float]] = field(default_factory=list)
    repeated: bool = False

    def live_ms(self, at_ms: float) -> float:
        """When the media at a position was live; infinite for repeated packets."""
        if self.repeated:
            return float("inf")
        points = self.points
        after = bisect.bisect_right(points, (at_ms, float("inf")))
        if after == 0 or len(points) == 1:
            return points[0][1] + at_ms - points[0][0]
        if after == len(points):
            return points[-1][1] + at_ms - points[-1][0]
        (from_ms, live_ms), (to_ms, to_live_ms) = points[after - 1], points[after]
        return live_ms + (at_ms - from_ms) * (to_live_ms - live_ms) / (to_ms - from_ms)

    @property
    def packets(self) -> int:
        """How many packets it has."""
        return sum(stretch.packets for stretch in self.stretches)


@dataclass(slots=True)  # not frozen, as flv.Tag is not
class _Packet:
    tag_ms: int
    arrived_ms: float
    packet_ms: float | None
    damaged: bool


class TrackClock:
    """Collects the packets of one track in file order."""

    def __init__(self) -> None:
        self._stretches: list[Stretch] = []
        self._waiting: collections.deque[_Packet] = collections.deque()
        self._newest_tag_ms: int | None = None  # unwrapped
        self._packets = 0
        self._tag_ms = 0  # the last placed packet's tag
        self._arrived_ms = 0.0
        self._media_ms = 0.0  # the last packet's place in its stretch
        self._stood_since_ms = 0.0  # the arrival of the first packet with the last tag's time
        self._base_ms = 0.0  # how far tags of counted packets are usually ahead of their place
        self._usual_ms = self._settled_ms = _USUAL_FRAME_MS
        self._distances: collections.deque[int] = collections.deque(maxlen=_LAST_PICTURES)
        self._last_ms = 0.0  # the last packet's duration
        self._singles: collections.deque[Stretch] = collections.deque()  # those whose length is not known yet

    def add(self, tag_ms: int, arrived_ms: float, packet_ms: float | None, *, damaged: bool = False) -> None:
        """Add a packet: its tag's 32-bit time, its arrival (Unix ms), and its duration if its payload tells."""
        self._newest_tag_ms = tag_ms = unwrapped(self._newest_tag_ms, tag_ms)
        self._waiting.append(_Packet(tag_ms, arrived_ms, packet_ms, damaged))
        if len(self._waiting) > _LOOK_AHEAD:
            self._take(self._waiting.popleft())

    def _take(self, packet: _Packet) -> None:
        if not self._stretches:
            self._begin(packet, 0.0, late=False)
        else:
            stretch = self._stretches[-1]
            place_ms = self._place(stretch, packet)
            claimed_ms = self._claim(stretch, packet, place_ms)
            late = packet.arrived_ms - self._arrived_ms - (place_ms - self._media_ms) > _LATE_MS
            if (claimed_ms is not None or late or packet.damaged) and len(self._stretches) < _MOST_STRETCHES:
                self._begin(packet, claimed_ms or 0.0, late=claimed_ms is None and late)
            else:
                self._continue(stretch, packet, place_ms)
        self._note(self._stretches[-1], packet)
        if packet.tag_ms != self._tag_ms:
            self._stood_since_ms = packet.arrived_ms
            if self._packets:  # the first one has no distance to another
                self._distances.append(packet.tag_ms - self._tag_ms)
                self._learn(packet.tag_ms - self._tag_ms)
        self._tag_ms, self._arrived_ms = packet.tag_ms, packet.arrived_ms
        while self._singles and packet.arrived_ms - self._singles[0].begin_ms > SETTLED_MS:
            self._singles.popleft().single_ms = self._usual_ms
        self._packets += 1

    def _learn(self, distance_ms: int) -> None:
        """Let the usual distance follow. Jitter gives to one distance what it takes from another, so small steps back count."""
        most_ms = _MOST_LEARNT * self._usual_ms
        least_ms = 0.0 if distance_ms < -most_ms else -self._usual_ms
        self._usual_ms += _LEARN * (min(max(distance_ms, least_ms), most_ms) - self._usual_ms)
        if self._tag_ms - self._stretches[0].tag_ms <= SETTLED_MS:
            self._settled_ms = self._usual_ms

    @property
    def settled_ms(self) -> float:
        """The usual distance of the first pictures."""
        return self._settled_ms

    @property
    def tags_ms(self) -> tuple[int, int]:
        """The times of the first and the last tag, unwrapped."""
        return (self._stretches[0].tag_ms, self._tag_ms) if self._stretches else (0, 0)

    def copied(self) -> TrackClock:
        """A clock of its own that knows the same packets. A day has tens of thousands of knots, so these are shared."""
        found = copy.copy(self)
        stretches = {id(each): replace(each, knots=[*each.knots]) for each in self._stretches}
        found._stretches = [*stretches.values()]
        found._singles = collections.deque(stretches[id(each)] for each in self._singles)
        found._waiting, found._distances = self._waiting.copy(), self._distances.copy()
        return found

    def runs(self) -> list[Run]:
        """The runs of all packets, each with its clock. Call it once, after the last packet."""
        while self._waiting:
            self._take(self._waiting.popleft())
        for stretch, following in itertools.pairwise([*self._stretches, None]):
            if stretch is not None and not stretch.counted and stretch.packets == 1:
                # A single picture: now its duration is known better. Its successor begins where its tag says.
                usual_ms = stretch.single_ms or self._usual_ms
                if following is not None and not following.late:
                    following.claimed_ms -= usual_ms - stretch.length_ms
                stretch.length_ms = usual_ms
        if self._stretches and not self._stretches[-1].counted:
            usual_ms = min(statistics.median([*self._distances, self._usual_ms]), _LONGEST_LAST_MS)
            self._stretches[-1].length_ms = max(self._stretches[-1].length_ms, self._media_ms + usual_ms)
        return [_timed(run) for run in _grouped(self._stretches)]

    def _place(self, stretch: Stretch, packet: _Packet) -> float:
        if stretch.counted and packet.packet_ms is not None:
            return stretch.length_ms
        return float(packet.tag_ms - stretch.tag_ms)

    def _claim(self, stretch: Stretch, packet: _Packet, place_ms: float) -> float | None:
        """How far from the end of the stretch the tag puts the packet, if that is no ordinary distance."""
        if stretch.counted != (packet.packet_ms is not None):
            return packet.tag_ms - self._tag_ms - self._last_ms
        if packet.packet_ms is not None:
            ahead_ms = self._ahead_ms(stretch, packet, place_ms)
            if ahead_ms > max(_HOLE_PART * packet.packet_ms, _LEAST_HOLE_MS) or ahead_ms < -max(2 * packet.packet_ms, _BACK_MS):
                return ahead_ms
            return None
        distance_ms = packet.tag_ms - self._tag_ms
        if distance_ms == 0:  # parts of one picture, unless they come for longer than any picture lasts
            stood_ms = packet.arrived_ms - self._stood_since_ms
            return packet.arrived_ms - self._arrived_ms - self._last_ms if stood_ms > STOOD_MS else None
        if self._steps_back(packet) or distance_ms > max(_FAR_MS, _FEW_FRAMES * self._usual_ms):
            return distance_ms - self._last_ms  # the stretch before ends with this duration, whatever is usual by now
        return None

    def _steps_back(self, packet: _Packet) -> bool:
        """Whether this picture and those behind it have tags that are behind their places."""
        expected_ms = self._tag_ms - _BACK_MS
        for following in (packet, *self._waiting):
            expected_ms += self._usual_ms
            if following.tag_ms >= expected_ms:
                return False
        return True

    def _ahead_ms(self, stretch: Stretch, packet: _Packet, place_ms: float) -> float:
        """How far the tags of this packet and of those behind it are ahead of their places."""
        ahead_ms = packet.tag_ms - stretch.tag_ms - place_ms - self._base_ms
        for following in itertools.islice(self._waiting, _LOOK_AHEAD_OF_AUDIO):
            place_ms += packet.packet_ms or 0.0
            if ahead_ms > 0:
                ahead_ms = min(ahead_ms, following.tag_ms - stretch.tag_ms - place_ms - self._base_ms)
        return ahead_ms

    def _begin(self, packet: _Packet, claimed_ms: float, *, late: bool) -> None:
        self._media_ms = self._base_ms = 0.0
        stretch = Stretch(
            first=self._packets,
            tag_ms=packet.tag_ms,
            claimed_ms=claimed_ms,
            late=late,
            damaged=packet.damaged,
            counted=packet.packet_ms is not None,
            begin_ms=packet.arrived_ms,
            standing=packet.packet_ms is None and bool(self._stretches) and not late and packet.tag_ms == self._tag_ms,
        )
        if self._stretches and self._stretches[-1].packets == 1:
            self._singles.append(self._stretches[-1])
        self._stretches.append(stretch)

    def _continue(self, stretch: Stretch, packet: _Packet, place_ms: float) -> None:
        if packet.packet_ms is not None:
            self._base_ms += _FOLLOW * (packet.tag_ms - stretch.tag_ms - place_ms - self._base_ms)
        self._media_ms = place_ms

    def _note(self, stretch: Stretch, packet: _Packet) -> None:
        self._last_ms = self._usual_ms if packet.packet_ms is None else packet.packet_ms
        stretch.packets += 1
        stretch.latest_ms = packet.arrived_ms
        stretch.length_ms = max(stretch.length_ms, self._media_ms + self._last_ms)
        delay_ms = packet.arrived_ms - self._media_ms
        knots = stretch.knots
        if not knots or abs(self._media_ms - knots[-1][0]) >= WINDOW_MS:
            knots.append((self._media_ms, delay_ms))
            if len(knots) > _MOST_KNOTS:
                knots[:] = [min(pair, key=lambda knot: knot[1]) for pair in zip(knots[::2], knots[1::2], strict=False)]
        elif delay_ms < knots[-1][1]:
            knots[-1] = (knots[-1][0], delay_ms)


def unwrapped(last_ms: int | None, tag_ms: int) -> int:
    """A 32-bit time near the last one."""
    return tag_ms if last_ms is None else last_ms + (tag_ms - last_ms + _WRAP // 2) % _WRAP - _WRAP // 2


def _grouped(stretches: list[Stretch]) -> Iterator[list[Stretch]]:
    """Place each stretch behind the one before. Those that claims place form one run."""
    run: list[Stretch] = []
    for number, stretch in enumerate(stretches):
        if not run:
            run = [stretch]
            continue
        before = run[-1]
        level_ms = _tail_ms(run) + before.ends_ms
        shift_ms = _least_ms(stretches, number) - level_ms
        # shift_ms: how much later than the end of the stretch before the arrivals put this one.
        claimed_ms = _claimed_ms(stretch, before, shift_ms)
        if claimed_ms is None and shift_ms > 0:
            claimed_ms = _held_back_ms(stretches, number, level_ms)
        if claimed_ms is None:
            yield run
            stretch.at_ms = 0.0
            run = [stretch]
        else:
            stretch.at_ms = before.ends_ms + claimed_ms
            run.append(stretch)
    if run:
        yield run


def _claimed_ms(stretch: Stretch, before: Stretch, shift_ms: float) -> float | None:
    """The distance from the stretch before that both a claim and the arrivals support; None: only the arrivals tell."""
    tolerance_ms = _EXACT_MS if min(stretch.packets, before.packets) >= _FEW else _ROUGH_MS
    by_tag_ms, by_end_ms = abs(shift_ms - stretch.claimed_ms), abs(shift_ms)
    if stretch.standing:
        return max(shift_ms, -before.length_ms)
    if stretch.claimed_ms >= 0 and by_tag_ms <= max(_NOISE_MS, by_end_ms) and by_tag_ms <= tolerance_ms:
        return stretch.claimed_ms
    if by_end_ms <= tolerance_ms and (by_end_ms <= by_tag_ms + _NOISE_MS or by_tag_ms > tolerance_ms):
        return 0.0
    return stretch.claimed_ms if by_tag_ms <= tolerance_ms else None


def _tail_ms(run: list[Stretch]) -> float:
    """The least delay of the run's latest half minute, on its axis."""
    least_ms, ends_ms = float("inf"), run[-1].ends_ms
    for stretch in itertools.islice(reversed(run), _MOST_LOOKED):
        for at_ms, delay_ms in reversed(stretch.knots):
            if least_ms < float("inf") and ends_ms - stretch.at_ms - at_ms > _LOOK_MS:
                return least_ms
            least_ms = min(least_ms, delay_ms - stretch.at_ms)
    return least_ms


def _least_ms(stretches: list[Stretch], number: int) -> float:
    """The least delay of a stretch, and of those behind it that begin only because packets came late: after an interruption of
    the network, media that was held back arrives for a while."""
    first, least_ms, ahead_ms = stretches[number], float("inf"), 0.0
    for stretch in stretches[number : number + _MOST_LOOKED]:
        if stretch is not first and (not stretch.late or stretch.begin_ms - first.begin_ms > _LOOK_MS):
            break
        for at_ms, delay_ms in stretch.knots:
            if ahead_ms + at_ms > _LOOK_MS and least_ms < float("inf"):
                return least_ms
            least_ms = min(least_ms, delay_ms - ahead_ms)
        ahead_ms += stretch.length_ms
    return least_ms


def _held_back_ms(stretches: list[Stretch], number: int, level_ms: float) -> float | None:
    """The distance from the stretch before, if the network held a stretch back: one behind it is as early again as those before,
    by its tags or directly behind. None: it came when it was live."""
    held, by_end_ms = stretches[number], stretches[number].length_ms
    by_tags_ms = held.claimed_ms + held.length_ms
    for stretch in stretches[number + 1 : number + _MOST_LOOKED // 4]:
        if stretch.begin_ms - held.begin_ms > _LOOK_MS:
            break
        by_tags_ms += stretch.claimed_ms
        least_ms = min(delay_ms for _, delay_ms in stretch.knots) - level_ms
        if abs(least_ms - by_tags_ms) <= _EXACT_MS:
            return held.claimed_ms
        if abs(least_ms - by_end_ms) <= _EXACT_MS:
            return 0.0
        by_tags_ms += stretch.length_ms
        by_end_ms += stretch.length_ms
    return None


def _timed(stretches: list[Stretch]) -> Run:
    """The run with its clock: the lower envelope of its knots, which rises and falls no faster than a quartz drifts."""
    found = sorted((s.at_ms + at_ms, delay_ms - s.at_ms) for s in stretches for at_ms, delay_ms in s.knots)
    before = _levels(found, float("inf"))
    behind = _levels([(-at_ms, delay_ms) for at_ms, delay_ms in reversed(found)], ENVELOPE_MS)
    points: list[tuple[float, float]] = []
    for (at_ms, _), *levels in zip(found, before, reversed(behind), strict=True):
        live_ms = at_ms + min(levels)
        if not points:
            points.append((at_ms, live_ms))
        elif at_ms > points[-1][0]:
            points.append((at_ms, max(live_ms, points[-1][1])))
    return Run(stretches=stretches, points=points)


def _levels(knots: Sequence[tuple[float, float]], reach_ms: float) -> list[float]:
    """The delay at each knot by itself and by those before it, within `reach_ms`. A knot tells less the farther it is away: a
    quartz may have drifted since."""
    found = []
    lowest: collections.deque[tuple[float, float]] = collections.deque()  # position, and the delay that it means for position 0
    for at_ms, delay_ms in knots:
        at_zero_ms = delay_ms - _DRIFT * at_ms
        while lowest and lowest[-1][1] >= at_zero_ms:
            lowest.pop()
        lowest.append((at_ms, at_zero_ms))
        while at_ms - lowest[0][0] > reach_ms:
            lowest.popleft()
        found.append(lowest[0][1] + _DRIFT * at_ms)
    return found
