"""A simulated NVIDIA driver for tests and benchmarks: the library, and the trace of power that it shows.

    library = build(folder)
    with Trace.create(folder / "trace", watts=95, rise_ms=3, counter_delay_ms=5) as trace:
        subprocess.Popen([...], env=os.environ | trace.environment(library))
        trace.draw(620.0)            # from now on GPU 0 draws 620 W

What can be set is listed in tests/nvml/settings.h; `watts@1` sets it for GPU 1 alone. Needs
nothing but Python, since the workloads that write a trace run in environments of their own.
"""

import mmap
import os
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Self

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "libnvidia-ml.c"
SETTINGS = re.findall(r"^ +SETTING\((\w+), ", (FOLDER / "settings.h").read_text(), re.MULTILINE)
"""What can be set; settings.h says what each means."""

MOST_GPUS = 8
_PAGE = 4096
_MAGIC = 0x3130454341525457
_HEADER = struct.Struct("<QqQQQ8Q")
_REVISION = _PAGE + 32
_COUNTS = _PAGE + 40
_STEP = struct.Struct("<qd")
_COUNT = struct.Struct("<Q")


class CompilerMissingError(Exception):
    """There is no C compiler; the text says what to install."""


def compiler() -> str:
    """Returns the path of the C compiler.

    Raises:
        CompilerMissingError: There is none.
    """
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        raise CompilerMissingError("the simulated NVML needs a C compiler: apt-get install gcc")
    return found


def build(folder: Path, source: Path = SOURCE) -> Path:
    """Compiles the library into a folder; returns its path, whose folder is for LD_LIBRARY_PATH.

    Args:
        folder: Made if it is not there; a library in it that is newer than its sources is kept.
        source: What to compile.

    Raises:
        CompilerMissingError: There is no compiler.
        subprocess.CalledProcessError: It does not compile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libnvidia-ml.so.1"
    newest = max(path.stat().st_mtime for path in FOLDER.rglob("*.[ch]"))
    if library.exists() and library.stat().st_mtime > newest:
        return library
    fresh = folder / f"{library.name}.{os.getpid()}"
    flags = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror")
    subprocess.run(
        [compiler(), *flags, "-I", FOLDER / "include", "-o", fresh, source, "-lm", "-lpthread"], check=True
    )
    fresh.replace(library)  # a process that has the old one mapped keeps it
    return library


class Trace:
    """What the dies draw: a file that a workload writes and every process with the library reads.

    Attributes:
        path: The file.
        epoch_nano: Monotonic nanoseconds at which the power of the settings sets in; times of settings
            count from here.
    """

    def __init__(self, path: Path) -> None:
        """Opens a trace that was made with `create`, to write it from here on; one process at a time does."""
        self.path = path
        with path.open("rb+") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        magic, epoch, _, capacity, revision, *steps = _HEADER.unpack_from(self._map, _PAGE)
        if magic != _MAGIC:
            raise ValueError(f"{path} is no trace; make one with Trace.create()")
        self.epoch_nano: int = epoch
        self._capacity: int = capacity
        self._revision: int = revision
        self._steps: list[int] = steps
        text = self._map[:_PAGE].rstrip(b"\0").decode()
        self._settings = {name: float(value) for name, value in map(str.split, text.splitlines())}

    @classmethod
    def create(
        cls, path: Path, *, capacity: int = 1 << 16, epoch_nano: int | None = None, **settings: float
    ) -> Self:
        """Makes the file and opens it.

        Args:
            path: Where.
            capacity: Most steps that a GPU can get.
            epoch_nano: By default now.
            settings: By the names of settings.h; `**{"watts@1": 80}` for one GPU.
        """
        epoch = time.monotonic_ns() if epoch_nano is None else epoch_nano
        header = _HEADER.pack(_MAGIC, epoch, MOST_GPUS, capacity, 0, *[0] * MOST_GPUS)
        with path.open("wb") as file:
            file.write(bytes(_PAGE) + header)
            file.truncate(2 * _PAGE + capacity * _STEP.size * MOST_GPUS)
        trace = cls(path)
        trace.set(**settings)
        return trace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file, which stays."""
        self._map.close()

    def environment(self, library: Path) -> dict[str, str]:
        """Returns what a process needs in its environment to see this trace."""
        path = os.environ.get("LD_LIBRARY_PATH", "")
        return {
            "LD_LIBRARY_PATH": f"{library.parent}:{path}" if path else str(library.parent),
            "NVML_TRACE": str(self.path),
        }

    def set(self, **settings: float) -> None:
        """Changes settings while processes look on; meant for faults, which they see with their next call."""
        unknown = {name for name in settings if name.partition("@")[0] not in SETTINGS}
        if unknown:
            raise ValueError(f"no setting {', '.join(sorted(unknown))}; settings.h has {', '.join(SETTINGS)}")
        self._settings.update(settings)
        text = "".join(f"{name} {value!r}\n" for name, value in self._settings.items()).encode()
        if len(text) >= _PAGE:
            raise ValueError(f"settings take {len(text)} bytes; there is room for {_PAGE - 1}")
        self._map[:_PAGE] = text.ljust(_PAGE, b"\0")
        self._revision += 1
        _COUNT.pack_into(self._map, _REVISION, self._revision)

    def since_epoch_ms(self) -> float:
        """Returns the present as settings count it."""
        return (time.monotonic_ns() - self.epoch_nano) / 1e6

    def draw(self, watts: float, gpu: int = 0, at_nano: int | None = None) -> int:
        """Lets a die draw a power from now on.

        Args:
            watts: The power.
            gpu: Whose.
            at_nano: Since when, by default now; never before the last step.

        Returns:
            Monotonic nanoseconds at which it sets in.
        """
        step = self._steps[gpu]
        if step >= self._capacity:
            raise ValueError(f"the trace holds {self._capacity} steps a GPU; make it with a larger capacity")
        now = time.monotonic_ns() if at_nano is None else at_nano
        place = 2 * _PAGE + (gpu * self._capacity + step) * _STEP.size
        _STEP.pack_into(self._map, place, now, watts)
        self._steps[gpu] = step + 1
        # The count comes last: whoever sees it sees the step.
        _COUNT.pack_into(self._map, _COUNTS + gpu * _COUNT.size, step + 1)
        return now
