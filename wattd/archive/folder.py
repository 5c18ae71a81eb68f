"""The archive of a node: two logs, what lies there already, and the lock that keeps a second daemon out."""

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wattd import __version__
from wattd.archive import recovery
from wattd.archive.log import Header, Log
from wattd.archive.segment import make_folder, sync_folder
from wattd.config import Config
from wattd.values import UserError

_SAMPLES_BOUND_BYTES = 64 << 20
_EVENTS_BOUND_BYTES = 32 << 20


class BusyError(UserError):
    """Another daemon writes the archive."""


class Archive:
    """The archive, opened for writing.

    Attributes:
        folder: The archive's top.
        samples: The log of kind=samples.
        events: The log of kind=events.
        torn_bytes: What the last daemon had written of broken lines, cut off now.
    """

    def __init__(
        self,
        config: Config,
        boot_id: str,
        devices: Callable[[], list[dict[str, Any]]],
        checkpoint: Callable[[], Any],
        clock: Callable[[], tuple[int, int]],
    ) -> None:
        """Take the archive and mend what a daemon that died left; `start` begins to write.

        Args:
            config: Names the folder, the node and the bounds of a segment.
            boot_id: Boot id of this machine, in full.
            devices: The table of devices that a new samples segment begins with.
            checkpoint: The state that a new events segment begins with; orjson encodes it.
            clock: Monotonic and Unix nanoseconds.

        Raises:
            UserError: The archive cannot be written, or another daemon writes it.
        """
        self._config = config
        self._boot_id = boot_id
        self._boot = boot_id[:8]
        self._clock = clock
        self.folder = config.archive
        self._compressor = ThreadPoolExecutor(1, thread_name_prefix="wattd-compress")
        self._locks: list[int] = []
        self.torn_bytes = 0
        self._waiting: dict[str, list[Path]] = {}
        try:
            for kind in ("events", "samples"):
                self._take(kind)
            self.samples = self._log("samples", lambda: {"devices": devices()}, sync_every_batch=False)
            self.events = self._log("events", lambda: {"state": checkpoint()}, sync_every_batch=True)
        except OSError as error:
            raise self._user_error(error) from error

    def _user_error(self, error: OSError) -> UserError:
        what = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        return UserError(
            f"archive {self.folder}: {error.strerror or error}; {what} or name another folder (--archive DIR)"
        )

    def _host(self, kind: str) -> Path:
        return self.folder / "v=1" / f"kind={kind}" / f"host={self._config.node}"

    def _take(self, kind: str) -> None:
        """Make, lock and mend the folder of a kind."""
        host = self._host(kind)
        make_folder(host)
        fd = os.open(host, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._locks.append(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"archive {self.folder}: another daemon writes it as node {self._config.node}; "
                "stop that one or name another folder (--archive DIR)"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise
        self._waiting[kind], torn = recovery.mend(host)
        self.torn_bytes += torn

    def _log(self, kind: str, header: Callable[[], Header], *, sync_every_batch: bool) -> Log:
        config, host = self._config, self._host(kind)
        numbers = [segment.number for segment in recovery.find(host) if segment.boot == self._boot]

        def place(number: int) -> Path:
            day = datetime.fromtimestamp(self._clock()[1] / 1e9, UTC)
            return host / f"date={day:%Y-%m-%d}" / f"{self._boot}-{number:06d}.jsonl"

        def full_header() -> Header:
            monotonic_nano, time_unix_nano = self._clock()
            return {
                "version": 1,
                "kind": kind,
                "node": config.node,
                "boot_id": self._boot_id,
                "wattd_version": __version__,
                "monotonic_nano": monotonic_nano,
                "time_unix_nano": time_unix_nano,
                **header(),
            }

        return Log(
            place,
            max(numbers, default=-1) + 1,
            full_header,
            segment_bytes=config.segment_bytes,
            segment_seconds=config.segment_seconds,
            bound_bytes=_EVENTS_BOUND_BYTES if sync_every_batch else _SAMPLES_BOUND_BYTES,
            sync_every_batch=sync_every_batch,
            compressor=self._compressor,
        )

    def last_samples(self) -> recovery.LastSamples:
        """Where the counters of this boot stood when they were last archived."""
        return recovery.last_samples(self._host("samples"), self._boot)

    def last_events(self) -> tuple[bool, Iterator[dict[str, Any]]]:
        """The lines of the newest events segment, its checkpoint first, and whether it is of this boot."""
        found = [segment for segment in recovery.find(self._host("events")) if segment.path.stat().st_size]
        of_this_boot = [segment for segment in found if segment.boot == self._boot]
        if of_this_boot:
            return True, recovery.lines_of(of_this_boot[-1])
        if found:
            return False, recovery.lines_of(max(found, key=lambda segment: segment.path.stat().st_mtime_ns))
        return False, iter(())

    def start(self) -> None:
        """Begin to write: the first events segment now, the first samples segment with `samples.rotate`.

        Raises:
            UserError: It cannot be written.
        """
        try:
            sync_folder(self._host("samples"))
            self.events.open()
        except OSError as error:
            raise self._user_error(error) from error
        self.samples.start()
        for kind, log in (("samples", self.samples), ("events", self.events)):
            log.adopt(self._waiting[kind])

    def tasks(self) -> list[asyncio.Task[None]]:
        """What writes; one that ends by itself has met a fault of the program."""
        return [log.task for log in (self.samples, self.events) if log.task is not None]

    @property
    def fault(self) -> str:
        """Why the archive cannot be written just now; empty while it can."""
        return self.events.fault or self.samples.fault

    @property
    def written_bytes(self) -> int:
        """Bytes written since the start, before compression."""
        return self.samples.written_bytes + self.events.written_bytes

    def free_bytes(self) -> int | None:
        """Free space of the file system for this user; None where it cannot be asked."""
        try:
            found = os.statvfs(self.folder)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    async def close(self) -> int:
        """Write what waits, end the segments, compress them, unlock.

        Returns:
            Lines that could not be written.
        """
        lost = await self.samples.close() + await self.events.close()
        self._compressor.shutdown()
        for fd in self._locks:
            os.close(fd)
        return lost
