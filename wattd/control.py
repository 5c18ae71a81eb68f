"""What the server hands to the sampler: numbers in shared memory, and nothing else."""

import mmap
import os
from collections.abc import Collection
from typing import Self

_DEVICE_BYTES = 9


class Control:
    """Numbers the server hands to the sampler; the sampler parses nothing else from it.

    For each device number a double, the power that a simulated device shall draw in watts, and a
    byte, whether its updates are wanted: a run is open on it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, 0)
        self._devices = len(self._memory) // _DEVICE_BYTES
        with memoryview(self._memory) as whole:
            self._watts = whole[: 8 * self._devices].cast("d")
            self._wanted = whole[8 * self._devices : _DEVICE_BYTES * self._devices]

    @classmethod
    def create(cls, devices: int) -> Self:
        """Make the block for device numbers below `devices`."""
        fd = os.memfd_create("wattd-control")
        os.ftruncate(fd, max(1, devices) * _DEVICE_BYTES)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map the block behind an inherited descriptor."""
        return cls(fd)

    def set_watts(self, number: int, watts: float) -> None:
        """Let a simulated device draw `watts` from now on."""
        self._watts[number] = watts

    def watts(self, number: int) -> float:
        """The power a simulated device shall draw; 0.0 means: its own idle power."""
        return self._watts[number]

    def want(self, numbers: Collection[int]) -> None:
        """Say on which devices a run is open: these, and no others."""
        self._wanted[:] = bytes(number in numbers for number in range(self._devices))

    def wanted(self) -> bytes:
        """By device number: 1 where a run is open on the device, else 0."""
        return bytes(self._wanted)

    def close(self) -> None:
        """Unmap the memory and close the descriptor."""
        self._watts.release()
        self._wanted.release()
        self._memory.close()
        os.close(self.fd)
