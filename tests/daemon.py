"""A real `wattd serve` for tests: started, asked, stopped, killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import zstandard


class Daemon:
    """`wattd serve` in a process of its own.

    Attributes:
        ready: What its first line says, by key (`socket`, `metrics`, `archive`, `sensors`, `devices`).
    """

    def __init__(
        self,
        folder: Path,
        *words: str,
        environment: dict[str, str] | None = None,
        executable: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.archive = folder / "archive"
        self.socket = folder / "s"
        self._log = folder / "log"
        self._command = [str(executable)] if executable else [sys.executable, "-m", "wattd"]
        self._words = ["--archive", str(self.archive), "--socket", str(self.socket), *words]
        if "--metrics" not in words:
            self._words += ["--metrics", "127.0.0.1:0"]
        if "--sensors" not in words:
            self._words += ["--sensors", "simulated"]
        self._environment = {**os.environ, "WATTD_CONFIG": os.devnull, **(environment or {})}
        self.ready: dict[str, str] = {}
        self.process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> int:
        code = self.process.wait(timeout=30)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def start(self) -> None:
        """Start it and wait for its line."""
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [*self._command, "serve", *self._words],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.startswith("wattd ready "), f"{line!r}; {self.log()}"
        self.ready = dict(re.findall(r"(\w+)=(\S+)", line))

    def log(self) -> str:
        """What it said on standard error."""
        return self._log.read_text()

    def server_pid(self) -> int:
        """The server process: the only child."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def kill(self) -> None:
        """SIGKILL of the sampler; the server must end by itself."""
        server = self.server_pid()
        self.process.kill()
        self._reap()
        wait_until(lambda: not Path(f"/proc/{server}").exists(), seconds=30)


def wait_until(condition: Any, seconds: float = 15) -> Any:
    """Wait for something to become true and return it."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value


def segments(archive: Path, kind: str) -> list[Path]:
    """The segments of a kind, oldest first."""
    return sorted(
        archive.glob(f"v=1/kind={kind}/host=*/date=*/*.jsonl*"), key=lambda path: path.name.split(".")[0]
    )


def lines(archive: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Every whole line of a kind, oldest first."""
    for path in segments(archive, kind):
        data = path.read_bytes()
        if path.suffix == ".zst":
            data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
        for line in data.split(b"\n")[:-1]:
            yield json.loads(line)
