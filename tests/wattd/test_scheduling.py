"""Rights: the clock may be real-time, what it starts is not, and the server has no capability left."""

import os
import subprocess
import sys

from wattd.scheduling import be_punctual

GIVE_UP = """
from wattd.scheduling import give_up_capabilities
give_up_capabilities()
facts = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(*(facts[key].strip() for key in ("CapEff", "CapPrm", "CapInh", "NoNewPrivs")))
"""

INHERIT = """
import os
from wattd.scheduling import be_punctual
granted = be_punctual()
child = os.fork()
if child == 0:
    os._exit(0 if os.sched_getscheduler(0) == os.SCHED_OTHER else 1)
print(granted, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def run(code: str) -> list[str]:
    """Run a program of its own and return the words it prints."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_server_has_no_capability_left() -> None:
    """Effective, permitted and inheritable sets are empty, and nothing gives them back."""
    *sets, no_new_privileges = run(GIVE_UP)
    assert [int(value, 16) for value in sets] == [0, 0, 0]
    assert no_new_privileges == "1"


def test_real_time_is_not_inherited() -> None:
    """Whatever the clock thread was granted, its children are ordinary processes."""
    granted, child = run(INHERIT)
    assert granted in {"SCHED_FIFO", "nice", "default"}
    assert child == "0"


def test_asking_in_vain_is_no_error() -> None:
    """An ordinary user gets what there is, and is told what that is."""
    policy = os.sched_getscheduler(0)
    granted = be_punctual()
    os.sched_setscheduler(0, policy, os.sched_param(0))
    assert granted in {"SCHED_FIFO", "nice", "default"}
