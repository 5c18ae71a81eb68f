import asyncio
import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import lines, segments
from wattd.archive import Archive, Log, body
from wattd.config import Config
from wattd.values import UserError

_BOOT = "0123abcd-0000-4000-8000-000000000000"


@pytest.fixture
def compressor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def _log(folder: Path, compressor: ThreadPoolExecutor, **changed: Any) -> Log:
    state = changed.pop("state", {})
    place = folder / "v=1" / "kind=events" / "host=n" / "date=2026-01-02"
    settings: dict[str, Any] = {
        "segment_bytes": 1 << 20,
        "segment_seconds": 900.0,
        "bound_bytes": 1 << 20,
        "sync_every_batch": True,
        **changed,
    }
    return Log(
        lambda number: place / f"0123abcd-{number:06d}.jsonl",
        0,
        lambda: {"state": dict(state)},
        compressor=compressor,
        **settings,
    )


def _marks(numbers: Iterator[int] | range) -> list[bytes]:
    return [body({"type": "phase", "mark": number}) for number in numbers]


def test_what_is_acknowledged_is_on_disk(tmp_path: Path, compressor: ThreadPoolExecutor) -> None:
    """When `commit` is done, a reader finds every line appended before it, in order."""

    async def scenario() -> None:
        log = _log(tmp_path, compressor)
        log.open()
        numbers = count()

        async def client() -> None:
            for _ in range(5):
                mine = [next(numbers), next(numbers)]
                log.append([body({"type": "phase", "mark": number}) for number in mine])
                await log.commit()
                found = {line.get("mark") for line in lines(tmp_path, "events")}
                assert found.issuperset(mine)

        await asyncio.gather(*(client() for _ in range(20)))
        assert await log.close() == 0
        found = [line["mark"] for line in lines(tmp_path, "events") if line["type"] == "phase"]
        assert found == list(range(200))

    asyncio.run(scenario())


def test_many_who_wait_share_a_sync(
    tmp_path: Path, compressor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Group commit: a hundred clients at once do not cost a hundred syncs."""
    syncs = count()
    real = os.fdatasync

    def counted(fd: int) -> None:
        next(syncs)
        real(fd)

    async def scenario() -> int:
        log = _log(tmp_path, compressor)
        log.open()
        monkeypatch.setattr(os, "fdatasync", counted)
        for number in range(100):
            log.append(_marks(range(number, number + 1)))
        await asyncio.gather(*(log.commit() for _ in range(100)))
        used = next(syncs)
        await log.close()
        return used

    assert asyncio.run(scenario()) <= 2


def test_a_new_segment_begins_with_the_state_after_all_lines_before_it(
    tmp_path: Path, compressor: ThreadPoolExecutor
) -> None:
    """The checkpoint and the lines that follow it hold each line exactly once."""
    state: dict[str, int] = {}

    async def scenario() -> None:
        log = _log(tmp_path, compressor, segment_bytes=4096, state=state)
        log._header = lambda: {"state": dict(state)}
        log.open()
        for number in range(500):
            state["last"] = number
            log.append(_marks(range(number, number + 1)))
            if number % 7 == 0:
                await log.commit()
        await log.close()

    asyncio.run(scenario())
    found = list(lines(tmp_path, "events"))
    last = -1
    for line in found:
        if line["type"] == "segment":
            assert line["state"].get("last", -1) == last
        elif line["type"] == "phase":
            assert line["mark"] == last + 1
            last = line["mark"]
    assert last == 499
    names = [path.name for path in segments(tmp_path, "events")]
    assert len(names) > 3
    assert names == [f"0123abcd-{number:06d}.jsonl.zst" for number in range(len(names))]


def test_rotating_parts_the_lines_before_from_those_after(
    tmp_path: Path, compressor: ThreadPoolExecutor
) -> None:
    """What is appended after `rotate` is in the new segment, however fast it comes."""

    async def scenario() -> None:
        log = _log(tmp_path, compressor)
        log.open()
        for number in range(4):
            log.append(_marks(range(number, number + 1)))
            log.rotate()
        await log.close()

    asyncio.run(scenario())
    kinds = [line.get("mark", line["type"]) for line in lines(tmp_path, "events")]
    assert kinds == [part for number in range(4) for part in ("segment", number, "end")] + ["segment", "end"]


def test_while_the_disk_is_full_nothing_is_acknowledged_and_nothing_is_lost(
    tmp_path: Path, compressor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is shown, lines wait in memory up to the bound, and all are written afterwards."""
    monkeypatch.setattr("wattd.archive.log._RETRY_SECONDS", 0.01)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scenario() -> None:
        log = _log(tmp_path, compressor, bound_bytes=400)
        log.open()
        log.append(_marks(range(3)))
        await log.commit()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            log.append(_marks(range(3, 20)))
            waiting = log.commit()
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert log.fault == "No space left on device"
            assert log.is_full
            assert not log.append(_marks(range(90, 92)))
            assert log.append(_marks(range(20, 21)), must=True)
            room = asyncio.create_task(log.room())
            await asyncio.sleep(0)
            assert not room.done()
        await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(room, 5)
        assert (log.fault, log.dropped_lines) == ("", 2)
        await log.close()

    asyncio.run(scenario())
    found = [line["mark"] for line in lines(tmp_path, "events") if line["type"] == "phase"]
    assert found == list(range(21))


def test_closing_while_the_disk_is_broken_says_what_is_lost(
    tmp_path: Path, compressor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends, acknowledges nothing, and counts."""

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    async def scenario() -> None:
        log = _log(tmp_path, compressor)
        log.open()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", broken)
            log.append(_marks(range(5)))
            waiting = log.commit()
            assert await log.close() == 5
            assert waiting.cancelled()

    asyncio.run(scenario())


def _archive(folder: Path, node: str = "n") -> Archive:
    config = Config(archive=folder, socket=folder / "s", node=node)
    return Archive(config, _BOOT, list, dict, lambda: (1_000, 1_700_000_000_000_000_000))


def test_an_archive_has_one_writer(tmp_path: Path) -> None:
    """A second daemon on the same folder and node is refused; another node is not."""

    async def scenario() -> None:
        first = _archive(tmp_path)
        first.start()
        with pytest.raises(UserError, match="another daemon writes it"):
            _archive(tmp_path)
        other = _archive(tmp_path, "other")
        other.start()
        await other.close()
        await first.close()
        again = _archive(tmp_path)
        again.start()
        await again.close()

    asyncio.run(scenario())


def test_numbers_go_on_and_the_newest_events_are_found(tmp_path: Path) -> None:
    """A restart continues the numbers of its boot and finds the lines of the last segment."""

    async def scenario() -> None:
        for round_number in range(3):
            archive = _archive(tmp_path)
            same_boot, found = archive.last_events()
            marks = [line["mark"] for line in found if line["type"] == "phase"]
            assert marks == ([round_number - 1] if round_number else [])
            assert same_boot == bool(round_number)
            archive.start()
            archive.events.append(_marks(range(round_number, round_number + 1)))
            await archive.close()

    asyncio.run(scenario())
    names = [path.name for path in segments(tmp_path, "events")]
    assert names == [f"0123abcd-{number:06d}.jsonl.zst" for number in range(3)]
    first = json.loads(json.dumps(next(lines(tmp_path, "events"))))
    assert (first["boot_id"], first["node"], first["segment"]) == (_BOOT, "n", 0)


def test_an_archive_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    """The message names the folder and what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"archive .*/file/a: Not a directory; .*--archive DIR"):
        _archive(tmp_path / "file" / "a")
