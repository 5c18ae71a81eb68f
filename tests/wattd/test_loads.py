import sys
import time
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path

import pytest

from tests.daemon import wait_until
from wattd.loads import LONGEST_SECONDS, SHORTEST_SECONDS, Load, command_load, own_load, schedule
from wattd.values import UserError

_FAKE_TORCH = """
import time
class _Event:
    def record(self): self.end = time.monotonic() + 0.001
    def synchronize(self): time.sleep(max(0, self.end - time.monotonic()))
class cuda:
    Event = _Event
    is_available = staticmethod(lambda: True)
    is_bf16_supported = staticmethod(lambda: True)
    synchronize = staticmethod(lambda: None)
bfloat16 = "bfloat16"
def ones(*size, device, dtype):
    assert device == "cuda" and dtype == bfloat16
    return size
def mm(one, other):
    assert one == other
"""


def _script(text: str) -> Load:
    return Load("command", [sys.executable, "-c", text])


def _is_alternation(stretches: Sequence[tuple[int, int]]) -> bool:
    """Stretches, and the time between them, are as long as they should be, but for a busy machine."""
    lengths = [end - begin for begin, end in stretches]
    pauses = [later[0] - earlier[1] for earlier, later in pairwise(stretches)]
    least, most = SHORTEST_SECONDS * 0.5e9, (LONGEST_SECONDS + 0.3) * 1e9
    return all(least <= length <= most for length in [*lengths, *pauses])


def test_a_schedule_has_stretches_of_random_length() -> None:
    """30 to 400 ms each, one seed always the same, so that no sensor's updates keep step with them."""
    stretches = list(islice(schedule(1), 200))
    assert stretches == list(islice(schedule(1), 200))
    assert stretches != list(islice(schedule(2), 200))
    edges = [0.0] + [edge for stretch in stretches for edge in stretch]
    lengths = [later - earlier for earlier, later in pairwise(edges)]
    assert min(lengths) >= SHORTEST_SECONDS
    assert max(lengths) <= LONGEST_SECONDS
    assert len({round(length, 4) for length in lengths}) > 300


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_our_loads_say_when_they_switch(name: str, tmp_path: Path) -> None:
    """Both speak as a command of the user's does, and end when they are told to."""
    (tmp_path / "torch.py").write_text(_FAKE_TORCH)
    begin = time.monotonic_ns()
    with own_load(name, 4, {"PYTHONPATH": str(tmp_path)}) as load:
        wait_until(lambda: len(load.stretches()) >= 3)
        assert not load.is_over()
    stretches = load.stretches()
    assert begin < stretches[0][0]
    assert stretches[-1][1] < time.monotonic_ns()
    assert _is_alternation(stretches)
    assert load.is_over()


def test_a_command_is_heard_as_it_speaks() -> None:
    """Repeated states and lines of other kinds change nothing; a stretch without its end is left out."""
    text = (
        "import time; t = time.monotonic_ns();"
        "[print(word) for word in ['hello', f'{t - 900} low', f'{t - 800} high', f'{t - 700} high',"
        "'1 middling', f'{t - 500} low', f'{t - 400} low', f'{t - 300} high']]"
    )
    with _script(text) as load:
        wait_until(load.is_over)
        assert load.has_begun()
    ((begin, end),) = load.stretches()
    assert end - begin == 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "print('no such GPU'); raise SystemExit(3)",
            "ended with code 3 and printed no line .*'no such GPU'",
        ),
        ("import time; print(time.time_ns(), 'high')", "not in order, or in the future"),
        ("print('5 high'); print('4 low')", "not in order"),
    ],
)
def test_a_load_that_says_nothing_of_use_is_refused(text: str, said: str) -> None:
    """One line says what it did and what it should do."""
    with _script(text) as load:
        wait_until(load.is_over)
        with pytest.raises(UserError, match=said):  # noqa: PT012 - either call may be the one that sees it
            load.has_begun()
            load.stretches()


@pytest.mark.parametrize(
    ("command", "said"), [("/no/such/program", "exists"), ("'", "quotation"), (" ", "empty")]
)
def test_a_command_that_cannot_be_run_is_a_mistake(command: str, said: str) -> None:
    """A program that is not there, or no command line at all."""
    with pytest.raises(UserError, match=said), command_load(command):
        pass


def test_a_load_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left behind, not even what the load has started."""
    monkeypatch.setattr("wattd.loads._KILL_SECONDS", 0.2)
    text = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.fork();"
        "print(time.monotonic_ns(), 'high', flush=True); time.sleep(60)"
    )
    with _script(text) as load:
        wait_until(load.has_begun)
    wait_until(load.is_over, seconds=5)


def test_our_load_says_what_it_lacks(tmp_path: Path) -> None:
    """No traceback: a line that stands in the refusal."""
    (tmp_path / "torch.py").write_text(_FAKE_TORCH.replace("lambda: True", "lambda: False", 1))
    with own_load("cuda", 1, {"PYTHONPATH": str(tmp_path)}) as load:
        wait_until(load.is_over)
        with pytest.raises(UserError, match="torch cannot use this GPU"):
            load.has_begun()
