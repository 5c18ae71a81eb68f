"""The families that say how wattd itself is."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from wattd import __version__
from wattd.metrics.page import Family, Sample, by_label, histogram, one
from wattd.node import Node
from wattd.values import READ_SECONDS_BUCKETS
from wattd.vitals import Vitals


def _counter(name: str, text: str, samples: Iterable[Sample], unit: str = "") -> Family:
    return Family(f"wattd_{name}_total", "counter", text, unit, samples)


def _gauge(name: str, text: str, samples: Iterable[Sample], unit: str = "") -> Family:
    return Family(f"wattd_{name}", "gauge", text, unit, samples)


def _read_seconds(sensor: dict[str, Any]) -> Iterable[Sample]:
    read = sensor["read_seconds"]
    return histogram((("sensor", sensor["name"]),), READ_SECONDS_BUCKETS, read["counts"], read["sum"])


def sensor_families(node: Node) -> Iterator[Family]:
    """How the sampler and its sensors are."""
    health = node.health
    sensors = health.get("sensors", ())
    up = {sensor["name"]: int(sensor["up"]) for sensor in sensors}
    yield _gauge("sensor_up", "1 while the sensor gives readings, else 0.", by_label("sensor", up))
    calls = chain.from_iterable(_read_seconds(sensor) for sensor in sensors)
    text = "Duration of the sensor's calls, seconds."
    yield Family("wattd_sensor_read_seconds", "histogram", text, "seconds", calls)
    ratios: list[Sample] = [
        ("", (("device", view.name), ("domain", view.domain)), round(view.integral_ratio, 6))
        for view in node.devices.values()
        if view.integral_ratio is not None
    ]
    text = (
        "Energy by a device's hardware counter over the integral of its power readings, each held until the"
        " next, over the last ten minutes or so. Absent before both were read for 30 s, and where only one"
        " exists."
    )
    yield _gauge("sensor_energy_integral_ratio", text, ratios, "ratio")
    yield _counter("sensor_ticks", "Wakes of the sampler.", one(health.get("ticks")))
    missed = one(health.get("missed_ticks"))
    yield _counter("sensor_missed_ticks", "Wakes that came a whole period late or more.", missed)
    restarts = one(health.get("server_restarts"))
    yield _counter("server_restarts", "Times the server process was started again after it died.", restarts)


def server_families(vitals: Vitals) -> Iterator[Family]:
    """How the archive, the clients and the two processes are."""
    yield from _archive(vitals)
    yield _counter("marks", "Marks taken from clients.", one(vitals.marks))
    yield _counter("marks_refused", "Marks of clients that were refused.", one(vitals.refused_marks))
    yield _counter("marks_dropped", "Marks that clients said they had to drop.", one(vitals.dropped_marks))
    yield _gauge("marks_clients", "Clients that are connected.", one(vitals.clients))
    text = "Records of the sampler that the server came too late for."
    yield _counter("ring_lost_records", text, one(vitals.ring_lost))
    yield _counter("watch_dropped_messages", "Messages slow watchers missed.", one(vitals.watch_dropped))
    yield _gauge("build_info", "The version of wattd; always 1.", by_label("version", {__version__: 1}))
    yield from _processes(vitals)


def _archive(vitals: Vitals) -> Iterator[Family]:
    yield _gauge("archive_up", "1 while the archive can be written, else 0.", one(int(not vitals.fault)))
    text = "Bytes written to the archive, before compression."
    yield _counter("archive_written_bytes", text, by_label("kind", vitals.written_bytes), "bytes")
    text = "Lines written to the archive."
    yield _counter("archive_written_lines", text, by_label("kind", vitals.written_lines))
    text = "Lines given up because the archive could not be written for too long."
    yield _counter("archive_dropped_lines", text, by_label("kind", vitals.dropped_lines))
    text = "Bytes that wait in memory for the archive."
    yield _gauge("archive_pending_bytes", text, by_label("kind", vitals.pending_bytes), "bytes")
    text = "Bytes of broken last lines that were cut off at the start."
    yield _gauge("archive_torn_bytes", text, one(vitals.torn_bytes), "bytes")
    text = "Free space of the archive's file system, bytes. Absent when unknown."
    yield _gauge("archive_free_bytes", text, one(vitals.free_bytes), "bytes")


def _processes(vitals: Vitals) -> Iterator[Family]:
    found = vitals.processes
    cpu = {name: round(process.cpu_seconds, 3) for name, process in found.items()}
    text = "User and system time of the process, seconds."
    yield _counter("process_cpu_seconds", text, by_label("process", cpu), "seconds")
    resident = {name: process.resident_bytes for name, process in found.items()}
    text = "Resident memory of the process, bytes."
    yield _gauge("process_resident_memory_bytes", text, by_label("process", resident), "bytes")
    files = {name: process.open_files for name, process in found.items() if process.open_files is not None}
    yield _gauge("process_open_fds", "Open descriptors of the process.", by_label("process", files))
