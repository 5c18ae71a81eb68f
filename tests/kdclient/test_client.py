"""What a training program sees of the client."""

import gc
import io
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kdclient
from kdclient.client import Client
from tests.daemon import wait_until
from tests.kdclient.recorder import Recorder


def test_the_surface() -> None:
    """Three names, no more: everything else is reached through them."""
    assert kdclient.__all__ == ["Phase", "Run", "connect"]
    assert all(hasattr(kdclient, name) for name in kdclient.__all__)


def test_the_import_is_light() -> None:
    """Importing the client loads neither grpc nor protobuf nor torch, and takes under 50 ms of a core."""
    script = (
        "import sys, time; begin = time.process_time(); import kdclient; print(time.process_time() - begin);"
        "print([name for name in sys.modules if name.split('.')[0] in ('grpc', 'google', 'torch', 'wattd')])"
    )
    seconds = []
    for _ in range(5):
        output = subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        assert output[1] == "[]"
        seconds.append(float(output[0]))
    assert min(seconds) <= 0.05


def test_connect_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Getting ready neither waits nor starts a thread nor fails, whatever it is given."""
    before = threading.active_count()
    kdclient.connect("/no/such/socket", "/no/such/token", "/proc/no/such/spool")
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("environment", "sockets", "spool"),
    [
        ({"WATTD_SOCKET": "/a", "WATTD_SPOOL": "/b"}, ["/a"], "/b"),
        (
            {"XDG_RUNTIME_DIR": "/r", "XDG_STATE_HOME": "/s"},
            ["/r/wattd.sock", "/run/wattd/wattd.sock"],
            "/s/wattd/spool",
        ),
        ({"HOME": "/h"}, ["/run/wattd/wattd.sock"], "/h/.local/state/wattd/spool"),
    ],
)
def test_where_things_are(
    environment: dict[str, str], sockets: list[str], spool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment says where daemon and spool are, else an ordinary user's places, then the node's."""
    for name in ("WATTD_SOCKET", "WATTD_SPOOL", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    client = kdclient.connect()
    assert client.sockets == sockets
    assert client.spool == spool


@given(st.text(max_size=80))
def test_any_name_becomes_one_that_is_taken(name: str) -> None:
    """Whatever a phase is called, what is sent has the allowed letters and length; a good name stays."""
    client = kdclient.connect("/no/such/socket")
    client.warn = lambda message: None  # type: ignore[method-assign]
    sent = client.check(name)
    assert 1 <= len(sent) <= 64
    assert all(letter.isascii() and (letter.isalnum() or letter in "_.:-") for letter in sent)
    assert client.check(sent) == sent


def test_a_wrong_name_is_said_once(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    """One line a name, however often it is used."""
    for _ in range(3):
        assert client.check("teacher forward") == "teacher_forward"
    said = capfd.readouterr().err
    assert said == (
        "wattd: name 'teacher forward' is marked as teacher_forward: "
        "1 to 64 of A-Z a-z 0-9 _ . : - are allowed\n"
    )


def test_an_end_without_a_begin(
    recorder: Recorder, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is counted, said once, and changes nothing; so does a begin after a begin."""
    with client.run("r") as run:
        run.phase("a").end()
        run.phase("a").end()
        phase = run.phase("b").begin()
        phase.begin()
        phase.end()
        phase.end()
    assert client.strays == 4
    assert [mark.name for mark in recorder.phases()] == ["b"]
    assert len(capfd.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("tokens", ["many", -1, 1 << 60, float("inf"), object()])
def test_tokens_that_are_none(
    tokens: Any, recorder: Recorder, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is no number of tokens is left out and said; the phase counts."""
    with client.run("r") as run, run.phase("p", tokens=tokens):
        pass
    (mark,) = recorder.phases()
    assert not mark.HasField("tokens")
    assert [mark.kind for mark in recorder.runs()] == [1, 2]
    assert "no number of tokens" in capfd.readouterr().err


@pytest.mark.parametrize("seed", ["zero", 0.5, 1 << 64])
def test_a_seed_that_is_none(
    seed: Any, recorder: Recorder, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is no seed is left out and said; the run counts."""
    with client.run("r", seed=seed):
        pass
    assert not recorder.runs(1)[0].HasField("seed")
    assert "seed=" in capfd.readouterr().err


def test_sync_waits_for_the_gpu(recorder: Recorder, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sync both edges wait for the GPU, where the program has started CUDA, and the run says so."""
    waits = list[int]()
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        synchronize=lambda: waits.append(1),
        device_count=lambda: 1,
        memory_reserved=lambda number: 1,
        get_device_properties=lambda number: types.SimpleNamespace(uuid="u"),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    with client.run("r", sync=True) as run, run.phase("p"):
        assert len(waits) == 1
    assert len(waits) == 2
    begin = recorder.runs(1)[0]
    assert begin.synchronised
    assert (list(begin.gpu_uuids), begin.gpu_source) == (["GPU-u"], "torch")


def test_gpus_that_become_known_later(
    recorder: Recorder, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun before CUDA tells its GPUs once they are known."""
    reserved = [0]
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 1,
        memory_reserved=lambda number: reserved[0],
        get_device_properties=lambda number: types.SimpleNamespace(uuid="u"),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    with client.run("r") as run:
        client.flush(5.0)
        reserved[0] = 1
        (update,) = wait_until(lambda: recorder.runs(3))
    assert recorder.runs(1)[0].gpu_source == "unknown"
    assert (update.run_id, list(update.gpu_uuids), update.gpu_source) == (run.run_id, ["GPU-u"], "torch")


def test_a_full_queue_is_counted(
    recorder: Recorder, client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Marks that find neither queue nor memory are dropped, counted to the daemon, and said once."""
    monkeypatch.setattr("kdclient.encoding._MOST_QUEUED", 1_000)
    marked = 0
    with client.run("r") as run:
        # The sender notices at its next look; from then on phases are counted instead of queued.
        while client.append != client._drop:
            with run.phase("p"):
                marked += 1
        for _ in range(1_000):
            with run.phase("p"):
                marked += 1
        time.sleep(0.3)
        with run.phase("p"):
            marked += 1
    assert client.flush(20.0)
    assert recorder.dropped > 0
    assert len(recorder.phases()) + recorder.dropped == marked
    assert capfd.readouterr().err.count("dropped") == 1


def test_a_client_is_not_kept_alive(tmp_path: Path) -> None:
    """A closed client can go."""
    client = kdclient.connect(str(tmp_path / "s"), spool=str(tmp_path / "spool"))
    with client.run("r"):
        pass
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "wattd-sender"]
    gc.collect()


def _work(run: kdclient.Run, number: int) -> None:
    with run.phase("worker", tokens=number):
        time.sleep(0.01)


_SPAWN = """
import multiprocessing, sys, kdclient
def work(number):
    with kdclient.connect().run(f"child{number}") as run, run.phase("worker", tokens=number):
        pass
if __name__ == "__main__":
    with kdclient.connect().run("r"):
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            pool.map(work, range(3))
"""


def test_spawned_workers(recorder: Recorder, tmp_path: Path) -> None:
    """Processes started anew connect by themselves."""
    script = tmp_path / "train.py"
    script.write_text(_SPAWN)
    environment = {**os.environ, "WATTD_SOCKET": str(recorder.socket), "WATTD_SPOOL": str(tmp_path / "spool")}
    subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=60)
    assert sorted(mark.tokens for mark in recorder.phases("worker")) == [0, 1, 2]


_THREADS = 8


def test_threads_mark_at_once(recorder: Recorder, client: Client) -> None:
    """Phases of many threads all arrive, each under its thread's number."""
    with client.run("r") as run:
        gate = threading.Barrier(_THREADS)

        def mark(number: int) -> None:
            gate.wait()
            for _ in range(500):
                with run.phase("p", tokens=number):
                    pass

        threads = [threading.Thread(target=mark, args=(number,)) for number in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    pairs = [(mark.tokens, mark.thread) for mark in recorder.phases("p")]
    assert len(pairs) == 500 * _THREADS
    assert len(set(pairs)) == _THREADS
    assert len({thread for _, thread in pairs}) == _THREADS


def test_nothing_a_training_passes_can_raise(recorder: Recorder, client: Client) -> None:
    """A name that is no text and tokens that refuse to be a number cost a warning, not the training."""

    class Refuses:
        def __int__(self) -> int:
            raise KeyError("no")

    with client.run("r") as run:
        with run.phase(["a"]):  # type: ignore[arg-type]
            pass
        with run.phase("p") as phase:
            phase.tokens = Refuses()  # type: ignore[assignment]
    assert client.flush(10.0)
    assert sorted(phase.name for phase in recorder.phases()) == ["__a__", "p"]


def test_log_that_has_gone_away_is_no_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning to a standard error that is closed is lost, and nothing else."""
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    client.warn("nobody hears this")


def test_process_without_threads_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, phases are counted as dropped and the training goes on."""

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("kdclient.sender.Sender.start", refuse)
    client = kdclient.connect(tmp_path / "s", spool=tmp_path / "spool")
    with client.run("r") as run, run.phase("p"):
        pass
    assert client.dropped == 1
    client.close()


def test_marks_after_a_close_are_another_clients(recorder: Recorder, client: Client) -> None:
    """A client that is closed and used again begins anew: nothing is taken for told already."""
    for name in ("first", "second"):
        with client.run("r") as run, run.phase(name):
            pass
        client.close()
    assert [phase.name for phase in recorder.phases()] == ["first", "second"]


def test_phase_entered_twice_is_marked_once(recorder: Recorder, client: Client) -> None:
    """A phase object is one interval: entering it again is counted and changes nothing."""
    with client.run("r") as run:
        phase = run.phase("p")
        for _ in range(3):
            with phase:
                pass
    assert client.flush(10.0)
    assert len(recorder.phases()) == 1
    assert client.strays == 2
