"""`wattd serve` from its start to its end, with what goes wrong on the way, as real processes."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, lines, segments, wait_until


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon with simulated devices."""
    with Daemon(tmp_path) as running:
        yield running


def of_type(archive: Path, kind: str, *types: str) -> list[dict[str, Any]]:
    return [line for line in lines(archive, kind) if line["type"] in types]


def counters(archive: Path) -> list[dict[int, float]]:
    """The absolute counters of each second, oldest first."""
    return [
        dict(zip(line["device"], line["energy_joules"], strict=True))
        for line in of_type(archive, "samples", "second")
    ]


def refused(folder: Path, *words: str, environment: dict[str, str] | None = None) -> str:
    """The one line with which a daemon that can't start says why."""
    done = subprocess.run(
        [sys.executable, "-m", "wattd", "serve", "--sensors", "simulated", *words],
        env={**os.environ, "WATTD_CONFIG": os.devnull, "XDG_STATE_HOME": str(folder), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_ready_line_names_its_addresses_and_they_answer(daemon: Daemon) -> None:
    """One line with socket, page, archive and sensors; the page answers, the socket is its owner's alone."""
    assert daemon.ready["sensors"] == "simulated"
    assert daemon.ready["devices"] == "12"
    assert (daemon.socket.stat().st_mode & 0o777) == 0o600
    with urllib.request.urlopen(daemon.ready["metrics"]) as page:
        assert b"wattd_build_info" in page.read()


def test_systemd_is_told_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    """READY=1 comes with the line, STOPPING=1 with the end."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.settimeout(20)
        with Daemon(tmp_path / "d", environment={"NOTIFY_SOCKET": str(address)}) as daemon:
            assert notify.recv(100) == b"READY=1"
            daemon.stop()
            assert notify.recv(100) == b"STOPPING=1"


def test_stop_leaves_everything_written_and_closed(daemon: Daemon) -> None:
    """SIGTERM: exit code 0, every segment closed with its count, nothing left behind."""
    wait_until(lambda: segments(daemon.archive, "samples"))
    time.sleep(1.5)
    assert daemon.stop() == 0
    for kind in ("samples", "events"):
        (segment,) = segments(daemon.archive, kind)
        assert segment.suffix == ".zst"
        *_, end = lines(daemon.archive, kind)
        assert (end["type"], end["reason"]) == ("end", "stopped")
    assert [line["seq"] for line in lines(daemon.archive, "samples")] == list(
        range(end_count(daemon.archive))
    )
    assert not daemon.socket.exists()


def end_count(archive: Path) -> int:
    *_, end = lines(archive, "samples")
    return int(end["lines"]) + 1


def test_interrupt_of_the_whole_group_stops_it_just_as_well(daemon: Daemon) -> None:
    """Ctrl-C reaches sampler and server alike, and still everything is closed."""
    time.sleep(0.5)
    os.killpg(daemon.process.pid, signal.SIGINT)
    assert daemon.process.wait(timeout=30) == 0
    assert all(
        path.suffix == ".zst" for kind in ("samples", "events") for path in segments(daemon.archive, kind)
    )


def test_dead_server_is_started_again_and_costs_no_sample(daemon: Daemon) -> None:
    """SIGKILL of the server: the sampler goes on, the ring bridges the gap, each second is there once."""
    time.sleep(1.2)
    before = daemon.server_pid()
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: _server(daemon) not in {0, before})
    time.sleep(2.5)
    assert daemon.stop() == 0
    seconds = of_type(daemon.archive, "samples", "second")
    times = [line["monotonic_nano"] for line in seconds]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(0.9e9 < step < 1.2e9 for step in steps[:-1]), steps
    ticks = [line["monotonic_nano"] for line in of_type(daemon.archive, "samples", "tick")]
    assert ticks == sorted(set(ticks)), "no tick twice"
    assert max(later - earlier for earlier, later in itertools.pairwise(ticks)) < 0.5e9
    assert [line["what"] for line in of_type(daemon.archive, "events", "daemon")].count(
        "server_restarted"
    ) == 1


def _server(daemon: Daemon) -> int:
    with contextlib.suppress(AssertionError):
        return daemon.server_pid()
    return 0


def test_killed_daemon_is_recovered_from_its_archive(daemon: Daemon) -> None:
    """SIGKILL of all: the next daemon closes the segment, names the gap, and goes on counting."""
    time.sleep(1.5)
    daemon.kill()
    daemon.start()
    time.sleep(1.5)
    assert daemon.stop() == 0
    ends = of_type(daemon.archive, "samples", "end")
    assert [end["reason"] for end in ends][-1] == "stopped"
    assert len(ends) == 2
    gaps = [gap for gap in of_type(daemon.archive, "events", "gap") if gap["reason"] == "daemon_down"]
    assert gaps
    assert all(gap["end_monotonic_nano"] > gap["begin_monotonic_nano"] for gap in gaps)
    seen: dict[int, float] = {}
    for second in counters(daemon.archive):
        for device, joules in second.items():
            assert joules >= seen.get(device, 0)
            seen[device] = joules


def test_second_daemon_on_the_same_socket_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """A socket that a living daemon serves is not taken over."""
    message = refused(
        tmp_path, "--socket", str(daemon.socket), "--metrics", "", "--archive", str(tmp_path / "other")
    )
    assert str(daemon.socket) in message
    assert daemon.stop() == 0


def test_taken_port_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """A port in use is named."""
    address = daemon.ready["metrics"].removeprefix("http://").removesuffix("/metrics")
    folder = tmp_path / "other"
    message = refused(
        folder, "--metrics", address, "--socket", str(folder / "s"), "--archive", str(folder / "archive")
    )
    assert address in message


def test_archive_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """An archive below a file is named, with what to do."""
    (tmp_path / "file").write_text("")
    message = refused(tmp_path, "--archive", str(tmp_path / "file" / "a"), "--socket", str(tmp_path / "s"))
    assert str(tmp_path / "file" / "a") in message


def test_nothing_is_imported_from_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named like a module, in a folder that may be anybody's, is not run by the daemon."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("random.py", "pathlib.py", "grpc.py"):
        (trap / name).write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    monkeypatch.chdir(trap)
    with Daemon(tmp_path / "d", executable=Path(sys.executable).with_name("wattd")) as daemon:
        assert daemon.stop() == 0
    assert not (tmp_path / "sprung").exists()


def test_stale_socket_is_taken_over(daemon: Daemon) -> None:
    """The socket that a daemon left behind, killed sampler, server and all, is no obstacle."""
    os.killpg(daemon.process.pid, signal.SIGKILL)
    daemon._reap()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.stop() == 0
