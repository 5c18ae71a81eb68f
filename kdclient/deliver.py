"""Spool files of others: of processes that are dead, and of forked children, who may not speak gRPC."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdclient.encode import last_sequence
from kdclient.spool import SUFFIX, is_orphan, read
from kdclient.stream import Stream, connect
from wattd.v1 import marks_pb2

_ACK_SECONDS = 30.0
_IN_FLIGHT = 64


@dataclass(slots=True)
class Delivered:
    """What became of the files of a folder.

    Attributes:
        files: Files that were delivered whole and removed.
        requests: Requests that the daemon has on disk.
        torn_bytes: Bytes at the end of a dead process's file that are no whole record.
    """

    files: int = 0
    requests: int = 0
    torn_bytes: int = 0


class Deliverer:
    """Delivers spool files of a folder that nobody else delivers."""

    def __init__(
        self, sockets: Sequence[str], token_file: str | None, folder: Path, parent_id: str = ""
    ) -> None:
        """Make it.

        Args:
            sockets: Where a daemon may listen.
            token_file: File with the job's token, or None.
            folder: The spool folder.
            parent_id: Client whose forked children's files are delivered while they live.
        """
        self._sockets = sockets
        self._token_file = token_file
        self._folder = folder
        self._parent_id = parent_id
        self._offsets: dict[Path, int] = {}
        self.delivered = Delivered()

    def look(self) -> None:
        """Deliver what is there; a daemon that goes away meanwhile is met again at the next look."""
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                orphan = is_orphan(path)
                mine = bool(self._parent_id) and f".of-{self._parent_id}" in path.name
                if (orphan or mine) and (orphan or path.stat().st_size > self._offsets.get(path, 0)):
                    self._deliver(path, orphan=orphan)

    def _deliver(self, path: Path, *, orphan: bool) -> None:
        try:
            stream = connect(self._sockets, self._token_file)
        except ConnectionError:
            return
        try:
            done = self._send(stream, path)
        finally:
            stream.close()
        if done is None:
            return
        self._offsets[path] = done
        if orphan:
            self.delivered.torn_bytes += path.stat().st_size - done
            self.delivered.files += 1
            path.unlink(missing_ok=True)

    def _send(self, stream: Stream, path: Path) -> int | None:
        """Send a file from where it was left; the offset up to which all is on disk, or None."""
        offset, waiting = self._offsets.get(path, 0), list[int]()
        for after, request in read(path, offset):
            if isinstance(request, marks_pb2.SendMarksRequest):
                stream.send(request)
                waiting.append(last_sequence(request))
                if len(waiting) >= _IN_FLIGHT and not _acknowledged(stream, waiting):
                    return None
            else:
                try:
                    if not stream.send_results(request):
                        return None
                except ValueError:
                    pass  # refused for good: sending it again would change nothing
            offset = after
            self.delivered.requests += 1
        return offset if _acknowledged(stream, waiting) else None


def _acknowledged(stream: Stream, waiting: list[int]) -> bool:
    """Wait until all that was sent is on disk."""
    deadline = time.monotonic() + _ACK_SECONDS
    while waiting and not stream.broken and time.monotonic() < deadline:
        stream.answered.wait(0.1)
        stream.answered.clear()
        while not stream.responses.empty():
            acknowledged = stream.responses.get().acknowledged_sequence
            waiting[:] = [sequence for sequence in waiting if sequence > acknowledged]
    return not waiting


def deliver(sockets: Sequence[str], folder: Path, token_file: str | None = None) -> Delivered:
    """Deliver the orphaned spool files of a folder once.

    Args:
        sockets: Where a daemon may listen.
        folder: The spool folder.
        token_file: File with the job's token, or None.
    """
    deliverer = Deliverer(sockets, token_file, folder)
    deliverer.look()
    return deliverer.delivered
