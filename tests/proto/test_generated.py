"""The wire contract: what is committed is what the proto files give, and every field is documented."""

import filecmp
import itertools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = sorted((ROOT / "proto/wattd/v1").glob("*.proto"))


def test_committed_stubs_are_the_generated_ones(tmp_path: Path) -> None:
    """Generating again gives the same bytes."""
    subprocess.run([ROOT / "scripts/proto", tmp_path], check=True)
    generated = sorted(path.name for path in (tmp_path / "wattd/v1").iterdir())
    committed = sorted(path.name for path in (ROOT / "wattd/v1").glob("*_pb2*"))
    assert generated == committed
    _, differing, missing = filecmp.cmpfiles(
        tmp_path / "wattd/v1", ROOT / "wattd/v1", generated, shallow=False
    )
    assert (differing, missing) == ([], [])


@pytest.mark.parametrize("path", PROTO, ids=lambda path: path.name)
def test_every_field_is_documented(path: Path) -> None:
    """A comment stands above every field, message, enum value and RPC of the contract."""
    lines = path.read_text().splitlines()
    declared = re.compile(
        r"\s*(rpc |message |enum |(optional |repeated )?[\w.<>, ]+ \w+ = \d+;|[A-Z_]+ = \d+;)"
    )
    bare = [
        line.strip()
        for before, line in itertools.pairwise(lines)
        if declared.match(line)
        and not before.strip().startswith("//")
        and "UNSPECIFIED" not in line
        and not re.match(r"message \w+Re(quest|sponse) ", line)
    ]
    assert bare == []


@pytest.mark.parametrize("path", PROTO, ids=lambda path: path.name)
def test_times_and_quantities_carry_their_unit(path: Path) -> None:
    """A number that has a unit says it in its name."""
    for name in re.findall(r"(?:double|sfixed64) (\w+) = ", path.read_text()):
        assert re.search(r"_(nano|joules|watts|seconds|hertz|bytes|ratio)$", name) or name in {
            "value",
            "stderr",
        }
