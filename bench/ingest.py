"""How many marks a second go in: a client process, a real socket, server and archive with fdatasync.

The yardstick beside it does what cannot be left out: encode the same lines, write and sync them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import orjson

from bench.harness import Result, at_least, at_most, shown
from tests.daemon import Daemon, lines
from wattd.v1 import marks_pb2, marks_pb2_grpc

_MARKS = 300_000
_BATCH = 2_000
_REPEATS = 5
_RUN_ID = "bench"
_NAMES = ("data_load", "teacher_forward", "student_forward", "backward", "optimizer_step")


def measure() -> Iterator[Result]:
    """Send as fast as the daemon takes it; then count what is in the archive."""
    rates, bare, cpu, lost = list[float](), list[float](), list[float](), 0
    for repeat in range(_REPEATS):
        with tempfile.TemporaryDirectory(prefix="wattd-bench-") as folder:
            with Daemon(Path(folder)) as daemon:
                before = _cpu_seconds(daemon.server_pid())
                rates.append(_MARKS / _send(daemon.socket, f"{repeat:032x}"))
                cpu.append((_cpu_seconds(daemon.server_pid()) - before) / _MARKS)
                assert daemon.stop() == 0
            written = sum(line["type"] == "phase" for line in lines(daemon.archive, "events"))
            lost += _MARKS - written
            bare.append(_MARKS / _bare_seconds(Path(folder) / "bare"))
    rate, yardstick = statistics.median(rates), statistics.median(bare)
    yield at_least("ingest_marks_per_second", rate, 100_000, "1/s", yardstick)
    yield at_most("ingest_lost_marks", lost, 0, "marks")
    yield shown("ingest_server_seconds_per_mark", statistics.median(cpu), "s", 1 / yardstick)


def _send(socket: Path, client_id: str) -> float:
    """Let a client process send all marks; returns its seconds from first request to last answer."""
    words = [sys.executable, "-m", "bench.ingest", str(socket), client_id]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run(words, check=True, capture_output=True, text=True, env=environment, timeout=120)
    answer = json.loads(found.stdout)
    assert answer["acknowledged"] == _MARKS + 1, answer
    assert answer["refused"] == 0, answer
    return float(answer["seconds"])


def _client(socket: str, client_id: str) -> None:
    """The client process: everything is made before the clock starts."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    requests = [_batch(client_id, boot_id, first) for first in range(0, _MARKS, _BATCH)]
    begin_run = marks_pb2.SendMarksRequest(client_id=client_id, boot_id=boot_id)
    begin_run.runs.add(
        sequence=1,
        kind=marks_pb2.RUN_MARK_KIND_BEGIN,
        run_id=_RUN_ID,
        name=_RUN_ID,
        world_size=1,
        monotonic_nano=time.monotonic_ns(),
    )
    refused = acknowledged = 0
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        stub = marks_pb2_grpc.MarkServiceStub(channel)
        for response in stub.SendMarks(iter([begin_run])):
            acknowledged = response.acknowledged_sequence
        begin = time.monotonic()
        for response in stub.SendMarks(iter(requests)):
            acknowledged = response.acknowledged_sequence
            refused += response.refused_marks
        seconds = time.monotonic() - begin
    print(json.dumps({"seconds": seconds, "acknowledged": acknowledged, "refused": refused}))


def _batch(client_id: str, boot_id: str, first: int) -> marks_pb2.SendMarksRequest:
    request = marks_pb2.SendMarksRequest(client_id=client_id, boot_id=boot_id, pid=os.getpid())
    now = time.monotonic_ns()
    for number in range(first, first + _BATCH):
        request.phases.add(
            sequence=number + 2,
            kind=marks_pb2.PHASE_MARK_KIND_END,
            run_id=_RUN_ID,
            phase_number=number + 1,
            name=_NAMES[number % len(_NAMES)],
            begin_monotonic_nano=now - 10_000 * (_BATCH - number + first),
            end_monotonic_nano=now - 10_000 * (_BATCH - number + first) + 9_000,
            tokens=4096,
        )
    return request


def _bare_seconds(path: Path) -> float:
    """Encode, write and sync lines like those of the marks, batch by batch."""
    line = {"seq": 1, "type": "phase", "client": "0" * 32, "mark": 1, "run_id": _RUN_ID, "rank": 0}
    line |= {"phase_number": 1, "phase": _NAMES[1], "thread": 0, "begin_monotonic_nano": time.monotonic_ns()}
    line |= {"end_monotonic_nano": time.monotonic_ns(), "tokens": 4096}
    begin = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(0, _MARKS, _BATCH):
            file.write(b"\n".join([orjson.dumps(line) for _ in range(_BATCH)]))
            os.fdatasync(file.fileno())
    return time.monotonic() - begin


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    _client(*sys.argv[1:])
