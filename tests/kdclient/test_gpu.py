"""Edges of phases as the GPU sees them: on a GPU in software, and on the machine's own."""

import itertools
import random
import statistics
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdclient
from kdclient.client import Client
from kdclient.gpu import GpuMarks
from kdclient.phases import GpuPhase
from kdclient.stamps import Stamp, Stamps
from tests.daemon import wait_until
from tests.kdclient.gpus import (
    FakeCuda,
    FakeGpu,
    FakeStream,
    Gpu,
    VirtualClock,
    fake_torch,
    real_gpu,
)
from tests.kdclient.recorder import Recorder


@pytest.fixture(params=["fake", "real"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    if request.param == "real":
        return real_gpu()
    made = FakeGpu(FakeCuda(drift=8e-5))
    fake_torch(monkeypatch, made.cuda)
    return made


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    fake_torch(monkeypatch, made)
    return made


@settings(max_examples=40, deadline=None)
@given(
    drift=st.floats(-1.2e-4, 1.2e-4),
    seed=st.integers(0, 2**32),
    kernel_milliseconds=st.sampled_from([0.05, 2.0, 40.0, 300.0]),
    steps_between_syncs=st.sampled_from([1, 4, 10_000]),
    seconds=st.sampled_from([0.3, 4.0, 75.0]),
)
def test_mapped_edges_lie_within_their_error(
    drift: float, seed: int, kernel_milliseconds: float, steps_between_syncs: int, seconds: float
) -> None:
    """Whatever the drift, the kernels and the run-ahead, each edge is right within what it states.

    The time is virtual: the GPU's clock drifts, `elapsed_time` is a float32 of milliseconds, sleeps
    are late, and the sender looks every 100 ms as it does in a training.
    """
    clock = VirtualClock(seed)
    cuda = FakeCuda(now=lambda: clock.nano, spend=clock.spend, drift=drift)
    marks = GpuMarks(stamps := Stamps(cuda), relax=lambda: True, clock=clock, pause=clock.sleep)
    made: list[tuple[Stamp, int]] = []
    chance = random.Random(seed)  # noqa: S311 - no secret is made of it
    end_nano, look_nano, step = clock.nano + round(seconds * 1e9), 0, 0
    while clock.nano < end_nano and len(made) < 4_000:
        for _ in range(2):
            made.append((stamps.stamp(clock()), cuda.recorded[-1]))
            cuda.launch(round(kernel_milliseconds * 1e6 * chance.uniform(0.5, 1.5)))
        step += 1
        clock.spend(chance.randrange(200_000))
        behind = cuda.stream.free_nano - clock.nano
        if step % steps_between_syncs == 0 or behind > 800_000_000:  # a launch queue is not endless
            clock.spend(max(0, behind))
        if chance.random() < 0.01:
            clock.spend(chance.randrange(2_000_000_000))
        if clock.nano >= look_nano:
            look_nano = clock.nano + 100_000_000
            marks.turn()
    for _ in range(40):
        clock.spend(100_000_000)
        marks.turn()
    assert all(stamp.is_settled() for stamp, _ in made)
    for stamp, truth in made:
        assert not stamp.reason
        assert abs(stamp.nano - truth) <= stamp.error_nano
    assert [stamp.nano for stamp, _ in made] == sorted(stamp.nano for stamp, _ in made)
    if seconds > 1:
        assert statistics.median(stamp.error_nano for stamp, _ in made) < 60_000


def test_phases_are_where_the_gpu_had_them(recorder: Recorder, client: Client, gpu: Gpu) -> None:
    """Kernels run after their launch: edges of a program that runs ahead are those of the kernels.

    They lie between the synchronisations around them, follow one another, and last as long as the work.
    """
    with client.run("r") as run:
        gpu.cuda.synchronize()
        time.sleep(0.3)
        before = time.monotonic_ns()
        for _ in range(20):
            with run.phase("launch"):
                gpu.work(0.02)
        launched = time.monotonic_ns()
        gpu.cuda.synchronize()
        after = time.monotonic_ns()
    phases = recorder.phases("launch")
    assert len(phases) == 20
    assert phases[-1].end_monotonic_nano <= launched < after - 100_000_000, "nothing ran ahead"
    for earlier, later in itertools.pairwise(phases):
        assert earlier.gpu_end_monotonic_nano <= later.gpu_begin_monotonic_nano
    first, last = phases[0], phases[-1]
    assert before - first.gpu_error_nano <= first.gpu_begin_monotonic_nano
    assert last.gpu_end_monotonic_nano <= after + last.gpu_error_nano
    assert last.gpu_end_monotonic_nano >= after - last.gpu_error_nano - 20_000_000
    assert all(0 < phase.gpu_error_nano <= 200_000 for phase in phases)
    lengths = [phase.gpu_end_monotonic_nano - phase.gpu_begin_monotonic_nano for phase in phases]
    assert statistics.median(lengths) == pytest.approx(20e6, rel=0.3)


def test_a_synchronised_run_has_both(recorder: Recorder, client: Client, gpu: Gpu) -> None:
    """With sync the host's edges wait for the GPU, and agree with the GPU's."""
    with client.run("r", sync=True) as run:
        for _ in range(5):
            with run.phase("step"):
                gpu.work(0.03)
    assert recorder.runs(1)[0].synchronised
    for phase in recorder.phases("step"):
        assert phase.end_monotonic_nano - phase.begin_monotonic_nano >= 15_000_000
        assert phase.gpu_error_nano
        slack = phase.gpu_error_nano + 20_000_000  # a busy machine wakes the host late
        assert abs(phase.gpu_end_monotonic_nano - phase.end_monotonic_nano) <= slack


def test_cuda_that_starts_during_the_run(recorder: Recorder, client: Client, cuda: FakeCuda) -> None:
    """CUDA is never started for the marks; once the program starts it, phases are seen on the GPU."""
    cuda.started = False
    with client.run("r") as run:
        with run.phase("before"):
            pass
        assert not cuda.recorded
        cuda.started = True
        wait_until(lambda: client.stamps is not None)
        time.sleep(0.01)
        with run.phase("after"):
            cuda.launch(1_000_000)
    (before,), (after,) = recorder.phases("before"), recorder.phases("after")
    assert before.gpu_error_nano == 0
    assert not before.gpu_reason
    assert after.gpu_error_nano > 0


def test_a_graph_that_is_captured_is_left_alone(
    recorder: Recorder, client: Client, cuda: FakeCuda, capfd: pytest.CaptureFixture[str]
) -> None:
    """An event in a capture would become a part of the user's graph: none is recorded, and that is said."""
    with client.run("r") as run:
        cuda.capturing = True
        with run.phase("graphed"):
            pass
        recorded = len(cuda.recorded)
        cuda.capturing = False
    assert recorded == 0
    assert recorder.phases()[0].gpu_reason == "captured"
    assert capfd.readouterr().err.count("mark its replay") == 1


def test_a_gpu_that_fails_harms_nothing(recorder: Recorder, client: Client, cuda: FakeCuda) -> None:
    """Whatever CUDA raises, the program does not see it from here, and its phases arrive."""
    with client.run("r") as run:
        with run.phase("good"):
            cuda.launch(1_000_000)
        cuda.broken = True
        for _ in range(3):
            with run.phase("bad"):
                pass
    assert len(recorder.phases("good")) == 1
    assert [phase.gpu_reason for phase in recorder.phases("bad")] == ["failed"] * 3


def test_without_the_relaxed_mode_nothing_is_asked(
    recorder: Recorder, client: Client, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where asking for an event could break a capture, no event is used."""
    monkeypatch.setattr("kdclient.holding.relax", lambda: False)
    with client.run("r") as run:
        with run.phase("first"):
            pass
        wait_until(lambda: len(recorder.phases("first")) == 1)
        recorded = len(cuda.recorded)
        with run.phase("second"):
            pass
    assert {phase.gpu_reason for phase in recorder.phases()} == {"failed"}
    assert len(cuda.recorded) == recorded


def test_a_gpu_that_does_not_get_there_holds_up_nobody(
    recorder: Recorder, client: Client, cuda: FakeCuda
) -> None:
    """The end of a run waits a second for the GPU, then goes without its edges, and says so."""
    begin = time.monotonic()
    with client.run("r") as run, run.phase("endless"):
        cuda.launch(3_600_000_000_000)
    assert time.monotonic() - begin < 2.5
    assert recorder.phases()[0].gpu_reason == "late"
    assert len(recorder.runs(2)) == 1


@pytest.mark.parametrize(
    ("end", "reason"),
    [(FakeStream(1, 0), "several_devices"), (FakeStream(0, 5), "out_of_order")],
)
def test_ends_that_are_no_interval(
    end: FakeStream, reason: str, recorder: Recorder, client: Client, cuda: FakeCuda
) -> None:
    """A phase that begins on one stream or GPU and ends on another has no time on the GPU, with a reason."""
    with client.run("r") as run:
        cuda.launch(50_000_000)
        with run.phase("moved"):
            begun_on, cuda.stream = cuda.stream, end
        cuda.stream = begun_on
    assert recorder.phases()[0].gpu_reason == reason


def test_nothing_is_recorded_where_it_is_not_wanted(
    client: Client, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WATTD_GPU_EVENTS=0 turns it off; a forked child, where CUDA does not work, does without."""
    monkeypatch.setenv("WATTD_GPU_EVENTS", "0")
    assert type(client.run("off").phase("p")) is kdclient.Phase
    monkeypatch.delenv("WATTD_GPU_EVENTS")
    run = client.run("on")
    assert type(run.phase("p")) is GpuPhase
    client.after_fork()
    with run.phase("child"):
        pass
    assert type(client.run("childs own").phase("p")) is kdclient.Phase
    assert not cuda.recorded


def test_the_pool_is_bounded_and_used_again() -> None:
    """Events are made once and recorded again; beyond a bound a phase goes without."""
    clock = VirtualClock()
    cuda = FakeCuda(now=lambda: clock.nano, spend=clock.spend)
    stamps = Stamps(cuda)
    marks = GpuMarks(stamps, relax=lambda: True, clock=clock, pause=clock.sleep)
    for _ in range(50):
        for _ in range(100):
            stamps.stamp(clock())
        clock.spend(200_000_000)
        marks.turn()
    assert stamps._made < 150
    many = [stamps.stamp(clock()) for _ in range(20_001)]
    assert many[-1].reason == "crowded"
    clock.spend(2_000_000_000)
    marks.turn()
    assert stamps.stamp(clock()).reason == ""


def test_a_program_without_torch_pays_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch is looked for among what is imported, and never imported."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    run: Any = client.run("r")
    assert type(run.phase("p")) is kdclient.Phase
    assert client.stamps is None
    assert "torch" not in sys.modules
