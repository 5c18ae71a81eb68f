"""The process that was started: samples, and keeps the server process alive.

The server is this program again, with the ring, the control block and two pipes inherited. Its
lifeline is a pipe: the first line is the configuration, and its end means that we are gone or
want it to finish.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from wattd.config import Config
from wattd.control import Control
from wattd.ring import Ring
from wattd.sampler import Sampler, Sensors, make_control, ring_bytes
from wattd.scheduling import HELPER_PRIORITY, be_punctual
from wattd.values import UserError

_READY_SECONDS = 60.0
_DRAIN_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class Server:
    """The server process, seen from the sampler.

    Attributes:
        pid: Its process id; 0 while it does not run.
    """

    def __init__(self, config: Config, ring: Ring, control: Control) -> None:
        self._config = config
        self._ring = ring
        self._control = control
        self._lifeline = -1
        self._ready = -1
        self.pid = 0

    def start(self) -> None:
        """Spawn it; `wait_ready` tells how that went."""
        lifeline, self._lifeline = os.pipe()
        self._ready, ready = os.pipe()
        inherited = (self._ring.fd, self._control.fd, lifeline, ready)
        for fd in inherited:
            os.set_inheritable(fd, True)
        # -P: nothing is imported from the folder it happens to be started in, which may be anybody's.
        command = [sys.executable, "-P", "-m", "wattd", "_server", *map(str, inherited)]
        self.pid = os.posix_spawn(sys.executable, command, os.environ, setsigmask=())
        for fd in inherited:
            os.set_inheritable(fd, False)
        os.close(lifeline)
        os.close(ready)
        os.write(self._lifeline, json.dumps(self._config.as_json()).encode() + b"\n")

    def wait_ready(self) -> dict[str, Any]:
        """The server's first line.

        Raises:
            UserError: It could not start; the message is the server's.
        """
        line = b""
        deadline = time.monotonic() + _READY_SECONDS
        while not line.endswith(b"\n"):
            if not select.select([self._ready], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise UserError("the server did not become ready within a minute; see its messages above")
            part = os.read(self._ready, 65536)
            if not part:
                raise UserError("the server ended before it was ready; see its messages above")
            line += part
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"], answer.get("code", 1))
        return answer

    def reap(self) -> bool:
        """Whether it has ended (and is now forgotten)."""
        if not self.pid or os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            return False
        self._forget()
        return True

    def finish(self) -> None:
        """Let it drain the ring and end; kill it only if it does not come to an end."""
        if not self.pid:
            return
        os.close(self._lifeline)
        self._lifeline = -1
        deadline = time.monotonic() + _DRAIN_SECONDS
        while not self.reap():
            if time.monotonic() > deadline:
                print("wattd: the server did not finish within a minute and was killed", file=sys.stderr)
                os.kill(self.pid, signal.SIGKILL)
                deadline = float("inf")
            signal.sigtimedwait([signal.SIGCHLD], 0.1)

    def _forget(self) -> None:
        self.pid = 0
        for fd in (self._lifeline, self._ready):
            if fd >= 0:
                os.close(fd)
        self._lifeline = self._ready = -1


def serve(config: Config) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT.

    Raises:
        UserError: It could not start.
    """
    # Blocked before any thread exists, so that only sigtimedwait below takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    # A clock thread that wakes must not wait five milliseconds for the interpreter, nor for a collection.
    sys.setswitchinterval(1e-4)
    gc.disable()
    control = make_control()
    with Sensors(config, control) as sensors:
        ring = Ring.create(ring_bytes(config, len(sensors.lines)))
        sampler = Sampler(config, sensors, ring)
        server = Server(config, ring, control)
        server.start()
        be_punctual(HELPER_PRIORITY)
        gc.freeze()
        sampler.start()
        try:
            ready = server.wait_ready()
            _say_ready(ready, sensors)
            _watch(server, sampler)
        finally:
            _notify("STOPPING=1")
            sampler.stop()
            server.finish()
    return 0


def _say_ready(ready: dict[str, Any], sensors: Sensors) -> None:
    names = ",".join(health.name for health in sensors.health if health.up)
    page = f" metrics=http://{ready['metrics']}/metrics" if ready.get("metrics") else ""
    devices = f"devices={len(sensors.lines)}"
    print(
        f"wattd ready socket={ready['socket']}{page} archive={ready['archive']} sensors={names} {devices}",
        flush=True,
    )
    _notify("READY=1")


def _watch(server: Server, sampler: Sampler) -> None:
    """Restart the server when it dies, ever more slowly; return on a signal to stop."""
    pause, next_start = 0.0, 0.0
    while True:
        received = signal.sigtimedwait(_SIGNALS, 1.0)
        if received is not None and received.si_signo != signal.SIGCHLD:
            return
        now = time.monotonic()
        if server.reap():
            sampler.server_restarts += 1
            print(f"wattd: the server ended and is started again in {pause:g} s", file=sys.stderr, flush=True)
            next_start = now + pause
            pause = min(max(1.0, pause * 2), _LONGEST_PAUSE_SECONDS)
        if not server.pid and now >= next_start:
            server.start()
            try:
                server.wait_ready()
            except UserError as error:
                print(f"wattd: {error}", file=sys.stderr, flush=True)
        elif server.pid and now > next_start + 2 * _LONGEST_PAUSE_SECONDS:
            pause = 0.0  # it has been well for a while


def _notify(state: str) -> None:
    """Tell systemd, where it listens (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)
