"""Marks that no daemon has taken yet, in a file of their client.

A record is its length, its CRC-32, a letter (`M` marks, `R` results) and a serialized request. The
client that writes a file holds a lock on it: a file that is not locked is an orphan, and whoever
marks next in this folder delivers it.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from kdclient.encode import Request
from wattd.v1 import marks_pb2

_FRAME = struct.Struct("<II")
_LONGEST_RECORD = 16 * 1024 * 1024
_MOST_BYTES = 1 << 30
SUFFIX = ".marks"


def pack(request: Request) -> bytes:
    """A request as a record."""
    kind = b"M" if isinstance(request, marks_pb2.SendMarksRequest) else b"R"
    body = kind + request.SerializeToString()
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def read(path: Path, offset: int = 0) -> Iterator[tuple[int, Request]]:
    """Whole records of a file from an offset on, each with the offset after it; a torn end is left alone."""
    with path.open("rb") as file:
        file.seek(offset)
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, checksum = _FRAME.unpack(head)
            body = file.read(min(length, _LONGEST_RECORD))
            if len(body) != length or zlib.crc32(body) != checksum:
                return
            offset += _FRAME.size + length
            kind = marks_pb2.SendMarksRequest if body[:1] == b"M" else marks_pb2.SendResultsRequest
            yield offset, kind.FromString(body[1:])


class Spool:
    """A client's own spool file, made when it is first needed.

    Attributes:
        path: The file.
        size: Bytes written.
    """

    def __init__(self, folder: str, client_id: str, parent_id: str = "") -> None:
        """Name the file; a forked child's name has its parent in it, who delivers it."""
        name = f"{client_id}.of-{parent_id}{SUFFIX}" if parent_id else f"{client_id}{SUFFIX}"
        self.path = Path(folder) / name
        self.size = 0
        self._fd = -1

    def append(self, request: Request) -> bool:
        """Add a record; false when the file has reached its bound.

        Raises:
            OSError: It can't be written.
        """
        if self._fd < 0:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        record = pack(request)
        if self.size + len(record) > _MOST_BYTES:
            return False
        try:
            written = os.write(self._fd, record)
        except OSError:
            os.ftruncate(self._fd, self.size)
            raise
        if written < len(record):
            os.ftruncate(self._fd, self.size)  # half a record would hide all that follow it
            raise OSError(28, "no space left for the spool")
        self.size += len(record)
        return True

    def sync(self) -> None:
        """Bring it to the disk."""
        if self._fd >= 0:
            os.fsync(self._fd)

    def remove(self) -> None:
        """Everything in it was delivered."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
            self.release()

    def release(self) -> None:
        """Let go of it: from now on it is an orphan."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.size = 0


def is_orphan(path: Path) -> bool:
    """Whether nobody writes a spool file any more."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
