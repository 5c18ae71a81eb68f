"""The server process inside a real daemon: what it acknowledges, what it survives."""

import itertools
import os
import resource
import shutil
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from tests.daemon import Daemon, lines, wait_until
from tests.wattd.marking import Marker
from wattd.v1 import marks_pb2, marks_pb2_grpc, telemetry_pb2, telemetry_pb2_grpc

_BOOT = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class _Client:
    """A client with one stream; answers are collected by a thread of gRPC's."""

    def __init__(self, socket: Path) -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket}")
        self._requests: SimpleQueue[marks_pb2.SendMarksRequest | None] = SimpleQueue()
        self._answers = marks_pb2_grpc.MarkServiceStub(self.channel).SendMarks(iter(self._requests.get, None))

    def send(self, request: marks_pb2.SendMarksRequest) -> None:
        self._requests.put(request)

    def answer(self) -> marks_pb2.SendMarksResponse:
        response: marks_pb2.SendMarksResponse = next(self._answers)
        return response

    def close(self) -> None:
        self._requests.put(None)
        self.channel.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as running:
        yield running


def _status(daemon: Daemon) -> telemetry_pb2.GetStatusResponse:
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = telemetry_pb2_grpc.TelemetryServiceStub(channel)
        response: telemetry_pb2.GetStatusResponse = stub.GetStatus(
            telemetry_pb2.GetStatusRequest(), timeout=5
        )
        return response


def _page(daemon: Daemon) -> str:
    with urllib.request.urlopen(
        f"http://{daemon.ready['metrics'].removeprefix('http://')}", timeout=5
    ) as page:
        body: bytes = page.read()
        return body.decode()


def _marks(daemon: Daemon) -> Counter[tuple[str, int]]:
    return Counter(
        (line["client"], line["mark"]) for line in lines(daemon.archive, "events") if "mark" in line
    )


def test_a_killed_server_loses_and_doubles_no_acknowledged_mark(daemon: Daemon) -> None:
    """SIGKILL between batches: what was answered is there, and once; runs stay open."""
    marker = Marker(boot_id=_BOOT)
    now = time.monotonic_ns()
    requests = [marker.request(marker.begin_run(nano=now), marker.open_phase("eval", begin=now))]
    requests += [marker.request(marker.phase(begin=now, end=now + 1000, tokens=1)) for _ in range(30)]
    sent = 0
    for _ in range(3):
        client = _Client(daemon.socket)
        for request in requests[: sent + 10]:  # from the start again: a repeat is harmless
            client.send(request)
        for _ in range(sent + 10):
            acknowledged = client.answer().acknowledged_sequence
        sent += 10
        pid = daemon.server_pid()
        os.kill(pid, signal.SIGKILL)
        client.close()
        assert acknowledged == sent + 1
        wait_until(lambda dead=pid: _is_back(daemon, dead))
    (run,) = _status(daemon).runs
    assert (run.name, list(run.open_phases)) == ("r", ["eval"])
    assert daemon.stop() == 0
    assert _marks(daemon) == {(marker.client_id, number): 1 for number in range(1, 32)}


def _is_back(daemon: Daemon, dead: int) -> bool:
    try:
        return daemon.server_pid() != dead and bool(_status(daemon).version)
    except (AssertionError, grpc.RpcError):
        return False


def test_a_disk_that_refuses_delays_marks_and_loses_nothing(daemon: Daemon) -> None:
    """No answer while it cannot be written, and everybody can see why; then all is there, once."""
    marker = Marker(boot_id=_BOOT)
    now = time.monotonic_ns()
    client = _Client(daemon.socket)
    client.send(marker.request(marker.begin_run(nano=now)))
    assert client.answer().acknowledged_sequence == 1
    wait_until(lambda: list(lines(daemon.archive, "samples")))
    # No file may grow now: every write fails with EFBIG, as with ENOSPC on a full disk.
    pid = daemon.server_pid()
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    client.send(marker.request(marker.phase(begin=now, end=now + 1000)))
    wait_until(lambda: _status(daemon).archive_fault)
    assert any("cannot be written" in warning for warning in _status(daemon).warnings)
    wait_until(lambda: "wattd_archive_up 0\n" in _page(daemon))
    assert sum(_marks(daemon).values()) == 1
    time.sleep(1.0)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    assert client.answer().acknowledged_sequence == 2
    client.close()
    wait_until(lambda: not _status(daemon).archive_fault)
    assert daemon.stop() == 0
    assert _marks(daemon) == {(marker.client_id, 1): 1, (marker.client_id, 2): 1}
    times = [line["monotonic_nano"] for line in lines(daemon.archive, "samples") if line["type"] == "second"]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 1.5e9


def test_a_removed_archive_is_written_anew_with_all_that_was_acknowledged(daemon: Daemon) -> None:
    """`rm -r` of the folder: the open segments come back whole."""
    marker = Marker(boot_id=_BOOT)
    now = time.monotonic_ns()
    client = _Client(daemon.socket)
    client.send(marker.request(marker.begin_run(nano=now)))
    client.answer()
    shutil.rmtree(daemon.archive)
    client.send(marker.request(marker.phase(begin=now, end=now + 1000)))
    assert client.answer().acknowledged_sequence == 2
    client.close()
    assert _marks(daemon) == {(marker.client_id, 1): 1, (marker.client_id, 2): 1}
    assert daemon.stop() == 0
    assert [line["seq"] for line in lines(daemon.archive, "events")] == list(
        range(len(list(lines(daemon.archive, "events"))))
    )


def test_watching_shows_energies_that_rise_as_the_archive_has_them(daemon: Daemon) -> None:
    """What is streamed is what is written: same device, same time, same joules."""
    seen: list[Any] = []
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = telemetry_pb2_grpc.TelemetryServiceStub(channel)
        call = stub.WatchSamples(telemetry_pb2.WatchSamplesRequest(devices=["package-0"]), timeout=20)
        for message in call:
            seen += message.samples
            if len(seen) == 60:
                call.cancel()
                break
    joules = [sample.energy_joules for sample in seen]
    assert joules == sorted(joules)
    assert daemon.stop() == 0
    number = next(
        device["number"]
        for device in next(lines(daemon.archive, "samples"))["devices"]
        if device["device"] == "package-0"
    )
    written = {
        energy
        for line in lines(daemon.archive, "samples")
        if line["type"] == "tick"
        for place, energy in zip(line.get("device", ()), line.get("energy_joules", ()), strict=True)
        if place == number
    }
    assert written.issuperset(joules[1:])


def test_simulated_devices_follow_the_open_phases(daemon: Daemon) -> None:
    """The GPU of a rank draws what its phase draws on an H100, and rests when the run has ended."""
    gpu = "GPU-51a71a7e-0000-4000-8000-000000000003"
    marker = Marker(boot_id=_BOOT)
    now = time.monotonic_ns()
    client = _Client(daemon.socket)
    begin = marker.begin_run(nano=now, gpu_uuids=[gpu], gpu_source="torch")
    client.send(marker.request(begin, marker.open_phase("teacher_forward", begin=now)))
    client.answer()

    def watts(device: str) -> float:
        return {sample.device: sample.power_watts for sample in _status(daemon).samples}.get(device, 0.0)

    wait_until(lambda: watts(gpu) > 600)
    assert watts(gpu.replace("0003", "0004")) < 200
    client.send(marker.request(marker.end_run(nano=time.monotonic_ns())))
    client.answer()
    client.close()
    wait_until(lambda: watts(gpu) < 100)
