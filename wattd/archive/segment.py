"""One file of the archive while it is written; and what becomes of it when it is closed."""

import contextlib
import os
import stat
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import zstandard

FILE_MODE = 0o640
FOLDER_MODE = 0o750
ZSTD_LEVEL = 1
"""Chosen by bench/archive.py: up to 6 nothing is gained, 9 saves 2 % for 15 times the time."""

_CHUNK_BYTES = 1 << 20


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, each 0750 whatever the umask says."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        with contextlib.suppress(FileExistsError):
            made.mkdir(mode=FOLDER_MODE)
            made.chmod(FOLDER_MODE)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _create(path: Path) -> int:
    make_folder(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    os.fchmod(fd, FILE_MODE)
    sync_folder(path.parent)
    return fd


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def end_line(lines: int, crc32: int, reason: str, torn_bytes: int | None = None) -> bytes:
    """The last line of a closed segment."""
    line: dict[str, Any] = {
        "seq": lines,
        "type": "end",
        "lines": lines,
        "crc32": f"{crc32:08x}",
        "reason": reason,
    }
    if torn_bytes is not None:
        line["torn_bytes"] = torn_bytes
    return orjson.dumps(line) + b"\n"


class Segment:
    """An open segment.

    What was appended since the last successful sync is kept in memory, so that after an error the
    file is cut back to what is known to be on disk and written on from there: an error of
    fdatasync says nothing about which of the earlier writes were lost.

    Attributes:
        path: Where it is.
        size: Bytes written.
        lines: Lines written.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Create the file (it must not exist) and write its first line durably.

        Raises:
            OSError: It cannot be written; nothing is left of it then.
        """
        self.path = path
        self._fd = _create(path)
        self.size = self.lines = 0
        self._crc = 0
        self._synced = (0, 0, 0)
        self._dirty: list[bytes] = []
        self._written = 0
        try:
            self.append([orjson.dumps(header)[1:]])
            self.sync()
        except OSError:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    def append(self, bodies: Sequence[bytes]) -> None:
        """Write lines in one go; after an error call it again with nothing to try once more.

        Raises:
            OSError: They are not written; they are kept for the next try.
        """
        self._dirty += bodies
        waiting = self._dirty[self._written :]
        if not waiting:
            return
        data = b"".join(
            [b'{"seq":%d,%b\n' % (seq, body) for seq, body in enumerate(waiting, start=self.lines)]
        )
        try:
            _write_all(self._fd, data, self.size)
        except OSError:
            self._cut_back()
            raise
        self._written = len(self._dirty)
        self.size += len(data)
        self.lines += len(waiting)
        self._crc = zlib.crc32(data, self._crc)

    def sync(self) -> None:
        """Make durable what was appended, at the place where readers look for it.

        Raises:
            OSError: It is not durable; the lines are kept for the next try.
        """
        try:
            if self._is_displaced():
                self._put_back()
            os.fdatasync(self._fd)
        except OSError:
            self._cut_back()
            raise
        self._synced = (self.size, self.lines, self._crc)
        self._dirty.clear()
        self._written = 0

    def _cut_back(self) -> None:
        """Go back to what is known to be on disk."""
        self.size, self.lines, self._crc = self._synced
        self._written = 0
        # If even this fails, what stands behind `size` is overwritten later by longer data.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.size)

    def _is_displaced(self) -> bool:
        """The file was removed or moved away under our hands."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._fd))
        except FileNotFoundError:
            return True

    def _put_back(self) -> None:
        """Write what the displaced file holds to a new one in its place."""
        fd = _create(self.path)
        try:
            offset = 0
            while offset < self.size:
                chunk = os.pread(self._fd, min(_CHUNK_BYTES, self.size - offset), offset)
                _write_all(fd, chunk, offset)
                offset += len(chunk) or self.size  # shorter only if someone cut it off: keep what there is
        except OSError:
            os.close(fd)
            self.path.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd = fd

    def finish(self, reason: str) -> None:
        """Write the last line and close the file; `compress` comes next.

        Raises:
            OSError: It is still open and can be finished later.
        """
        self.append(())
        self.sync()
        try:
            _write_all(self._fd, end_line(self.lines, self._crc, reason), self.size)
            os.fdatasync(self._fd)
        except OSError:
            self._cut_back()
            raise
        os.close(self._fd)

    def abandon(self) -> int:
        """Close the file as it is, to be recovered at the next start.

        Returns:
            How many lines were not yet durable.
        """
        os.close(self._fd)
        return len(self._dirty)


def compress(path: Path) -> Path:
    """Turn a closed segment into its .zst: synced first, then renamed, then the original removed.

    Raises:
        OSError: The original is still there.
    """
    target = path.with_name(path.name + ".zst")
    draft = path.with_name(f".{target.name}.tmp")
    try:
        with path.open("rb") as source, draft.open("wb") as sink:
            os.fchmod(sink.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode))
            compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
            compressor.copy_stream(source, sink, size=path.stat().st_size)
            sink.flush()
            os.fsync(sink.fileno())
        draft.rename(target)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    path.unlink()
    sync_folder(path.parent)
    return target


def read_lines(path: Path) -> Iterable[bytes]:
    """The complete lines of a segment, open or closed, without their newlines."""
    rest = b""
    with path.open("rb") as file:
        reader: Any = zstandard.ZstdDecompressor().stream_reader(file) if path.suffix == ".zst" else file
        while chunk := reader.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
