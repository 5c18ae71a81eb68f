"""Configuration: the command line over the file over the defaults, and mistakes named by file and line."""

from pathlib import Path
from typing import Any

import pytest

from wattd.config import Config, load
from wattd.values import UserError


@pytest.fixture(autouse=True)
def _no_configuration_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATTD_CONFIG", raising=False)
    monkeypatch.setattr("wattd.config.SYSTEM_FILE", Path("/nonexistent"))


def test_command_line_wins_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    """A flag overrides the file, and the file the default."""
    file = tmp_path / "c.toml"
    file.write_text('hz = 50\nnode = "n1"\n[simulated]\ngpus = 2\n')
    config = load(file, {"hz": 200.0, "archive": str(tmp_path / "a"), "metrics": None})
    assert (config.hz, config.node, config.metrics) == (200.0, "n1", "127.0.0.1:9477")
    assert config.simulated.gpus == 2
    assert config.archive == tmp_path / "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hz = 100\nhertz = 5\n", r"c\.toml:2: hertz: there is no such key; known are archive, "),
        ("[simulated]\n\ngpsu = 1\n", r"c\.toml:3: simulated\.gpsu: there is no such key"),
        ('hz = "fast"\n', r"c\.toml:1: hz: give a number"),
        ("hz = true\n", r"c\.toml:1: hz: give a number"),
        ("\n\nhz = 0.5\n", r"c\.toml:3: hz: give a rate from 1 to 2000"),
        (
            'sensors = ["nvml", "rappl"]\n',
            r"c\.toml:1: sensors: there is no sensor 'rappl'; known are nvml, rapl",
        ),
        ('sensors = "nvml"\n', r"c\.toml:1: sensors: give a list"),
        ('node = "a/b"\n', r"c\.toml:1: node: a node name has"),
        ('metrics = "9477"\n', r"c\.toml:1: metrics: give HOST:PORT"),
        ('metrics = "localhost:99999"\n', r"c\.toml:1: metrics: a port is a number up to 65535"),
        ('sensors = ["rapl", "rapl"]\n', r"c\.toml:1: sensors: a sensor is named twice"),
        ("[simulated]\ngpus = -3\n", r"c\.toml:2: simulated\.gpus: give a number of devices"),
        ("simulated = 3\n", r"c\.toml:1: simulated: give a table"),
        ("segment_bytes = 10\n", r"c\.toml:1: segment_bytes: a segment has at least"),
        ("archive = [\n", r"configuration .*c\.toml: .*"),
    ],
)
def test_mistake_is_named_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    """Each mistake is one line with its place and what to do, and is wrong usage."""
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(file, {}, ("nvml", "rapl"))
    assert caught.value.code == 2
    assert "\n" not in str(caught.value).strip()


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that was asked for and is not there is an error, not a default."""
    with pytest.raises(UserError, match=r"nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml", {})


def test_mistake_on_the_command_line_names_the_flag() -> None:
    """What came from a flag is blamed on the flag."""
    with pytest.raises(UserError, match=r"^--hz: give a rate"):
        load(None, {"hz": 5000.0})


def test_node_name_is_slurms_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Slurm the node is SLURMD_NODENAME, never the host name."""
    monkeypatch.setenv("SLURMD_NODENAME", "n17")
    assert load(None, {}).node == "n17"


@pytest.mark.parametrize("overrides", [{}, {"sensors": ["rapl"], "hz": 10.0}])
def test_configuration_survives_the_way_to_the_server(overrides: dict[str, Any]) -> None:
    """The server process gets the very configuration that the sampler has."""
    config = load(None, overrides)
    assert Config.from_json(config.as_json()) == config
