"""A load for `wattd calibrate`: a simulated GPU that switches between two powers, and says when.

    wattd calibrate --sensors nvml --load "command:python -m tests.nvml.load TRACE [GPU [LOW HIGH [SEED]]]"

Prints `<monotonic_ns> <high|low>` for each switch, until it is ended. The stretches have random lengths.
"""

import random
import sys
import time
from pathlib import Path

from tests.nvml.driver import Trace

_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.03, 0.4


def main(words: list[str]) -> None:
    """Switch until the process is ended; the words are those of the module's text."""
    path, gpu, low, high, seed = (words + ["0", "100", "600", ""][len(words) - 1 :])[:5]
    rng = random.Random(seed or None)  # noqa: S311 - nothing is kept secret by it
    is_high = False
    with Trace(Path(path)) as trace:
        while True:
            is_high = not is_high
            moment = trace.draw(float(high if is_high else low), int(gpu))
            sys.stdout.write(f"{moment} {'high' if is_high else 'low'}\n")
            sys.stdout.flush()
            time.sleep(rng.uniform(_SHORTEST_SECONDS, _LONGEST_SECONDS))


if __name__ == "__main__":
    main(sys.argv[1:])
