"""`wattd calibrate`: what each sensor's response is, measured under a load that alternates.

Nothing is assumed of a sensor. Its readings are taken closely while the power of its device is switched at
random known moments; what it shows of that is fitted by the analysis, where the estimator then finds it.
"""

import asyncio
import importlib.util
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattd import calibrations
from wattd.archive.segment import make_folder
from wattd.config import Config
from wattd.loads import Load, command_load, own_load
from wattd.sampler import Sensors, make_control
from wattd.sensors import Channel
from wattd.values import Domain, Source, UserError
from wattd.watching import watch

if TYPE_CHECKING:
    from wattq.calibration import Calibration
    from wattq.evidence import Evidence

_BEGIN_SECONDS = 120.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Fit = Callable[..., "Calibration"]


@dataclass(frozen=True)
class Stage:
    """Devices that are loaded at the same time.

    Attributes:
        load: What loads them.
        channels: They.
    """

    load: Load
    channels: list[Channel]


@dataclass(frozen=True)
class Outcome:
    """What became of a device.

    Attributes:
        channel: It.
        event: The archive's event; None where it could not be calibrated.
        reason: Why not, or empty.
    """

    channel: Channel
    event: dict[str, Any] | None
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The event, else the device and the reason."""
        device = self.channel.device
        head = {"device": device.device, "domain": device.domain, "sensor": device.sensor}
        if self.event is None:
            return {**head, "calibrated": False, "reason": self.reason}
        return {**head, "calibrated": True, **self.event}


def calibrate(config: Config, load: str, seconds: float, seed: int | None) -> list[Outcome]:
    """Measure every sensor of this machine that a load reaches, and store what was found.

    Args:
        config: Names the sensors and the archive.
        load: `auto`, `cpu`, `cuda` or `command:CMD`.
        seconds: How long each load is watched.
        seed: Of the lengths of the load's stretches; None: another one each time.

    Raises:
        UserError: No fit, no sensor, no load, or nothing can be stored.
    """
    fit = _fit()
    folder = calibrations.folder_of(config.archive)
    _make_writable(folder)
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    outcomes: list[Outcome] = []
    with Sensors(config, make_control()) as sensors:
        channels = [line.channel for line in sensors.lines]
        reachable = [channel for channel in channels if channel.device.source is Source.MEASURED]
        outcomes += [
            Outcome(channel, None, f"its power is {channel.device.source}, there is nothing to measure")
            for channel in channels
            if channel not in reachable
        ]
        for stages in (plan := _plan(load, reachable, seed, outcomes)):
            try:
                outcomes += _measure(stages, seconds, fit)
            except UserError as error:
                if len(plan) == 1:
                    raise
                outcomes += [
                    Outcome(channel, None, str(error)) for stage in stages for channel in stage.channels
                ]
    events = [outcome.event for outcome in outcomes if outcome.event is not None]
    try:
        for event in events:
            calibrations.write(folder, event)
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; make it writable or name another (--archive)"
        ) from error
    if events:
        asyncio.run(calibrations.append(config, _boot_id(), events))
    return outcomes


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()


def _fit() -> Fit:
    """The analysis' fit.

    Raises:
        UserError: It is not installed.
    """
    try:
        from wattq.calibration import calibrate as fit  # noqa: PLC0415 - the daemon does without the analysis
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is missing: the fit is part of the analysis; pip install 'wattd[analysis]'"
        ) from error
    return fit


def _make_writable(folder: Path) -> None:
    """Find out before a minute of load whether its result can be kept.

    Raises:
        UserError: It cannot.
    """
    try:
        make_folder(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; run this as the archive's owner or name another (--archive DIR)"
        ) from error


def _plan(load: str, channels: Sequence[Channel], seed: int, outcomes: list[Outcome]) -> list[list[Stage]]:
    """Which loads run, one group after the other; devices that none reaches are among the outcomes."""
    gpus = [channel for channel in channels if channel.device.domain is Domain.GPU]
    others = [channel for channel in channels if channel not in gpus]
    if load.startswith("command:"):
        return [[Stage(command_load(load.removeprefix("command:")), list(channels))]]
    groups: list[list[Stage]] = []
    if load == "cuda" and not gpus:
        raise UserError("--load cuda: this machine shows no GPU; `wattd probe` says what is missing")
    if load in ("auto", "cuda") and gpus:
        if importlib.util.find_spec("torch") is not None:
            groups.append([_cuda_stage(channel, seed + number) for number, channel in enumerate(gpus)])
        elif load == "cuda":
            raise UserError("--load cuda: torch is missing; pip install torch, or give --load command:CMD")
        else:
            outcomes += [Outcome(gpu, None, "torch is missing, there is no load for GPUs") for gpu in gpus]
    if load in ("auto", "cpu") and others:
        groups.append([Stage(own_load("cpu", seed), others)])
    if not groups and not outcomes:
        raise UserError(f"--load {load}: this machine has no sensor that such a load reaches")
    return groups


def _cuda_stage(channel: Channel, seed: int) -> Stage:
    environment = {"CUDA_VISIBLE_DEVICES": channel.device.device}
    return Stage(own_load("cuda", seed, environment), [channel])


def _measure(stages: Sequence[Stage], seconds: float, fit: Fit) -> list[Outcome]:
    """Run a group of loads, read their devices meanwhile, and fit what was read.

    Raises:
        UserError: The load does not work; one of several is among the outcomes instead.
    """
    outcomes: list[Outcome] = []
    running: list[Stage] = []
    with ExitStack() as ends:
        for stage in stages:
            try:
                ends.enter_context(stage.load)
                running.append(stage)
            except UserError as error:
                outcomes += _failed(stages, stage, error)
        for stage in list(running):
            try:
                _await(stage.load)
            except UserError as error:
                running.remove(stage)
                outcomes += _failed(stages, stage, error)
        channels = [channel for stage in running for channel in stage.channels]
        if not running:
            return outcomes
        readings = watch(channels, seconds, lambda: all(stage.load.is_over() for stage in running))
    for stage in running:
        try:
            stretches = stage.load.stretches()
        except UserError as error:
            outcomes += _failed(stages, stage, error)
            continue
        for channel in stage.channels:
            evidence = readings.evidence(channels.index(channel))
            found = _fitted(channel, evidence, stretches, fit)
            outcomes.append(_outcome(channel, found, stage.load.name, seconds))
    return outcomes


def _failed(stages: Sequence[Stage], stage: Stage, error: UserError) -> list[Outcome]:
    """A load that does not work leaves its devices without a result; the only one ends the command."""
    if len(stages) == 1:
        raise error
    return [Outcome(channel, None, str(error)) for channel in stage.channels]


def _await(load: Load) -> None:
    """Wait for the first switch.

    Raises:
        UserError: The load ends before, or takes too long.
    """
    deadline = time.monotonic() + _BEGIN_SECONDS
    while not load.has_begun():
        if time.monotonic() > deadline:
            raise UserError(
                f"the load printed no line `<monotonic_ns> <high|low>` within {_BEGIN_SECONDS:g} s; "
                "print one at each switch, and flush it"
            )
        time.sleep(0.05)


def _fitted(
    channel: Channel, evidence: "Evidence", stretches: Sequence[tuple[int, int]], fit: Fit
) -> "Calibration | str":
    """The response of a device, or why there is none."""
    import numpy as np  # noqa: PLC0415 - the analysis brings it

    if not len(evidence.energy_joules):
        return "it shows no energy"
    first, last = int(evidence.energy_read_nano[0]), int(evidence.energy_read_nano[-1])
    seen = [stretch for stretch in stretches if first <= stretch[0] and stretch[1] <= last]
    begin, end = (np.array([stretch[side] for stretch in seen], np.int64) for side in (0, 1))
    found = fit(evidence, begin, end, channel.device.update_nano)
    return found.reason or found


def _outcome(channel: Channel, found: "Calibration | str", load: str, seconds: float) -> Outcome:
    if isinstance(found, str):
        return Outcome(channel, None, found)
    device = channel.device
    event = {
        "type": "calibration",
        "monotonic_nano": time.monotonic_ns(),
        "time_unix_nano": time.time_ns(),
        "boot_id": _boot_id(),
        "device": device.device,
        "domain": str(device.domain),
        "source": str(device.source),
        "sensor": device.sensor,
        "model": device.model,
        "driver_version": _driver_version(device.sensor),
        "load": load,
        "seconds": seconds,
        **found.as_event(),
    }
    return Outcome(channel, calibrations.checked(event))


def _driver_version(sensor: str) -> str:
    """Version of what stands between the hardware and us: NVIDIA's driver, else the kernel."""
    if sensor != "nvml":
        return os.uname().release
    import pynvml  # noqa: PLC0415 - a machine without GPUs does without

    try:
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return ""
    return version.decode() if isinstance(version, bytes) else str(version)
