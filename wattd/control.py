"""What the server hands to the sampler: numbers in shared memory, and nothing else."""

import mmap
import os
from typing import Self


class Control:
    """Numbers the server hands to the sampler; the sampler parses nothing else from it.

    One double a device: the power that a simulated device shall draw, watts.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, 0)
        self._watts = memoryview(self._memory).cast("d")

    @classmethod
    def create(cls, devices: int) -> Self:
        """Make the block for device numbers below `devices`."""
        fd = os.memfd_create("wattd-control")
        os.ftruncate(fd, max(1, devices) * 8)
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

    def close(self) -> None:
        """Unmap the memory and close the descriptor."""
        self._watts.release()
        self._memory.close()
        os.close(self.fd)
