"""Environments of the tools that wattd is compared with: their pins clash with ours, so each has its own.

python -m bench.accuracy.peers.environments    make them all in build/peers/, once
"""

import contextlib
import fcntl
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build" / "peers"
PACKAGES = {"zeus": "zeus==0.16.0", "joules": "landauer-gap==0.8.0", "codecarbon": "codecarbon==3.3.2"}
"""Environment -> what is installed in it from PyPI."""


class PeerMissingError(Exception):
    """A peer can't be installed here; the text says why, in one line."""


def python(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there.

    Raises:
        PeerMissingError: pip can't install it.
    """
    folder = FOLDER / name
    stamp = folder / "installed"
    interpreter = folder / "bin" / "python"
    with _alone(name):
        if stamp.exists() and stamp.read_text() == PACKAGES[name]:
            return interpreter
        print(f"bench: installing {PACKAGES[name]} into {folder.relative_to(ROOT)} (once)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        done = subprocess.run(
            [interpreter, "-m", "pip", "--disable-pip-version-check", "install", "-qq", PACKAGES[name]],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise PeerMissingError(f"pip can't install {PACKAGES[name]}: {last}")
        stamp.write_text(PACKAGES[name])
        return interpreter


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """One process at a time makes an environment."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Make all of them; returns 1 if one can't be made."""
    missing = 0
    for name in PACKAGES:
        try:
            print(python(name))
        except PeerMissingError as error:
            print(f"bench: {error}", file=sys.stderr)
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
