"""From the training to the daemon's disk, through everything that goes wrong."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kdclient
from kdclient import spool
from kdclient.client import Client
from tests.daemon import wait_until
from tests.kdclient.recorder import Recorder


def _numbers(recorder: Recorder) -> list[int]:
    """The tokens of the phases that came, which the tests use as their numbers."""
    return [mark.tokens for mark in recorder.phases("p")]


def _mark(run: kdclient.Run, numbers: range) -> None:
    for number in numbers:
        with run.phase("p", tokens=number):
            pass


def test_a_hundred_thousand_phases(recorder: Recorder, client: Client) -> None:
    """As fast as they can be marked, every phase arrives, once and in order."""
    with client.run("r") as run:
        _mark(run, range(100_000))
    assert client.flush(60.0)
    assert _numbers(recorder) == list(range(100_000))
    assert recorder.dropped == recorder.repeats == 0


def test_what_a_phase_says(recorder: Recorder, client: Client) -> None:
    """Times, tokens, nesting, threads and failure arrive as they were."""
    before = time.monotonic_ns()
    with client.run("r", method="response", seed=-3, tokens_phase="inner") as run:
        with contextlib.suppress(KeyError), run.phase("outer"), run.phase("inner") as inner:
            inner.tokens = 7
            raise KeyError
        thread = threading.Thread(target=lambda: _mark(run, range(1)))
        thread.start()
        thread.join()
    after = time.monotonic_ns()
    (begin,), (end,) = recorder.runs(1), recorder.runs(2)
    assert (begin.name, begin.method, begin.seed, begin.tokens_phase) == ("r", "response", -3, "inner")
    assert (begin.rank, begin.local_rank, begin.world_size, begin.gpu_source) == (0, 0, 1, "unknown")
    outer_mark, inner_mark = recorder.phases("outer")[0], recorder.phases("inner")[0]
    assert inner_mark.failed
    assert outer_mark.failed
    assert inner_mark.tokens == 7
    assert not outer_mark.HasField("tokens")
    times = [begin.monotonic_nano, outer_mark.begin_monotonic_nano, inner_mark.begin_monotonic_nano]
    times += [inner_mark.end_monotonic_nano, outer_mark.end_monotonic_nano, end.monotonic_nano]
    assert [before, *times, after] == sorted([before, *times, after])
    assert recorder.phases("p")[0].thread != inner_mark.thread == outer_mark.thread


def test_a_phase_that_stays_open_is_told_once(recorder: Recorder, client: Client) -> None:
    """The daemon knows of an open phase after a flush: one begin, and later one end of the same number."""
    with client.run("r") as run:
        with run.phase("long", tokens=5):
            wait_until(lambda: any(getattr(mark, "name", "") == "long" for _, mark in recorder.marks))
            time.sleep(0.3)
        _mark(run, range(3))
    marks = [mark for _, mark in recorder.marks if getattr(mark, "name", "") == "long"]
    assert [mark.kind for mark in marks] == [1, 2]
    assert marks[0].phase_number == marks[1].phase_number
    assert len({mark.phase_number for mark in recorder.phases()}) == 4


def test_runs_at_once_and_one_after_the_other(recorder: Recorder, client: Client) -> None:
    """Each phase belongs to the run it was made from."""
    with client.run("a") as first, client.run("b") as second:
        _mark(second, range(1))
        _mark(first, range(1, 2))
    with client.run("a") as third:
        _mark(third, range(2, 3))
    owners = {mark.tokens: mark.run_id for mark in recorder.phases("p")}
    assert owners == {0: second.run_id, 1: first.run_id, 2: third.run_id}
    assert len(set(owners.values())) == 3


def test_a_token_goes_along(recorder: Recorder, tmp_path: Path) -> None:
    """The job's token is sent as it stands in its file, and none where there is none."""
    (tmp_path / "token").write_text("secret\n")
    for token_file in (str(tmp_path / "token"), None):
        client = kdclient.connect(str(recorder.socket), token_file, str(tmp_path / "spool"))
        with client.run("r"):
            pass
        client.close()
    assert recorder.tokens == ["Bearer secret", None]


def test_the_daemons_id_is_adopted(recorder: Recorder, client: Client) -> None:
    """A run that got another id than it proposed goes on under that one, results included."""
    recorder.renamed = {"mine": "given"}
    with client.run("r", run_id="mine") as run:
        client.flush(5.0)
        _mark(run, range(1))
        run.energy_per_token(model_sha256="0" * 64, batch=1, tokens_in=2, tokens_out=3, energy_joules=4.0)
    assert recorder.phases("p")[0].run_id == run.run_id == "given"
    (request,) = wait_until(lambda: list(recorder.results.values()))
    assert request.energy_per_token[0].run_id == "given"
    assert not request.energy_per_token[0].HasField("energy_prefill_joules")


def test_a_daemon_that_is_killed_and_comes_back(recorder: Recorder, client: Client) -> None:
    """Marks of the time without a daemon arrive within five seconds of its return, nothing twice."""
    with client.run("r") as run:
        _mark(run, range(100))
        client.flush(5.0)
        recorder.stop()
        _mark(run, range(100, 200))
        assert not client.flush(0.5)
        recorder.start()
        wait_until(lambda: len(recorder.phases("p")) == 200, seconds=5)
        _mark(run, range(200, 300))
    assert _numbers(recorder) == list(range(300))
    assert not list(Path(client.spool).iterdir())


def test_a_slow_daemon_delays_nothing(recorder: Recorder, client: Client) -> None:
    """With a daemon that takes its time the training does not wait, but for two seconds at the end."""
    recorder.delay = 0.4
    before = time.monotonic()
    with client.run("r") as run:
        _mark(run, range(30_000))
        assert time.monotonic() - before < 1.5
    assert time.monotonic() - before < 5
    recorder.delay = 0.0
    assert client.flush(20.0)
    assert _numbers(recorder) == list(range(30_000))


_TRAINING = """
import sys, time, kdclient
with kdclient.connect().run("r") as run:
    for number in range(int(sys.argv[1])):
        with run.phase("p", tokens=number):
            time.sleep(float(sys.argv[2]))
    score = {"harness": "h", "harness_version": "1", "task": "t", "metric": "acc", "value": 0.5, "n": 2}
    run.evaluation(settings_sha256="00", **score)
"""


def _training(tmp_path: Path, count: int, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", _TRAINING, str(count), str(seconds)],
        env={**os.environ, "WATTD_SOCKET": str(tmp_path / "s"), "WATTD_SPOOL": str(tmp_path / "spool")},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_without_a_daemon_the_next_process_delivers(tmp_path: Path) -> None:
    """The training ends normally with one line of warning; its marks come with the next process's."""
    training = _training(tmp_path, 50, 0.001)
    _, said = training.communicate(timeout=30)
    assert training.returncode == 0
    assert said.splitlines() == [
        f"wattd: no daemon at {tmp_path}/s; marks go to {tmp_path}/spool and are delivered when one is there"
    ]
    (left,) = (tmp_path / "spool").iterdir()
    with left.open("ab") as file:
        file.write(b"\x05torn")
    with Recorder(tmp_path / "s") as recorder:
        other = kdclient.connect(str(recorder.socket), spool=str(tmp_path / "spool"))
        with other.run("other"):
            wait_until(lambda: not left.exists(), seconds=5)
        other_id = other.client_id
        other.close()
        assert [mark.tokens for mark in recorder.phases("p")] == list(range(50))
        assert {client for client, _ in recorder.marks} == {left.stem, other_id}
        assert len(recorder.results) == 1


def test_deliver(tmp_path: Path) -> None:
    """A spool is delivered by hand, torn end and all, and says what it did; without a daemon it stays."""
    training = _training(tmp_path, 50, 0.0)
    training.communicate(timeout=30)
    (left,) = (tmp_path / "spool").iterdir()
    with left.open("ab") as file:
        file.write(b"\x05torn")
    assert spool.deliver(str(tmp_path / "s"), str(tmp_path / "spool")) == spool.Counts(left=1)
    with Recorder(tmp_path / "s"):
        counts = spool.deliver(str(tmp_path / "s"), str(tmp_path / "spool"))
    assert counts == spool.Counts(files=1, marks=52, results=1, torn_bytes=5)
    assert not left.exists()


def test_sigkill_loses_one_flush_at_most(recorder: Recorder, tmp_path: Path) -> None:
    """What was marked a moment before its process was killed is with the daemon."""
    training = _training(tmp_path, 100_000, 0.01)
    wait_until(lambda: len(recorder.phases("p")) > 100)
    training.send_signal(signal.SIGKILL)
    killed = time.monotonic_ns()
    training.communicate()
    time.sleep(0.2)
    numbers = sorted(_numbers(recorder))
    assert numbers == list(range(len(numbers)))
    assert killed - recorder.phases("p")[-1].end_monotonic_nano < 1e9


def test_sigkill_without_a_daemon_keeps_what_was_spooled(tmp_path: Path) -> None:
    """A process killed while no daemon was there leaves its marks but for the last flush."""
    training = _training(tmp_path, 100_000, 0.01)
    wait_until(lambda: [path for path in tmp_path.glob("spool/*.marks") if path.stat().st_size > 5_000])
    assert spool.deliver(str(tmp_path / "s"), str(tmp_path / "spool")).left == 0, "its owner lives"
    training.kill()
    training.communicate()
    with Recorder(tmp_path / "s") as recorder:
        spool.deliver(str(tmp_path / "s"), str(tmp_path / "spool"))
        numbers = sorted(_numbers(recorder))
        assert len(numbers) > 20
        assert numbers == list(range(len(numbers)))


def test_a_spool_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Marks stay in memory, that is said, and they arrive when a daemon is there."""
    (tmp_path / "file").write_text("")
    client = kdclient.connect(str(tmp_path / "s"), spool=str(tmp_path / "file" / "spool"))
    with client.run("r") as run:
        _mark(run, range(10))
    assert "cannot write" in capfd.readouterr().err
    with Recorder(tmp_path / "s") as recorder:
        wait_until(lambda: _numbers(recorder) == list(range(10)), seconds=5)
        client.close()


def test_when_disk_and_memory_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a daemon and without room phases are dropped; how many, the daemon hears; runs are kept."""
    monkeypatch.setattr("kdclient.spool._MOST_BYTES", 100_000)
    monkeypatch.setattr("kdclient.outbox._MOST_BYTES", 100_000)
    client = kdclient.connect(str(tmp_path / "s"), spool=str(tmp_path / "spool"))
    with client.run("r") as run:
        for begin in range(0, 20_000, 1_000):
            _mark(run, range(begin, begin + 1_000))
            client.flush(0.1)
    assert "the spool is full" in capfd.readouterr().err
    with Recorder(tmp_path / "s") as recorder:
        wait_until(lambda: recorder.runs(2), seconds=5)
        client.close()
        assert recorder.dropped > 0
        assert len(recorder.phases("p")) + recorder.dropped == 20_000
        assert _numbers(recorder) == list(range(len(_numbers(recorder))))


_FAULT = st.sampled_from(["break before", "break after", "stop", "start", "flush", "mark"])


@given(faults=st.lists(_FAULT, max_size=12))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_fails_each_mark_arrives_in_order(faults: list[str]) -> None:
    """Any interleaving of broken streams, stops and starts delivers each mark, once, in order."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "s")
        client = kdclient.connect(str(recorder.socket), spool=f"{folder}/spool")
        count, up = 0, False
        with client.run("r") as run:
            for fault in faults:
                if fault.startswith("break"):
                    sign = 1 if fault == "break before" else -1
                    recorder.break_at |= {sign * (recorder.requests + 2)}
                elif fault == "flush":
                    client.flush(0.15)
                elif fault == "mark":
                    _mark(run, range(count, count + 50))
                    count += 50
                elif (fault == "start") != up:
                    (recorder.start if not up else recorder.stop)()
                    up = not up
            if not up:
                recorder.start()
            recorder.break_at.clear()
        wait_until(lambda: len(recorder.runs(2)) == 1, seconds=10)
        client.close()
        recorder.stop()
        assert _numbers(recorder) == list(range(count))
        assert not list(Path(folder).glob("spool/*"))
