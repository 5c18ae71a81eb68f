from typing import Any

import pytest

from tests.wattd.marking import BOOT as THIS_BOOT
from tests.wattd.marking import NOW, OTHER_BOOT, SECOND, Marker
from wattd.checks import RefusedError, check_sender
from wattd.jobs import State
from wattd.marks import Intake, Taken
from wattd.v1 import marks_pb2


@pytest.fixture
def intake() -> Intake:
    return Intake(State(), THIS_BOOT, "ada")


def _take(intake: Intake, marker: Marker, *marks: Any, now: int = NOW + 10 * SECOND) -> Taken:
    return intake.take(marker.request(*marks), now)


def test_a_run_begins_as_a_local_job_of_the_sockets_owner(intake: Intake) -> None:
    """Every key of the archive's contract is there; what was not told is absent."""
    marker = Marker()
    taken = _take(intake, marker, marker.begin_run("abcdefghij", seed=0, method="response"))
    assert taken.lines == [
        {
            "type": "run_begin",
            "client": "a" * 32,
            "mark": 1,
            "monotonic_nano": NOW,
            "run_id": "abcdefghij",
            "run": "r",
            "rank": 0,
            "local_rank": 0,
            "world_size": 1,
            "gpu_source": "unknown",
            "resume": False,
            "synchronised": False,
            "pid": 7,
            "job_id": "local-abcdefgh",
            "user": "ada",
            "account": "none",
            "partition": "none",
            "restarts": 0,
            "method": "response",
            "seed": 0,
        }
    ]


def test_phases_carry_tokens_only_if_told(intake: Intake) -> None:
    """No tokens is unknown, not 0; zero tokens is a number."""
    marker = Marker()
    taken = _take(
        intake,
        marker,
        marker.begin_run(),
        marker.phase(tokens=0),
        marker.phase(),
        marker.phase(failed=True),
    )
    assert [line.get("tokens") for line in taken.lines[1:]] == [0, None, None]
    assert taken.lines[3]["failed"]
    total = intake.state.jobs["local-run"].phases["forward"]
    assert (total.instances, total.nanoseconds, total.tokens) == (3, 3000, 0)
    _take(intake, marker, marker.phase("silent"))
    assert intake.state.jobs["local-run"].phases["silent"].tokens is None


def test_a_mark_that_is_sent_twice_is_taken_once(intake: Intake) -> None:
    """Exactly once by client and sequence, whatever the batches; another client has its own numbers."""
    marker = Marker()
    begin, first, second = marker.begin_run(), marker.phase(tokens=5), marker.phase(tokens=7)
    assert len(_take(intake, marker, begin, first).lines) == 2
    again = _take(intake, marker, begin, first, second)
    assert [line["mark"] for line in again.lines] == [3]
    assert _take(intake, marker, begin, first, second).lines == []
    assert intake.state.jobs["local-run"].phases["forward"].tokens == 12
    other = Marker("b")
    assert len(_take(intake, other, other.begin_run("other"), other.phase(run_id="other")).lines) == 2


def test_marks_are_taken_in_the_order_of_their_numbers(intake: Intake) -> None:
    """Runs and phases travel in two lists and are one sequence."""
    marker = Marker()
    marks = [marker.begin_run("one"), marker.phase(run_id="one"), marker.end_run("one")]
    marks += [marker.begin_run("two"), marker.phase(run_id="two"), marker.end_run("two")]
    taken = _take(intake, marker, *reversed(marks))
    assert [line["mark"] for line in taken.lines] == [1, 2, 3, 4, 5, 6]
    assert not taken.refused


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "no spaces"}, "phase name 'no spaces'"),
        ({"name": ""}, "phase name ''"),
        ({"name": "x" * 65}, "phase name"),
        ({"run_id": "unknown"}, "not begun"),
        ({"begin": NOW + 5, "end": NOW}, "not in order"),
        ({"begin": 0}, "not in order"),
        ({"end": NOW + 12 * SECOND}, "in the future"),
        ({"tokens": -1}, "tokens"),
        ({"thread": 2**31}, "too large"),
        ({"phase_number": 2**63}, "too large"),
        ({"kind": 0}, "no kind"),
    ],
)
def test_bad_marks_are_refused_one_by_one(intake: Intake, change: dict[str, Any], reason: str) -> None:
    """The others of the request are taken; the reason of the first refused one is said."""
    marker = Marker()
    kind = change.pop("kind", None)
    bad = marker.begin_run(), marker.phase(**change), marker.phase()
    if kind is not None:
        assert isinstance(bad[1], marks_pb2.PhaseMark)
        bad[1].kind = marks_pb2.PHASE_MARK_KIND_UNSPECIFIED
    taken = _take(intake, marker, *bad)
    assert [line["mark"] for line in taken.lines] == [1, 3]
    assert taken.refused == 1
    assert reason in taken.refusal
    assert intake.state.clients[marker.client_id].sequence == 3


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "../up"},
        {"name": "a b"},
        {"rank": 3, "world_size": 2},
        {"gpu_uuids": ["GPU 1"]},
        {"gpu_source": "guessed"},
        {"nano": NOW + 20 * SECOND},
    ],
)
def test_bad_runs_are_refused(intake: Intake, change: dict[str, Any]) -> None:
    """Neither the run nor its phases are taken."""
    marker = Marker()
    taken = _take(intake, marker, marker.begin_run(**change), marker.phase())
    assert taken.lines == []
    assert taken.refused == 2


@pytest.mark.parametrize(("client", "boot"), [("a" * 31, THIS_BOOT), ("A" * 32, THIS_BOOT), ("a" * 32, "x")])
def test_a_malformed_sender_is_refused(client: str, boot: str) -> None:
    """A client id has 32 hexadecimal digits; a boot id is one."""
    with pytest.raises(RefusedError):
        check_sender(client, boot)


def test_an_end_without_a_begin_is_refused(intake: Intake) -> None:
    """A run that this client has not begun cannot be ended by it."""
    marker, other = Marker(), Marker("b")
    _take(intake, other, other.begin_run())
    taken = _take(intake, marker, marker.end_run())
    assert (taken.lines, taken.refused) == ([], 1)
    assert intake.state.runs["run"].is_open


def test_a_used_run_id_gives_a_new_run(intake: Intake) -> None:
    """A start with the id of an ended run gets another id, and its phases follow, in the same request."""
    marker = Marker()
    _take(intake, marker, marker.begin_run(), marker.end_run())
    taken = _take(intake, marker, marker.begin_run(), marker.phase(), marker.end_run())
    begin, phase, end = taken.lines
    given = begin["run_id"]
    assert given != "run"
    assert begin["proposed_run_id"] == "run"
    assert (phase["run_id"], end["run_id"], begin["restarts"]) == (given, given, 0)
    assert intake.state.clients[marker.client_id].renamed == {"run": given}
    assert not intake.state.runs[given].is_open


def test_all_ranks_of_a_new_run_get_the_same_new_id(intake: Intake) -> None:
    """Also when one rank is a whole run ahead of the other, and on another node."""
    ranks = [Marker("a"), Marker("b")]
    elsewhere = Intake(State(), OTHER_BOOT, "ada")
    given: list[list[str]] = []
    for number, marker in enumerate(ranks):
        ids = []
        for _ in range(3):
            marks = marker.begin_run(rank=number, world_size=2), marker.end_run()
            ids.append(_take(intake, marker, *marks).lines[0]["run_id"])
        given.append(ids)
    assert given[0] == given[1]
    assert len(set(given[0])) == 3
    far = Marker("c", OTHER_BOOT)
    ids = [_take(elsewhere, far, far.begin_run(), far.end_run()).lines[0]["run_id"] for _ in range(3)]
    assert ids == given[0]


def test_a_run_that_resumes_keeps_its_id_and_is_counted(intake: Intake) -> None:
    """`resume` after the end is a restart of the same run."""
    for restarts, name in enumerate("abc"):
        marker = Marker(name)
        begin = _take(intake, marker, marker.begin_run(resume=True)).lines[0]
        assert (begin["run_id"], begin["restarts"]) == ("run", restarts)
        _take(intake, marker, marker.end_run())


def test_resuming_after_a_crash_closes_what_the_crash_left_open(intake: Intake) -> None:
    """The dead client's phase and rank end at its last sign of life; a living one's run is another run."""
    dead, living = Marker("a"), Marker("b")
    _take(intake, dead, dead.begin_run(), dead.open_phase("eval", begin=NOW + 50))
    lines = _take(intake, living, living.begin_run(nano=NOW + SECOND, resume=True)).lines
    assert [line["type"] for line in lines] == ["phase", "run_end", "run_begin"]
    assert lines[0]["end_monotonic_nano"] == lines[1]["monotonic_nano"] == NOW + 50
    assert (lines[0]["closed_by"], lines[2]["restarts"]) == ("lost_client", 1)
    intake.connected(living.client_id, here=True)
    third = Marker("c")
    begin = _take(intake, third, third.begin_run(nano=NOW + 2 * SECOND, resume=True)).lines[0]
    assert begin["run_id"] != "run"
    late = _take(intake, dead, dead.end_run())
    assert "taken over" in late.refusal


def test_a_lost_client_is_closed_once_and_its_late_marks_count_once(intake: Intake) -> None:
    """What it left open ends when its stream ended; its true end, if it comes, does not count again."""
    marker = Marker()
    _take(intake, marker, marker.begin_run(), marker.open_phase("eval", phase_number=9))
    lines = intake.close_lost(marker.client_id, NOW + 3 * SECOND)
    assert [(line["type"], line["closed_by"]) for line in lines] == [
        ("phase", "lost_client"),
        ("run_end", "lost_client"),
    ]
    assert "mark" not in lines[0]
    assert lines[0]["end_monotonic_nano"] == NOW + 3 * SECOND
    assert intake.close_lost(marker.client_id, NOW + 4 * SECOND) == []
    _take(intake, marker, marker.phase("eval", end=NOW + 2 * SECOND, phase_number=9, tokens=5))
    total = intake.state.jobs["local-run"].phases["eval"]
    assert (total.instances, total.nanoseconds, total.tokens) == (1, 3 * SECOND, 5)


def test_marks_of_another_boot_are_taken_with_their_boot(intake: Intake) -> None:
    """Spooled before a reboot: their times mean nothing here, so nothing live is made of them."""
    marker = Marker(boot_id=OTHER_BOOT)
    later = NOW + 1000 * SECOND
    taken = _take(intake, marker, marker.begin_run(nano=later), marker.open_phase(begin=later))
    assert [line["boot_id"] for line in taken.lines] == [OTHER_BOOT, OTHER_BOOT]
    assert list(intake.state.open_runs()) == []
    lost = intake.close_lost(marker.client_id, NOW)
    assert [line["boot_id"] for line in lost] == [OTHER_BOOT, OTHER_BOOT]
    assert lost[0]["end_monotonic_nano"] == later


def test_what_clients_dropped_is_written(intake: Intake) -> None:
    """Counted, never hidden."""
    request = Marker().request()
    request.dropped_marks = 12
    assert intake.take(request, NOW).lines == [
        {"type": "dropped", "client": "a" * 32, "monotonic_nano": NOW, "marks": 12}
    ]


def test_loss_that_is_told_again_counts_once(intake: Intake) -> None:
    """A request that is sent again, for want of an answer, tells of no new loss."""
    marker = Marker()
    request = marker.request(marker.begin_run())
    request.dropped_marks = 12
    assert intake.take(request, NOW).dropped == 12
    again = intake.take(request, NOW)
    assert (again.dropped, again.lines) == (0, [])


def test_gpus_that_become_known_replace_those_of_the_begin(intake: Intake) -> None:
    """CUDA is often started after the run."""
    marker = Marker()
    taken = _take(intake, marker, marker.begin_run(), marker.update_run("run", ["GPU-1"]))
    assert taken.lines[1]["gpu_uuids"] == ["GPU-1"]
    assert intake.state.runs["run"].ranks[0].gpu_uuids == ["GPU-1"]


def test_names_beyond_the_bound_are_counted_as_other(intake: Intake) -> None:
    """A client that makes up names does not fill the metrics."""
    marker = Marker()
    _take(intake, marker, marker.begin_run(), *(marker.phase(f"p{number}", tokens=1) for number in range(40)))
    phases = intake.state.jobs["local-run"].phases
    assert len(phases) == 17
    assert phases["other"].tokens == 24


def test_numbers_that_no_reader_could_hold_are_refused(intake: Intake) -> None:
    """A hostile client cannot make lines that break a query over everybody's archive."""
    marker = Marker()
    begin, phase = marker.begin_run(), marker.phase()
    phase.sequence = 2**63
    taken = _take(intake, marker, begin, phase)
    assert (len(taken.lines), taken.refused) == (1, 1)
    assert intake.state.clients[marker.client_id].sequence == 1
