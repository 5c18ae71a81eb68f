import asyncio
import gzip
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from wattd.jobs import State
from wattd.ledger import Ledger
from wattd.live import PhaseEnergies
from wattd.metrics import MetricsServer, Page, Sources, families
from wattd.node import Node
from wattd.values import UserError
from wattd.vitals import ProcessVitals, Vitals

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.txt"
_T = 10**12
_SECOND = 1_000_000_000


def _device(number: int, name: str, domain: str, source: str = "measured") -> dict[str, Any]:
    return {
        "number": number,
        "device": name,
        "index": number if domain == "gpu" else 0,
        "domain": domain,
        "source": source,
        "sensor": "nvml" if domain == "gpu" else "rapl",
        "model": "m",
        "counter_range_microjoules": 0,
        "update_nano": 100_000_000 if domain == "gpu" else 1_000_000,
    }


def _node() -> Node:
    node = Node()
    node.announce(
        [
            _device(0, "GPU-a", "gpu"),
            _device(1, "GPU-b", "gpu"),
            _device(2, "package-0", "package"),
            _device(3, "core-0", "core"),
        ]
    )
    for number, view in node.devices.items():
        for step in range(101):
            nano = _T + step * 100_000_000
            view.history.append(nano, 5_000_000 + step * 12_345_678 * (number + 1))
            if number < 2:
                view.note_power(123.4567 * (number + 1), nano)
    node.note_second(
        {
            "monotonic_nano": _T + 10 * _SECOND,
            "time_unix_nano": 1_700_000_000_000_000_000,
            "device": [0, 1, 2, 3],
            "energy_microjoules": [0, 0, 0, 0],
            "read_us": [-5, -4, -3, -2],
            "power_device": [0, 1],
            "power_watts": [123.4567, 246.9134],
        },
        {},
    )
    node.devices[0].comparison.ratio = 1.0042
    node.note_state(
        {
            "gpus": [
                {
                    "number": 0,
                    "utilization_ratio": 0.97,
                    "memory_used_bytes": 2**35,
                    "memory_total_bytes": 2**36,
                    "temperature_celsius": 61,
                    "sm_clock_hertz": 1_980_000_000,
                    "power_limit_watts": 700.0,
                    "throttle_reasons": 4,
                }
            ],
            "cpu_utilization_ratio": 0.25,
            "memory_used_bytes": 2**30,
            "memory_total_bytes": 2**34,
        }
    )
    node.health = {
        "ticks": 1000,
        "missed_ticks": 2,
        "server_restarts": 1,
        "sensors": [
            {
                "name": "nvml",
                "up": True,
                "read_seconds": {"counts": [0, 90, 9, 1, 0, 0, 0, 0], "sum": 0.0021},
            },
            {"name": "rapl", "up": False, "read_seconds": {"counts": [0] * 8, "sum": 0.0}},
        ],
    }
    return node


def _sources() -> Sources:
    node, state, ledger = _node(), State(), Ledger()
    phases = PhaseEnergies(state, node, 10_000_000)
    line = {
        "type": "run_begin",
        "client": "a" * 32,
        "mark": 1,
        "monotonic_nano": _T,
        "run_id": "r",
        "run": "r",
    }
    line |= {"rank": 0, "job_id": "local-r", "user": 'a"d\\a', "account": "none", "partition": "none"}
    state.apply(line)
    ledger.claim("a", "local-r", ["GPU-a", "package-0"], _T + _SECOND)
    ledger.claim("b", "other", ["package-0"], _T + 9 * _SECOND)
    for number, (name, begin, end) in enumerate([("forward", 2, 4), ("forward", 5, 6), ("load", 7.01, 7.02)]):
        phase = {"type": "phase", "client": "a" * 32, "run_id": "r", "rank": 0, "thread": 0, "phase": name}
        phase |= {"begin_monotonic_nano": _T + int(begin * _SECOND), "phase_number": number, "tokens": 4096}
        phase |= {"end_monotonic_nano": _T + int(end * _SECOND)}
        state.apply(phase)
        phases.note_end(phase)
    phases.settle()
    phases.settle()
    for view in node.accounted():
        ledger.advance(view.name, view.history, _T + 10 * _SECOND)
    vitals = Vitals(
        archive="/a",
        free_bytes=10**9,
        written_bytes={"samples": 1000, "events": 10},
        written_lines={"samples": 100, "events": 1},
        dropped_lines={"samples": 0, "events": 0},
        pending_bytes={"samples": 7, "events": 0},
        marks=4,
        clients=1,
        processes={
            "sampler": ProcessVitals(cpu_seconds=1.5, resident_bytes=2**20),
            "server": ProcessVitals(cpu_seconds=2.25, resident_bytes=2**21, open_files=12),
        },
    )
    return Sources(node=node, state=state, ledger=ledger, phases=phases, vitals=vitals)


def _plain() -> str:
    return Page(families(_sources())).render(openmetrics=False).decode()


def test_the_page_is_the_golden_one() -> None:
    """Metrics are a contract: whoever changes one changes tests/golden/metrics.txt and the changelog."""
    assert _plain() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("openmetrics", [False, True])
def test_both_forms_are_what_their_parsers_read(*, openmetrics: bool) -> None:
    """Prometheus' own parsers find the same samples in both."""
    page = Page(families(_sources())).render(openmetrics=openmetrics).decode()
    parsed = list((parse_openmetrics if openmetrics else parse_prometheus)(page))
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))) for family in parsed for sample in family.samples
    }
    assert len(samples) == sum(not line.startswith("#") for line in page.splitlines())
    names = {name for name, _ in samples}
    assert "wattd_device_energy_joules_total" in names
    assert page.endswith("# EOF\n") == openmetrics
    by_key = {key: family.type for family in parsed for key in [family.name]}
    assert by_key["wattd_device_energy_joules"] == "counter"
    assert by_key["wattd_sensor_read_seconds"] == "histogram"


def test_no_label_is_one_of_prometheus_own() -> None:
    """`job` and `instance` are set by the scraper and would come out as `exported_job`."""
    for family in parse_prometheus(_plain()):
        for sample in family.samples:
            assert not {"job", "instance"} & set(sample.labels)


def test_divided_energies_count_no_domain_twice_and_add_up() -> None:
    """Only gpu and package here: job + idle + unattributed is what the device used since the start."""
    totals: dict[str, float] = {}
    devices: dict[str, float] = {}
    for family in parse_prometheus(_plain()):
        for sample in family.samples:
            if sample.name == "wattd_device_energy_joules_total":
                devices[sample.labels["device"]] = sample.value
            elif family.name in (
                "wattd_job_energy_joules",
                "wattd_idle_energy_joules",
                "wattd_unattributed_energy_joules",
            ):
                totals[sample.labels["device"]] = totals.get(sample.labels["device"], 0) + sample.value
    assert set(totals) == {"GPU-a", "GPU-b", "package-0"}
    assert totals["GPU-a"] == pytest.approx(devices["GPU-a"] - 5, abs=1e-6)
    assert devices["package-0"] - 5 - totals["package-0"] < 3  # three numbers in whole joules


def test_what_other_users_could_spy_on_is_rounded() -> None:
    """CPU and DRAM in whole joules and watts, wherever they stand."""
    for family in parse_prometheus(_plain()):
        for sample in family.samples:
            if sample.labels.get("domain") in ("package", "core") and "ratio" not in sample.name:
                assert sample.value == int(sample.value)


def test_what_is_unknown_is_absent() -> None:
    """No state of the second GPU was read: there is no such series, and not one that says 0."""
    assert 'wattd_device_power_limit_watts{device="GPU-a"' in _plain()
    assert 'wattd_device_power_limit_watts{device="GPU-b"' not in _plain()
    assert 'wattd_sensor_energy_integral_ratio{device="GPU-b"' not in _plain()
    assert (
        "wattd_archive_free_bytes"
        not in Page(families(Sources(**{**_parts(), "vitals": Vitals(archive="/a")})))
        .render(openmetrics=False)
        .decode()
    )


def _parts() -> dict[str, Any]:
    sources = _sources()
    return {"node": sources.node, "state": sources.state, "ledger": sources.ledger, "phases": sources.phases}


def test_an_ended_job_goes_after_two_scrapes() -> None:
    """Its series stay long enough to be read to the end, and no longer."""
    sources = _sources()
    end = {"type": "run_end", "run_id": "r", "rank": 0, "client": "a" * 32}
    sources.state.apply({**end, "monotonic_nano": _T + 10 * _SECOND - 60 * _SECOND})
    assert 'job_id="local-r"' in Page(families(sources)).render(openmetrics=False).decode()
    sources.state.apply({**end, "monotonic_nano": _T + 10 * _SECOND - 180 * _SECOND})
    assert 'job_id="local-r"' not in Page(families(sources)).render(openmetrics=False).decode()


def test_a_server_that_has_just_started_has_a_page() -> None:
    """Before the first reading there is only the server itself."""
    node, state = Node(), State()
    sources = Sources(
        node=node,
        state=state,
        ledger=Ledger(),
        phases=PhaseEnergies(state, node, 1),
        vitals=Vitals(archive="/a"),
    )
    page = Page(families(sources)).render(openmetrics=True).decode()
    parsed = parse_openmetrics(page)  # type: ignore[no-untyped-call]
    assert {family.name for family in parsed} >= {"wattd_build_info", "wattd_archive_up"}


def _get(url: str, **headers: str) -> tuple[dict[str, str], bytes]:
    request = urllib.request.Request(
        url, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        return dict(response.headers), response.read()


def test_the_page_is_served_as_it_is_asked_for() -> None:
    """Plain, compressed or OpenMetrics; the top says where it is; a taken port is one line."""

    async def scenario() -> None:
        server = MetricsServer()
        await server.start("127.0.0.1:0")
        server.page = Page(families(_sources()))
        url = f"http://{server.address}/metrics"
        headers, body = await asyncio.to_thread(_get, url)
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert body.decode() == _plain()
        headers, packed = await asyncio.to_thread(_get, url, Accept_Encoding="gzip")
        assert headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed) == body
        headers, body = await asyncio.to_thread(
            _get, url, Accept="application/openmetrics-text;version=1.0.0"
        )
        assert headers["Content-Type"].startswith("application/openmetrics-text")
        assert body.endswith(b"# EOF\n")
        _, hello = await asyncio.to_thread(_get, f"http://{server.address}/")
        assert b"/metrics" in hello
        with pytest.raises(UserError, match=r"metrics 127.0.0.1:\d+: .*; name another --metrics"):
            await MetricsServer().start(server.address)
        await server.stop()

    asyncio.run(scenario())
