"""Opening a sensor anew: its driver was restarted, or one of its devices was lost and may be back."""

import threading

from wattd.line import SensorHealth
from wattd.sensors import Sensor, SensorUnavailableError
from wattd.values import NANOSECONDS_PER_SECOND

_FIRST_PAUSE_NANO = NANOSECONDS_PER_SECOND
_LONGEST_PAUSE_NANO = 60 * NANOSECONDS_PER_SECOND


class Reopener:
    """Opens a sensor anew in a thread of its own, for that may take seconds; ever more seldom."""

    def __init__(self, sensor: Sensor, health: SensorHealth) -> None:
        """Args: sensor: to be opened; health: says while that is under way, so that nobody reads it."""
        self._sensor = sensor
        self._health = health
        self._pause_nano = _FIRST_PAUSE_NANO
        self._next_nano = 0

    def want(self, now: int) -> None:
        """A device gives no reading until the sensor was opened anew."""
        health = self._health
        # What is stuck in the driver holds its locks: opening would get stuck as well.
        if health.is_reopening or health.stuck or now < self._next_nano:
            return
        if now - self._next_nano > 2 * _LONGEST_PAUSE_NANO:
            self._pause_nano = _FIRST_PAUSE_NANO
        self._next_nano = now + self._pause_nano
        self._pause_nano = min(2 * self._pause_nano, _LONGEST_PAUSE_NANO)
        health.is_reopening = True
        thread = threading.Thread(target=self._reopen, name="wattd-reopen", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            health.is_reopening = False  # no room for a thread: tried again

    def _reopen(self) -> None:
        try:
            self._sensor.reopen()
        except SensorUnavailableError as error:
            self._health.fault = str(error)
        else:
            self._health.fault = ""
        finally:
            self._health.is_reopening = False


def keep_open(sensor: Sensor, health: SensorHealth) -> None:
    """Let whoever reads a sensor's devices have it opened anew."""
    health.want_reopened = Reopener(sensor, health).want
