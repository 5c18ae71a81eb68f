"""Loads that alternate: programs that switch the power of a device and say when they did.

A load is a process that prints a line `<monotonic_ns> <high|low>` for each switch. Two come with wattd:

    python -m wattd.loads cpu     busy loops on every CPU it may use
    python -m wattd.loads cuda    matrix products on the first GPU it sees; needs torch

The stretches between the switches have random lengths, so that no sensor's updates keep step with them.
`wattd calibrate` starts them, as it starts a command of the user; the daemon never does.
"""

import importlib
import mmap
import os
import random
import shlex
import signal
import statistics
import struct
import subprocess  # noqa: TID251 - a load is a program, and this is a command of the user's, not the daemon
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Self

from wattd.values import UserError

SHORTEST_SECONDS, LONGEST_SECONDS = 0.03, 0.4
_SPIN_SECONDS = 0.002
_MOST_EDGES = 100_000
_KILL_SECONDS = 5.0
_SLOT = struct.Struct("<qq")
_MATRIX = 4096


class Load:
    """A load that runs: a context manager that ends it.

    Attributes:
        name: `cpu`, `cuda` or `command`.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Prepare it.

        Args:
            name: For messages and the record.
            command: Program and arguments.
            environment: Added to this process' own.
        """
        self.name = name
        self._command = command
        self._environment = os.environ | (environment or {})
        self._edges: list[tuple[int, bool]] = []
        self._strange = ""
        self._process: subprocess.Popen[str]
        self._reader: threading.Thread

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            UserError: There is no such program.
        """
        try:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(
                f"load {self._command[0]}: {error.strerror}; give a program that exists"
            ) from error
        self._reader = threading.Thread(target=self._read, name="wattd-load", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(_KILL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                self._process.wait()
            break
        self._reader.join(_KILL_SECONDS)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            words = line.split()
            if len(words) == 2 and words[1] in {"high", "low"} and words[0].isdecimal():
                if len(self._edges) < _MOST_EDGES:
                    self._edges.append((int(words[0]), words[1] == "high"))
            else:
                self._strange = self._strange or line.strip()[:80]

    def has_begun(self) -> bool:
        """Whether it has switched once.

        Raises:
            UserError: It has ended before.
        """
        if not self._edges and not self._reader.is_alive():
            code = self._process.wait()
            said = f"; it said {self._strange!r}" if self._strange else ""
            raise UserError(
                f"the load `{shlex.join(self._command)}` ended with code {code} and printed no line "
                f"`<monotonic_ns> <high|low>`{said}"
            )
        return bool(self._edges)

    def is_over(self) -> bool:
        """Whether it has ended by itself."""
        return not self._reader.is_alive()

    def stretches(self) -> list[tuple[int, int]]:
        """Begin and end of each stretch of high load, monotonic nanoseconds, in order.

        Raises:
            UserError: Its times are not in order, or not of this machine's CLOCK_MONOTONIC.
        """
        edges = list(self._edges)
        if any(later[0] <= earlier[0] for earlier, later in pairwise(edges)) or (
            edges and edges[-1][0] > time.monotonic_ns()
        ):
            raise UserError(
                f"the times that the load `{shlex.join(self._command)}` prints are not in order, or in the "
                "future: print CLOCK_MONOTONIC in nanoseconds (time.monotonic_ns()) at each switch"
            )
        found, begin = [], 0
        for nano, is_high in edges:
            if is_high and not begin:
                begin = nano
            elif not is_high and begin:
                found.append((begin, nano))
                begin = 0
        return found


def own_load(name: str, seed: int, environment: dict[str, str] | None = None) -> Load:
    """One of the loads of this module."""
    return Load(name, [sys.executable, "-P", "-m", "wattd.loads", name, str(seed)], environment)


def command_load(command: str) -> Load:
    """A command of the user's.

    Raises:
        UserError: It is no command line.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--load command:{command}: {error}", 2) from error
    if not words:
        raise UserError("--load command:CMD: CMD is empty; give a program that makes the load", 2)
    return Load("command", words)


def schedule(seed: int) -> Iterator[tuple[float, float]]:
    """When stretches of high load begin and end, in seconds from a start; without end."""
    chance = random.Random(seed)  # noqa: S311 - no secret is made of it
    at = 0.0
    while True:
        begin = at + chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS)
        at = begin + chance.uniform(SHORTEST_SECONDS, LONGEST_SECONDS)
        yield begin, at


def _wait_until(nano: int) -> None:
    """Sleep, and look at the clock for the last two milliseconds."""
    rest = (nano - time.monotonic_ns()) / 1e9 - _SPIN_SECONDS
    if rest > 0:
        time.sleep(rest)
    while time.monotonic_ns() < nano:
        pass


def _say(begin_nano: int, end_nano: int) -> None:
    sys.stdout.write(f"{begin_nano} high\n{end_nano} low\n")
    sys.stdout.flush()


def run_cpu(seed: int) -> None:
    """Alternate busy loops on every CPU that this process may use, until standard output is closed.

    Each worker notes when it began and ended; what is said is the middle one of all.
    """
    cpus = sorted(os.sched_getaffinity(0))
    start, parent = time.monotonic_ns() + 100_000_000, os.getpid()
    noted = mmap.mmap(-1, _SLOT.size * len(cpus))
    for number, cpu in enumerate(cpus):
        if os.fork() == 0:
            try:
                os.sched_setaffinity(0, {cpu})
                os.nice(10)  # whoever reads the sensors comes first
                _burn(seed, start, noted, number, parent)
            finally:
                os._exit(0)
    for _, end in schedule(seed):
        time.sleep(max(0.0, (start - time.monotonic_ns()) / 1e9 + end + SHORTEST_SECONDS / 2))
        times = [_SLOT.unpack_from(noted, _SLOT.size * number) for number in range(len(cpus))]
        _say(*(round(statistics.median(column)) for column in zip(*times, strict=True)))


def _burn(seed: int, start: int, noted: mmap.mmap, number: int, parent: int) -> None:
    """A worker: busy in each stretch, asleep between, gone with its parent."""
    for begin, end in schedule(seed):
        rest = (start - time.monotonic_ns()) / 1e9 + begin
        if rest > 0:
            time.sleep(rest)
        if os.getppid() != parent:
            return
        begun, until = time.monotonic_ns(), start + round(end * 1e9)
        product = 3
        while time.monotonic_ns() < until:
            for _ in range(50):
                product = product * product % 340282366920938463463374607431768211297
        _SLOT.pack_into(noted, _SLOT.size * number, begun, time.monotonic_ns())


def run_cuda(seed: int) -> None:
    """Alternate matrix products on the first GPU, until standard output is closed.

    A stretch begins on an idle GPU with a launch, and ends with a synchronisation: both are some tens of
    microseconds from the GPU's own times.
    """
    torch: Any = importlib.import_module("torch")
    if not torch.cuda.is_available():
        raise RuntimeError("torch cannot use this GPU")
    kind = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    matrix = torch.ones(_MATRIX, _MATRIX, device="cuda", dtype=kind)
    for _ in range(20):
        torch.mm(matrix, matrix)
    torch.cuda.synchronize()
    start = time.monotonic_ns()
    for begin, end in schedule(seed):
        _wait_until(start + round(begin * 1e9))
        begun, until = time.monotonic_ns(), start + round(end * 1e9)
        launched: list[Any] = []
        while time.monotonic_ns() < until:
            torch.mm(matrix, matrix)
            event = torch.cuda.Event()
            event.record()
            launched.append(event)
            if len(launched) > 2:  # busy without a queue that would run on past the end
                launched.pop(0).synchronize()
        torch.cuda.synchronize()
        _say(begun, time.monotonic_ns())


def main() -> None:
    """Run one of the loads; see the module's text."""
    name, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    try:
        {"cpu": run_cpu, "cuda": run_cuda}[name](seed)
    except BrokenPipeError:
        os._exit(0)  # whoever listened has gone
    except Exception as error:  # noqa: BLE001 - whoever listens shows it as one line
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
