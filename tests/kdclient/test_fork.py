"""Forked children, in a process of its own that streams to a real daemon.

Not beside a gRPC server of the same process: a server's threads do not survive a fork.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.daemon import Daemon, lines

_PROGRAM = """
import multiprocessing, os, time, kdclient
client = kdclient.connect()
bad = 0
def work(number):
    with run.phase("worker", tokens=number):
        time.sleep(0.005)
with client.run("r") as run:  # and at once a fork: the sender is still importing
    for number in range(20):
        with run.phase("parent"):
            pass
        child = os.fork()
        if child == 0:
            work(number)
            client.flush(5.0)
            if number % 2:
                run.__exit__(None, None, None)  # a child that leaves its parent's run ends nothing
            os._exit(0)
        bad += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    workers = [multiprocessing.get_context("fork").Process(target=work, args=(20 + n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
        bad += worker.exitcode != 0
print("bad", bad)
"""


def test_forked_children_mark_for_themselves_within_their_parents_run(tmp_path: Path) -> None:
    """Each child has an identity of its own, none is harmed, all arrives once, and the run ends once."""
    with Daemon(tmp_path) as daemon:
        own = {"WATTD_SOCKET": str(daemon.socket), "WATTD_SPOOL": str(tmp_path / "spool")}
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=os.environ | own,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stdout == "bad 0\n"
        assert daemon.stop() == 0
        events = list(lines(daemon.archive, "events"))
    phases = [line for line in events if line["type"] == "phase"]
    assert sorted(line["tokens"] for line in phases if line["phase"] == "worker") == list(range(24))
    assert sum(line["phase"] == "parent" for line in phases) == 20
    assert len({line["client"] for line in phases}) == 25
    assert len({line["run_id"] for line in phases}) == 1
    assert sum(line["type"] == "run_end" for line in events) == 1
    assert sum(line["type"] == "run_join" for line in events) == 24
