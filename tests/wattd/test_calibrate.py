"""The command, against a simulated driver whose response is known."""

import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.daemon import lines
from tests.nvml.driver import CompilerMissingError, Trace, build, compiler
from wattd.__main__ import main
from wattd.calibrate import Outcome, Stage, calibrate
from wattd.calibrate import _plan as plan
from wattd.calibration_table import print_outcomes
from wattd.config import load
from wattd.loads import command_load
from wattd.values import Device, Domain, Reading, Source

_LOAD = """
import random, sys, time
from pathlib import Path
from tests.nvml.driver import Trace
trace, chance, high = Trace(Path(sys.argv[1])), random.Random(7), float(sys.argv[2])
while True:
    for state, watts in (("high", high), ("low", 120.0)):
        print(trace.draw(watts), state, flush=True)
        time.sleep(chance.uniform(0.03, 0.15))
"""
_SENSOR = {
    "gpus": 1.0,
    "watts": 120.0,
    "rise_ms": 2.0,
    "jitter_ms": 0.3,
    "noise_watts": 0.3,
    "counter_period_ms": 20.0,
    "counter_delay_ms": 4.0,
    "power_period_ms": 20.0,
    "power_window_ms": 10.0,
    "power_delay_ms": 3.0,
    "power_phase_ms": 7.0,
    "gain": 0.96,
}
_CHECKOUT = Path(__file__).parents[2]
_GPU = "GPU-00000000-0000-4000-8000-000000000000"


@dataclass
class _Channel:
    """A device that draws 100 W, or what stands for one."""

    device: Device = field(
        default_factory=lambda: Device(
            device=_GPU,
            index=0,
            domain=Domain.GPU,
            source=Source.MEASURED,
            sensor="rapl",
            counter_range_microjoules=1 << 32,
        )
    )

    def read(self, monotonic_nano: int) -> Reading:
        return Reading(time.monotonic_ns() // 1_000_000 * 100_000 % (1 << 32), None)

    def state(self) -> dict[str, Any]:
        return {}


def _package() -> _Channel:
    return _Channel(
        Device(
            device="package-0",
            index=0,
            domain=Domain.PACKAGE,
            source=Source.MEASURED,
            sensor="rapl",
            counter_range_microjoules=1 << 32,
        )
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one CPU package that is metered, and nothing else."""
    sensor = SimpleNamespace(open=lambda: [_package()], close=lambda: None)
    monkeypatch.setattr("wattd.sampler.SENSORS", {"rapl": lambda *_: sensor})


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        compiler()
    except CompilerMissingError as error:
        assert not os.environ.get("CI"), "CI has a C compiler"
        pytest.skip(f"left out: {error}")
    return build(tmp_path_factory.mktemp("nvml"))


def _calibrate(folder: Path, library: Path, *words: str, high: float) -> subprocess.CompletedProcess[str]:
    with Trace.create(folder / "trace") as trace:
        trace.set(**_SENSOR)
        (folder / "load.py").write_text(_LOAD)
        load = shlex.join([sys.executable, str(folder / "load.py"), str(trace.path), str(high)])
        command = [
            sys.executable,
            "-m",
            "wattd",
            "calibrate",
            "--sensors",
            "nvml",
            "--load",
            f"command:{load}",
        ]
        own = {"WATTD_CONFIG": os.devnull, "PYTHONPATH": str(_CHECKOUT)}
        return subprocess.run(
            [*command, "--archive", str(folder / "archive"), "--seconds", "5", *words],
            env=os.environ | trace.environment(library) | own,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def test_a_response_is_measured(library: Path, tmp_path: Path) -> None:
    """It is found within its error, printed, and stored as a file and in the archive."""
    done = _calibrate(tmp_path, library, "--json", high=600.0)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["calibrated"]
    truth = {
        "counter_delay": 0.004,
        "rise": 0.002,
        "power_delay": 0.003,
        "power_window": 0.010,
    }
    for name, seconds in truth.items():
        # Four deviations, and what a machine that others use adds to the edges.
        assert found[f"{name}_seconds"] == pytest.approx(seconds, abs=4 * found[f"{name}_sd_seconds"] + 5e-4)
    assert found["counter_period_seconds"] == pytest.approx(0.020, rel=0.02)
    assert found["power_gain"] == pytest.approx(0.96, abs=0.01)
    assert found["step_watts"] == pytest.approx(480, rel=0.03)
    event = json.loads((tmp_path / "archive" / "calibration" / f"{_GPU}.json").read_text())
    assert event.items() <= found.items()
    (line,) = [line for line in lines(tmp_path / "archive", "events") if line["type"] == "calibration"]
    assert {key: line[key] for key in event if key != "boot_id"} == {
        key: value for key, value in event.items() if key != "boot_id"
    }


def test_a_load_that_nothing_follows_is_said(library: Path, tmp_path: Path) -> None:
    """Power that stays as it is: exit 1, a line that says so, and nothing is stored."""
    done = _calibrate(tmp_path, library, high=120.0)
    assert done.returncode == 1
    assert done.stderr.startswith(f"wattd: {_GPU} is not calibrated: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not list((tmp_path / "archive" / "calibration").iterdir())
    assert not (tmp_path / "archive" / "v=1").exists()


_TABLE_EVENT = {
    "counter_period_seconds": 0.1,
    "power_period_seconds": 0.1,
    "seen_ratio": 0.25,
    "rise_seconds": 0.003,
    "counter_delay_seconds": 0.005,
    "counter_delay_sd_seconds": 0.0001,
    "power_window_seconds": 0.025,
}


def test_the_table_shows_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """A row a reading; a figure with twice its deviation; `-` for what was not measured."""
    good = Outcome(_Channel(), dict(_TABLE_EVENT))
    assert print_outcomes([good, Outcome(_Channel(), None, "it sleeps")], as_json=False) == 0
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()[:3]] == [
        ["device", "reading", "period", "window", "delay", "rise", "seen", "gain"],
        [_GPU, "counter", "100", "-", "5", "+-", "0.2", "3", "-", "-"],
        [_GPU, "power", "100", "25", "-", "3", "0.25", "-"],
    ]
    assert shown.err == f"wattd: {_GPU} is not calibrated: it sleeps\n"


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--load", "moon"], (2, "give auto, cpu, cuda or command:CMD")),
        (["--seconds", "0"], (2, "from 1 to 3600")),
        (["--load", "command:"], (2, "CMD is empty")),
        (["--load", "cuda"], (1, "shows no GPU")),
        (["--load", "command:/no/such/program"], (1, "give a program that exists")),
        (["--load", "command:true"], (1, "printed no line")),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    answer: tuple[int, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    machine: None,
) -> None:
    """Each says what to do, and nothing is loaded or stored."""
    code = main(["calibrate", "--archive", str(tmp_path), *words])
    error = capsys.readouterr().err
    assert code == answer[0]
    assert answer[1] in error
    assert error.count("\n") == 1


def test_a_fit_that_is_not_installed_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon's own packages do not hold it: said before a minute of load, not after."""
    monkeypatch.setitem(sys.modules, "wattq.calibration", None)
    assert main(["calibrate", "--archive", str(tmp_path), "--load", "cpu"]) == 1
    assert "pip install 'wattd[analysis]'" in capsys.readouterr().err


def test_an_archive_that_cannot_be_written_is_found_out_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after a minute of load."""
    (tmp_path / "file").touch()
    assert main(["calibrate", "--archive", str(tmp_path / "file"), "--load", "cpu"]) == 1
    assert "--archive DIR" in capsys.readouterr().err


def test_what_is_no_measurement_has_no_response(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Simulated and estimated devices are left alone: said, exit 1."""
    assert main(["calibrate", "--archive", str(tmp_path), "--sensors", "simulated", "--load", "cpu"]) == 1
    assert "its power is simulated" in capsys.readouterr().err


def test_each_device_gets_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs at once, each under a process that sees it alone, then the CPUs; a command loads everything."""
    gpus, package = [_Channel(), _Channel()], _package()
    machine = [*gpus, package]
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    outcomes: list[Outcome] = []
    first, second = plan("auto", machine, 1, outcomes)
    assert [stage.channels for stage in first] == [[gpus[0]], [gpus[1]]]
    assert {stage.load._environment["CUDA_VISIBLE_DEVICES"] for stage in first} == {_GPU}
    assert [(stage.load.name, stage.channels) for stage in second] == [("cpu", [package])]
    assert [[stage.channels for stage in group] for group in plan("command:x", machine, 1, outcomes)] == [
        [machine]
    ]
    assert not outcomes
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert len(plan("auto", machine, 1, outcomes)) == 1
    assert [outcome.reason for outcome in outcomes] == ["torch is missing, there is no load for GPUs"] * 2


def test_the_fit_gets_what_was_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: None) -> None:
    """Joules, brackets in nanoseconds with -1 for an unknown earlier side, and stretches that were seen."""
    given: list[Any] = []

    def fit(*arguments: Any) -> Any:
        given.extend(arguments)
        return SimpleNamespace(reason="", as_event=lambda: {"counter_period_seconds": 0.001})

    monkeypatch.setattr("wattd.calibrate._fit", lambda: fit)
    text = (
        "import itertools, time\nfor n in itertools.count():\n"
        " print(time.monotonic_ns(), 'high' if n % 2 else 'low', flush=True); time.sleep(0.05)"
    )
    config = load(Path(os.devnull), {"archive": str(tmp_path), "node": "n"})
    (outcome,) = calibrate(config, f"command:{shlex.join([sys.executable, '-c', text])}", 1.0, 0)
    evidence, begin, end, update_nano = given
    assert outcome.event is not None
    assert outcome.event["device"] == "package-0"
    assert update_nano is None
    assert evidence.energy_old_nano[0] == -1
    assert (evidence.energy_old_nano[1:] < evidence.energy_read_nano[1:]).all()
    spent = evidence.energy_joules[-1] - evidence.energy_joules[0]
    elapsed = (evidence.energy_read_nano[-1] - evidence.energy_read_nano[0]) / 1e9
    assert spent == pytest.approx(100 * elapsed, rel=0.02)
    assert not len(evidence.power_watts)
    assert 5 <= len(begin) == len(end)
    assert evidence.energy_read_nano[0] <= begin[0]
    assert all(one < other for one, other in itertools.pairwise(sorted([*begin, *end])))


def test_one_load_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: None
) -> None:
    """A GPU whose load does not start is said, and the CPUs are measured all the same."""
    broken = Stage(command_load("false"), [_Channel()])
    text = "import time\nwhile 1:\n print(time.monotonic_ns(), 'high', flush=True); time.sleep(0.05)"
    works = Stage(command_load(shlex.join([sys.executable, "-c", text])), [_package()])
    good = SimpleNamespace(reason="", as_event=lambda: {"stretches": 0})
    monkeypatch.setattr("wattd.calibrate._fit", lambda: lambda *_: good)
    config = load(Path(os.devnull), {"archive": str(tmp_path), "node": "n"})
    for groups in ([[broken], [works]], [[broken, works]]):
        monkeypatch.setattr("wattd.calibrate._plan", lambda *_, groups=groups: groups)
        outcomes = calibrate(config, "auto", 1.0, 0)
        assert [outcome.event is not None for outcome in outcomes] == [False, True]
        assert "`false` ended with code 1" in outcomes[0].reason
