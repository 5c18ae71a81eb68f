from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.wattd.marking import BOOT, NOW, SECOND, Marker
from wattd.jobs import State, recover
from wattd.marks import Intake

_STEPS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["begin", "resume", "end", "open", "close", "phase", "lost", "repeat"]),
        st.sampled_from(["run", "two"]),
    ),
    max_size=40,
)


def _play(
    intake: Intake, steps: list[tuple[str, str, str]], markers: dict[str, Marker] | None = None
) -> list[dict[str, Any]]:
    """Let three clients do things at random; returns every line."""
    markers = markers or {name: Marker(name) for name in "abc"}
    numbers = dict.fromkeys("abc", 0)
    last: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for place, (name, what, run_id) in enumerate(steps):
        marker, nano = markers[name], NOW + place
        if what == "lost":
            lines += intake.close_lost(marker.client_id, nano)
            continue
        if what in ("begin", "resume"):
            mark: Any = marker.begin_run(run_id, nano, resume=what == "resume")
        elif what == "end":
            mark = marker.end_run(run_id, nano)
        elif what == "open":
            numbers[name] = place + 1000
            mark = marker.open_phase(begin=nano, run_id=run_id, phase_number=numbers[name])
        elif what == "close":
            mark = marker.phase(end=nano, run_id=run_id, phase_number=numbers[name], tokens=3)
        elif what == "repeat" and name in last:
            mark = last[name]
        else:
            mark = marker.phase(end=nano, run_id=run_id, tokens=2)
        last[name] = mark
        lines += intake.take(marker.request(mark), nano + SECOND).lines
    return lines


@settings(deadline=None)
@given(_STEPS, st.integers(0, 40))
def test_a_restarted_daemon_knows_what_the_old_one_knew(steps: list[tuple[str, str, str]], cut: int) -> None:
    """A checkpoint at any point plus the lines after it give the live state, to the last key."""
    intake = Intake(State(), BOOT, "ada")
    markers = {name: Marker(name) for name in "abc"}
    _play(intake, steps[:cut], markers)
    checkpoint = orjson.loads(intake.state.checkpoint())
    lines = _play(intake, steps[cut:], markers)
    segment = [{"type": "segment", "state": checkpoint}, *orjson.loads(orjson.dumps(lines)), {"type": "end"}]
    recovered = recover(iter(segment), same_boot=True)
    live = orjson.loads(intake.state.checkpoint())
    again = orjson.loads(recovered.checkpoint())
    for state in (live, again):
        # A refused mark is numbered too, and nothing of it is kept.
        state["clients"] = {
            name: {**client, "sequence": 0} for name, client in state["clients"].items() if client["ranks"]
        }
    assert again == live


@settings(deadline=None)
@given(_STEPS)
def test_no_mark_is_written_twice(steps: list[tuple[str, str, str]]) -> None:
    """(client, mark) is unique in the archive."""
    lines = _play(Intake(State(), BOOT, "ada"), steps)
    keys = [(line["client"], line["mark"]) for line in lines if "mark" in line]
    assert len(keys) == len(set(keys))


@settings(deadline=None)
@given(_STEPS)
def test_the_totals_of_phases_are_exact(steps: list[tuple[str, str, str]]) -> None:
    """Tokens of a job are the sum over its lines; seconds count each phase once."""
    intake = Intake(State(), BOOT, "ada")
    lines = _play(intake, steps)
    phases = [line for line in lines if line["type"] == "phase"]
    tokens = sum(line.get("tokens", 0) for line in phases)
    totals = [total for job in intake.state.jobs.values() for total in job.phases.values()]
    assert sum(total.tokens or 0 for total in totals) == tokens
    assert sum(total.instances for total in totals) <= len(phases)


def test_after_a_boot_only_the_numbers_of_marks_remain() -> None:
    """Runs of an earlier boot are over; what its clients spooled is still taken once."""
    intake = Intake(State(), BOOT, "ada")
    marker = Marker()
    begin, phase = marker.begin_run(), marker.open_phase()
    intake.take(marker.request(begin, phase), NOW + SECOND)
    segment = [{"type": "segment", "state": orjson.loads(intake.state.checkpoint())}]
    state = recover(iter(segment), same_boot=False)
    assert not state.runs
    assert state.clients[marker.client_id].sequence == 2
    assert Intake(state, BOOT, "ada").take(marker.request(begin, phase), NOW + SECOND).lines == []


def test_memory_is_bounded() -> None:
    """However many runs, clients and jobs have been, only so many are remembered; open ones always are."""
    state = State()
    intake = Intake(state, BOOT, "ada")
    kept = Marker("a")
    intake.take(kept.request(kept.begin_run("kept")), NOW + SECOND)
    for number in range(5000):
        client = f"{number:032x}"
        marker = Marker()
        marker.client_id = client
        name = f"{number:08d}"
        intake.take(marker.request(marker.begin_run(name), marker.end_run(name)), NOW + 2 * SECOND)
    assert len(state.clients) <= 4096
    assert len(state.runs) <= 1024
    assert len(state.jobs) <= 66
    assert state.runs["kept"].is_open
    assert kept.client_id in state.clients
    assert len(state.checkpoint()) < 2_000_000
