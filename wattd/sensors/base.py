"""The one interface that every sensor has."""

from collections.abc import Sequence
from typing import Any, Protocol

from wattd.values import Device, Reading


class SensorUnavailableError(Exception):
    """This machine does not have the sensor, or this process may not read it.

    Attributes:
        reason: What is missing, in a few words.
        remedy: What an administrator would do about it; empty where nothing can be done.
        denied: The hardware is there and a right is missing.
    """

    def __init__(self, reason: str, remedy: str = "", *, denied: bool = False) -> None:
        super().__init__(f"{reason}; {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy
        self.denied = denied


class ReadingError(Exception):
    """A device gave no reading this time; the next one may succeed."""


class SensorLostError(ReadingError):
    """A device gives no reading until its sensor has been opened anew."""


class Channel(Protocol):
    """One device of a sensor, opened for reading."""

    @property
    def device(self) -> Device:
        """What is read."""

    def read(self, monotonic_nano: int) -> Reading:
        """Read now; releases the GIL while the hardware is asked.

        Args:
            monotonic_nano: The present time, for sensors that are models.

        Raises:
            ReadingError: No reading this time.
        """

    def state(self) -> dict[str, Any]:
        """Device state at 1 Hz under the names of docs/archive.md; empty if there is none.

        Raises:
            ReadingError: No state this time.
        """


class Sensor(Protocol):
    """Hardware that reads energy or power, or a model that stands in for it."""

    def open(self) -> Sequence[Channel]:
        """Find the devices and open them; at least one.

        Raises:
            SensorUnavailableError: There are none here, or they may not be read.
        """

    def reopen(self) -> None:
        """Open the hardware anew, so that the channels given out read it again; may take seconds.

        Raises:
            SensorUnavailableError: It is not there, or not yet.
        """

    def close(self) -> None:
        """Let go of the hardware."""
