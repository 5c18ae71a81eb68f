"""GPUs to test on: one in software, whose truth is known, and the machine's own where there is one."""

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import pytest


class Gpu(Protocol):
    """What a test needs of a GPU."""

    cuda: Any

    def work(self, seconds: float) -> None:
        """Launch a kernel of about this length, and return at once."""


class VirtualClock:
    """Time that passes only when somebody spends it."""

    def __init__(self, seed: int = 0) -> None:
        self.nano = 5_000_000_000_000
        self._random = random.Random(seed)  # noqa: S311 - no secret is made of it

    def __call__(self) -> int:
        self.spend(80)
        return self.nano

    def spend(self, nano: int) -> None:
        self.nano += nano

    def sleep(self, seconds: float) -> None:
        """Sleep, and wake a little late, now and then much."""
        late = 60_000 if self._random.random() < 0.95 else 5_000_000
        self.nano += round(seconds * 1e9) + self._random.randrange(late)


@dataclass
class FakeStream:
    """A queue of kernels: when the last of them ends."""

    device_index: int = 0
    stream_id: int = 0
    free_nano: int = 0


@dataclass
class FakeEvent:
    """An event; `truth_nano` is when the GPU reaches it, by the host's clock."""

    cuda: "FakeCuda"
    truth_nano: int = 0
    device: int = 0

    def record(self, stream: FakeStream) -> None:
        if self.cuda.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        self.cuda.spend(2_000)
        self.device = stream.device_index
        self.truth_nano = max(self.cuda.now() + self.cuda.latency_nano, stream.free_nano)
        stream.free_nano = self.truth_nano
        self.cuda.spend(2_000)
        self.cuda.recorded.append(self.truth_nano)

    def query(self) -> bool:
        assert self.cuda.current_device == self.device, "a context is made on a GPU that nobody uses"
        self.cuda.spend(500)
        done = self.cuda.now() >= self.truth_nano
        self.cuda.spend(500)
        return done

    def elapsed_time(self, other: "FakeEvent") -> float:
        assert self.query()
        assert other.query()
        elapsed = self.cuda.gpu_nano(other.truth_nano) - self.cuda.gpu_nano(self.truth_nano)
        return float(np.float32(elapsed / 1e6))


@dataclass
class FakeCuda:
    """Stands for torch.cuda; all its GPUs are on a clock of their own.

    Attributes:
        now: The host's clock.
        spend: Lets a call take its time.
        drift: How much faster than the host's their clock runs.
        latency_nano: From the record to an idle GPU's coming to it.
        recorded: The truth of each event, in the order of recording.
    """

    now: Callable[[], int] = time.monotonic_ns
    spend: Callable[[int], None] = lambda _: None
    drift: float = 0.0
    latency_nano: int = 6_000
    started: bool = True
    broken: bool = False
    capturing: bool = False
    current_device: int = 7  # of a thread that has not set one: a context there would be wrong
    stream: FakeStream = field(default_factory=FakeStream)
    default: dict[int, FakeStream] = field(default_factory=dict)
    recorded: list[int] = field(default_factory=list)

    def gpu_nano(self, host_nano: int) -> int:
        """The GPU's clock, in its steps of half a microsecond."""
        return round((host_nano * (1 + self.drift) + 987_654_321) / 500) * 500

    def is_initialized(self) -> bool:
        return self.started

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def current_stream(self) -> FakeStream:
        return self.stream

    def default_stream(self, device: int) -> FakeStream:
        if device == self.stream.device_index and not self.stream.stream_id:
            return self.stream
        return self.default.setdefault(device, FakeStream(device))

    def set_device(self, device: int) -> None:
        self.current_device = device

    def device_count(self) -> int:
        return 0

    def Event(self, *, enable_timing: bool) -> FakeEvent:  # noqa: N802 - torch's name
        assert enable_timing
        return FakeEvent(self)

    def synchronize(self) -> None:
        wait = self.stream.free_nano - self.now()
        if wait > 0:
            time.sleep(wait / 1e9)

    def launch(self, nano: int) -> None:
        self.stream.free_nano = max(self.stream.free_nano, self.now() + self.latency_nano) + nano


class FakeGpu:
    """The one in software."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda: Any = cuda

    def work(self, seconds: float) -> None:
        self.cuda.launch(round(seconds * 1e9))


class RealGpu:
    """The machine's own, by torch."""

    def __init__(self) -> None:
        import torch

        self.cuda: Any = torch.cuda
        self._matrix = torch.ones(2048, 2048, device="cuda")
        self._kernels_a_second = self._calibrated()

    def _calibrated(self) -> float:
        self._launch(20)
        self.cuda.synchronize()
        begin = time.monotonic()
        self._launch(200)
        self.cuda.synchronize()
        return 200 / (time.monotonic() - begin)

    def _launch(self, count: int) -> None:
        for _ in range(count):
            self._matrix @ self._matrix

    def work(self, seconds: float) -> None:
        self._launch(max(1, round(seconds * self._kernels_a_second)))


def fake_torch(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
    """Have the program use this in torch's place."""
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr("kdclient.holding.relax", lambda: True)


def real_gpu() -> RealGpu:
    """The machine's own GPU; skips the test where there is none."""
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has no NVIDIA GPU")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch cannot use the GPU of this machine")
    return RealGpu()
