"""The sampler: reads every sensor on absolute deadlines and writes what is new into the ring.

One thread holds the clock. It parses nothing, waits for nobody and allocates little; a second
thread, once a second, adds what is slow to read (device state) and how the sampler itself is.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from wattd.config import Config
from wattd.control import Control
from wattd.line import Line, SensorHealth, polling, standing
from wattd.polling import IDLE_NANO, Listener, Poller
from wattd.reopening import keep_open
from wattd.ring import Ring, encode_message, encode_tick
from wattd.scheduling import HELPER_PRIORITY, be_punctual
from wattd.sensors import SENSORS, Sensor, SensorUnavailableError
from wattd.states import States
from wattd.values import NANOSECONDS_PER_SECOND, Domain, UserError
from wattd.watchdog import Post, Watchdog

RING_SECONDS = 60
_DEVICES_EVERY_SECONDS = 10
_LATE_GAP_NANO = NANOSECONDS_PER_SECOND
_BATCH_NANO = 50_000_000
_FOLLOWED_HZ = 100
_CONTROL_DEVICES = 256


class Sensors:
    """The opened sensors of a node; a context manager that lets go of them.

    Attributes:
        lines: One a device, in the order of their numbers.
        health: One a sensor, also of those that could not be opened.
        control: Where the server says on which devices a run is open.
    """

    def __init__(self, config: Config, control: Control) -> None:
        self._config = config
        self.control = control
        self._open: list[tuple[Sensor, SensorHealth]] = []
        self.lines: list[Line] = []
        self.health: list[SensorHealth] = []

    def __enter__(self) -> Self:
        """Open what the configuration names, else all that this machine has.

        Raises:
            UserError: A sensor that was asked for is not there, or there is none at all.
        """
        asked = self._config.sensors
        for name in asked or [name for name in SENSORS if name != "simulated"]:
            # An estimate of the CPU is for machines that can't measure it.
            if name == "cpu_estimate" and not asked and self._measures(Domain.PACKAGE):
                continue
            self._open_sensor(name, must=bool(asked))
        if not self.lines:
            reasons = "; ".join(f"{health.name}: {health.reason}" for health in self.health)
            raise UserError(f"no sensor at all ({reasons}); `wattd probe` says what is missing")
        return self

    def __exit__(self, *_: object) -> None:
        for sensor, health in self._open:
            # A driver that does not answer would not let us close it either.
            if not health.stuck and not health.is_reopening:
                sensor.close()

    def _measures(self, domain: Domain) -> bool:
        return any(line.channel.device.domain is domain for line in self.lines)

    def _open_sensor(self, name: str, *, must: bool) -> None:
        sensor = SENSORS[name](self._config, self.control, len(self.lines))
        try:
            channels = sensor.open()
        except SensorUnavailableError as error:
            if must:
                raise UserError(f"sensor {name}: {error}") from error
            self.health.append(SensorHealth(name, str(error)))
            return
        self.health.append(SensorHealth(name))
        self._open.append((sensor, self.health[-1]))
        keep_open(sensor, self.health[-1])
        for channel in channels:
            self.lines.append(Line(channel, len(self.lines), self.health[-1]))


class Sampler(Listener):
    """Reads sensors into a ring; see the module's text.

    Attributes:
        poller: What reads the devices, and when.
        ticks: Wakes so far.
        scheduling: What the kernel granted, see `scheduling.be_punctual`.
        server_restarts: Set by whoever restarts the server; passed on in the health message.
    """

    def __init__(
        self, config: Config, sensors: Sensors, ring: Ring, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._sensors = sensors
        self._ring = ring
        self._clock = clock
        self._batch_nano = 0
        self._tick_nano = round(NANOSECONDS_PER_SECOND / config.hz)
        self.poller = Poller(sensors.lines, self._tick_nano, clock, self)
        self._wanted = bytes(len(sensors.lines))
        self._outbox: deque[bytes] = deque()
        self._late_nano: list[int] = []
        self._second_nano = self._news_nano = 0
        self._last_nano = 0
        self._missed_before = self._ticks_before = 0
        self._stop = threading.Event()
        self._states = States(sensors.lines, clock)
        self._watchdog = Watchdog(
            [
                Post("wattd-clock", self.poller.guard, self._keep_time, self.poller.note_hung),
                Post("wattd-state", self._states.guard, self._keep_state, self._states.note_hung),
            ],
            clock,
        )
        self._watcher = threading.Thread(target=self._watch, name="wattd-watchdog", daemon=True)
        self.started_nano = clock()
        self.ticks = self.server_restarts = self._rounds = 0
        self.scheduling = "default"

    @property
    def missed_ticks(self) -> int:
        """Ticks that passed while it was not there."""
        return self.poller.missed_ticks

    def start(self) -> None:
        """Start the threads: the clock's, the one for device state, and the watchdog's."""
        self._announce()
        self.poller.begin()
        self._watchdog.start()
        self._watcher.start()

    def stop(self) -> None:
        """Stop the threads; the last record holds every counter as it stands."""
        self._stop.set()
        self._watcher.join(timeout=5)
        self._watchdog.join(5)
        self._flush_outbox()
        self._write_news(self._clock(), must=True)
        self._write_second(self._clock())

    def _watch(self) -> None:
        """Look after the threads that call sensors."""
        be_punctual(HELPER_PRIORITY)
        while not self._stop.is_set():
            time.sleep(self._watchdog.look())

    def _announce(self) -> None:
        devices = [line.channel.device.as_json(line.tracker.number) for line in self._sensors.lines]
        self._outbox.append(encode_message({"type": "devices", "devices": devices}))

    def _keep_time(self, holder: int) -> None:
        """Wake at each deadline of the schedule, until the guard is lost."""
        self.scheduling = be_punctual()
        clock, poller, sleep = self._clock, self.poller, time.sleep
        while not self._stop.is_set():
            now = clock()
            deadline = poller.next_nano
            if deadline > now:
                # Not for ever: somebody may want us to stop, or to follow a device.
                deadline = min(deadline, now + IDLE_NANO)
                poller.guard.idle_until_nano = deadline
                sleep((deadline - now) / NANOSECONDS_PER_SECOND)
                now = clock()
            if not self.tick(now, holder):
                return

    def tick(self, now: int, holder: int = 0) -> bool:
        """Read what is due and write what is new; False if the guard was lost to another thread."""
        wanted = self._sensors.control.wanted()
        if wanted != self._wanted:
            self._follow(wanted)
        late = now - self.poller.next_nano
        if not self.poller.poll(now, holder):
            return False
        if late >= 0:
            self._note_time(now, late)
        if self._outbox:
            self._flush_outbox()
        is_second = now >= self._second_nano
        self._write_news(now, must=is_second)
        if is_second:
            self._batch_nano = self._longest_batch()
            self._write_second(self._clock())
            self._second_nano = now + NANOSECONDS_PER_SECOND
        return True

    def _write_news(self, now: int, *, must: bool) -> None:
        """Write what is new; edges of followed devices together, for many small lines take much room."""
        poller, is_due = self.poller, must
        if poller.has_followed_news:
            self._news_nano = self._news_nano or now
            # With a tick's record if there is one: the next tick may be too late.
            age = now - self._news_nano + (self._tick_nano if poller.has_news else 0)
            is_due = is_due or age >= self._batch_nano
        if not poller.has_news and not (is_due and poller.has_followed_news):
            return
        if is_due:
            self._news_nano = 0
        news = poller.take_news(followed=is_due)
        self._ring.write(encode_tick(now, news.energies, news.powers, news.calls))

    def _longest_batch(self) -> int:
        """So long edges may wait for others: no quantity is to change twice meanwhile."""
        return min(_BATCH_NANO, self.poller.shortest_update_nano() * 3 // 4)

    def _follow(self, wanted: bytes) -> None:
        """Lock to the devices on which a run has begun, let go of those where all have ended."""
        for line, old, new in zip(self._sensors.lines, self._wanted, wanted, strict=False):
            if old != new:
                self.poller.follow(line, wanted=bool(new))
        self._wanted = wanted
        self._batch_nano = self._longest_batch()

    def _note_time(self, now: int, late_nano: int) -> None:
        """Count the wake; a sampler that was away for a second or more says so."""
        self.ticks += 1
        self._late_nano.append(late_nano)
        if self._last_nano and late_nano >= _LATE_GAP_NANO:
            self._send_gap(self._last_nano, now, "late")
        self._last_nano = now

    def note_failed(self, line: Line, now: int, reason: str) -> None:
        """A device gave no reading; after a second that is worth a word."""
        if now - line.failed_nano >= NANOSECONDS_PER_SECOND:
            if not line.reason:
                self._send_sensor(line, now, up=False, reason=f"{line.name}: {reason}")
            line.reason = line.health.reason = f"{line.name}: {reason}"

    def note_recovered(self, line: Line, since: int, now: int) -> None:
        """A device that was silent gives readings again; its sensor is up when all of its devices do."""
        if line.reason:
            self._send_gap(since, now, "sensor_down", line.name)
            line.reason = ""
            down = [other for other in self._sensors.lines if other.health is line.health and other.reason]
            self._send_sensor(line, now, up=not down, reason=down[0].reason if down else "")

    def note_reset(self, line: Line, since: int, now: int) -> None:
        """Energy of a device is unknown between two readings."""
        self._send_gap(since, now, "counter_reset", line.name)

    def _send_sensor(self, line: Line, now: int, *, up: bool, reason: str) -> None:
        line.health.up, line.health.reason = up, reason
        sensor = line.channel.device.sensor
        self._send({"type": "sensor", "monotonic_nano": now, "sensor": sensor, "up": up, "reason": reason})

    def _send_gap(self, begin: int, end: int, reason: str, device: str | None = None) -> None:
        gap = {"type": "gap", "begin_monotonic_nano": begin, "end_monotonic_nano": end, "reason": reason}
        self._send(gap if device is None else {**gap, "device": device})

    def _send(self, message: dict[str, Any]) -> None:
        """Put a message into the ring with the next tick: only the clock thread writes the ring."""
        self._outbox.append(encode_message(message))

    def _flush_outbox(self) -> None:
        while self._outbox:
            self._ring.write(self._outbox.popleft())

    def _write_second(self, now: int) -> None:
        """Every counter as it stands, the clock triple, and how punctual the last second was."""
        late = sorted(self._late_nano)
        second = {
            "type": "second",
            "monotonic_nano": now,
            # Three clocks, read microseconds apart; no duration is ever made of the other two.
            "time_unix_nano": time.time_ns(),
            "boottime_nano": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            **standing(self._sensors.lines, now),
            **polling(self._sensors.lines),
            "ticks": self.ticks - self._ticks_before,
            "missed_ticks": self.missed_ticks - self._missed_before,
        }
        if late:
            second["late_p99_us"] = late[(len(late) - 1) * 99 // 100] // 1000
        self._late_nano.clear()
        self._ticks_before, self._missed_before = self.ticks, self.missed_ticks
        self._ring.write(encode_message(second))

    def _keep_state(self, holder: int) -> None:
        """Once a second: device state, health, and now and then the table of devices."""
        be_punctual(HELPER_PRIORITY)
        states = self._states
        while states.is_begun or not self._stop.wait(1.0):
            record = states.ask(holder)
            if record is None:
                return
            self._send(record)
            self._send(self._health())
            self._rounds += 1
            if self._rounds % _DEVICES_EVERY_SECONDS == 0:
                self._announce()

    def _health(self) -> dict[str, Any]:
        return {
            "type": "health",
            "monotonic_nano": self._clock(),
            "started_monotonic_nano": self.started_nano,
            "scheduling": self.scheduling,
            "ticks": self.ticks,
            "missed_ticks": self.missed_ticks,
            "server_restarts": self.server_restarts,
            "sensors": [health.as_json() for health in self._sensors.health],
        }


def ring_bytes(config: Config, devices: int) -> int:
    """Size of a ring that holds a minute of records."""
    a_tick = 64 + 64 * devices
    a_second = 4096 + 512 * devices
    # Followed devices bring as much as a hundred ticks, however slow the tick is.
    return int(RING_SECONDS * (max(config.hz, _FOLLOWED_HZ) * a_tick + a_second))


def make_control() -> Control:
    """The control block; it stands before the devices are counted, so it has room for many."""
    return Control.create(_CONTROL_DEVICES)
