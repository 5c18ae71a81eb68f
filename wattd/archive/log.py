"""The stream of lines of one kind: collected on the event loop, written by a thread of its own.

Whoever needs a line on disk waits for `commit`; all who wait share one write and one fdatasync.
When the disk refuses, lines wait in memory up to a bound, and the write is tried again each second.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wattd.archive.segment import Segment, compress

_RETRY_SECONDS = 1.0
_SYNC_SECONDS = 1.0

_logger = logging.getLogger("wattd")

Header = dict[str, Any]


class _Stage:
    """Lines that go into one segment, who waits for them, and the header of the segment after them."""

    __slots__ = ("bodies", "header", "waiters")

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.header: Header | None = None
        self.waiters: list[asyncio.Future[None]] = []

    @property
    def is_empty(self) -> bool:
        return not (self.bodies or self.header or self.waiters)

    def refuse(self) -> None:
        for future in self.waiters:
            future.cancel()


class Log:
    """Appends lines to the newest segment of a kind.

    Attributes:
        fault: Why lines cannot be written just now; empty while they can.
        dropped_lines: Lines that were given up because the disk refused for too long.
        pending_bytes: Bytes that wait in memory.
        task: What writes; None before the start.
    """

    def __init__(
        self,
        place: Callable[[int], Path],
        number: int,
        header: Callable[[], Header],
        *,
        segment_bytes: int,
        segment_seconds: float,
        bound_bytes: int,
        sync_every_batch: bool,
        compressor: ThreadPoolExecutor,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Make the log; `open` or the first `rotate` makes its first segment.

        Args:
            place: Path of the segment of a number.
            number: Number of the first segment.
            header: First line of a segment that begins after all lines appended so far.
            segment_bytes: A segment is closed at this size.
            segment_seconds: A segment is closed at this age.
            bound_bytes: So much waits in memory at most.
            sync_every_batch: Sync after each write and not once a second.
            compressor: Compresses closed segments.
            clock: Monotonic nanoseconds.
        """
        self._place = place
        self._number = number
        self._header = header
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._bound_bytes = bound_bytes
        self._sync_every_batch = sync_every_batch
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="wattd-archive")
        self._compressor = compressor
        self._segment: Segment | None = None
        self._opened_nano = self._synced_nano = 0
        self._closed_bytes = self._closed_lines = 0
        self._stages = [_Stage()]
        self._batch: list[bytes] = []
        self._room: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._finished: list[Path] = []
        self._closing = False
        self.fault = ""
        self.dropped_lines = self.pending_bytes = 0

    @property
    def written_bytes(self) -> int:
        """Bytes written since the start."""
        return self._closed_bytes + (self._segment.size if self._segment else 0)

    @property
    def written_lines(self) -> int:
        """Lines written since the start, the first line of each segment included."""
        return self._closed_lines + (self._segment.lines if self._segment else 0)

    def open(self) -> None:
        """Begin the first segment now, and the writing.

        Raises:
            OSError: It cannot be written.
        """
        self._begin_segment(self._header())
        self.start()

    def start(self) -> None:
        """Begin the writing; the first `rotate` makes the first segment."""
        self.task = asyncio.create_task(self._run())

    def append(self, bodies: Sequence[bytes], *, must: bool = False) -> bool:
        """Add lines; false, and counted, when too much waits already and they need not be kept."""
        if self.is_full and not must:
            self.dropped_lines += len(bodies)
            return False
        self._stages[-1].bodies.extend(bodies)
        self.pending_bytes += sum(map(len, bodies))
        self._wake.set()
        return True

    @property
    def is_full(self) -> bool:
        """As much waits in memory as may."""
        return self.pending_bytes >= self._bound_bytes

    async def room(self) -> None:
        """Wait until lines can be appended."""
        while self.is_full:
            future = asyncio.get_running_loop().create_future()
            self._room.append(future)
            await future

    def commit(self) -> "asyncio.Future[None]":
        """A future that is done when everything appended so far is on disk."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stages[-1].waiters.append(future)
        self._wake.set()
        return future

    def rotate(self) -> None:
        """Let a new segment begin between the lines appended so far and those that follow."""
        self._stages[-1].header = self._header()
        self._stages.append(_Stage())
        self._wake.set()

    async def close(self) -> int:
        """Write what waits, end the segment, compress it.

        Returns:
            Lines that could not be written.
        """
        self._closing = True
        self._wake.set()
        if self.task is not None:
            await self.task
        loop = asyncio.get_running_loop()
        lost = await loop.run_in_executor(self._writer, self._end)
        await loop.run_in_executor(self._compressor, self._compress_finished)
        self._writer.shutdown()
        for stage in self._stages:
            stage.refuse()
        return lost

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            stage = self._take()
            while True:
                try:
                    await loop.run_in_executor(self._writer, self._store, stage.header, bool(stage.waiters))
                except OSError as error:
                    self._note_fault(error)
                    if self._closing:
                        stage.refuse()
                        return
                    await asyncio.sleep(_RETRY_SECONDS)
                else:
                    break
            self._note_success(stage)
            if self._finished:
                loop.run_in_executor(self._compressor, self._compress_finished)
            if self._closing and len(self._stages) == 1 and self._stages[0].is_empty:
                return

    def _take(self) -> "_Stage":
        """Take what waits up to the next rotation."""
        if len(self._stages) == 1 and self._is_due():
            self._stages[0].header = self._header()
        stage = self._stages.pop(0)
        if self._stages:
            self._wake.set()
        else:
            self._stages.append(_Stage())
        self._batch = stage.bodies
        return stage

    def _is_due(self) -> bool:
        if self._segment is None:
            return False
        age = self._clock() - self._opened_nano
        return self._segment.size >= self._segment_bytes or age >= self._segment_seconds * 1e9

    def _store(self, header: Header | None, durable: bool) -> None:  # noqa: FBT001 - run_in_executor passes by place
        """In the writer's thread: write the batch, then turn to a new segment. May be tried again."""
        segment = self._segment
        if segment is not None:
            batch, self._batch = self._batch, []
            segment.append(batch)
            now = self._clock()
            if durable or self._sync_every_batch or now - self._synced_nano >= _SYNC_SECONDS * 1e9:
                segment.sync()
                self._synced_nano = now
        if header is not None:
            if segment is not None:
                segment.finish("rotated")
                self._forget(segment)
            self._begin_segment(header)

    def _begin_segment(self, header: Header) -> None:
        """Create the segment of the next free number."""
        while True:
            path = self._place(self._number)
            first = {"type": "segment", **header, "segment": self._number}
            self._number += 1
            with contextlib.suppress(FileExistsError):
                self._segment = Segment(path, first)
                break
        self._opened_nano = self._clock()

    def _note_fault(self, error: OSError) -> None:
        text = error.strerror or str(error)
        if not self.fault:
            _logger.error("archive: %s; trying again each second", text)
        self.fault = text

    def _forget(self, segment: Segment) -> None:
        """A segment is finished; it waits to be compressed."""
        self._closed_bytes += segment.size
        self._closed_lines += segment.lines
        self._finished.append(segment.path)
        self._segment = None

    def _note_success(self, stage: "_Stage") -> None:
        if self.fault:
            self.fault = ""
            _logger.warning("archive: writing again")
        self.pending_bytes -= sum(map(len, stage.bodies))
        for future in stage.waiters:
            if not future.done():
                future.set_result(None)
        if self._room and not self.is_full:
            room, self._room = self._room, []
            for future in room:
                if not future.done():
                    future.set_result(None)

    def _end(self) -> int:
        """In the writer's thread: end the last segment; count what is lost."""
        lost = len(self._batch) + sum(len(stage.bodies) for stage in self._stages)
        if self._segment is None:
            return lost
        try:
            self._segment.finish("stopped")
        except OSError as error:
            self._note_fault(error)
            lost += self._segment.abandon()
            self._segment = None
        else:
            self._forget(self._segment)
        return lost

    def _compress_finished(self) -> None:
        """In the compressor's thread: what cannot be compressed now is tried again with the next one."""
        waiting, self._finished = self._finished, []
        for path in waiting:
            try:
                compress(path)
            except FileNotFoundError:
                continue  # someone removed it
            except OSError:
                self._finished.append(path)

    def adopt(self, paths: Sequence[Path]) -> None:
        """Compress segments that an earlier daemon left, beside everything else."""
        self._finished += paths
        self._compressor.submit(self._compress_finished)
