"""Configuration: defaults, then a TOML file, then the command line.

An unknown key or a value of the wrong kind is refused with the file and the line it stands in.
"""

import dataclasses
import os
import re
import socket
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from wattd.values import UserError

SYSTEM_FILE = Path("/etc/wattd/config.toml")
_NODE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedConfig:
    """What `--sensors simulated` pretends to be: H100 GPUs and RAPL domains.

    Attributes:
        gpus: Simulated GPUs.
        packages: Simulated CPU packages, each with a DRAM domain.
        seed: Seed of noise and jitter.
    """

    gpus: int = 8
    packages: int = 2
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuEstimateConfig:
    """Overrides of the CPU power model; None takes the published figure for this CPU.

    Attributes:
        idle_watts: Power of the machine's CPUs at rest.
        max_watts: Power of the machine's CPUs at full load.
        uncertainty_ratio: Half-width of the estimate's interval, as a share of the energy.
    """

    idle_watts: float | None = None
    max_watts: float | None = None
    uncertainty_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the daemon can be told.

    Attributes:
        archive: Folder of the archive.
        socket: The owner's Unix socket.
        metrics: HOST:PORT of the metrics page; empty for none.
        sensors: Names of the sensors to read; empty for all that this machine has.
        hz: Readings a second of sensors without a learned period.
        node: Name of this node.
        segment_bytes: A segment of the archive is closed at this size.
        segment_seconds: A segment of the archive is closed at this age.
        simulated: See SimulatedConfig.
        cpu_estimate: See CpuEstimateConfig.
    """

    archive: Path
    socket: Path
    metrics: str = "127.0.0.1:9477"
    sensors: tuple[str, ...] = ()
    hz: float = 100.0
    node: str = ""
    segment_bytes: int = 64 * 1024 * 1024
    segment_seconds: float = 900.0
    simulated: SimulatedConfig = field(default_factory=SimulatedConfig)
    cpu_estimate: CpuEstimateConfig = field(default_factory=CpuEstimateConfig)

    def as_json(self) -> dict[str, Any]:
        """As plain JSON values, for the server process."""
        return {**dataclasses.asdict(self), "archive": str(self.archive), "socket": str(self.socket)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """What `as_json` gave."""
        return _build(values, lambda key: f"configuration: {key}")


def default_archive() -> Path:
    """Root: /var/lib/wattd; others: ~/.local/state/wattd/archive."""
    if os.geteuid() == 0:
        return Path("/var/lib/wattd")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "wattd" / "archive"


def default_socket() -> Path:
    """Root: /run/wattd/wattd.sock; others: $XDG_RUNTIME_DIR/wattd.sock."""
    if os.geteuid() == 0:
        return Path("/run/wattd/wattd.sock")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime or f"/tmp/wattd-{os.geteuid()}") / "wattd.sock"  # noqa: S108 - the folder is made 0700


def load(path: Path | None, overrides: dict[str, Any], known_sensors: Collection[str] = ()) -> Config:
    """Read the configuration.

    Args:
        path: The file; None takes $WATTD_CONFIG, else /etc/wattd/config.toml where it exists.
        overrides: Values of the command line by key; those that are None are left out.
        known_sensors: Names that `sensors` may hold; empty to let every name pass.

    Raises:
        UserError: No such file, no TOML, an unknown key, a wrong value.
    """
    values: dict[str, Any] = {}
    text = ""
    if path is None and os.environ.get("WATTD_CONFIG"):
        path = Path(os.environ["WATTD_CONFIG"])
    if path is None and SYSTEM_FILE.exists():
        path = SYSTEM_FILE
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            values = tomllib.loads(text)
        except OSError as error:
            raise UserError(f"configuration {path}: {error.strerror}; name a readable file", 2) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"configuration {path}: {error}", 2) from error

    def where(key: str) -> str:
        """The place of a key for a message: the file and line, or the flag."""
        if overrides.get(key) is not None or path is None:
            return f"--{key.replace('_', '-')}"
        return f"{path}:{_line_of(text, key)}: {key}"

    given = {key: value for key, value in overrides.items() if value is not None}
    config = _build({"archive": default_archive(), "socket": default_socket(), **values, **given}, where)
    for name in config.sensors if known_sensors else ():
        if name not in known_sensors:
            raise UserError(
                f"{where('sensors')}: there is no sensor {name!r}; known are {', '.join(known_sensors)}", 2
            )
    return config


def _line_of(text: str, key: str) -> int:
    """The line a key (or a table) stands in, from 1."""
    name = re.escape(key.rsplit(".", 1)[-1])
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(rf"""\s*(\[\s*)?["']?{name}["']?\s*[\]=.]""", line):
            return number
    return 1


def _build(values: dict[str, Any], where: Any) -> Config:
    settings = dict(values)
    settings["archive"] = (
        Path(_checked(settings["archive"], (str, Path), "archive", where)).expanduser().absolute()
    )
    settings["socket"] = (
        Path(_checked(settings["socket"], (str, Path), "socket", where)).expanduser().absolute()
    )
    settings["simulated"] = _section(SimulatedConfig, settings.get("simulated", {}), "simulated", where)
    settings["cpu_estimate"] = _section(
        CpuEstimateConfig, settings.get("cpu_estimate", {}), "cpu_estimate", where
    )
    sensors = settings.get("sensors", ())
    if not isinstance(sensors, list | tuple) or not all(isinstance(name, str) for name in sensors):
        raise UserError(f"{where('sensors')}: give a list of sensor names", 2)
    settings["sensors"] = tuple(sensors)
    settings["node"] = settings.get("node") or os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    config: Config = _section(Config, settings, "", where)
    if not 1 <= config.hz <= 2000:
        raise UserError(f"{where('hz')}: give a rate from 1 to 2000 readings a second", 2)
    if not _NODE_NAME.fullmatch(config.node):
        raise UserError(f"{where('node')}: a node name has 1 to 64 letters, digits, '_', '.' or '-'", 2)
    if config.metrics and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", config.metrics):
        raise UserError(f"{where('metrics')}: give HOST:PORT, for example 127.0.0.1:9477", 2)
    if config.metrics and int(config.metrics.rpartition(":")[2]) > 65535:
        raise UserError(f"{where('metrics')}: a port is a number up to 65535", 2)
    if len(set(config.sensors)) < len(config.sensors):
        raise UserError(f"{where('sensors')}: a sensor is named twice", 2)
    if {"simulated"} < set(config.sensors):
        raise UserError(f"{where('sensors')}: simulated devices stand alone, not beside real ones", 2)
    if config.simulated.gpus < 0 or config.simulated.packages < 0:
        raise UserError(f"{where('simulated.gpus')}: give a number of devices, 0 or more", 2)
    if config.segment_bytes < 4096 or config.segment_seconds < 1:
        raise UserError(f"{where('segment_bytes')}: a segment has at least 4096 bytes and 1 second", 2)
    return config


def _section(kind: type, values: Any, prefix: str, where: Any) -> Any:
    """Build a dataclass from a table, refusing what it does not have."""
    if not isinstance(values, dict):
        raise UserError(f"{where(prefix)}: give a table, [{prefix}]", 2)
    hints = get_type_hints(kind)
    dotted = f"{prefix}." if prefix else ""
    for key, value in values.items():
        if key not in hints:
            known = ", ".join(sorted(hints))
            raise UserError(f"{where(dotted + key)}: there is no such key; known are {known}", 2)
        if hints[key] in (int, float, str, float | None):
            wanted = (int, float) if hints[key] in (float, float | None) else hints[key]
            if not (value is None and hints[key] == float | None):
                _checked(value, wanted, dotted + key, where)
    return kind(**values)


def _checked(value: Any, wanted: Any, key: str, where: Any) -> Any:
    if not isinstance(value, wanted) or isinstance(value, bool):
        names = {int: "a whole number", str: "a text", (int, float): "a number", (str, Path): "a path"}
        raise UserError(f"{where(key)}: give {names[wanted]}", 2)
    return value
