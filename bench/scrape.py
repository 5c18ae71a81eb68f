"""How long a scrape of the metrics page takes, seen from the client over loopback.

The yardstick renders as many series with prometheus_client, without any network.
"""

import asyncio
import http.client
import statistics
import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from bench.harness import Result, at_most, shown
from wattd.jobs import State
from wattd.ledger import Ledger
from wattd.live import PhaseEnergies
from wattd.metrics import MetricsServer, Page, Sources, families
from wattd.node import Node
from wattd.vitals import Vitals

_REPEATS = 15
_SERIES = 10_000
_T = 10**12
_SECOND = 1_000_000_000
_NAMES = ("data_load", "teacher_forward", "student_forward", "backward", "optimizer_step", "eval")


def measure() -> Iterator[Result]:
    """A node with 16 jobs, and as many jobs as make 10,000 series; each page is new when it is asked for."""
    for name, jobs, bound in (("16_jobs", 16, 0.003), ("10000_series", 0, 0.015)):
        sources = _node_with(jobs) if jobs else _node_with_series(_SERIES)
        series = _series(sources)
        found = asyncio.run(_scrapes(sources))
        peer = _peer(series)
        yield at_most(f"scrape_{name}_seconds", found["plain"], bound, "s", peer)
        yield shown(f"scrape_{name}_gzip_seconds", found["gzip"], "s", peer)
        yield shown(f"scrape_{name}_renew_seconds", found["renew"], "s", peer)
        yield shown(f"scrape_{name}_series", series, "series")


async def _scrapes(sources: Sources) -> dict[str, float]:
    """Medians in turn: a scrape of a fresh page, plain and compressed, and the making of a page."""
    server = MetricsServer()
    await server.start("127.0.0.1:0")
    times: dict[str, list[float]] = {"plain": [], "gzip": [], "renew": []}
    try:
        for _ in range(_REPEATS):
            begin = time.perf_counter()
            server.page = Page(families(sources))
            times["renew"].append(time.perf_counter() - begin)
            times["plain"].append(await _in_thread(lambda: _scrape(server.address, "identity")))
            times["gzip"].append(await _in_thread(lambda: _scrape(server.address, "gzip")))
    finally:
        await server.stop()
    return {name: statistics.median(found) for name, found in times.items()}


async def _in_thread(work: Callable[[], float]) -> float:
    """The seconds that work says it took, in a thread that is there already when it begins."""
    done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    threading.Thread(target=lambda: loop.call_soon_threadsafe(done.set_result, work())).start()
    return await done


def _scrape(address: str, encoding: str) -> float:
    connection = http.client.HTTPConnection(address, timeout=10)
    begin = time.perf_counter()
    connection.request("GET", "/metrics", headers={"Accept-Encoding": encoding})
    body = connection.getresponse().read()
    seconds = time.perf_counter() - begin
    connection.close()
    assert len(body) > 1000
    return seconds


def _series(sources: Sources) -> int:
    page = Page(families(sources)).render(openmetrics=False)
    return sum(not line.startswith(b"#") for line in page.splitlines())


def _node_with_series(count: int) -> Sources:
    jobs = 16
    while _series(sources := _node_with(jobs)) < count:
        jobs += max(1, jobs // 16)
    return sources


def _node_with(jobs: int) -> Sources:
    """8 GPUs, 2 packages, 2 DRAM, and jobs that share them, each with six phases."""
    node, state, ledger = Node(), State(), Ledger()
    node.announce(
        {
            "number": number,
            "device": f"GPU-{number:032x}" if number < 8 else f"{domain}-{number % 2}",
            "index": number,
            "domain": domain,
            "source": "simulated",
            "sensor": "simulated",
            "model": "m",
            "update_nano": 100_000_000,
        }
        for number, domain in enumerate(["gpu"] * 8 + ["package"] * 2 + ["dram"] * 2)
    )
    phases = PhaseEnergies(state, node, 10_000_000)
    for view in node.devices.values():
        for step in range(200):
            view.history.append(_T + step * 100_000_000, step * 12_345_678)
    node.clock = (_T + 20 * _SECOND, 0)
    sources = Sources(node=node, state=state, ledger=ledger, phases=phases, vitals=Vitals(archive="/a"))
    for number in range(jobs):
        _add_job(sources, number, jobs)
    phases.settle()
    phases.settle()
    for view in node.accounted():
        ledger.advance(view.name, view.history, _T + 20 * _SECOND)
    return sources


def _add_job(sources: Sources, number: int, jobs: int) -> None:
    node, state, ledger, phases = sources.node, sources.state, sources.ledger, sources.phases
    run_id, client = f"run-{number}", f"{number:032x}"
    view = node.devices[number % 8]
    line = {"type": "run_begin", "client": client, "mark": 1, "monotonic_nano": _T, "run_id": run_id}
    line |= {"run": run_id, "rank": 0, "job_id": f"job-{number}", "user": "u", "account": "a"}
    state.apply({**line, "partition": "p", "gpu_uuids": [view.name]})
    # One after the other, so that each has energy of its own.
    begin = _T + number * 19 * _SECOND // jobs
    devices = [view.name, *(other.name for other in node.devices.values() if other.domain != "gpu")]
    ledger.claim(run_id, f"job-{number}", devices, begin)
    ledger.release(run_id, begin + 19 * _SECOND // jobs)
    for place, name in enumerate(_NAMES):
        phase = {"type": "phase", "client": client, "run_id": run_id, "rank": 0, "thread": 0, "phase": name}
        phase |= {"begin_monotonic_nano": _T + place * _SECOND, "phase_number": place + 1, "tokens": 4096}
        phase |= {"end_monotonic_nano": _T + (place + 1) * _SECOND}
        state.apply(phase)
        phases.note_end(phase)
        if place == len(_NAMES) - 1 and number % 100 == 99:
            phases.settle()  # the flood bound is not what is measured


class _Peer(Collector):
    """As many series with as many labels."""

    def __init__(self, series: int) -> None:
        self._series = series

    def collect(self) -> Iterator[CounterMetricFamily]:
        labels = ["job_id", "phase", "device", "domain", "estimator"]
        family = CounterMetricFamily("wattd_phase_energy_joules", "Energy.", labels=labels)
        for number in range(self._series):
            values = [f"job-{number}", "teacher_forward", f"GPU-{number % 8:032x}", "gpu", "overlap"]
            family.add_metric(values, number * 1.234567)
        yield family


def _peer(series: int) -> float:
    registry = CollectorRegistry()
    registry.register(_Peer(series))
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        generate_latest(registry)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
