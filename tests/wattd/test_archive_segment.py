import errno
import json
import os
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from wattd.archive.recovery import find, last_samples, lines_of, mend
from wattd.archive.segment import Segment, compress

_HEADER = {"type": "segment", "version": 1}
_FOLDER = "date=2026-01-02"


def _path(host: Path, number: int = 0) -> Path:
    return host / _FOLDER / f"0123abcd-{number:06d}.jsonl"


def _bodies(count: int, first: int = 0) -> list[bytes]:
    return [b'"type":"tick","monotonic_nano":%d}' % number for number in range(first, first + count)]


def _lines(data: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def test_a_closed_segment_says_how_much_it_holds(tmp_path: Path) -> None:
    """The last line has the count and the checksum of all bytes before it; `seq` has no hole."""
    segment = Segment(_path(tmp_path), _HEADER)
    segment.append(_bodies(3))
    segment.append(_bodies(2, 3))
    segment.finish("rotated")
    data = _path(tmp_path).read_bytes()
    lines = _lines(data)
    before_end = data[: data[:-1].rfind(b"\n") + 1]
    assert [line["seq"] for line in lines] == list(range(7))
    assert lines[-1] == {
        "seq": 6,
        "type": "end",
        "lines": 6,
        "crc32": f"{zlib.crc32(before_end):08x}",
        "reason": "rotated",
    }


def test_files_and_folders_are_closed_to_others(tmp_path: Path) -> None:
    """Files 0640 and folders 0750, whatever the umask."""
    before = os.umask(0)
    try:
        Segment(_path(tmp_path / "new"), _HEADER).finish("stopped")
    finally:
        os.umask(before)
    compressed = compress(_path(tmp_path / "new"))
    assert compressed.stat().st_mode & 0o777 == 0o640
    assert compressed.parent.stat().st_mode & 0o777 == 0o750
    assert compressed.parent.parent.stat().st_mode & 0o777 == 0o750


def test_an_existing_segment_is_never_overwritten(tmp_path: Path) -> None:
    """A number that is taken is refused and left as it is."""
    Segment(_path(tmp_path), _HEADER).finish("stopped")
    before = _path(tmp_path).read_bytes()
    with pytest.raises(FileExistsError):
        Segment(_path(tmp_path), _HEADER)
    assert _path(tmp_path).read_bytes() == before


def test_compressing_keeps_every_byte_and_leaves_one_file(tmp_path: Path) -> None:
    """The .zst holds what the segment held, and the segment is gone."""
    segment = Segment(_path(tmp_path), _HEADER)
    segment.append(_bodies(1000))
    segment.finish("rotated")
    plain = _path(tmp_path).read_bytes()
    target = compress(_path(tmp_path))
    assert zstandard.decompress(target.read_bytes()) == plain
    assert [path.name for path in target.parent.iterdir()] == ["0123abcd-000000.jsonl.zst"]


@settings(max_examples=60, deadline=None)
@given(keep=st.integers(0, 400), junk=st.sampled_from([b"", b"\0" * 5000, b'{"seq":', b"\0\n\0\n"]))
def test_recovery_keeps_every_whole_line_and_counts_the_rest(
    tmp_path_factory: pytest.TempPathFactory, keep: int, junk: bytes
) -> None:
    """Wherever a crash cut the file, what was whole stays, and what is cut off is said."""
    host = tmp_path_factory.mktemp("host")
    segment = Segment(_path(host), _HEADER)
    segment.append(_bodies(6))
    segment.sync()
    kept = _path(host).read_bytes()[:keep]
    written = kept + junk
    whole = kept[: kept.rfind(b"\n") + 1]
    segment.abandon()
    _path(host).write_bytes(written)
    waiting, torn = mend(host)
    if not whole:
        assert not waiting
        assert not _path(host).exists()
        return
    data = _path(host).read_bytes()
    end = _lines(data)[-1]
    assert data.startswith(whole)
    assert torn == len(written) - len(whole)
    assert (end["reason"], end["torn_bytes"], end["lines"]) == ("recovered", torn, whole.count(b"\n"))
    assert end["crc32"] == f"{zlib.crc32(whole):08x}"


def test_recovery_finishes_what_a_crash_while_closing_left(tmp_path: Path) -> None:
    """An ended segment is compressed as it is; one that is compressed already loses its original only."""
    for number in range(2):
        segment = Segment(_path(tmp_path, number), _HEADER)
        segment.append(_bodies(4))
        segment.finish("rotated")
    plain = _path(tmp_path, 1).read_bytes()
    compress(_path(tmp_path, 1))
    _path(tmp_path, 1).write_bytes(plain)
    (tmp_path / _FOLDER / ".0123abcd-000000.jsonl.zst.tmp").write_bytes(b"half")
    before = _path(tmp_path, 0).read_bytes()
    assert mend(tmp_path) == ([_path(tmp_path, 0)], 0)
    assert _path(tmp_path, 0).read_bytes() == before
    assert sorted(path.name for path in (tmp_path / _FOLDER).iterdir()) == [
        "0123abcd-000000.jsonl",
        "0123abcd-000001.jsonl.zst",
    ]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_after_an_error_of_the_disk_every_line_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A write that came half way, or a sync that failed, is taken back and done again."""
    segment = Segment(_path(tmp_path), _HEADER)
    segment.append(_bodies(3))
    segment.sync()
    real_pwrite = os.pwrite

    def fail(fd: int, *arguments: object) -> int:
        if call == "pwrite":
            real_pwrite(fd, b'{"seq":4,"ty', os.fstat(fd).st_size)
        raise OSError(errno.EIO, "Input/output error")

    segment.append(_bodies(2, 3))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="Input/output"):
            segment.append(_bodies(2, 5)) if call == "pwrite" else segment.sync()
    if call == "fdatasync":
        segment.append(_bodies(2, 5))
    segment.append(())
    segment.finish("stopped")
    lines = _lines(_path(tmp_path).read_bytes())
    assert [line["seq"] for line in lines] == list(range(9))
    assert [line["monotonic_nano"] for line in lines[1:-1]] == list(range(7))


@pytest.mark.parametrize("how", ["moved", "removed"])
def test_a_folder_that_is_taken_away_is_made_again_with_all_lines(tmp_path: Path, how: str) -> None:
    """Lines that were acknowledged are put back where readers look for them."""
    segment = Segment(_path(tmp_path), _HEADER)
    segment.append(_bodies(3))
    segment.sync()
    if how == "moved":
        (tmp_path / _FOLDER).rename(tmp_path / "elsewhere")
    else:
        _path(tmp_path).unlink()
        (tmp_path / _FOLDER).rmdir()
    segment.append(_bodies(2, 3))
    segment.finish("stopped")
    lines = _lines(_path(tmp_path).read_bytes())
    assert [line["seq"] for line in lines] == list(range(7))
    assert lines[-1]["type"] == "end"


def test_the_last_counters_are_found_across_segments(tmp_path: Path) -> None:
    """The newest energy of each device counts, compressed or not; foreign files are passed over."""
    devices = [
        {"number": 0, "device": "GPU-a"},
        {"number": 1, "device": "package-0", "offset_microjoules": 7},
    ]
    for number in range(2):
        segment = Segment(_path(tmp_path, number), {**_HEADER, "devices": devices})
        line = {
            "type": "tick",
            "monotonic_nano": 1000 + number,
            "device": [0] if number else [0, 1],
            "energy_joules": [2.5 + number] if number else [2.5, 3.000001],
            **({"read_us": [4]} if number else {}),
        }
        segment.append([json.dumps(line).encode()[1:]])
        segment.finish("rotated")
    compress(_path(tmp_path, 0))
    (tmp_path / _FOLDER / "notes.jsonl").write_text("{}\n")
    last = last_samples(tmp_path, "0123abcd")
    assert last.monotonic_nano == {"tick": 1001}
    assert (last.counters["GPU-a"].microjoules, last.counters["GPU-a"].monotonic_nano) == (3_500_000, 5001)
    package = last.counters["package-0"]
    assert (package.microjoules, package.monotonic_nano, package.offset_microjoules) == (3_000_001, 1000, 7)
    assert last_samples(tmp_path, "ffffffff").counters == {}
    assert [line["type"] for line in lines_of(find(tmp_path)[0])] == ["segment", "tick", "end"]
