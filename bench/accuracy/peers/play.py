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


def play(plan: dict[str, Any], trace: Trace, tool: Tool) -> dict[str, Any]:
    """Walks a plan.

    Returns:
        `truth`: joules caused by each phase and in all; `seconds`: the same in time; `answers`: what the
        tool says; `late_nano`: how late each deadline was.
    """
    idle = plan["idle_watts"]
    truth, spent, late = dict[str, float](), dict[str, float](), list[int]()
    with tool.run():
        begin = trace.draw(idle)
        wait_until(begin + round(plan["before_seconds"] * 1e9))
        for name, seconds, watts in plan["phases"]:
            with tool.phase(name):
                start = trace.draw(watts)
                late.append(wait_until(start + round(seconds * 1e9)) - start - round(seconds * 1e9))
                stop = trace.draw(idle)
            truth[name] = truth.get(name, 0.0) + watts * (stop - start) / 1e9
            spent[name] = spent.get(name, 0.0) + (stop - start) / 1e9
        wait_until(time.monotonic_ns() + round(plan["after_seconds"] * 1e9))
        end = time.monotonic_ns()
    busy = sum(spent.values())
    spent[TOTAL] = (end - begin) / 1e9
    truth[TOTAL] = sum(truth.values()) + idle * (spent[TOTAL] - busy)
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
