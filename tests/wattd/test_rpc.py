import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.wattd.marking import BOOT, Marker
from wattd.jobs import State
from wattd.marks import Intake
from wattd.node import Node
from wattd.rpc import MarkService, OwnerSocket, make_server
from wattd.telemetry import TelemetryService
from wattd.v1 import marks_pb2, marks_pb2_grpc, telemetry_pb2, telemetry_pb2_grpc
from wattd.values import EnergyEdge, Tick, UserError
from wattd.vitals import Vitals

_NOW = 1_000_100_000_000


class _Disk:
    """An event log whose disk is as slow as a test wants it."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.syncing = asyncio.Event()
        self.syncing.set()

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        self.lines += lines

    def commit(self) -> "asyncio.Future[None]":
        async def wait() -> None:
            await self.syncing.wait()

        return asyncio.ensure_future(wait())

    async def room(self) -> None:
        return


class _World:
    """A real server on a real socket."""

    def __init__(self, path: Path) -> None:
        self.disk, self.state, self.node = _Disk(), State(), Node()
        self.marks = MarkService(
            Intake(self.state, BOOT, "ada"), self.disk, BOOT, clock=lambda: _NOW, lost_client_seconds=0.2
        )
        self.telemetry = TelemetryService(
            self.node,
            self.state,
            lambda: Vitals(archive="/a", marks=3),
            name="n",
            boot_id=BOOT,
            sampler_pid=7,
        )
        self.channel = grpc.aio.insecure_channel(f"unix:{path}")
        self.mark_stub = marks_pb2_grpc.MarkServiceStub(self.channel)
        self.telemetry_stub = telemetry_pb2_grpc.TelemetryServiceStub(self.channel)

    async def send(self, *requests: marks_pb2.SendMarksRequest) -> list[marks_pb2.SendMarksResponse]:
        async def stream() -> AsyncIterator[marks_pb2.SendMarksRequest]:
            for request in requests:
                yield request

        call: Any = self.mark_stub.SendMarks(stream())
        return [response async for response in call]


def _run(folder: Path, scenario: Callable[[_World], Awaitable[None]]) -> None:
    async def life() -> None:
        with OwnerSocket(folder / "s") as owner:
            server = make_server()
            world = _World(owner.path)
            marks_pb2_grpc.add_MarkServiceServicer_to_server(world.marks, server)
            telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(world.telemetry, server)
            owner.bind(server)
            await server.start()
            try:
                await asyncio.wait_for(scenario(world), 20)
            finally:
                world.marks.stop()
                await world.channel.close()
                await server.stop(0.1)

    asyncio.run(life())


def test_marks_are_acknowledged_when_they_are_on_disk_and_not_before(tmp_path: Path) -> None:
    """The answer waits for the disk; it names the last mark, what was refused and renamed."""

    async def scenario(world: _World) -> None:
        marker = Marker()
        world.disk.syncing.clear()
        begin = marker.request(marker.begin_run(), marker.phase(), marker.phase("no good"))
        answer = asyncio.create_task(world.send(begin))
        done, _ = await asyncio.wait({answer}, timeout=0.3)
        assert not done
        assert len(world.disk.lines) == 2
        world.disk.syncing.set()
        (response,) = await answer
        assert (response.acknowledged_sequence, response.refused_marks) == (3, 1)
        assert "no good" in response.refusal
        again, renamed = await world.send(
            begin, marker.request(marker.end_run(), marker.begin_run(), marker.phase())
        )
        assert again.acknowledged_sequence == 3
        assert renamed.renamed_runs == {"run": world.disk.lines[-1]["run_id"]}
        assert (world.marks.marks, world.marks.refused) == (5, 1)

    _run(tmp_path, scenario)


def test_a_client_that_goes_away_is_closed_after_its_grace(tmp_path: Path) -> None:
    """Coming back in time keeps its phases open; staying away closes them with the stream's end."""

    async def scenario(world: _World) -> None:
        marker = Marker()
        fresh = _NOW - 1000
        await world.send(marker.request(marker.begin_run(), marker.open_phase("eval", begin=fresh)))
        await asyncio.sleep(0.1)
        await world.send(marker.request())
        await asyncio.sleep(0.15)
        assert len(world.disk.lines) == 2
        await asyncio.sleep(0.2)
        assert [(line["type"], line.get("closed_by")) for line in world.disk.lines[2:]] == [
            ("phase", "lost_client"),
            ("run_end", "lost_client"),
        ]
        assert world.disk.lines[2]["end_monotonic_nano"] == _NOW

    _run(tmp_path, scenario)


def test_a_delivered_spool_closes_what_is_open_with_its_last_mark(
    tmp_path: Path,
) -> None:
    """The stream is that of whoever delivers it, and says nothing about the end of the client."""

    async def scenario(world: _World) -> None:
        marker = Marker()
        last = _NOW - 60_000_000_000
        begin = marker.begin_run(nano=last - 5)
        await world.send(marker.request(begin, marker.open_phase("eval", begin=last)))
        await asyncio.sleep(0.4)
        closed = [line for line in world.disk.lines if "closed_by" in line]
        assert closed[0]["end_monotonic_nano"] == closed[1]["monotonic_nano"] == last

    _run(tmp_path, scenario)


def test_a_client_that_died_while_the_daemon_was_down_is_closed(tmp_path: Path) -> None:
    """A restart closes nothing, but who does not come back within the grace is closed at its last mark."""

    async def scenario(world: _World) -> None:
        marker = Marker()
        begin = _NOW - 1000
        await world.send(marker.request(marker.begin_run(nano=begin), marker.open_phase("eval", begin=begin)))
        world.marks.stop()  # the old server's timers go with it
        await asyncio.sleep(0.3)
        assert len(world.disk.lines) == 2
        assert world.state.clients_with_open()
        world.marks.expect(world.state.clients_with_open())
        await asyncio.sleep(0.3)
        closed = [line for line in world.disk.lines if "closed_by" in line]
        assert [line["type"] for line in closed] == ["phase", "run_end"]
        assert closed[0]["end_monotonic_nano"] == begin
        assert world.state.clients_with_open() == []

    _run(tmp_path, scenario)


def test_a_server_that_stops_closes_nothing(tmp_path: Path) -> None:
    """A stream that ends because the daemon does says nothing about its client."""
    worlds = []

    async def scenario(world: _World) -> None:
        worlds.append(world)
        marker = Marker()
        await world.send(marker.request(marker.begin_run(), marker.open_phase("eval")))
        world.marks.stop()
        await asyncio.sleep(0.3)

    _run(tmp_path, scenario)
    assert len(worlds[0].disk.lines) == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"client_id": "x"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"boot_id": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"phases": [marks_pb2.PhaseMark(name="x" * 5_000_000)]}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, change: dict[str, Any], code: grpc.StatusCode) -> None:
    """Malformed senders and messages over 4 MiB; the server lives on."""

    async def scenario(world: _World) -> None:
        marker = Marker()
        request = marker.request()
        request.MergeFrom(marks_pb2.SendMarksRequest(**change)) if "phases" in change else None
        for key in change.keys() - {"phases"}:
            setattr(request, key, change[key])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.send(request)
        assert caught.value.code() == code
        (response,) = await world.send(marker.request(marker.begin_run()))
        assert response.acknowledged_sequence == 1

    _run(tmp_path, scenario)


def test_results_are_written_once(tmp_path: Path) -> None:
    """A repeat of a request_id changes nothing; what is not told is absent; nonsense is refused."""

    async def scenario(world: _World) -> None:
        evaluation = marks_pb2.Evaluation(run_id="r", harness="h", task="t", metric="acc", value=0.25, n=281)
        ept = marks_pb2.EnergyPerToken(run_id="r", batch=4, tokens_in=1, tokens_out=2, energy_joules=3.5)
        request = marks_pb2.SendResultsRequest(
            request_id="q", evaluations=[evaluation], energy_per_token=[ept], boot_id=BOOT, monotonic_nano=5
        )
        for _ in range(2):
            response = await world.mark_stub.SendResults(request)
            assert response.accepted_results == 2
        first, second = world.disk.lines
        assert first["type"] == "evaluation"
        assert first["value"] == 0.25
        assert "stderr" not in first
        assert (second["type"], second["energy_joules"]) == ("ept", 3.5)
        assert "energy_decode_joules" not in second
        request.request_id = "other"
        request.evaluations[0].value = float("nan")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.mark_stub.SendResults(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert len(world.disk.lines) == 2

    _run(tmp_path, scenario)


def _announce(world: _World) -> None:
    device = {"device": "GPU-a", "index": 0, "domain": "gpu", "source": "simulated", "sensor": "simulated"}
    world.node.announce([{"number": 0, **device}, {"number": 1, **device, "device": "GPU-b", "index": 1}])
    world.node.clock = (1000, 5000)
    for view in world.node.devices.values():
        view.history.append(1000, 2_000_000)
        view.seen_nano = 1000


def test_a_watcher_gets_the_state_and_then_every_change_of_its_devices(tmp_path: Path) -> None:
    """Energies as in the archive, one message a tick, numbered without a hole."""

    async def scenario(world: _World) -> None:
        _announce(world)
        request = telemetry_pb2.WatchSamplesRequest(devices=["GPU-a"])
        call: Any = world.telemetry_stub.WatchSamples(request)
        first = await call.read()
        assert [(sample.device, sample.energy_joules) for sample in first.samples] == [("GPU-a", 2.0)]
        assert not first.samples[0].HasField("power_watts")
        ticks = [
            Tick(2000, [EnergyEdge(1, 9, 2000, 0)], [], []),
            Tick(3000, [EnergyEdge(0, 500_000, 3000, 0), EnergyEdge(1, 10, 3000, 0)], [], []),
            Tick(4000, [EnergyEdge(0, 750_000, 4000, 0)], [], []),
        ]
        world.telemetry.publish(ticks, {0: 2_000_000, 1: 0})
        for sequence, joules, nano in ((1, 2.5, 3000), (2, 2.75, 4000)):
            message = await call.read()
            (sample,) = message.samples
            assert (message.sequence, sample.energy_joules, sample.monotonic_nano) == (sequence, joules, nano)
            assert sample.time_unix_nano == nano + 4000
        call.cancel()
        unknown: Any = world.telemetry_stub.WatchSamples(telemetry_pb2.WatchSamplesRequest(devices=["x"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown.read()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    _run(tmp_path, scenario)


def test_a_slow_watcher_loses_messages_and_sees_it(tmp_path: Path) -> None:
    """Nobody waits for it; the newest energy still arrives, and the loss is counted."""

    async def scenario(world: _World) -> None:
        _announce(world)
        call: Any = world.telemetry_stub.WatchSamples(telemetry_pb2.WatchSamplesRequest())
        await call.read()
        for nano in range(2000, 4000):
            world.telemetry.publish([Tick(nano, [EnergyEdge(0, nano, nano, 0)], [], [])], {0: 0})
        sequences: list[int] = []
        while not sequences or sequences[-1] < 2000:
            sequences.append((await call.read()).sequence)
        assert len(sequences) + world.telemetry.dropped_messages == 2000
        assert world.telemetry.dropped_messages > 0
        call.cancel()

    _run(tmp_path, scenario)


def test_a_rate_limits_messages_and_loses_no_energy(tmp_path: Path) -> None:
    """What is held back comes with the next message: the newest of each device."""

    async def scenario(world: _World) -> None:
        _announce(world)
        now = [10**12]
        world.telemetry._clock = lambda: now[0]
        request = telemetry_pb2.WatchSamplesRequest(max_rate_hertz=1)
        call: Any = world.telemetry_stub.WatchSamples(request)
        await call.read()
        for step in range(1, 21):
            now[0] += 100_000_000
            tick = Tick(now[0], [EnergyEdge(0, step * 1_000_000, now[0], 0)], [], [])
            world.telemetry.publish([tick], {0: 0})
        energies = [(await call.read()).samples[0].energy_joules for _ in range(2)]
        assert energies == [10.0, 20.0]
        call.cancel()

    _run(tmp_path, scenario)


def test_streams_are_bounded(tmp_path: Path) -> None:
    """The thirty-third watcher is told to close another one."""

    async def scenario(world: _World) -> None:
        _announce(world)
        calls: list[Any] = []
        for _ in range(32):
            calls.append(world.telemetry_stub.WatchSamples(telemetry_pb2.WatchSamplesRequest()))
            await calls[-1].read()
        one_more: Any = world.telemetry_stub.WatchSamples(telemetry_pb2.WatchSamplesRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await one_more.read()
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()

    _run(tmp_path, scenario)


def test_the_socket_is_the_owners_alone_from_the_first_moment(tmp_path: Path) -> None:
    """0600 whatever the umask, also while it is being bound."""
    modes: set[int] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                modes.add((tmp_path / "s").stat().st_mode & 0o777)
            except FileNotFoundError:
                continue

    before = os.umask(0)
    looker = threading.Thread(target=look)
    looker.start()
    try:

        async def scenario(_: _World) -> None:
            await asyncio.sleep(0.1)

        _run(tmp_path, scenario)
    finally:
        os.umask(before)
        stop.set()
        looker.join()
    assert modes == {0o600}


def test_a_dead_daemons_socket_is_taken_over_and_a_living_ones_is_not(tmp_path: Path) -> None:
    """Also if the one that listens is no wattd at all; a plain file is never removed."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with pytest.raises(UserError, match="another daemon listens"), OwnerSocket(path):
            pass
    with OwnerSocket(path):
        assert not path.exists()
        with pytest.raises(UserError, match="another daemon listens"), OwnerSocket(path):
            pass
    path.write_text("mine")
    with pytest.raises(UserError, match="there is a file of that name"), OwnerSocket(path):
        pass
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match="shorter --socket"), OwnerSocket(tmp_path / ("x" * 110)):
        pass
    with pytest.raises(UserError, match="name another --socket"), OwnerSocket(path / "below" / "a" / "file"):
        pass
