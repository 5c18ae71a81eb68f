"""What the views say of a study whose truth is known."""

import csv
import shutil
from pathlib import Path

import pytest
from wattq.runner import VIEWS, Archive, sql_folder

from tests.analysis.archives import MILLI, NANO, START, WALL, ArchiveWriter, SimulatedDevice
from tests.analysis.conftest import OVERLAP, STEP, Study, answer, by_phase


def test_each_phase_has_its_energy(study: Study) -> None:
    """The truth lies in the interval, and the number is close to it where phases are long."""
    rows = answer(study.writer.write())
    for number, device in enumerate(("GPU-aaaa", "package-0")):
        found = by_phase(rows, device)
        for phase, _, _ in STEP:
            row, truth = found[phase], study.truth(phase, number)
            assert row["energy_low_joules"] <= truth <= row["energy_high_joules"], (device, phase)
            assert row["count"] == 6
        assert found["backward"]["energy_joules"] == pytest.approx(study.truth("backward", number), rel=0.02)


def test_rows_add_up_to_the_counter_in_sql(study: Study) -> None:
    """Rows of a device = its counter over the run, asked in SQL."""
    with Archive(study.writer.write()) as archive:
        sums = archive.query(
            "select run_id, node, device, sum(energy_joules) from phase_energy group by all", chosen=OVERLAP
        ).rows
        assert {row[:3] for row in sums} == set(archive.counters)
        for *key, total in sums:
            assert total == pytest.approx(archive.counters[tuple(key)], rel=1e-9, abs=1e-6)
            assert total > 0


def test_plain_sql_agrees_with_the_estimator(study: Study) -> None:
    """Where phases neither nest nor overlap, the view in SQL alone gives the estimator's energies."""
    with Archive(study.writer.write()) as archive:
        rows = archive.query(
            """
            select ours.device, ours.phase, ours.energy_joules, plain.energy_joules, ours.duration_seconds,
                plain.duration_seconds
            from phase_energy as ours
            inner join phase_energy_overlap as plain using (run_id, node, device, phase)
            """,
            chosen=OVERLAP,
        ).rows
    assert len(rows) == 2 * len(STEP)
    for device, phase, ours, plain, seconds, plain_seconds in rows:
        assert ours == pytest.approx(plain, rel=1e-9, abs=2e-6), (device, phase)
        assert seconds == pytest.approx(plain_seconds, rel=1e-9)


@pytest.mark.parametrize("segments", [2, 7])
@pytest.mark.parametrize("closed", [True, False])
def test_how_the_archive_is_cut_changes_nothing(
    study: Study, tmp_path: Path, segments: int, *, closed: bool
) -> None:
    """Segments and their order on disk are no part of the answer."""
    study.writer.root = tmp_path / "one"
    whole = answer(study.writer.write())
    study.writer.root = tmp_path / "many"
    study.writer.write(segments=segments, closed=closed, reverse=True, kinds="events")
    assert answer(study.writer.write(segments=segments, closed=closed, kinds="samples")) == whole


def test_schema_is_the_golden_one(study: Study) -> None:
    """Names, types and order of all columns are a contract: analysis/sql/schema.csv."""
    with (sql_folder() / "schema.csv").open(newline="", encoding="utf-8") as file:
        golden = [(row["view"], row["column"], row["type"]) for row in csv.DictReader(file)]
    with Archive(study.writer.write()) as archive:
        found = []
        for view in dict.fromkeys(row[0] for row in golden):
            described = archive.connection.execute(f"describe {view}").fetchall()
            found += [(view, name, kind) for name, kind, *_ in described]
    assert found == golden
    assert {row[0] for row in golden} == {*VIEWS, "phase_energy"}


def test_units_of_the_schema_are_those_of_the_names() -> None:
    """The unit stands in the name, and the golden schema says the same."""
    units = {
        "nano": "ns",
        "seconds": "s",
        "joules": "J",
        "watts": "W",
        "bytes": "B",
        "ratio": "1",
        "hertz": "Hz",
    }
    with (sql_folder() / "schema.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            expected = units.get(row["column"].rsplit("_", 1)[-1])
            if expected and row["column"] != "energy_per_token_joules":
                assert row["unit"] == expected, row


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_says_its_grain_and_keeps_it(study: Study, view: str) -> None:
    """The first line of a view names its key, and the key is one."""
    first = (sql_folder() / f"{view}.sql").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("-- grain: one row per (")
    key = first.removeprefix("-- grain: one row per (").removesuffix(")")
    with Archive(study.writer.write(segments=3)) as archive:
        sql = f"select {key}, count(*) from {view} group by {key} having count(*) > 1"  # noqa: S608 names of our own
        doubled = archive.query(sql, chosen=OVERLAP)
    assert doubled.rows == []


def test_run_energy_is_gpu_package_and_dram(study: Study, tmp_path: Path) -> None:
    """core, uncore and psys are never added to a run's total."""
    for name, domain in (("core-0", "core"), ("psys-0", "psys"), ("dram-0", "dram")):
        study.writer.devices.append(SimulatedDevice(name, domain, [(START, 20.0)], MILLI, sensor="rapl"))
    study.writer.samples.clear()
    study.writer.measure(START, study.end + NANO)
    row = answer(study.writer.write(), "select * from run_energy")[0]
    seconds = (study.end - study.begin) / NANO
    truth = sum(study.truth(phase, device) for phase, _, _ in STEP for device in (0, 1)) + 20 * seconds
    assert row["energy_joules"] == pytest.approx(truth, rel=2e-3)
    assert row["dram_energy_joules"] == pytest.approx(20 * seconds, rel=2e-3)
    assert row["tokens_phase"] == "student_forward"
    assert row["tokens"] == 6 * 4_000
    assert row["energy_per_token_joules"] == pytest.approx(row["energy_joules"] / 24_000)


def test_tokens_phase_of_the_run_wins(study: Study) -> None:
    """A run's tokens are those of the phase that it names."""
    study.writer.events[0]["tokens_phase"] = "teacher_forward"
    row = answer(study.writer.write(), "select tokens_phase, tokens from run_energy")[0]
    assert row == {"tokens_phase": "teacher_forward", "tokens": 6 * 4_096}


def test_mark_that_came_twice_counts_once(study: Study) -> None:
    """A batch that is sent again changes nothing, even in another segment."""
    once = answer(study.writer.write(kinds="both"))
    study.writer.events += list(study.writer.events)
    shutil.rmtree(study.writer.root)
    assert answer(study.writer.write(segments=2)) == once


def test_open_phase_lasts_until_the_archive_ends(study: Study) -> None:
    """A phase without an end is open, and has energy as long as there is evidence."""
    study.writer.events = [line for line in study.writer.events if line["type"] != "run_end"]
    study.writer.phase("run-1", "eval", study.end, None)
    root = study.writer.write()
    phase = answer(root, "select * from phases where phase = 'eval'")[0]
    assert phase["open"]
    assert phase["end_monotonic_nano"] == study.end + NANO
    assert answer(root, "select open from runs") == [{"open": True}]
    # The last update stands up to one period before the end of the archive.
    assert by_phase(answer(root))["eval"]["energy_joules"] == pytest.approx(90, rel=0.03)


def test_end_of_the_client_wins_over_the_daemons(study: Study) -> None:
    """Where the daemon closed a phase and the client's own end came later, the client is right."""
    line = study.writer.phase("run-1", "eval", study.end, study.end + NANO // 2)
    closed = {key: value for key, value in line.items() if key != "mark"}
    closed |= {"end_monotonic_nano": study.end + NANO, "closed_by": "lost_client"}
    study.writer.events.insert(0, closed)
    found = answer(
        study.writer.write(), "select closed_by, duration_seconds from phases where phase = 'eval'"
    )
    assert found == [{"closed_by": None, "duration_seconds": 0.5}]


def test_phase_closed_by_the_daemon_says_so(study: Study) -> None:
    """closed_by is carried where only the daemon's end is known."""
    line = study.writer.phase("run-1", "eval", study.end, study.end + NANO, closed_by="lost_client")
    del line["mark"]
    found = answer(study.writer.write(), "select closed_by, open from phases where phase = 'eval'")
    assert found == [{"closed_by": "lost_client", "open": False}]


def test_gpu_is_cut_by_the_ranks_that_use_it(tmp_path: Path) -> None:
    """Each GPU gets its ranks' phases, the package the lowest rank's, with all tokens."""
    writer = ArchiveWriter(tmp_path)
    begin, end = START + NANO, START + 9 * NANO
    for number in range(2):
        writer.devices.append(
            SimulatedDevice(f"GPU-{number}", "gpu", [(START, 100.0 * (number + 1))], 20 * MILLI)
        )
        keys = {"rank": number, "local_rank": number, "gpu_uuids": [f"GPU-{number}"], "world_size": 2}
        writer.run("r", begin, end, client=f"c{number}", **keys)
        name = ("forward", "backward")[number]
        writer.phase(
            "r", name, begin + NANO, end - NANO, client=f"c{number}", rank=number, tokens=10 + number
        )
        writer.phase("r", "both", end - NANO, end, client=f"c{number}", rank=number, tokens=7)
    writer.devices.append(SimulatedDevice("package-0", "package", [(START, 50.0)], 20 * MILLI))
    writer.measure(START, end + NANO)
    rows = answer(writer.write())
    assert {row["phase"] for row in rows if row["device"] == "GPU-0"} == {"forward", "both", "(outside)"}
    assert {row["phase"] for row in rows if row["device"] == "GPU-1"} == {"backward", "both", "(outside)"}
    package = by_phase(rows, "package-0")
    assert set(package) == {"forward", "both", "(outside)"}
    assert by_phase(rows, "GPU-1")["both"]["tokens"] == 7
    assert package["both"]["tokens"] == 14
    assert by_phase(rows, "GPU-1")["backward"]["energy_joules"] == pytest.approx(1_200, rel=0.01)
    assert all("not known" not in (row["reason"] or "") for row in rows)


def test_gpus_that_are_not_known_are_all_counted_and_it_is_said(study: Study) -> None:
    """Unknown GPUs: all of the node count, and the reason says so."""
    study.writer.events[0] |= {"gpu_uuids": [], "gpu_source": "unknown"}
    row = by_phase(answer(study.writer.write()))["backward"]
    assert row["valid"]
    assert row["reason"] == "which GPUs the run used is not known: all were counted"


def test_gpus_become_known_by_an_update(study: Study) -> None:
    """A run_update tells which GPUs the run uses."""
    study.writer.events[0] |= {"gpu_uuids": [], "gpu_source": "unknown"}
    study.writer.mark(
        "c0", "run_update", monotonic_nano=study.begin + 1, run_id="run-1", rank=0, gpu_uuids=["GPU-aaaa"]
    )
    assert by_phase(answer(study.writer.write()))["backward"]["reason"] is None


def test_uuids_that_no_device_of_the_node_has_say_nothing(study: Study) -> None:
    """A MIG instance's UUID is no device's: all GPUs count, and it is said, rather than none in silence."""
    study.writer.events[0] |= {"gpu_uuids": ["MIG-1"], "gpu_source": "cuda_visible_devices"}
    row = by_phase(answer(study.writer.write()))["backward"]
    assert row["reason"] == "which GPUs the run used is not known: all were counted"


def test_run_without_duration_does_not_hide_the_others(study: Study) -> None:
    """A process that died at once leaves a run of no length: the other runs are answered all the same."""
    begun = dict(study.writer.events[0])
    study.writer.events.append({**begun, "client": "c9", "mark": 1, "run_id": "run-9"})
    ended = {"type": "run_end", "client": "c9", "mark": 2, "run_id": "run-9", "rank": 0}
    study.writer.events.append({**ended, "monotonic_nano": begun["monotonic_nano"]})
    assert by_phase(answer(study.writer.write()))["backward"]["valid"]


def test_nested_energy_is_in_the_inclusive_column(study: Study) -> None:
    """The outer row has the rest, and energy_inclusive_joules has it all."""
    study.writer.phase("run-1", "step", study.begin, study.end)
    found = by_phase(answer(study.writer.write()))
    assert found["step"]["duration_seconds"] == 0
    assert found["step"]["energy_joules"] == 0
    total = sum(study.truth(phase) for phase, _, _ in STEP)
    assert found["step"]["energy_inclusive_joules"] == pytest.approx(total, rel=2e-3)


def test_side_by_side_phases_have_no_tokens_of_their_own(study: Study) -> None:
    """A row a+b has energy but no tokens, and its parts say where their time went."""
    study.writer.phase("run-1", "logging", study.begin, study.end, thread=1, tokens=5)
    found = by_phase(answer(study.writer.write()))
    both = found["backward+logging"]
    assert both["tokens"] is None
    assert both["energy_joules"] == pytest.approx(study.truth("backward"), rel=0.02)
    assert found["backward"]["energy_per_token_joules"] is None
    assert "+" in found["backward"]["reason"]


@pytest.mark.parametrize("clients", [("c0", "c1"), ("c0", "c0")])
def test_pause_between_two_starts_is_not_the_runs(tmp_path: Path, clients: tuple[str, str]) -> None:
    """A restarted run has the energy of its starts, and counts them."""
    writer = ArchiveWriter(tmp_path, devices=[SimulatedDevice("GPU-0", "gpu", [(START, 100.0)], 20 * MILLI)])
    for number, first in enumerate((1, 20)):
        client, begin = clients[number], START + first * NANO
        writer.run("r", begin, begin + 4 * NANO, client=client, restarts=number, gpu_uuids=["GPU-0"])
        writer.phase("r", "train", begin + NANO, begin + 3 * NANO, client=client)
    writer.measure(START, START + 30 * NANO)
    found = by_phase(answer(writer.write()), "GPU-0")
    assert found["train"]["energy_joules"] == pytest.approx(400, rel=1e-3)
    assert found["(outside)"]["energy_joules"] == pytest.approx(400, rel=1e-3)
    assert found["train"]["restarts"] == 1


def test_wall_time_comes_from_the_clock(study: Study) -> None:
    """A run's wall times are its monotonic times, put on the clock's triples."""
    row = answer(study.writer.write(), "select begin_time_unix_nano, end_time_unix_nano from runs")[0]
    assert row["begin_time_unix_nano"] == WALL + study.begin - START
    assert row["end_time_unix_nano"] == WALL + study.end - START


def test_power_readings_stand_beside_the_energy_of_the_same_moment(study: Study) -> None:
    """Samples has one row a reading, with power where both were read at once, and apart where not."""
    study.writer.samples.append(
        {
            "type": "tick",
            "monotonic_nano": study.end + 2 * NANO,
            "power_device": [0],
            "power_watts": [77.0],
            "power_old_us": [-500],
            "power_read_us": [250],
        }
    )
    rows = answer(
        study.writer.write(), "select * from samples where device = 'GPU-aaaa' order by monotonic_nano"
    )
    assert rows[-1]["power_watts"] == 77.0
    assert rows[-1]["energy_joules"] is None
    assert rows[-1]["monotonic_nano"] == study.end + 2 * NANO + 250_000
    assert rows[-1]["power_old_monotonic_nano"] == study.end + 2 * NANO - 500_000
    assert all(row["power_watts"] is not None and row["energy_joules"] is not None for row in rows[:-1])


def test_state_results_gaps_and_sensors_are_rows(study: Study) -> None:
    """Device state, scores, energy per token, gaps and sensors come out as they went in."""
    writer = study.writer
    writer.samples.append(
        {
            "type": "state",
            "monotonic_nano": study.end,
            "cpu_utilization_ratio": 0.5,
            "gpus": [{"number": 0, "utilization_ratio": 0.9, "power_limit_watts": 700.0}],
        }
    )
    score = {
        "type": "evaluation",
        "request_id": "q",
        "monotonic_nano": study.end,
        "run_id": "run-1",
        "harness": "h",
        "task": "mmlu",
        "metric": "acc",
        "value": 0.28,
        "stderr": 0.03,
        "n": 281,
        "model": "student",
    }
    ept = {
        "type": "ept",
        "request_id": "e",
        "monotonic_nano": study.end,
        "run_id": "run-1",
        "batch": 4,
        "tokens_in": 1,
        "tokens_out": 2,
        "energy_joules": 3.0,
    }
    gap = {
        "type": "gap",
        "begin_monotonic_nano": START,
        "end_monotonic_nano": START + NANO,
        "reason": "daemon_down",
    }
    down = {
        "type": "sensor",
        "monotonic_nano": study.end,
        "sensor": "rapl",
        "up": False,
        "reason": "permission",
    }
    writer.events += [score, score, ept, gap, down]
    with Archive(writer.write()) as archive:
        states = archive.query(
            "select device, utilization_ratio, cpu_utilization_ratio from device_state"
        ).rows
        assert sorted(states, key=str) == [("GPU-aaaa", 0.9, None), (None, None, 0.5)]
        assert archive.query("select value, stderr, n from evaluations").rows == [(0.28, 0.03, 281)]
        assert archive.query("select batch, energy_joules, energy_prefill_joules from ept").rows == [
            (4, 3.0, None)
        ]
        assert archive.query("select device, duration_seconds, reason from gaps").rows == [
            (None, 1.0, "daemon_down")
        ]
        assert archive.query("select sensor, up, reason from sensors order by 1").rows == [
            ("nvml", True, None),
            ("rapl", False, "permission"),
        ]
