"""From a client's run to the sampler's locks, through both processes, on a simulated NVML."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdclient
from tests.daemon import Daemon, lines, wait_until
from tests.nvml.driver import CompilerMissingError, Trace, build


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon over two GPUs."""
    try:
        library = build(tmp_path / "nvml")
    except CompilerMissingError as error:
        assert not os.environ.get("CI"), "CI has a C compiler"
        pytest.skip(f"left out: {error}")
    with (
        Trace.create(tmp_path / "trace", noise_watts=1) as trace,
        Daemon(tmp_path / "d", "--sensors", "nvml", environment=trace.environment(library)) as daemon,
    ):
        yield daemon


def followed(daemon: Daemon) -> tuple[list[int], set[str]]:
    """The devices that are followed, and how, as the archive's newest second has it."""
    seconds = [line for line in lines(daemon.archive, "samples") if line["type"] == "second"]
    last = seconds[-1] if seconds else {}
    return last.get("followed_device", []), {*last.get("energy_polling", ()), *last.get("power_polling", ())}


def test_devices_are_followed_from_the_begin_of_a_run_to_its_end(daemon: Daemon, tmp_path: Path) -> None:
    """Also over the death of the server, whose successor knows of the run from the archive."""
    client = kdclient.connect(socket=daemon.socket, spool=tmp_path / "spool")
    wait_until(lambda: list(lines(daemon.archive, "samples")))
    assert followed(daemon) == ([], set())
    with client.run("followed"):
        wait_until(lambda: followed(daemon) == ([0, 1], {"locked"}))
        server = daemon.server_pid()
        os.kill(server, signal.SIGKILL)
        wait_until(
            lambda: any(line.get("what") == "server_restarted" for line in lines(daemon.archive, "events"))
        )
        assert followed(daemon) == ([0, 1], {"locked"})
    wait_until(lambda: followed(daemon) == ([], set()))
    client.close()
    assert daemon.stop() == 0
