"""The tools that wattd is compared with: asked by their own interface, in environments of their own."""

import contextlib
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.accuracy.peers import environments
from bench.accuracy.peers.tools import TOOLS, TOTAL


class Monitor:
    """As ZeusMonitor: windows by key, joules by GPU."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.open = list[str]()

    def begin_window(self, key: str, *, sync_execution: bool) -> None:
        assert not sync_execution
        self.open.append(key)

    def end_window(self, key: str, *, sync_execution: bool) -> Any:
        self.open.remove(key)
        return types.SimpleNamespace(gpu_energy={0: 2.5})


class Session:
    """As joules.Session."""

    def __init__(self, **_settings: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Any]:
        found = types.SimpleNamespace(energy_j=None)
        yield found
        found.energy_j = 2.5


class Tracker:
    """As codecarbon's tracker: kilowatt hours of a task."""

    def __init__(self, **_settings: Any) -> None:
        pass

    def start_task(self, name: str = "") -> None:
        pass

    def stop_task(self, name: str = "") -> Any:
        return types.SimpleNamespace(gpu_energy=2.5 / 3.6e6)

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(
    ("tool", "module", "stand_in"),
    [
        ("zeus", "zeus.monitor", {"ZeusMonitor": Monitor}),
        ("zeus_instant", "zeus.monitor", {"ZeusMonitor": Monitor}),
        ("joules", "joules", {"Session": Session}),
        ("codecarbon", "codecarbon", {"OfflineEmissionsTracker": Tracker}),
    ],
)
def test_a_tools_answers_are_added_up_in_joules(
    monkeypatch: pytest.MonkeyPatch, tool: str, module: str, stand_in: dict[str, type]
) -> None:
    """What a tool says of each instance of a phase is added by name; the run is apart, where it says one."""
    for name in {module.partition(".")[0], module}:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[module]).update(stand_in)
    made = TOOLS[tool][1]()
    with made.run():
        for name in ("forward", "backward", "forward"):
            with made.phase(name):
                pass
    run = {} if tool == "codecarbon" else {TOTAL: 2.5}
    assert made.answers() == pytest.approx({"forward": 5.0, "backward": 2.5, **run})


def test_every_tool_has_an_environment_that_can_be_made() -> None:
    """A tool runs in our own environment or in one that environments.py knows, pinned to a version."""
    for environment, _ in TOOLS.values():
        assert environment is None or "==" in environments.PACKAGES[environment]


def test_peer_that_cannot_be_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a registry the peer is said to be missing, and the next run tries again."""

    def fails(words: list[Any], **_: Any) -> Any:
        return subprocess.CompletedProcess(words, 1, "", "WARNING: retrying\nERROR: no such host\n")

    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr("venv.create", lambda folder, with_pip: folder.mkdir())
    monkeypatch.setattr("subprocess.run", fails)
    for _ in range(2):
        with pytest.raises(environments.PeerMissingError) as missing:
            environments.python("joules")
        assert str(missing.value) == "pip can't install landauer-gap==0.8.0: ERROR: no such host"
