"""The simulated library as processes see it: one truth for all, and faults that strike when told to."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.nvml.driver import Trace

READER = """
import json, sys, time
import pynvml as nvml

kinds = ("ullVal", "uiVal")
seconds, begin = float(sys.argv[1]), time.monotonic()
nvml.nvmlInit()
gpu = nvml.nvmlDeviceGetHandleByIndex(0)
seen = []
while time.monotonic() < begin + seconds:
    asked = time.monotonic_ns()
    try:
        fields = nvml.nvmlDeviceGetFieldValues(gpu, [83, 186])
        values = [[field.nvmlReturn, getattr(field.value, kind)] for field, kind in zip(fields, kinds)]
    except nvml.NVMLError as error:
        values = error.value
        if error.value == nvml.NVML_ERROR_UNINITIALIZED and "again" in sys.argv:
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as second:
                values = second.value
    seen.append([asked, time.monotonic_ns(), values])
    time.sleep(0.001)
print(json.dumps(seen))
"""


class Reader:
    """A process that reads GPU 0 again and again."""

    def __init__(self, trace: Trace, library: Path, seconds: float, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, str(seconds), *words],
            env=os.environ | trace.environment(library),
            stdout=subprocess.PIPE,
        )

    def seen(self) -> list[tuple[int, int, Any]]:
        """(asked, answered, values or error code) of each reading."""
        said, _ = self._process.communicate(timeout=30)
        assert self._process.returncode == 0
        return [(asked, answered, values) for asked, answered, values in json.loads(said)]


def test_all_processes_see_the_same(library: Path, tmp_path: Path) -> None:
    """Two processes that read while a third writes the trace see the same updates of the same values."""
    with Trace.create(
        tmp_path / "trace",
        watts=95,
        rise_ms=3,
        counter_period_ms=20,
        power_period_ms=20,
        power_window_ms=10,
        counter_delay_ms=5,
        power_delay_ms=5,
        jitter_ms=1,
        noise_watts=0.5,
        latency_least_us=5,
        latency_most_us=400,
        seed=3,
    ) as trace:
        readers = [Reader(trace, library, 0.6) for _ in range(2)]
        end = time.monotonic() + 0.9
        turn = 0
        while time.monotonic() < end:
            trace.draw(200 + 37 * (turn := turn + 1) % 400)
            time.sleep(0.013)
        first, second = (
            {which: {tuple(values[which]) for _, _, values in reader.seen()} for which in (0, 1)}
            for reader in readers
        )
    assert len(first[0] & second[0]) > 20
    assert len(first[1] & second[1]) > 20
    # They began and ended at different moments: what only one saw of the counter lies at its ends.
    shared = sorted(value for _, value in first[0] & second[0])
    assert not [value for _, value in first[0] ^ second[0] if shared[0] < value < shared[-1]]


def test_call_takes_as_long_as_it_is_set(library: Path, tmp_path: Path) -> None:
    """A call lasts from the least to the most latency; a stall lasts longer."""
    with Trace.create(
        tmp_path / "trace", latency_least_us=200, latency_most_us=300, stall_ratio=0.1
    ) as trace:
        took = [answered - asked for asked, answered, _ in Reader(trace, library, 0.4).seen()]
    assert min(took) >= 200_000
    stalled = [nano for nano in took if nano >= 5_200_000]
    assert 0 < len(stalled) < len(took) / 2


def test_hang_holds_one_gpu_only(library: Path, tmp_path: Path) -> None:
    """A call that hangs answers at the end of the hang, and only on the GPU that hangs."""
    for gpu, hangs in ((0, True), (1, False)):
        hang: dict[str, Any] = {f"hang_at_ms@{gpu}": 400, f"hang_ms@{gpu}": 300}
        with Trace.create(tmp_path / "trace", **hang) as trace:
            longest = max(answered - asked for asked, answered, _ in Reader(trace, library, 0.9).seen())
        assert (longest > 250_000_000) == hangs


def test_faults_strike_running_processes(library: Path, tmp_path: Path) -> None:
    """A fault that is set while a process reads is seen: a blip by field, a loss as the call's error."""
    with Trace.create(tmp_path / "trace", watts=250) as trace:
        reader = Reader(trace, library, 1.0)
        time.sleep(0.5)
        trace.set(blip_at_ms=trace.since_epoch_ms(), blip_ms=100)
        time.sleep(0.2)
        trace.set(lost_after_ms=trace.since_epoch_ms())
        seen = [values for _, _, values in reader.seen()]
    kinds = [values if isinstance(values, int) else (values[0][0], values[1][1]) for values in seen]
    changes = [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]
    assert changes == [(0, 250_000), (3, 0), (0, 250_000), 15]


def test_restarted_driver_must_be_initialised_again(library: Path, tmp_path: Path) -> None:
    """From a restart on every call is refused until nvmlInit, which fails meanwhile."""
    with Trace.create(tmp_path / "trace", watts=200, restart_at_ms=500, restart_ms=200) as trace:
        patient = Reader(trace, library, 1.2, "again")
        stubborn = Reader(trace, library, 1.2)
        codes = [values if isinstance(values, int) else 0 for _, _, values in patient.seen()]
        last = stubborn.seen()[-1][2]
    changes = [code for place, code in enumerate(codes) if place == 0 or codes[place - 1] != code]
    assert changes == [0, 9, 1, 0]
    assert last == 1


def test_unreadable_trace_is_one_line(library: Path, tmp_path: Path) -> None:
    """A trace that is none makes nvmlInit fail, with a line that names it."""
    (tmp_path / "trace").write_bytes(b"no trace")
    done = subprocess.run(
        [sys.executable, "-c", "import pynvml; pynvml.nvmlInit()"],
        env=os.environ | {"LD_LIBRARY_PATH": str(library.parent), "NVML_TRACE": str(tmp_path / "trace")},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"can't read the trace {tmp_path / 'trace'}" in done.stderr


@pytest.mark.parametrize("missing", ["no_energy", "no_instant", "no_average"])
def test_missing_field_is_missing_alone(library: Path, tmp_path: Path, missing: str) -> None:
    """Each of the fields 83, 186 and 185 can be taken away without the others."""
    program = (
        "import pynvml as n, json; n.nvmlInit(); g = n.nvmlDeviceGetHandleByIndex(0)\n"
        "print(json.dumps([f.nvmlReturn for f in n.nvmlDeviceGetFieldValues(g, [83, 186, 185, 1])]))"
    )
    settings: dict[str, Any] = {missing: 1}
    with Trace.create(tmp_path / "trace", **settings) as trace:
        said = subprocess.check_output(
            [sys.executable, "-c", program], env=os.environ | trace.environment(library)
        )
    place = ["no_energy", "no_instant", "no_average"].index(missing)
    assert json.loads(said) == [3 if each in {place, 3} else 0 for each in range(4)]


def test_load_says_when_it_switched(tmp_path: Path) -> None:
    """Each switch of the load is a line with its time, and a step of the trace at that very time."""
    with Trace.create(tmp_path / "trace", capacity=64):
        pass
    load = subprocess.Popen(
        [sys.executable, "-m", "tests.nvml.load", str(tmp_path / "trace"), "0", "100", "600", "7"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert load.stdout
    said = [load.stdout.readline().split() for _ in range(5)]
    load.kill()
    load.communicate()
    steps = struct.iter_unpack("<qd", (tmp_path / "trace").read_bytes()[8192 : 8192 + 5 * 16])
    assert [(str(nano), "high" if watts == 600 else "low") for nano, watts in steps] == [
        tuple(words) for words in said
    ]
