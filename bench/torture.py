"""Kill the daemon again and again under load, and see what is lost.

A client marks phases all the while. At random moments the server, or the whole daemon, gets
SIGKILL; the daemon is started again. In the end: every line that was seen on disk is still there,
every segment reads with its lines numbered without a hole, every mark of the client is there
exactly once, and no counter went down.

    python -m bench.torture [--kills 30] [--seed N]
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kdclient.link import listens
from kdclient.spool import deliver
from tests.daemon import Daemon, lines, segments, wait_until

_CLIENT = """
import sys, time
import kdclient
watt = kdclient.connect()
count = 0
with watt.run("torture") as run:
    print("begun", flush=True)
    while not sys.stdin in __import__("select").select([sys.stdin], [], [], 0)[0]:
        with run.phase("outer"):
            with run.phase("inner", tokens=1):
                time.sleep(0.002)
        count += 2
print(count, flush=True)
"""


def main() -> int:
    """Run it; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="make torture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="SIGKILLs in all (default: 30)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the moments and victims")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4), "big")
    print(f"torture: {arguments.kills} kills, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="wattd-torture-") as folder:
        faults, facts = _torture(Path(folder), arguments.kills, random.Random(seed))  # noqa: S311 - repeatable
    for name, value in facts.items():
        print(f"  {name:<46} {value}")
    for fault in faults:
        print(f"  LOST: {fault}")
    print("torture: nothing was lost" if not faults else f"torture: {len(faults)} promises broken")
    return bool(faults)


def _torture(folder: Path, kills: int, chance: random.Random) -> tuple[list[str], dict[str, Any]]:
    victims: Counter[str] = Counter()
    seen = set[bytes]()
    environment = {**os.environ, "WATTD_SOCKET": str(folder / "s"), "WATTD_SPOOL": str(folder / "spool")}
    with Daemon(folder) as daemon:
        client = subprocess.Popen(
            [sys.executable, "-c", _CLIENT],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdin
        assert client.stdout
        client.stdout.readline()
        for _ in range(kills):
            time.sleep(chance.uniform(0.05, 1.0))
            seen |= _on_disk(daemon.archive)
            victim = chance.choice(("server", "daemon"))
            victims[victim] += 1
            wait_until(lambda: _has_server(daemon), 60)  # it pauses before it starts a server yet again
            if victim == "server":
                os.kill(daemon.server_pid(), signal.SIGKILL)
            else:
                daemon.kill()
                daemon.start()
        wait_until(lambda: _has_server(daemon), 60)
        time.sleep(1)
        client.stdin.close()
        marked = int(client.stdout.read())
        client.wait(timeout=30)
        # What the client could not deliver in the two seconds of its end is for whoever comes next.
        wait_until(lambda: listens(str(daemon.socket)), 60)
        late = deliver(str(daemon.socket), str(folder / "spool"))
        code = daemon.stop()
        faults = [] if code == 0 else [f"exit code {code} at the end"]
        faults += _check(daemon.archive, seen, marked)
        written = sum(
            path.stat().st_size for kind in ("samples", "events") for path in segments(daemon.archive, kind)
        )
    facts = {
        "kills of the server": victims["server"],
        "kills of the whole daemon": victims["daemon"],
        "phases marked by the client": marked,
        "marks delivered by the next process": late.marks,
        "lines seen on disk before a kill": len(seen),
        "bytes of the archive": written,
    }
    return faults, facts


def _has_server(daemon: Daemon) -> bool:
    pid = daemon.process.pid
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def _on_disk(archive: Path) -> set[bytes]:
    """Whole lines of the segments that are being written; a closed one never changes."""
    found = set[bytes]()
    for kind in ("samples", "events"):
        for path in segments(archive, kind):
            if path.suffix == ".jsonl":
                try:
                    data = path.read_bytes()
                except FileNotFoundError:
                    continue  # closed under our hands
                found.update(line for line in data.split(b"\n")[:-1])
    return found


def _check(archive: Path, seen: set[bytes], marked: int) -> list[str]:
    faults = list[str]()
    kept, phases, numbers = set[str](), Counter[tuple[str, int]](), list[int]()
    counters: dict[int, float] = {}
    for kind in ("samples", "events"):
        for line in lines(archive, kind):
            kept.add(json.dumps(line, sort_keys=True))
            numbers.append(line["seq"])
            if line["type"] == "phase":
                phases[line["client"], line["mark"]] += 1
            if line["type"] == "second":
                for device, joules in zip(line["device"], line["energy_joules"], strict=True):
                    if joules < counters.get(device, 0):
                        faults.append(
                            f"the counter of device {device} went down: {counters[device]} to {joules}"
                        )
                    counters[device] = joules
    for previous, number in itertools.pairwise(numbers):
        if number not in {previous + 1, 0}:
            faults.append(f"lines {previous + 1} to {number - 1} are missing in a segment")
    gone = {json.dumps(json.loads(line), sort_keys=True) for line in seen} - kept
    faults += [f"a line that was on disk: {line[:120]}" for line in sorted(gone)[:5]]
    if len(phases) != marked:
        faults.append(f"{marked - len(phases)} of {marked} phases")
    faults += [f"phase {key} stands there {count} times" for key, count in phases.items() if count > 1][:5]
    return faults


if __name__ == "__main__":
    sys.exit(main())
