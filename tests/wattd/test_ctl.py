import json
from pathlib import Path

import grpc
import pytest

from tests.daemon import Daemon, wait_until
from tests.wattd.marking import Marker
from wattd import ctl
from wattd.v1 import marks_pb2_grpc


def _mark_run(daemon: Daemon, boot_id: str) -> None:
    """Begin a run with an open phase, at the machine's own time."""
    import time

    marker = Marker(boot_id=boot_id)
    now = time.monotonic_ns()
    with grpc.insecure_channel(f"unix:{daemon.socket}") as channel:
        stub = marks_pb2_grpc.MarkServiceStub(channel)
        request = marker.request(marker.begin_run(nano=now), marker.open_phase("eval:mmlu", begin=now))
        (response,) = stub.SendMarks(iter([request]))
        assert response.acknowledged_sequence == 2


def test_status_shows_a_running_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Daemon, devices with source, watts and joules, runs with their phases, archive, warnings."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with Daemon(tmp_path) as daemon:
        words = ["status", "--socket", str(daemon.socket)]

        def status() -> dict[str, list[dict[str, object]]]:
            assert ctl.main([*words, "--json"]) == 0
            found: dict[str, list[dict[str, object]]] = json.loads(capsys.readouterr().out)
            return found

        wait_until(lambda: all("power_watts" in device for device in status()["devices"] or [{}]))
        _mark_run(daemon, boot_id)
        found = status()
        assert len(found["devices"]) == 12
        assert {device["source"] for device in found["devices"]} == {"simulated"}
        assert [(run["run"], run["open_phases"]) for run in found["runs"]] == [("r", ["eval:mmlu"])]
        assert ctl.main(words) == 0
        table = capsys.readouterr().out
        for text in ("GPU-51a71a7e", "simulated", "eval:mmlu", str(daemon.archive), "missed", "warning: "):
            assert text in table
        assert daemon.stop() == 0


def test_without_a_daemon_it_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line on standard error, exit code 1; the environment names the socket, too."""
    assert ctl.main(["status", "--socket", str(tmp_path / "none")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "wattd serve" in output.err
    monkeypatch.setenv("WATTD_SOCKET", str(tmp_path / "other"))
    assert ctl.main(["status"]) == 1
    assert str(tmp_path / "other") in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """For the command and for each subcommand."""
    for words in (["--help"], ["status", "--help"]):
        with pytest.raises(SystemExit) as caught:
            ctl.main(words)
        assert caught.value.code == 0
        assert "examples:" in capsys.readouterr().out


def test_wrong_usage_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """As everywhere: what is wrong, and where the examples are."""
    assert ctl.main(["status", "--format", "xml"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "`wattctl status --help` has examples" in message
