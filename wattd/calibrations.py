"""Calibrations as files: one a device, written by `wattd calibrate`, copied into the archive by the daemon.

They stand in the folder `calibration` of the archive, beside `v=1`. A file holds the event as docs/archive.md
has it, with the boot that its `monotonic_nano` belongs to. Whoever can write there could tell the estimator
anything, so a file is read only if it is the daemon's own user's or root's, and only in this form.
"""

import json
import math
import os
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from wattd.archive import Archive, BusyError, body
from wattd.archive.segment import make_folder, sync_folder
from wattd.config import Config
from wattd.jobs import recover
from wattd.values import Domain, UserError

_MOST_BYTES = 64 << 10
_MOST_FILES = 1_000
_MOST_KEYS = 64
_MOST_PARAMETERS = 16
_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TEXT = re.compile(r"[ -~]{0,128}")
_FORMS = {
    "boot_id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "device": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,95}"),
    "domain": re.compile("|".join(Domain)),
    **dict.fromkeys(("driver_version", "load", "model", "reason", "sensor", "source", "type"), _TEXT),
}
_REQUIRED = frozenset({"type", "device", "domain", "sensor", "boot_id", "monotonic_nano", "time_unix_nano"})


class MalformedError(Exception):
    """A file is not what `write` makes; the text says why in a few words."""


def folder_of(archive: Path) -> Path:
    """Where the calibrations of an archive stand."""
    return archive / "calibration"


def write(folder: Path, event: dict[str, Any]) -> Path:
    """Write a calibration, in the place of an earlier one of the device.

    Raises:
        OSError: It cannot be written; the earlier one is still there.
    """
    checked(event)
    make_folder(folder)
    path = folder / f"{event['device']}.json"
    draft = folder / f".{path.name}.{os.getpid()}"
    try:
        with draft.open("w", encoding="ascii") as file:
            json.dump(event, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(folder)
    return path


def read(path: Path) -> dict[str, Any]:
    """Read a calibration.

    Raises:
        MalformedError: It is not what `write` makes.
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            raise MalformedError("it is no regular file")
        if state.st_uid not in (0, os.geteuid()):
            raise MalformedError("it is another user's")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise MalformedError(f"it is larger than {_MOST_BYTES} bytes")
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedError("it is no JSON") from error
    if checked(event)["device"] != path.stem:
        raise MalformedError("it is named after another device")
    return checked(event)


def checked(event: Any) -> dict[str, Any]:
    """The event, if it is one.

    Raises:
        MalformedError: A key is missing, or a value is not of its kind.
    """
    if not isinstance(event, dict) or event.get("type") != "calibration" or len(event) > _MOST_KEYS:
        raise MalformedError("it is no calibration")
    if missing := _REQUIRED - event.keys():
        raise MalformedError(f"it has no {min(missing)}")
    for key, value in event.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise MalformedError("a key is not a lower-case name")
        if not _is_good(key, value):
            raise MalformedError(f"{key} is not what it should be")
    return event


def _is_good(key: str, value: Any) -> bool:
    form = _FORMS.get(key)
    if form is not None:
        return isinstance(value, str) and form.fullmatch(value) is not None
    if key == "covariance":
        return _is_square(value)
    if key.endswith("_nano"):
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63
    return _is_number(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_square(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > _MOST_PARAMETERS:
        return False
    return all(
        isinstance(row, list) and len(row) == len(value) and all(map(_is_number, row)) for row in value
    )


class Calibrations:
    """The calibrations that a daemon copies into its archive, each once as it stands."""

    def __init__(self, archive: Path, boot_id: str) -> None:
        self._folder = folder_of(archive)
        self._boot_id = boot_id
        self._looked_at: tuple[int, frozenset[str]] | None = None
        self._seen: dict[str, tuple[int, int]] = {}

    def news(self, devices: frozenset[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Look for files that are new or changed since the last look.

        Args:
            devices: Names of the devices that are here; files of others are left alone.

        Returns:
            Lines for the archive, and a line for each file that is passed over because it is wrong.
        """
        try:
            looked_at = self._folder.stat().st_mtime_ns, devices
            if looked_at == self._looked_at:
                return [], []
            paths = sorted(self._folder.glob("*.json"))[:_MOST_FILES]
        except OSError:
            return [], []
        self._looked_at = looked_at
        lines, complaints = [], []
        for path in paths:
            if path.stem not in devices:
                continue
            try:
                state = path.lstat()
                mark = (state.st_mtime_ns, state.st_ino)
                if self._seen.get(path.name) == mark:
                    continue
                self._seen[path.name] = mark
                lines.append(_line(read(path), self._boot_id))
            except MalformedError as error:
                complaints.append(f"{path}: {error}; it is passed over, run `wattd calibrate` anew")
            except OSError as error:
                complaints.append(f"{path}: {error.strerror}; it is passed over")
        return lines, complaints


async def append(config: Config, boot_id: str, events: Sequence[dict[str, Any]]) -> bool:
    """Put events into the archive, in a segment of our own.

    Returns:
        False where a daemon writes that archive: it copies the files in by itself.

    Raises:
        UserError: The archive cannot be written.
    """
    checkpoint = b""
    try:
        archive = Archive(config, boot_id, list, lambda: orjson.Fragment(checkpoint), _clocks)
    except BusyError:
        return False
    same_boot, lines = archive.last_events()
    # The segment must carry on what the last daemon knew: the next one goes on from it.
    checkpoint = recover(lines, same_boot=same_boot).checkpoint()
    archive.start()
    archive.events.append([body(_line(event, boot_id)) for event in events])
    await archive.events.commit()
    if await archive.close():
        raise UserError(f"archive {archive.folder}: {archive.fault}; the calibration is in its files alone")
    return True


def _clocks() -> tuple[int, int]:
    return time.monotonic_ns(), time.time_ns()


def _line(event: dict[str, Any], boot_id: str) -> dict[str, Any]:
    """The line of the archive: it names the boot only where that is another one."""
    line = {"type": "calibration", **event}
    if line["boot_id"] == boot_id:
        del line["boot_id"]
    return line
