#!/usr/bin/env python3
"""The main job, small and real: what each phase of a distillation cost on this machine, in joules.

Starts `wattd serve` on this machine's own sensors, distils SmolLM2-135M-Instruct into a student of 7 M
parameters with its phases marked, scores both, stops the daemon, and asks the archive: a table, a check
that its rows add up to the counter, a page. Leaves build/demo, new each time. `make demo` runs it.

    .venv/bin/python scripts/demo.py
"""

import argparse
import fcntl
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # not resolved: the interpreter may be a link out of .venv/bin
# Two cores take about 4 minutes for this.
STEPS, WINDOW, HELD_OUT, QUESTIONS = 90, 256, 12, 281
RUN = "smollm2-response-0"
READY_SECONDS = STOP_SECONDS = 30
# The promise of the rows' sum; energies are kept in whole microjoules, so one of these is no difference.
CLOSURE_RATIO, MICROJOULE = 1e-9, 1e-6

# The counter at both ends of each run, from the samples alone: an update happened in the middle of its
# bracket, and between updates the counter is a straight line.
COUNTER = """
with bounded as (
    select
        node, boot_id, device, samples.monotonic_nano, samples.energy_joules,
        coalesce(
            greatest(samples.energy_old_monotonic_nano, samples.monotonic_nano - devices.update_nano),
            samples.energy_old_monotonic_nano,
            samples.monotonic_nano
        ) as old_nano
    from samples inner join devices using (node, boot_id, device)
    where samples.energy_joules is not null
),
updates as (
    select
        node, boot_id, device, energy_joules,
        old_nano + cast(floor((monotonic_nano - old_nano) / 2.0) as bigint) as nano
    from bounded
),
ends as (
    select run_id, run, node, boot_id, begin_monotonic_nano as nano, -1 as sign from runs
    union all
    select run_id, run, node, boot_id, end_monotonic_nano as nano, 1 as sign from runs
),
around as (
    select
        run_id, run, node, device, ends.nano, sign,
        max(updates.nano) filter (where updates.nano <= ends.nano) as before_nano,
        max_by(energy_joules, updates.nano) filter (where updates.nano <= ends.nano) as before_joules,
        min(updates.nano) filter (where updates.nano > ends.nano) as after_nano,
        min_by(energy_joules, updates.nano) filter (where updates.nano > ends.nano) as after_joules
    from ends inner join updates using (node, boot_id)
    group by all
)
select
    run_id, run, node, device,
    sum(sign * (before_joules
        + (after_joules - before_joules) * (nano - before_nano) / (after_nano - before_nano)
    )) as counter_joules
from around
group by all
order by all
"""


class DemoError(Exception):
    """What went wrong, in one line."""


def main() -> int:
    """Run the demonstration."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    ).parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the daemon is stopped on this way out too
    start = time.monotonic()
    try:
        with alone():
            demo()
        say(f"took {time.monotonic() - start:.0f} s; the page: {ROOT / 'build/demo/report.html'}")
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"demo: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 1
    return 0


@contextmanager
def alone() -> Iterator[None]:
    """One demonstration at a time: the next one removes the archive of the last."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build/demo.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("another demonstration runs in this checkout: wait for its end") from None
        yield


def demo() -> None:
    """Measure, then ask."""
    assets, out = ROOT / "build/cache", ROOT / "build/demo"
    run("demo_assets", sys.executable, ROOT / "scripts/demo_assets.py", assets)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    archive, student = out / "archive", out / "distilled/student"
    teacher, text = assets / "teacher", assets / "text"
    with daemon(archive, out / "wattd.log") as socket:
        # Marks that this daemon should miss stay in this folder, away from the user's own.
        environment = {**os.environ, "WATTD_SOCKET": socket, "WATTD_SPOOL": str(out / "spool")}
        for name in ("WATTD_TOKEN_FILE", "WATTD_RUN_ID"):
            environment.pop(name, None)
        say("distilling SmolLM2-135M-Instruct into a student of 7 M parameters")
        words = ["--teacher", teacher, "--student", "tiny", "--text", text, "--output", out / "distilled"]
        words += ["--run", RUN, "--steps", STEPS, "--batch", 1, "--window", WINDOW, "--held-out", HELD_OUT]
        run(
            "kdclient distill",
            BIN / "kdclient",
            "distill",
            *words,
            "--checkpoint-every",
            30,
            environment=environment,
        )
        for label, model in (("teacher", teacher), ("student", student)):
            say(f"asking the {label} {QUESTIONS} multiple-choice questions")
            words = [model, "--label", label, "--limit", QUESTIONS, "--run", f"evaluate-{label}"]
            run("kdclient evaluate", BIN / "kdclient", "evaluate", *words, environment=environment)
    say("energy per phase")
    run("wattq phases", BIN / "wattq", "phases", archive)
    check_sum(archive)
    run("wattq report", BIN / "wattq", "report", archive, "--output", out / "report.html")


@contextmanager
def daemon(archive: Path, log: Path) -> Iterator[str]:
    """`wattd serve`, from its ready line to its clean stop; gives the path of its socket."""
    # A path of a Unix socket holds 107 bytes: a checkout may lie deeper.
    with tempfile.TemporaryDirectory(prefix="wattd-demo-") as folder, log.open("w") as errors:
        socket = f"{folder}/s"
        command = [
            BIN / "wattd",
            "serve",
            "--archive",
            archive,
            "--socket",
            socket,
            "--metrics",
            "127.0.0.1:0",
        ]
        # This machine's sensors, whatever the configuration of an installed daemon says; and a process
        # group of its own, so that Ctrl-C reaches it through us.
        process = subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, "WATTD_CONFIG": os.devnull},
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            say(wait_ready(process, log))
            yield socket
            if process.poll() is not None:
                raise DemoError(f"wattd ended in mid-run with {process.returncode}: {last_line(log)}")
        finally:
            stop(process)
        if process.returncode != 0:
            raise DemoError(f"wattd did not stop cleanly ({process.returncode}): {last_line(log)}")


def wait_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """The line that says the daemon is ready."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline().decode().strip() if selector.select(READY_SECONDS) else ""
    if not line:
        raise DemoError(f"wattd serve did not get ready: {last_line(log)}")
    return re.sub(r"archive=\S+ ?", "", line)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, by which everything is written; SIGKILL to the group if that takes too long."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def last_line(log: Path) -> str:
    """What the daemon said last."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"it said nothing in {log}"


def check_sum(archive: Path) -> None:
    """Say for each run and device what the rows add up to, and what the counter says.

    Raises:
        DemoError: If they differ.
    """
    phases = ask("phases", archive)
    rows: dict[tuple[str, str, str], float] = {}
    for row in phases:
        key = (row["run_id"], row["node"], row["device"])
        rows[key] = rows.get(key, 0.0) + (row["energy_joules"] or 0.0)  # an invalid row has none
    say("do the rows add up to the counter?")
    for counter in ask("sql", archive, COUNTER):
        added = rows.pop((counter["run_id"], counter["node"], counter["device"]), None)
        known = counter["counter_joules"]
        if added is None or known is None:
            raise DemoError(
                f"run {counter['run']}, {counter['device']}: rows {added}, counter {known}: one is missing"
            )
        difference = abs(round(added, 6) - round(known, 6))
        equal = difference <= max(CLOSURE_RATIO * abs(known), 1.5 * MICROJOULE)
        ratio = difference / known if known else difference
        print(
            f"  {counter['run']:<20} {counter['device']:<14} rows {added:.6f} J, counter {known:.6f} J, "
            f"relative difference {ratio:.1e}: {'they do' if equal else 'THEY DO NOT'}"
        )
        if not equal:
            raise DemoError(
                f"the rows of run {counter['run']} do not add up to the counter of {counter['device']}"
            )
    if rows:
        raise DemoError(f"rows without a counter: {sorted(rows)}")


def ask(command: str, archive: Path, *words: str) -> list[dict[str, Any]]:
    """The rows that a command of wattq prints as JSON."""
    done = subprocess.run(
        [BIN / "wattq", command, archive, *words, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"wattq {command} ended with {done.returncode} (its own line is above)")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def run(what: str, *words: object, environment: dict[str, str] | None = None) -> None:
    """Run a command that speaks for itself."""
    done = subprocess.run(list(map(str, words)), env=environment, check=False)
    if done.returncode != 0:
        raise DemoError(f"{what} ended with {done.returncode} (its own line is above)")


def say(line: str) -> None:
    """A line that stands out."""
    print(f"\n== {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
