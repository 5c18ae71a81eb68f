"""`wattd probe`: what this machine can measure, how well, and what right is missing."""

import itertools
import json
import statistics
import time
from typing import Any

from wattd.config import Config
from wattd.sampler import make_control
from wattd.sensors import SENSORS, Channel, ReadingError, SensorUnavailableError
from wattd.values import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND

_LOOK_SECONDS = 1.0
_POLL_SECONDS = 0.0005


def probe(config: Config) -> list[dict[str, Any]]:
    """Open every sensor that this machine may have and look at each device for a second.

    Returns:
        One object a sensor: `sensor`, `status` (`found`, `denied`, `absent`), `reason`, `remedy`,
        `devices` (each with `device domain source model power_watts update_seconds
        call_seconds_median call_seconds_max`; what could not be observed is left out).
    """
    return [_probe_sensor(name, config) for name in SENSORS if name != "simulated" or name in config.sensors]


def _probe_sensor(name: str, config: Config) -> dict[str, Any]:
    sensor = SENSORS[name](config, make_control(), 0)
    try:
        channels = sensor.open()
    except SensorUnavailableError as error:
        status = "denied" if error.denied else "absent"
        return {
            "sensor": name,
            "status": status,
            "reason": error.reason,
            "remedy": error.remedy,
            "devices": [],
        }
    try:
        devices = [_probe_channel(channel) for channel in channels]
    finally:
        sensor.close()
    return {"sensor": name, "status": "found", "reason": "", "remedy": "", "devices": devices}


def _probe_channel(channel: Channel) -> dict[str, Any]:
    """Poll a device for a second: when does it show something new, and how long does a call take?"""
    edges, calls, faults = list[tuple[int, int]](), list[int](), list[str]()
    device, shown, watts = channel.device, None, None
    end = time.monotonic_ns() + int(_LOOK_SECONDS * NANOSECONDS_PER_SECOND)
    while (before := time.monotonic_ns()) < end:
        try:
            reading = channel.read(before)
        except ReadingError as error:
            faults.append(str(error))
        else:
            after = time.monotonic_ns()
            calls.append(after - before)
            watts = reading.power_watts or watts
            if reading.energy_microjoules is not None and reading.energy_microjoules != shown:
                shown = reading.energy_microjoules
                edges.append((after, shown))
        time.sleep(_POLL_SECONDS)
    found: dict[str, Any] = {
        "device": device.device,
        "domain": device.domain,
        "source": device.source,
        "model": device.model,
        **_observed(edges, watts),
    }
    if calls:
        found["call_seconds_median"] = statistics.median(calls) / NANOSECONDS_PER_SECOND
        found["call_seconds_max"] = max(calls) / NANOSECONDS_PER_SECOND
    if faults:
        found["fault"] = faults[-1]
    return found


def _observed(edges: list[tuple[int, int]], watts: float | None) -> dict[str, Any]:
    """Update period from the edges of the counter; power as shown, else from the counter."""
    observed: dict[str, Any] = {}
    if len(edges) >= 3:
        # The first edge is the first reading, not an update.
        steps = [later[0] - earlier[0] for earlier, later in itertools.pairwise(edges[1:])]
        observed["update_seconds"] = statistics.median(steps) / NANOSECONDS_PER_SECOND
        elapsed = (edges[-1][0] - edges[1][0]) / NANOSECONDS_PER_SECOND
        step = edges[-1][1] - edges[1][1]
        if watts is None and step >= 0:
            watts = step / MICROJOULES_PER_JOULE / elapsed
    if watts is not None:
        observed["power_watts"] = round(watts, 3)
    return observed


def print_probe(found: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print what `probe` found."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for sensor in found:
        line = f"{sensor['sensor']:<13} {sensor['status']:<7}"
        print(f"{line} {sensor['reason']}" if sensor["reason"] else line.rstrip())
        if sensor["remedy"]:
            print(f"{'':21} to mend it: {sensor['remedy']}")
        for device in sensor["devices"]:
            print(
                f"  {device['device']:<42} {device['domain']:<8} {device['source']:<10} {_in_words(device)}"
            )


def _in_words(device: dict[str, Any]) -> str:
    words = []
    if "power_watts" in device:
        words.append(f"{device['power_watts']:.1f} W")
    if "update_seconds" in device:
        words.append(f"new energy every {device['update_seconds'] * 1000:.3g} ms")
    else:
        words.append("no new energy within a second")
    if "call_seconds_median" in device:
        median, longest = device["call_seconds_median"] * 1e6, device["call_seconds_max"] * 1e6
        words.append(f"a call takes {median:.3g} us (at most {longest:.3g})")
    if device["model"]:
        words.append(device["model"])
    return ", ".join(words)
