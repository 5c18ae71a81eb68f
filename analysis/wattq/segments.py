"""The files of an archive: which there are, and what the first line of each says."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import zstandard

from wattq.errors import UserError
from wattq.lines import HEADER

VERSION = 1
_HEADER_BYTES = 4096
# A first line is not longer: of events it has the daemon's state in it.
_MOST_HEADER_BYTES = 64 << 20
# Foreign files may lie in the folder; only what is named like a segment is read.
_NAME = re.compile(r"^(?P<stem>[0-9a-f]{8}-\d{6,})\.jsonl(?P<closed>\.zst)?$")


@dataclass(frozen=True)
class Segment:
    """One file of the archive.

    Attributes:
        path: Where it is.
        kind: `samples` or `events`.
        node: Node that wrote it.
        boot_id: Boot of the node.
        number: Number of the segment within boot and kind.
        wattd_version: Version of the daemon that wrote it.
        monotonic_nano: When it was opened, CLOCK_MONOTONIC.
        time_unix_nano: The same moment, Unix time.
        devices: What its lines call the devices; samples only.
    """

    path: Path
    kind: str
    node: str
    boot_id: str
    number: int
    wattd_version: str | None = None
    monotonic_nano: int | None = None
    time_unix_nano: int | None = None
    devices: list[dict[str, Any]] = field(default_factory=list)


def quoted(text: str | Path) -> str:
    """Returns a text as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def reader(paths: Iterable[Path], columns: str) -> str:
    """Returns the table function that reads lines of files; a line that cannot be read is a row of nulls."""
    files = ", ".join(quoted(path) for path in paths)
    return (
        f"read_json([{files}], format = 'newline_delimited', columns = {columns}, ignore_errors = true, "
        "filename = true, hive_partitioning = false)"
    )


def list_files(archive: Path) -> list[Path]:
    """Lists the segments of an archive, each once, in the order in which they were written.

    While the daemon compresses a segment both forms may be there; the closed one is whole.

    Raises:
        UserError: There is no archive of a version that is understood.
    """
    if not archive.is_dir():
        raise UserError(f"{archive} is not a folder: name the archive that `wattd serve` wrote")
    found: dict[tuple[str, str], Path] = {}
    for path in archive.glob(f"v={VERSION}/kind=*/host=*/date=*/*.jsonl*"):
        named = _NAME.match(path.name)
        kind = path.parts[-4].removeprefix("kind=")
        if named is None or kind not in {"samples", "events"}:
            continue
        key = (str(path.parent), named["stem"])
        if named["closed"] or key not in found:
            found[key] = path
    if not found:
        raise UserError(_why_empty(archive))
    return sorted(found.values(), key=lambda path: (path.parts[-4:-2], path.parts[-2], path.name))


def _why_empty(archive: Path) -> str:
    for folder in (archive, archive / f"v={VERSION}"):
        if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
            return f"{archive} is not for this user to read: it is {folder.owner()}'s; ask for a copy"
    others = sorted(path.name for path in archive.glob("v=*") if path.name != f"v={VERSION}")
    if others:
        return (
            f"{archive} is an archive of another version ({', '.join(others)}), not of v={VERSION}: "
            "use the wattq that came with the wattd that wrote it"
        )
    return (
        f"{archive} holds no samples or events: run something under `wattd serve --archive {archive}` first"
    )


def _first_line(path: Path) -> str:
    """Returns the first line of a file; empty when there is none yet, or it is no text."""
    text = b""
    with path.open("rb") as file:
        source: Any = file
        if path.suffix == ".zst":
            source = zstandard.ZstdDecompressor().stream_reader(file)
        try:
            while b"\n" not in text and len(text) < _MOST_HEADER_BYTES:
                part = source.read(_HEADER_BYTES)
                if not part:
                    break
                text += part
            return text.partition(b"\n")[0].decode()
        except (UnicodeDecodeError, zstandard.ZstdError):
            return ""


def read_header(connection: duckdb.DuckDBPyConnection, path: Path) -> Segment | None:
    """Reads the first line of a file; `None` when it is not a segment, or has no first line yet.

    Raises:
        UserError: The segment is of another version.
        FileNotFoundError: The file is gone; it may have been compressed in the meantime.
    """
    row = connection.execute(
        "select json_transform(try_cast(? as json), ?)", [_first_line(path), HEADER]
    ).fetchone()
    line = row[0] if row else None
    if line is None or line["type"] != "segment" or line["boot_id"] is None or line["kind"] is None:
        return None
    if line["version"] != VERSION:
        raise UserError(f"{path} is of version {line['version']}; this wattq reads version {VERSION}")
    host = path.parts[-3].removeprefix("host=")
    return Segment(
        path=path,
        kind=line["kind"],
        node=line["node"] or host,
        boot_id=line["boot_id"],
        number=line["segment"] or 0,
        wattd_version=line["wattd_version"],
        monotonic_nano=line["monotonic_nano"],
        time_unix_nano=line["time_unix_nano"],
        devices=[device for device in line["devices"] or [] if device is not None],
    )
