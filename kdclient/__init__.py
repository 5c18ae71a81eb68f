"""Mark the phases of a training run, so that wattd can say what each one cost in joules.

    import kdclient

    watt = kdclient.connect()
    with watt.run("qwen-response-0", method="response", seed=0) as run:
        with run.phase("teacher_forward", tokens=4096):
            ...

Nothing here ever stops or delays the training: without a daemon the marks are kept in a file and
delivered when one is there.
"""

from kdclient.client import connect
from kdclient.phases import Phase, Run

__all__ = ["Phase", "Run", "connect"]
