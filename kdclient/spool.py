"""Marks that wait on disk for a daemon, and their delivery.

A spool is a folder with a file `<client_id>.marks` for each client that had to wait. Its owner holds
an exclusive flock on it; a file without one was left by a process that is gone, and whoever takes the
lock may deliver and remove it. A record is

    bytes 0-3   length of the body, little-endian
    bytes 4-7   CRC-32 of kind and body
    byte  8     kind: 1 SendMarksRequest, 2 SendResultsRequest
    then        the body, serialised

Whatever follows the last whole record is torn, and never was promised to be kept.
"""

import fcntl
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

MARKS, RESULTS = 1, 2
_HEAD = struct.Struct("<IIB")
_MOST_BODY = 4 << 20
_MOST_BYTES = 1 << 30
_SUFFIX = ".marks"


def record(kind: int, body: bytes) -> bytes:
    """A record as it stands in the file."""
    return _HEAD.pack(len(body), zlib.crc32(body, zlib.crc32(bytes([kind]))), kind) + body


def read(file: int, offset: int) -> tuple[int, bytes] | None:
    """Kind and body of the record at an offset, or None where there is no whole one."""
    head = os.pread(file, _HEAD.size, offset)
    if len(head) < _HEAD.size:
        return None
    length, checksum, kind = _HEAD.unpack(head)
    if length > _MOST_BODY:
        return None
    body = os.pread(file, length, offset + _HEAD.size)
    if len(body) < length or zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
        return None
    return kind, body


class Spool:
    """The file of one client: made when it is first needed, removed when it is empty again.

    Attributes:
        path: Where it is.
        size: Bytes of whole records in it.
    """

    def __init__(self, folder: str, client_id: str) -> None:
        self.path = f"{folder}/{client_id}{_SUFFIX}"
        self.size = 0
        self._file = -1
        self._unsynced = False

    def append(self, kind: int, body: bytes) -> int:
        """Write a record; it is on disk after `sync`.

        Returns:
            Where it begins.

        Raises:
            OSError: The disk is full or the folder not writable; nothing was added.
        """
        data = record(kind, body)
        if self.size + len(data) > _MOST_BYTES:
            raise OSError(28, "the spool is full")
        self._open()
        offset = self.size
        written = os.pwrite(self._file, data, offset)
        if written < len(data):  # the next write goes over it
            raise OSError(28, "the disk is full")
        self.size += written
        self._unsynced = True
        return offset

    def _open(self) -> None:
        if self._file >= 0:
            return
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120 - pathlib is slow to import
        # It gets its name once it is locked: nobody may take it for one whose owner is gone.
        fresh = f"{self.path}.new"
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.rename(fresh, self.path)  # noqa: PTH104 - pathlib is slow to import
        except OSError:
            os.close(file)
            raise
        self._file = file

    def body(self, offset: int) -> bytes:
        """The body of the record at an offset.

        Raises:
            OSError: It can't be read back.
        """
        found = read(self._file, offset)
        if found is None:
            raise OSError(5, "the spool does not give back what was written")
        return found[1]

    def sync(self) -> None:
        """Have everything on disk.

        Raises:
            OSError: The disk failed.
        """
        if self._unsynced:
            os.fdatasync(self._file)
            self._unsynced = False

    def remove(self) -> None:
        """Everything in it was delivered."""
        if self._file >= 0:
            with suppress(OSError):
                os.unlink(self.path)  # noqa: PTH108 - pathlib is slow to import
        self.leave()

    def leave(self) -> None:
        """Leave the file, if there is one, to the next process."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self.size, self._unsynced = -1, 0, False


@dataclass
class Orphan:
    """A spool file whose client is gone, and which is now ours.

    Attributes:
        path: Where it is.
        torn_bytes: What stood after the last whole record; known once it was read.
    """

    path: str
    file: int
    torn_bytes: int = 0

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Kind and body of each whole record, in the order of writing."""
        offset = 0
        while found := read(self.file, offset):
            yield found
            offset += _HEAD.size + len(found[1])
        self.torn_bytes = os.fstat(self.file).st_size - offset

    def remove(self) -> None:
        """It was delivered."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108 - pathlib is slow to import


def orphans(folder: str) -> Iterator[Orphan]:
    """Each spool file in a folder that no living client holds; ours until the next is asked for."""
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - pathlib is slow to import
    except OSError:
        return
    for name in names:
        if name.endswith(_SUFFIX):
            with _taken(f"{folder}/{name}") as orphan:
                if orphan:
                    yield orphan


@contextmanager
def _taken(path: str) -> Iterator[Orphan | None]:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone, not ours, or a link
        yield None
        return
    try:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            state = os.fstat(file)
            # Another may have delivered and removed it between the open and the lock.
            if stat.S_ISREG(state.st_mode) and state.st_nlink and state.st_uid == os.geteuid():
                yield Orphan(path, file)
                return
        yield None
    finally:
        os.close(file)


@dataclass
class Counts:
    """What a delivery did.

    Attributes:
        files: Spool files delivered whole, and removed.
        left: Spool files that could not be delivered now.
        marks: Marks the daemon has on disk.
        refused: Marks or results among them that it refused.
        results: Results it has on disk.
        torn_bytes: Bytes of broken last records.
    """

    files: int = 0
    left: int = 0
    marks: int = 0
    refused: int = 0
    results: int = 0
    torn_bytes: int = 0


def deliver(socket: str, folder: str, token_file: str | None = None) -> Counts:
    """Hand the daemon what processes that are gone have left in a spool.

    Args:
        socket: The daemon's Unix socket.
        folder: The spool.
        token_file: File with the job's token, or None.
    """
    from kdclient.delivery import deliver_all  # noqa: PLC0415 - it loads grpc

    return deliver_all(socket, folder, token_file)
