"""How the server itself is: what metrics and status show beside the measurements."""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True, kw_only=True)
class Vitals:
    """Numbers of the server since it was started.

    Attributes:
        archive: Folder of the archive.
        metrics: HOST:PORT of the metrics page; empty if there is none.
        fault: Why the archive cannot be written just now; empty while it can.
        free_bytes: Free space of the archive's file system; None where it cannot be asked.
        torn_bytes: Broken lines of an earlier daemon that were cut off at the start.
        written_bytes: By kind, before compression.
        written_lines: By kind.
        dropped_lines: By kind: given up because the disk refused for too long.
        pending_bytes: By kind: what waits in memory.
        marks: Marks written.
        refused_marks: Marks refused.
        dropped_marks: Marks that clients said they had to drop.
        clients: Clients that are connected.
        ring_lost: Records of the sampler that were overwritten before they were read.
        watch_dropped: Messages that slow watchers missed.
        processes: By name (`sampler`, `server`), see ProcessVitals.
    """

    archive: str
    metrics: str = ""
    fault: str = ""
    free_bytes: int | None = None
    torn_bytes: int = 0
    written_bytes: dict[str, int] = field(default_factory=dict)
    written_lines: dict[str, int] = field(default_factory=dict)
    dropped_lines: dict[str, int] = field(default_factory=dict)
    pending_bytes: dict[str, int] = field(default_factory=dict)
    marks: int = 0
    refused_marks: int = 0
    dropped_marks: int = 0
    clients: int = 0
    ring_lost: int = 0
    watch_dropped: int = 0
    processes: dict[str, "ProcessVitals"] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class ProcessVitals:
    """What a process uses.

    Attributes:
        cpu_seconds: User and system time.
        resident_bytes: Resident memory.
        open_files: Open descriptors; None where they cannot be counted.
    """

    cpu_seconds: float
    resident_bytes: int
    open_files: int | None = None

    @classmethod
    def of(cls, pid: int) -> "ProcessVitals | None":
        """Ask the kernel about a process; None if there is no such one (proc(5))."""
        folder = Path("/proc") / str(pid)
        try:
            # The name in brackets may hold anything; the rest has fixed places.
            text = (folder / "stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()
        files = None
        with contextlib.suppress(OSError):  # another process's files are shown only to those with a right to
            files = len(os.listdir(folder / "fd"))  # noqa: PTH208 - a count, not paths
        return cls(
            cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            resident_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
            open_files=files,
        )
