"""The `wattd` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from wattd import __version__
from wattd.config import Config, load
from wattd.usage import Parser
from wattd.values import UserError

_EXAMPLES = """examples:
  wattd probe      what can be measured here
  wattd serve      measure, until it is stopped
  wattd calibrate  measure how late and how smeared each sensor is; once a machine

`wattctl status` looks at a running daemon, `wattq phases` says what phases cost.
"""
_SERVE_EXAMPLES = """examples:
  wattd serve                                        all sensors of this machine
  wattd serve --sensors simulated --archive /tmp/a   8 simulated GPUs, to try things out
  wattd serve --config /etc/wattd/config.toml --metrics 0.0.0.0:9477
"""
_PROBE_EXAMPLES = """examples:
  wattd probe          what can be measured here, and what right is missing
  wattd probe --json   the same for programs
"""
_CALIBRATE_EXAMPLES = """examples:
  wattd calibrate                        each GPU under torch, then the CPUs under busy loops, a minute each
  wattd calibrate --load cpu --json      the CPUs alone, for programs
  wattd calibrate --load "command:./load --gpu 0"   a load of your own, which prints a line
                                         `<monotonic_ns> <high|low>` at each switch, and flushes it

Run it once a machine and after an update of the driver, while nothing else runs. The result goes to
the archive's folder `calibration` and into the archive, where the estimator finds it.
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="wattd",
        description="Samples the power of this node and keeps the evidence.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"wattd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve", help="run the daemon in the foreground", epilog=_SERVE_EXAMPLES, formatter_class=raw
    )
    probe = commands.add_parser(
        "probe", help="say what this machine can measure", epilog=_PROBE_EXAMPLES, formatter_class=raw
    )
    calibrate = commands.add_parser(
        "calibrate",
        help="measure the response of each sensor under a load that alternates",
        epilog=_CALIBRATE_EXAMPLES,
        formatter_class=raw,
    )
    for command in (serve, probe, calibrate):
        command.add_argument(
            "--config", type=Path, metavar="FILE", help="TOML file (default: /etc/wattd/config.toml)"
        )
        command.add_argument(
            "--sensors", metavar="a,b", help="sensors to read (default: all that this machine has)"
        )
    for command in (serve, calibrate):
        command.add_argument("--archive", metavar="DIR", help="folder of the archive")
    serve.add_argument("--socket", metavar="PATH", help="Unix socket of the owner")
    serve.add_argument("--metrics", metavar="HOST:PORT", help="the Prometheus page; '' for none")
    serve.add_argument("--hz", type=float, metavar="N", help="readings a second (default: 100)")
    calibrate.add_argument(
        "--load",
        type=_load,
        default="auto",
        metavar="auto|cpu|cuda|command:CMD",
        help="what draws the power (default: auto, torch on GPUs and busy loops on CPUs)",
    )
    calibrate.add_argument(
        "--seconds",
        type=_seconds,
        default=60.0,
        metavar="N",
        help="how long each load is watched (default: 60)",
    )
    calibrate.add_argument(
        "--seed", type=int, metavar="N", help="of the stretches' lengths (default: random)"
    )
    for command in (probe, calibrate):
        command.add_argument("--json", action="store_true", help="short for --format json")
        command.add_argument(
            "--format", choices=("table", "json"), default="table", help="how to print (default: table)"
        )
    return parser


def _load(text: str) -> str:
    if text in ("auto", "cpu", "cuda") or text.startswith("command:"):
        return text
    raise argparse.ArgumentTypeError(f"{text}: give auto, cpu, cuda or command:CMD")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: give a number of seconds from 1 to 3600")
    return seconds


def _config(arguments: argparse.Namespace) -> Config:
    sensors = arguments.sensors
    overrides = {key: getattr(arguments, key, None) for key in ("archive", "socket", "metrics", "hz")}
    if sensors is not None:
        overrides["sensors"] = [name for name in sensors.split(",") if name]
    from wattd.sensors import SENSORS  # noqa: PLC0415 - --help must not wait for it

    return load(arguments.config, overrides, SENSORS)


def _run_server(words: Sequence[str]) -> int:
    """The server process, started by the sampler with four inherited descriptors."""
    # Imported here: the sampler must not carry what only the server needs.
    import json  # noqa: PLC0415

    from wattd.control import Control  # noqa: PLC0415
    from wattd.ring import Ring  # noqa: PLC0415
    from wattd.scheduling import give_up_capabilities  # noqa: PLC0415
    from wattd.server import run  # noqa: PLC0415

    ring, control, lifeline, ready = map(int, words)
    give_up_capabilities()
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(lifeline, 1)
        if not part:
            return 0  # the sampler is gone already
        line += part
    config = Config.from_json(json.loads(line))
    return run(config, Ring.attach(ring), Control.attach(control), lifeline, ready)


def _calibrate(config: Config, arguments: argparse.Namespace, *, as_json: bool) -> int:
    from wattd.calibrate import calibrate  # noqa: PLC0415 - --help must not wait for it
    from wattd.calibration_table import print_outcomes  # noqa: PLC0415 - likewise

    try:
        outcomes = calibrate(config, arguments.load, arguments.seconds, arguments.seed)
    except KeyboardInterrupt:
        raise UserError("stopped; nothing is stored", 130) from None
    return print_outcomes(outcomes, as_json=as_json)


def main(words: Sequence[str] | None = None) -> int:
    """Run the `wattd` command and return its exit code."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["_server"]:
        return _run_server(words[1:])
    try:
        arguments = _parser().parse_args(words)
        config = _config(arguments)
        if arguments.command == "serve":
            from wattd.supervise import serve  # noqa: PLC0415 - --help must not wait for it

            return serve(config)
        as_json = arguments.json or arguments.format == "json"
        if arguments.command == "calibrate":
            return _calibrate(config, arguments, as_json=as_json)
        from wattd.probe import print_probe, probe  # noqa: PLC0415

        print_probe(probe(config), as_json=as_json)
    except ModuleNotFoundError as error:
        print(
            f"wattd: {error.name} is missing; install the daemon: pip install 'wattd[daemon]'",
            file=sys.stderr,
        )
        return 1
    except UserError as error:
        print(f"wattd: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
