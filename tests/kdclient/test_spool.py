"""The file in which marks wait, and who may take it."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdclient import spool


def _records(path: Path) -> tuple[list[tuple[int, bytes]], int]:
    for orphan in spool.orphans(str(path.parent)):
        return list(orphan.records()), orphan.torn_bytes
    return [], -1


def _filled(folder: Path, bodies: list[tuple[int, bytes]]) -> Path:
    file = spool.Spool(str(folder), "c")
    for kind, body in bodies:
        file.append(kind, body)
    file.sync()
    file.leave()
    return Path(file.path)


def test_only_its_user_reads_it(tmp_path: Path) -> None:
    """Marks are their user's: the file is 0600 and its folder 0700."""
    path = _filled(tmp_path / "spool", [(spool.MARKS, b"x")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_living_owner_keeps_its_file(tmp_path: Path) -> None:
    """While its client lives nobody else takes the file; afterwards one may."""
    file = spool.Spool(str(tmp_path), "c")
    file.append(spool.MARKS, b"x")
    assert not list(spool.orphans(str(tmp_path)))
    file.leave()
    assert [orphan.path for orphan in spool.orphans(str(tmp_path))] == [file.path]


def test_a_taken_file_is_not_taken_again(tmp_path: Path) -> None:
    """Two processes do not deliver the same file."""
    _filled(tmp_path, [(spool.MARKS, b"x")])
    for _ in spool.orphans(str(tmp_path)):
        assert not list(spool.orphans(str(tmp_path)))


def test_links_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """A link in the spool is not followed, and what is no spool file not touched."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "l.marks").symlink_to(target)
    (folder / "notes.txt").write_text("mine")
    os.mkfifo(folder / "p.marks")
    assert not list(spool.orphans(str(folder)))


def test_a_full_disk_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that was written in part is written over, and the failure said."""
    file = spool.Spool(str(tmp_path), "c")
    file.append(spool.MARKS, b"first")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:7], offset))
    with pytest.raises(OSError, match="full"):
        file.append(spool.MARKS, b"second")
    monkeypatch.undo()
    file.append(spool.RESULTS, b"third")
    file.leave()
    assert _records(Path(file.path)) == ([(1, b"first"), (2, b"third")], 0)


@given(
    bodies=st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=60)), max_size=6),
    cut=st.integers(0, 500),
)
def test_whatever_is_cut_off_the_whole_records_stay(
    bodies: list[tuple[int, bytes]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file that ends anywhere gives exactly the records that are whole, and counts the rest."""
    path = _filled(tmp_path_factory.mktemp("spool"), [(1, b"head"), *bodies])
    data = path.read_bytes()[: max(0, path.stat().st_size - cut)]
    path.write_bytes(data)
    whole, size = [], 0
    for kind, body in [(1, b"head"), *bodies]:
        if size + 9 + len(body) > len(data):
            break
        whole.append((kind, body))
        size += 9 + len(body)
    assert _records(path) == (whole, len(data) - size)


@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_is_seen(place: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A damaged record ends the file: nothing wrong is delivered."""
    path = _filled(tmp_path_factory.mktemp("spool"), [(1, b"a" * 20), (1, b"b" * 20)])
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    records, torn = _records(path)
    assert records in ([], [(1, b"a" * 20)])
    assert torn == len(data) - 29 * len(records)
