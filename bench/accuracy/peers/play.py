"""The workload in real time: walks its phases, draws their power, marks them with one tool.

    python -m bench.accuracy.peers.play TOOL PLAN TRACE RESULT

Needs nothing but Python and the tool. The plan says how long each phase lasts and what it draws; each step of
power is written into the trace at the very time it sets in, so that the trace is the truth, whatever the
machine did to the deadlines. RESULT gets the joules that each phase caused, and what the tool said.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.accuracy.peers.tools import TOOLS, TOTAL, Tool
from tests.nvml.driver import Trace

_SPIN_NANO = 300_000
"""A sleep may end this much too late; the rest is waited for awake."""


def wait_until(deadline_nano: int) -> int:
    """Waits; returns when it really was."""
    left = deadline_nano - time.monotonic_ns() - _SPIN_NANO
    if left > 0:
        time.sleep(left / 1e9)
    while (now := time.monotonic_ns()) < deadline_nano:
        pass
    return now


class Die:
    """What draws the power, step by step into the trace.

    Attributes:
        joules: Drawn up to the last step.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._watts = self.joules = 0.0
        self._since = time.monotonic_ns()

    def draw(self, watts: float) -> int:
        """Draws a power from now on; returns since when, monotonic nanoseconds."""
        now = self._trace.draw(watts)
        self.joules += self._watts * (now - self._since) / 1e9
        self._watts, self._since = watts, now
        return now


def play(plan: dict[str, Any], trace: Trace, tool: Tool) -> dict[str, Any]:
    """Walks a plan.

    In the time between two phases, which is the tool's, the power of the first goes on: on real GPUs it takes
    0.2 ms and more to fall. That energy is caused by neither.

    Returns:
        `truth`: joules caused by each phase and in all; `seconds`: the same in time; `answers`: what the
        tool says; `late_nano`: how late each deadline was.
    """
    die = Die(trace)
    truth, spent, late = dict[str, float](), dict[str, float](), list[int]()
    with tool.run():
        begin = die.draw(plan["idle_watts"])
        before = die.joules
        wait_until(begin + round(plan["before_seconds"] * 1e9))
        for name, seconds, watts in plan["phases"]:
            with tool.phase(name):
                start = die.draw(watts)
                stop = wait_until(start + round(seconds * 1e9))
            late.append(stop - start - round(seconds * 1e9))
            truth[name] = truth.get(name, 0.0) + watts * (stop - start) / 1e9
            spent[name] = spent.get(name, 0.0) + (stop - start) / 1e9
        wait_until(die.draw(plan["idle_watts"]) + round(plan["after_seconds"] * 1e9))
        end = die.draw(plan["idle_watts"])
    truth[TOTAL], spent[TOTAL] = die.joules - before, (end - begin) / 1e9
    return {"truth": truth, "seconds": spent, "answers": tool.answers(), "late_nano": late}


def main(words: list[str]) -> int:
    """Play once; the words are those of the module's text."""
    name, plan, trace, result = words
    tool = TOOLS[name][1]()
    with Trace(Path(trace)) as opened:
        found = play(json.loads(Path(plan).read_text()), opened, tool)
    Path(result).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
