"""The simulated library has the interface of NVIDIA's own header."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.nvml.driver import FOLDER, compiler

HEADER = "nvidia-nvml-dev-cu12==12.9.79"
KEPT = Path(__file__).parents[2] / "build" / "nvml"
FLAGS = ("-fsyntax-only", "-Wall", "-Wextra", "-Werror")


def compiles(include: Path) -> None:
    """Every assertion and prototype of interface.c holds with the header in this folder."""
    done = subprocess.run(
        [compiler(), *FLAGS, "-I", str(include), str(FOLDER / "interface.c")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def nvidia_header() -> Path:
    """The folder of NVIDIA's header, fetched once into build/."""
    found = sorted(KEPT.rglob("nvml.h"))
    if not found:
        KEPT.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(KEPT), HEADER]
        done = subprocess.run(pip, check=False, capture_output=True, text=True)
        wheels = sorted(KEPT.glob("nvidia_nvml_dev_cu12-*.whl"))
        if not wheels:
            reason = (
                f"pip can't fetch {HEADER}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
            )
            assert not os.environ.get("CI"), reason
            pytest.skip(f"left out: {reason}")
        with zipfile.ZipFile(wheels[-1]) as wheel:
            wheel.extractall(KEPT)
        found = sorted(KEPT.rglob("nvml.h"))
    return found[0].parent


def test_own_header_is_what_the_library_relies_on() -> None:
    """Sizes, offsets, values and prototypes of our own header are those that interface.c states."""
    compiles(FOLDER / "include")


def test_nvidias_header_is_what_the_library_relies_on() -> None:
    """The same assertions and prototypes hold for NVIDIA's real nvml.h."""
    compiles(nvidia_header())


def test_assertions_can_fail(tmp_path: Path) -> None:
    """A header with another field number, or another prototype, does not pass."""
    text = (FOLDER / "include" / "nvml.h").read_text()
    for old, new in (("POWER_INSTANT 186", "POWER_INSTANT 187"), ("int *count);", "long *count);")):
        assert old in text
        (tmp_path / "nvml.h").write_text(text.replace(old, new))
        with pytest.raises(AssertionError, match="error"):
            compiles(tmp_path)
