"""The server process: reads the ring, keeps the archive, answers clients.

Everything runs on one event loop; threads only wait for the disk.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import pwd
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wattd.archive import Archive
from wattd.archive import body as line_body
from wattd.config import Config
from wattd.control import Control
from wattd.jobs import recover
from wattd.marks import Intake
from wattd.node import Node
from wattd.recorder import Recorder
from wattd.ring import Ring
from wattd.rpc import MarkService, OwnerSocket, make_server
from wattd.v1 import marks_pb2_grpc
from wattd.values import UserError

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def run(config: Config, ring: Ring, control: Control, lifeline_fd: int, ready_fd: int) -> int:
    """Serve until the lifeline ends.

    Args:
        config: The daemon's configuration.
        ring: Where the sampler's records come from.
        control: Where simulated devices take their power from.
        lifeline_fd: Reading end of a pipe; its end means: write everything and stop.
        ready_fd: Gets one line of JSON when all is up, or why it is not.

    Returns:
        The exit code.
    """
    # The sampler takes these signals, stops sampling first, and then ends the lifeline.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="wattd: %(message)s", level=logging.WARNING)
    try:
        return asyncio.run(_Server(config, ring, control).serve(lifeline_fd, ready_fd))
    except UserError as error:
        _say(ready_fd, {"error": str(error), "code": error.code})
        return error.code


def _say(ready_fd: int, answer: dict[str, Any]) -> None:
    # The sampler may have died meanwhile; the lifeline tells.
    with contextlib.suppress(BrokenPipeError):
        os.write(ready_fd, json.dumps(answer).encode() + b"\n")


def _clocks() -> tuple[int, int]:
    return time.monotonic_ns(), time.time_ns()


class _Server:
    """The parts of the server and how they hang together."""

    def __init__(self, config: Config, ring: Ring, control: Control) -> None:
        self._config = config
        self._control = control
        self._reader = ring.reader(from_start=True)
        self._boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        self.node = Node()
        self.archive = Archive(config, self._boot_id, self._devices, self._checkpoint, _clocks)
        same_boot, lines = self.archive.last_events()
        self.state = recover(lines, same_boot=same_boot)
        self.recorder = Recorder(
            self.node, self.archive.samples, self.archive.last_samples(), self._record_sampler_event
        )
        self.intake = Intake(self.state, self._boot_id, pwd.getpwuid(os.geteuid()).pw_name)
        self.marks = MarkService(self.intake, self, self._boot_id)
        self._announced = False

    def _devices(self) -> list[dict[str, Any]]:
        return self.recorder.devices()

    def _checkpoint(self) -> dict[str, Any]:
        return self.state.checkpoint()

    # The EventLog of rpc.

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write lines that the state knows, and account for them."""
        if lines:
            self.archive.events.append([line_body(line) for line in lines])

    def commit(self) -> "asyncio.Future[None]":
        """Done when all lines so far are on disk."""
        return self.archive.events.commit()

    async def room(self) -> None:
        """Wait while too much waits for the disk."""
        await self.archive.events.room()

    def _record_sampler_event(self, line: dict[str, Any]) -> None:
        if self.state.is_known(line):
            return
        self.state.apply(line)
        self.append([line])

    def _record_daemon(self, what: str, reason: str = "") -> None:
        line = {"type": "daemon", "monotonic_nano": time.monotonic_ns(), "what": what}
        self.append([{**line, **({"reason": reason} if reason else {})}])

    async def serve(self, lifeline_fd: int, ready_fd: int) -> int:
        """Bind, say ready, poll the ring until the lifeline ends, and leave everything written."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        with self._socket() as owner:
            server = make_server()
            marks_pb2_grpc.add_MarkServiceServicer_to_server(self.marks, server)
            owner.bind(server)
            self.archive.start()
            await server.start()
            answer = {"ready": True, "socket": str(owner.path), "metrics": self._config.metrics}
            _say(ready_fd, {**answer, "archive": str(self._config.archive)})
            loop.add_reader(lifeline_fd, _watch, lifeline_fd, ended)
            gc.collect()
            gc.freeze()
            while not ended.is_set():
                self._poll()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _POLL_SECONDS)
            loop.remove_reader(lifeline_fd)
            self.marks.stop()
            await server.stop(_GRACE_SECONDS)
        self._poll()
        self._record_daemon("stopped")
        lost = await self.archive.close()
        if lost:
            logging.getLogger("wattd").error("archive: %d lines could not be written and are lost", lost)
        return 0

    @contextlib.contextmanager
    def _socket(self) -> Iterator[OwnerSocket]:
        with OwnerSocket(self._config.socket) as owner:
            yield owner

    def _poll(self) -> None:
        """Take what the ring holds."""
        self.recorder.feed(self._reader.read(), self._reader.lost)
        if not self._announced and self.recorder.is_same_sampler is not None:
            self._announced = True
            self._record_daemon("server_restarted" if self.recorder.is_same_sampler else "started")


def _watch(lifeline_fd: int, ended: asyncio.Event) -> None:
    if not os.read(lifeline_fd, 4096):
        ended.set()
