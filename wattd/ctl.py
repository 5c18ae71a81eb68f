"""The `wattctl` command: looks at a running daemon."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc

from wattd.config import default_socket
from wattd.usage import Parser
from wattd.v1 import telemetry_pb2, telemetry_pb2_grpc
from wattd.values import UserError

_TIMEOUT_SECONDS = 5.0
_STATUS_EXAMPLES = """examples:
  wattctl status                                what the daemon of this machine does
  wattctl status --socket /tmp/wattd.sock       another daemon
  wattctl status --json | jq '.devices[].power_watts'

environment:
  WATTD_SOCKET   the socket, where --socket is not given
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="wattctl",
        description="Looks at a running wattd.",
        epilog="examples:\n  wattctl status\n  wattctl status --json\n",
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser(
        "status",
        help="say what the daemon measures, what runs, and what is wrong",
        description="Says what the daemon measures, what runs, and what is wrong.",
        epilog=_STATUS_EXAMPLES,
        formatter_class=raw,
    )
    status.add_argument("--socket", type=Path, metavar="PATH", help="the daemon's Unix socket")
    status.add_argument(
        "--format", choices=("table", "json"), default="table", help="how to print (default: table)"
    )
    status.add_argument("--json", action="store_true", help="short for --format json")
    return parser


def _candidates(given: Path | None, environment: dict[str, str]) -> list[Path]:
    """The sockets to try, the likeliest first."""
    if given is not None:
        return [given]
    if environment.get("WATTD_SOCKET"):
        return [Path(environment["WATTD_SOCKET"])]
    return list(dict.fromkeys((default_socket(), Path("/run/wattd/wattd.sock"))))


def fetch_status(sockets: Sequence[Path]) -> telemetry_pb2.GetStatusResponse:
    """Ask the first daemon that answers.

    Raises:
        UserError: None does.
    """
    for path in sockets:
        if not _is_there(path):
            continue
        with grpc.insecure_channel(f"unix:{path.absolute()}") as channel:
            stub = telemetry_pb2_grpc.TelemetryServiceStub(channel)
            try:
                return stub.GetStatus(telemetry_pb2.GetStatusRequest(), timeout=_TIMEOUT_SECONDS)
            except grpc.RpcError as error:
                reason = error.code() if isinstance(error, grpc.Call) else None
                if reason is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise UserError(f"the daemon at {path} does not answer; look at its messages") from error
    tried = " or ".join(str(path) for path in sockets)
    raise UserError(f"no daemon at {tried}; start one: wattd serve (or name its socket: --socket PATH)")


def _is_there(path: Path) -> bool:
    """Whether there is a socket.

    Raises:
        UserError: There is one that this user may not open.
    """
    try:
        path.stat()
    except PermissionError as error:
        raise UserError(
            f"socket {path}: its folder may not be entered by this user; ask its owner"
        ) from error
    except OSError:
        return False
    if not os.access(path, os.W_OK):
        owner = path.owner()
        raise UserError(f"socket {path}: it is {owner}'s alone; run wattctl as {owner}")
    return True


def as_json(status: telemetry_pb2.GetStatusResponse) -> dict[str, Any]:
    """The status as stable JSON: names and units of the wire; what is not known is left out."""
    samples = {sample.device: sample for sample in status.samples}
    return {
        "version": status.version,
        "node": status.node,
        "boot_id": status.boot_id,
        "pid": status.pid,
        "uptime_seconds": round(status.uptime_seconds, 3),
        "scheduling": status.scheduling,
        "ticks": status.ticks,
        "missed_ticks": status.missed_ticks,
        "server_restarts": status.server_restarts,
        "metrics": status.metrics,
        "archive": {
            "folder": status.archive,
            "written_bytes": status.archive_written_bytes,
            **({"free_bytes": status.archive_free_bytes} if status.archive_free_bytes else {}),
            "fault": status.archive_fault,
        },
        "marks": {
            "written": status.marks,
            "refused": status.refused_marks,
            "dropped": status.dropped_marks,
        },
        "sensors": [
            {"sensor": sensor.name, "up": sensor.up, "reason": sensor.reason} for sensor in status.sensors
        ],
        "devices": [
            _device_json(device, samples.get(device.device))
            for sensor in status.sensors
            for device in sensor.devices
        ],
        "runs": [
            {
                "run_id": run.run_id,
                "run": run.name,
                "job": run.job_id,
                "open_phases": list(run.open_phases),
                "duration_seconds": round(run.duration_seconds, 3),
            }
            for run in status.runs
        ],
        "warnings": list(status.warnings),
    }


def _device_json(device: telemetry_pb2.Device, sample: telemetry_pb2.Sample | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "device": device.device,
        "index": device.index,
        "domain": device.domain,
        "source": device.source,
        "sensor": device.sensor,
    }
    if device.model:
        row["model"] = device.model
    if sample is not None and sample.HasField("power_watts"):
        row["power_watts"] = round(sample.power_watts, 3)
    if sample is not None and sample.HasField("energy_joules"):
        row["energy_joules"] = sample.energy_joules
    return row


def as_table(status: dict[str, Any]) -> str:
    """The status as a newcomer reads it."""
    archive, marks = status["archive"], status["marks"]
    state = f"cannot be written: {archive['fault']}" if archive["fault"] else "is being written"
    free = f", {_bytes(archive['free_bytes'])} free" if "free_bytes" in archive else ""
    up, scheduling = _duration(status["uptime_seconds"]), status["scheduling"] or "unknown"
    restarts = status["server_restarts"]
    again = f", server restarted {restarts} times" if restarts else ""
    process = f"pid {status['pid']}, {scheduling} scheduling"
    lines = [
        f"wattd {status['version']} on {status['node']}, up {up} ({process})",
        f"ticks    {status['ticks']}, {status['missed_ticks']} missed{again}",
        f"archive  {archive['folder']} {state}, {_bytes(archive['written_bytes'])} so far{free}",
        f"marks    {marks['written']} written, {marks['refused']} refused, {marks['dropped']} dropped",
        f"metrics  http://{status['metrics']}/metrics" if status["metrics"] else "metrics  off",
        "",
        *_sensor_lines(status),
        "",
        *_run_lines(status["runs"]),
    ]
    if status["warnings"]:
        lines += ["", *(f"warning: {warning}" for warning in status["warnings"])]
    return "\n".join(lines)


def _sensor_lines(status: dict[str, Any]) -> Iterator[str]:
    for sensor in status["sensors"]:
        if not sensor["up"]:
            yield f"sensor {sensor['sensor']} is not there: {sensor['reason']}"
    rows = [
        [
            device["device"],
            f"{device['domain']} {device['index']}",
            f"{device['power_watts']:.1f}" if "power_watts" in device else "unknown",
            f"{device['energy_joules']:.1f}" if "energy_joules" in device else "unknown",
            device["source"],
            device.get("model", ""),
        ]
        for device in status["devices"]
    ]
    if not rows:
        yield "no device has given a reading yet"
        return
    yield from _aligned([["device", "domain", "watts", "joules", "source", "model"], *rows], right={2, 3})


def _run_lines(runs: list[dict[str, Any]]) -> Iterator[str]:
    if not runs:
        yield "no run is open"
        return
    rows = [
        [run["run"], run["job"], _duration(run["duration_seconds"]), " > ".join(run["open_phases"]) or "none"]
        for run in runs
    ]
    yield from _aligned([["run", "job", "since", "open phases"], *rows], right={2})


def _aligned(rows: list[list[str]], right: set[int]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def main(words: Sequence[str] | None = None) -> int:
    """Run the `wattctl` command and return its exit code."""
    try:
        arguments = _parser().parse_args(words)
        status = as_json(fetch_status(_candidates(arguments.socket, dict(os.environ))))
    except UserError as error:
        print(f"wattctl: {error}", file=sys.stderr)
        return error.code
    as_wanted = arguments.json or arguments.format == "json"
    try:
        print(json.dumps(status, indent=2) if as_wanted else as_table(status), flush=True)
    except BrokenPipeError:  # as in `wattctl status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
