import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.daemon import Daemon, lines, wait_until
from wattd.archive import Archive, body
from wattd.calibrations import Calibrations, MalformedError, append, checked, folder_of, read, write
from wattd.config import load
from wattd.jobs import recover

_BOOT = "01234567-0000-4000-8000-000000000000"
_GPU = "GPU-00000000-0000-4000-8000-000000000000"


def _event(**changed: Any) -> dict[str, Any]:
    return {
        "type": "calibration",
        "monotonic_nano": 1_000_000_000,
        "time_unix_nano": 1_700_000_000_000_000_000,
        "boot_id": _BOOT,
        "device": _GPU,
        "domain": "gpu",
        "source": "measured",
        "sensor": "nvml",
        "model": "NVIDIA A100-SXM4-80GB",
        "driver_version": "570.1",
        "load": "cuda",
        "seconds": 60.0,
        "counter_delay_seconds": 0.005,
        "covariance": [[1e-9, 0.0], [0.0, 1e-9]],
    } | changed


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """A file by the device's name, replaced whole by a newer one."""
    folder = tmp_path / "calibration"
    write(folder, _event())
    path = write(folder, _event(seconds=30.0))
    assert path.name == f"{_GPU}.json"
    assert read(path) == _event(seconds=30.0)
    assert [entry.name for entry in folder.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "changed",
    [
        {"type": "phase"},
        {"device": "../../etc/passwd"},
        {"device": ".hidden"},
        {"domain": "moon"},
        {"boot_id": "now"},
        {"monotonic_nano": -1},
        {"monotonic_nano": 1.5},
        {"seconds": True},
        {"seconds": "60"},
        {"rise_seconds": float("nan")},
        {"rise_seconds": 10**400},
        {"model": "a\nb"},
        {"model": "x" * 200},
        {"covariance": [[1.0], [1.0]]},
        {"covariance": [[None]]},
        {"Rise": 1.0},
        {f"key_{number}": 1.0 for number in range(80)},
    ],
)
def test_what_is_no_calibration_is_refused(changed: dict[str, Any]) -> None:
    """A wrong type, name, number or shape is no evidence."""
    with pytest.raises(MalformedError):
        checked(_event(**changed))


@pytest.mark.parametrize("key", ["type", "device", "domain", "sensor", "boot_id", "time_unix_nano"])
def test_what_must_be_there_is_missed(key: str) -> None:
    """Without it nobody knows what was measured, where and when."""
    event = _event()
    del event[key]
    with pytest.raises(MalformedError):
        checked(event)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda values: (
            st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_taken_or_refused(value: Any) -> None:
    """Nothing that a file may hold ends the daemon."""
    for candidate in (value, _event(rise_seconds=value), _event(covariance=value), _event(device=value)):
        with suppress(MalformedError):
            assert checked(candidate)["type"] == "calibration"


def test_files_that_are_not_ours_to_believe_are_passed_over(tmp_path: Path) -> None:
    """Links, large files, other names, no JSON: a line each, once; the good ones are taken all the same."""
    folder = folder_of(tmp_path)
    names = ("link", "large", "renamed", "broken", "pipe")
    write(folder, _event(device="good"))
    write(tmp_path / "elsewhere", _event(device="link"))
    (folder / "link.json").symlink_to(tmp_path / "elsewhere" / "link.json")
    (folder / "large.json").write_text(json.dumps(_event(device="large")) + " " * (64 << 10))
    (folder / "renamed.json").write_text(json.dumps(_event(device="good")))
    (folder / "broken.json").write_text("{")
    os.mkfifo(folder / "pipe.json")
    known = Calibrations(tmp_path, _BOOT)
    found, complaints = known.news(frozenset({"good", *names}))
    assert [line["device"] for line in found] == ["good"]
    assert len(complaints) == len(names)
    assert all("\n" not in complaint for complaint in complaints)
    assert known.news(frozenset({"good", *names})) == ([], [])


def test_a_calibration_is_told_once_as_it_stands(tmp_path: Path) -> None:
    """Of devices that are here; again when it has changed; of another boot it says so."""
    known = Calibrations(tmp_path, _BOOT)
    here = frozenset({_GPU})
    assert known.news(here) == ([], [])
    write(folder_of(tmp_path), _event())
    write(folder_of(tmp_path), _event(device="package-0"))
    (line,), _ = known.news(here)
    assert line == {key: value for key, value in _event().items() if key != "boot_id"}
    assert known.news(here) == ([], [])
    other = _BOOT.replace("7", "8")
    write(folder_of(tmp_path), _event(boot_id=other))
    assert [line["boot_id"] for line in known.news(here)[0]] == [other]
    assert [line["device"] for line in known.news(here | {"package-0"})[0]] == ["package-0"]


def test_a_daemon_copies_them_in(tmp_path: Path) -> None:
    """What lies there at its start, and what comes while it runs; a bad file is one line of its log."""
    with Daemon(tmp_path) as daemon:
        devices = [
            line for line in wait_until(lambda: list(lines(daemon.archive, "samples"))) if "devices" in line
        ]
        first, second = (device["device"] for device in devices[0]["devices"][:2])
        folder = folder_of(daemon.archive)
        write(folder, _event(device=first))
        (folder / f"{second}.json").write_text("{")
        wait_until(lambda: _copied(daemon) == [first])
        wait_until(lambda: f"{second}.json: it is no JSON" in daemon.log())
        assert daemon.stop() == 0
        write(folder, _event(device=second))
        daemon.start()
        wait_until(lambda: _copied(daemon) == [first, first, second])
        assert daemon.stop() == 0
        assert daemon.log().count("is passed over") == 1


def _copied(daemon: Daemon) -> list[str]:
    return [line["device"] for line in lines(daemon.archive, "events") if line["type"] == "calibration"]


def test_a_segment_of_our_own_keeps_what_the_daemon_knew(tmp_path: Path) -> None:
    """The next daemon goes on from the newest segment and finds its runs; a busy archive is left alone."""
    config = load(Path(os.devnull), {"archive": str(tmp_path / "archive"), "node": "n"})
    run = json.loads(
        '{"type": "run_begin", "client": "c", "mark": 1, "monotonic_nano": 1, "run_id": "r", "run": "r",'
        '"rank": 0, "local_rank": 0, "job_id": "j", "user": "u",'
        '"account": "none", "partition": "none", "restarts": 0}'
    )

    def opened() -> Archive:
        return Archive(config, _BOOT, list, dict, lambda: (1, 1_700_000_000_000_000_000))

    async def daemon() -> bool:
        archive = opened()
        archive.start()
        archive.events.append([body(run)])
        await archive.events.commit()
        told = await append(config, _BOOT, [_event()])
        await archive.close()
        return told

    async def later() -> Any:
        archive = opened()
        same_boot, events = archive.last_events()
        state = recover(events, same_boot=same_boot)
        await archive.close()
        return state

    assert not asyncio.run(daemon())
    assert asyncio.run(append(config, _BOOT, [_event()]))
    state = asyncio.run(later())
    assert state.runs["r"].is_open
    assert [line["device"] for line in lines(config.archive, "events") if line["type"] == "calibration"] == [
        _GPU
    ]
