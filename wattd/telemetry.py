"""gRPC: the sensors, live samples, and how the daemon is."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from wattd import __version__
from wattd.jobs import State
from wattd.node import DeviceView, Node
from wattd.v1 import telemetry_pb2, telemetry_pb2_grpc
from wattd.values import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND, Source, Tick
from wattd.vitals import Vitals

_MOST_WATCHERS = 32
_QUEUED_MESSAGES = 256
_LOW_SPACE_BYTES = 1 << 30


class _Watcher:
    """One stream of samples; a reader that is slow loses the oldest messages."""

    def __init__(self, devices: set[str], max_rate_hertz: float) -> None:
        self.devices = devices
        self.wake = asyncio.Event()
        self._pause_nano = int(NANOSECONDS_PER_SECOND / max_rate_hertz) if max_rate_hertz > 0 else 0
        self._next_nano = 0
        self._latest: dict[str, telemetry_pb2.Sample] = {}
        self._queue: deque[telemetry_pb2.WatchSamplesResponse] = deque()
        self._sequence = 0
        self.dropped = 0

    def offer(self, samples: Iterable[telemetry_pb2.Sample], nano: int) -> None:
        """Take new samples; they leave at once, or with the next message that the rate allows."""
        for sample in samples:
            if not self.devices or sample.device in self.devices:
                self._latest[sample.device] = sample
        if not self._latest or nano < self._next_nano:
            return
        self._next_nano = nano + self._pause_nano
        message = telemetry_pb2.WatchSamplesResponse(
            sequence=self._sequence, samples=list(self._latest.values())
        )
        self._sequence += 1
        self._latest.clear()
        self._queue.append(message)
        if len(self._queue) > _QUEUED_MESSAGES:
            self._queue.popleft()
            self.dropped += 1
        self.wake.set()

    async def messages(self) -> AsyncIterator[telemetry_pb2.WatchSamplesResponse]:
        """The messages, as they come, for as long as somebody asks."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self._queue:
                yield self._queue.popleft()


class TelemetryService(telemetry_pb2_grpc.TelemetryServiceServicer):
    """Says what the node measures and how the daemon is."""

    def __init__(
        self,
        node: Node,
        state: State,
        vitals: Callable[[], Vitals],
        *,
        name: str,
        boot_id: str,
        sampler_pid: int,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Make the service.

        Args:
            node: The devices.
            state: The runs.
            vitals: How the server is.
            name: Name of the node.
            boot_id: Boot id of this machine.
            sampler_pid: Process id of the sampler.
            clock: Monotonic nanoseconds.
        """
        self._node = node
        self._state = state
        self._vitals = vitals
        self._name = name
        self._boot_id = boot_id
        self._sampler_pid = sampler_pid
        self._clock = clock
        self._watchers: set[_Watcher] = set()
        self._dropped_before = 0

    @property
    def dropped_messages(self) -> int:
        """Messages that slow watchers missed."""
        return self._dropped_before + sum(watcher.dropped for watcher in self._watchers)

    @property
    def is_watched(self) -> bool:
        """Somebody watches samples."""
        return bool(self._watchers)

    async def ListSensors(  # noqa: N802 - the wire's name
        self,
        request: telemetry_pb2.ListSensorsRequest,  # noqa: ARG002 - it has no fields
        context: "grpc.aio.ServicerContext[Any, Any]",  # noqa: ARG002 - grpc passes it
    ) -> telemetry_pb2.ListSensorsResponse:
        """See telemetry.proto."""
        return telemetry_pb2.ListSensorsResponse(sensors=self._sensors())

    async def WatchSamples(  # noqa: N802 - the wire's name
        self,
        request: telemetry_pb2.WatchSamplesRequest,
        context: "grpc.aio.ServicerContext[Any, Any]",
    ) -> AsyncIterator[telemetry_pb2.WatchSamplesResponse]:
        """See telemetry.proto."""
        known = self._node.by_name()
        unknown = [name for name in request.devices if name not in known]
        if unknown:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"there is no device {unknown[0][:64]!r}")
        if len(self._watchers) >= _MOST_WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{_MOST_WATCHERS} streams are open; close one"
            )
        watcher = _Watcher(set(request.devices), request.max_rate_hertz)
        self._watchers.add(watcher)
        try:
            watcher.offer(self._samples(), self._clock())
            async for message in watcher.messages():
                yield message
        finally:
            self._watchers.discard(watcher)
            self._dropped_before += watcher.dropped

    def publish(self, ticks: Sequence[Tick], offsets: Mapping[int, int]) -> None:
        """Offer to all watchers what the sampler published; offsets as in the archive."""
        if not self._watchers:
            return
        nano = self._clock()
        for tick in ticks:
            samples = [
                self._sample(self._node.devices[number], read, energy + offsets[number])
                for number, energy, read, _ in tick.energies
            ]
            for watcher in self._watchers:
                watcher.offer(samples, nano)

    async def GetStatus(  # noqa: N802 - the wire's name
        self,
        request: telemetry_pb2.GetStatusRequest,  # noqa: ARG002 - it has no fields
        context: "grpc.aio.ServicerContext[Any, Any]",  # noqa: ARG002 - grpc passes it
    ) -> telemetry_pb2.GetStatusResponse:
        """See telemetry.proto."""
        vitals, health, now = self._vitals(), self._node.health, self._clock()
        return telemetry_pb2.GetStatusResponse(
            version=__version__,
            node=self._name,
            boot_id=self._boot_id,
            pid=self._sampler_pid,
            uptime_seconds=(now - health.get("started_monotonic_nano", now)) / NANOSECONDS_PER_SECOND,
            scheduling=health.get("scheduling", ""),
            ticks=health.get("ticks", 0),
            missed_ticks=health.get("missed_ticks", 0),
            server_restarts=health.get("server_restarts", 0),
            archive=vitals.archive,
            archive_written_bytes=sum(vitals.written_bytes.values()),
            archive_free_bytes=vitals.free_bytes or 0,
            archive_fault=vitals.fault,
            marks=vitals.marks,
            refused_marks=vitals.refused_marks,
            dropped_marks=vitals.dropped_marks,
            metrics=vitals.metrics,
            runs=self._runs(now),
            sensors=self._sensors(),
            samples=self._samples(),
            warnings=[
                *_archive_warnings(vitals),
                *_client_warnings(vitals),
                *_node_warnings(self._node, vitals),
            ],
        )

    def _runs(self, now: int) -> list[telemetry_pb2.RunStatus]:
        return [
            telemetry_pb2.RunStatus(
                run_id=run.run_id,
                name=run.name,
                job_id=run.job_id,
                open_phases=self._state.open_phases(run.run_id),
                duration_seconds=(now - run.begin_nano) / NANOSECONDS_PER_SECOND,
            )
            for run in self._state.open_runs()
        ]

    def _sensors(self) -> list[telemetry_pb2.Sensor]:
        health = {sensor["name"]: sensor for sensor in self._node.health.get("sensors", ())}
        by_sensor: dict[str, list[DeviceView]] = {name: [] for name in health}
        for view in self._node.devices.values():
            by_sensor.setdefault(view.described["sensor"], []).append(view)
        return [
            telemetry_pb2.Sensor(
                name=name,
                up=health.get(name, {}).get("up", True),
                reason=health.get(name, {}).get("reason", ""),
                devices=[_device(view.described) for view in views],
            )
            for name, views in by_sensor.items()
        ]

    def _samples(self) -> list[telemetry_pb2.Sample]:
        return [
            self._sample(view, view.history.last_nano or view.seen_nano, view.history.microjoules)
            for view in self._node.devices.values()
            if view.seen_nano
        ]

    def _sample(self, view: DeviceView, nano: int, microjoules: int | None) -> telemetry_pb2.Sample:
        monotonic_nano, time_unix_nano = self._node.clock
        sample = telemetry_pb2.Sample(
            device=view.name, monotonic_nano=nano, time_unix_nano=time_unix_nano + nano - monotonic_nano
        )
        if microjoules is not None:
            sample.energy_joules = microjoules / MICROJOULES_PER_JOULE
        watts = view.power_watts if view.power_watts is not None else view.mean_watts
        if watts is not None:
            sample.power_watts = watts
        return sample


def _archive_warnings(vitals: Vitals) -> Iterable[str]:
    if vitals.fault:
        waiting = sum(vitals.pending_bytes.values()) / 1e6
        yield f"the archive cannot be written ({vitals.fault}); {waiting:.1f} MB wait in memory"
    elif vitals.free_bytes is not None and vitals.free_bytes < _LOW_SPACE_BYTES:
        yield f"only {vitals.free_bytes / 1e6:.0f} MB are free for the archive"
    for kind, lines in vitals.dropped_lines.items():
        if lines:
            yield f"{lines} lines of {kind} were lost because the archive could not be written"


def _client_warnings(vitals: Vitals) -> Iterable[str]:
    if vitals.dropped_marks:
        yield f"clients had to drop {vitals.dropped_marks} marks"
    if vitals.refused_marks:
        yield f"{vitals.refused_marks} marks of clients were refused"


def _node_warnings(node: Node, vitals: Vitals) -> Iterable[str]:
    for sensor in node.health.get("sensors", ()):
        if not sensor["up"]:
            yield f"sensor {sensor['name']}: {sensor['reason']}"
    scheduling = node.health.get("scheduling", "SCHED_FIFO")
    if scheduling != "SCHED_FIFO":
        yield (
            f"the sampler runs with {scheduling} scheduling: jobs that starve the cores delay readings"
            " (give it CAP_SYS_NICE)"
        )
    if vitals.ring_lost:
        yield f"{vitals.ring_lost} records of the sampler were lost: the server was too slow"
    if any(view.described["source"] == Source.SIMULATED for view in node.devices.values()):
        yield "some devices are simulated: their numbers mean nothing"


def _device(described: dict[str, Any]) -> telemetry_pb2.Device:
    keys = ("device", "index", "domain", "source", "sensor")
    return telemetry_pb2.Device(**{key: described[key] for key in keys}, model=described.get("model", ""))
