"""A device as the sampler keeps it: its channel, what was read, and what is known of its health."""

from collections.abc import Callable, Iterable
from typing import Any

from wattd.counter import Tracker
from wattd.edges import Follower
from wattd.sensors import Channel
from wattd.values import NANOSECONDS_PER_SECOND, READ_SECONDS_BUCKETS, Reading

MOST_STUCK = 4
"""So many threads may be stuck in calls of one sensor; then its devices are left alone."""


class Call:
    """A call into a sensor, from the moment it is made.

    Attributes:
        line: Whose device is asked.
        before_nano: Since when.
        after_nano: When it returned; 0 before, and while nobody is there to take the result.
        reading: What it gave; None where it failed or asked for something else.
        error: Why it failed.
        is_lost: It will fail until the sensor was opened anew.
    """

    __slots__ = ("after_nano", "before_nano", "error", "is_lost", "line", "reading")

    def __init__(self, line: "Line", before_nano: int) -> None:
        self.line = line
        self.before_nano = before_nano
        self.after_nano = 0
        self.reading: Reading | None = None
        self.error = ""
        self.is_lost = False


class SensorHealth:
    """Whether a sensor works, and how long its calls take.

    Attributes:
        name: The sensor.
        up: It delivers readings.
        reason: Why it does not.
        counts: Calls by READ_SECONDS_BUCKETS, and one for those above.
        nanoseconds: Sum of all calls.
        stuck: Calls that have not returned and are waited for no longer.
        is_reopening: It is being opened anew.
        fault: Why that failed the last time; empty if it did not.
        want_reopened: Asks for that, told the present.
    """

    def __init__(self, name: str, reason: str = "") -> None:
        self.name = name
        self.up = not reason
        self.reason = reason
        self.counts = [0] * (len(READ_SECONDS_BUCKETS) + 1)
        self.nanoseconds = 0
        self.stuck: set[Call] = set()
        self.is_reopening = False
        self.fault = ""
        self.want_reopened: Callable[[int], None] = lambda _now: None

    @property
    def is_blocked(self) -> bool:
        """So many calls are stuck that no further thread may be risked on its driver."""
        return len(self.stuck) >= MOST_STUCK

    def as_json(self) -> dict[str, Any]:
        """As the health message carries it."""
        return {
            "name": self.name,
            "up": self.up,
            "reason": self.reason,
            "read_seconds": {"counts": list(self.counts), "sum": self.nanoseconds / NANOSECONDS_PER_SECOND},
        }


class Line:
    """A channel with its tracker, its place in the schedule, and what is known of its health.

    Attributes:
        channel: What is read.
        tracker: Its cumulative energy and the edges of its quantities.
        health: That of its sensor.
        followers: Those of the counter and of the power reading; None where it is read at the tick.
        is_followed: Somebody wants its edges.
        deadline_nano: When it is read next; 0 while that is open.
        failed_nano: Since when it gives no readings; 0 if it does.
        retry_nano: When a device that is read at the tick, or hangs, is tried again.
        hung: The call that does not return; None while none hangs.
        is_state_hung: A call for its state does not return.
        is_lost: It answers no more until its sensor was opened anew; its counter may begin anew then.
        reason: Why it is said to be down; empty while it is not.
    """

    __slots__ = (
        "channel",
        "deadline_nano",
        "failed_nano",
        "followers",
        "health",
        "hung",
        "is_followed",
        "is_lost",
        "is_state_hung",
        "reason",
        "retry_nano",
        "tracker",
    )

    def __init__(self, channel: Channel, number: int, health: SensorHealth) -> None:
        self.channel = channel
        self.tracker = Tracker(number, channel.device)
        self.health = health
        self.followers: tuple[Follower, Follower] | None = None
        self.is_followed = False
        self.deadline_nano = 0
        self.hung: Call | None = None
        self.is_state_hung = self.is_lost = False
        self.failed_nano = 0
        self.retry_nano = 0
        self.reason = ""

    def make_followers(self, tick_nano: int) -> None:
        """Let its updates be followed; `tick_nano` as for a Follower."""
        self.followers = (Follower(tick_nano), Follower(tick_nano))

    @property
    def away(self) -> str:
        """Why it must not be asked now; empty if it may."""
        if self.health.is_blocked:
            return "its driver does not answer"
        return "its sensor is being opened anew" if self.is_lost and self.health.is_reopening else ""

    @property
    def name(self) -> str:
        """UUID or name of the device."""
        return self.channel.device.device


def standing(lines: Iterable[Line], now: int) -> dict[str, Any]:
    """Counters as they stand, and the powers of devices that give readings."""
    known = [line.tracker for line in lines if line.tracker.energy_microjoules is not None]
    alive = [line.tracker for line in lines if not line.failed_nano]
    powered = [tracker for tracker in alive if tracker.power_watts is not None]
    averaged = [tracker for tracker in alive if tracker.average_power_watts is not None]
    standing = {
        "device": [tracker.number for tracker in known],
        "energy_microjoules": [tracker.energy_microjoules for tracker in known],
        "read_us": [(tracker.read_nano - now) // 1000 for tracker in known],
        "power_device": [tracker.number for tracker in powered],
        "power_watts": [tracker.power_watts for tracker in powered],
    }
    if averaged:
        standing["average_power_device"] = [tracker.number for tracker in averaged]
        standing["average_power_watts"] = [tracker.average_power_watts for tracker in averaged]
    return standing


def polling(lines: Iterable[Line]) -> dict[str, Any]:
    """How the devices that are followed are read: for each quantity what is done, and its update period."""
    followed = [
        (line.tracker.number, *line.followers) for line in lines if line.is_followed and line.followers
    ]
    if not followed:
        return {}
    return {
        "followed_device": [number for number, _, _ in followed],
        "energy_polling": [energy.mode for _, energy, _ in followed],
        "energy_update_us": [energy.period_nano // 1000 or None for _, energy, _ in followed],
        "power_polling": [power.mode for _, _, power in followed],
        "power_update_us": [power.period_nano // 1000 or None for _, _, power in followed],
    }
