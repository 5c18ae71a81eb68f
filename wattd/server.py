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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from wattd.accounting import Accounting
from wattd.archive import Archive
from wattd.archive import body as line_body
from wattd.calibrations import Calibrations
from wattd.config import Config
from wattd.control import Control
from wattd.jobs import recover
from wattd.marks import Intake
from wattd.metrics import MetricsServer, Page, Sources, families
from wattd.node import Node
from wattd.recorder import Recorder
from wattd.ring import Ring
from wattd.rpc import MarkService, OwnerSocket, make_server
from wattd.telemetry import TelemetryService
from wattd.v1 import marks_pb2_grpc, telemetry_pb2_grpc
from wattd.values import NANOSECONDS_PER_SECOND, UserError
from wattd.vitals import ProcessVitals, Vitals

_POLL_SECONDS = 0.25
_WATCHED_POLL_SECONDS = 0.1
_GRACE_SECONDS = 1.0
_logger = logging.getLogger("wattd")
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
    """The parts of the server and how they hang together; it is the EventLog of rpc."""

    def __init__(self, config: Config, ring: Ring, control: Control) -> None:
        self._config = config
        self._sampler_pid = os.getppid()
        self._reader = ring.reader(from_start=True)
        self._boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        self._node = Node()
        self._archive = Archive(config, self._boot_id, self._devices, self._checkpoint, _clocks)
        same_boot, lines = self._archive.last_events()
        self._state = recover(lines, same_boot=same_boot)
        self._calibrations = Calibrations(config.archive, self._boot_id)
        last = self._archive.last_samples()
        self._recorder = Recorder(self._node, self._archive.samples, last, self._record_sampler_event)
        self._accounting = Accounting(
            self._state, self._node, control, round(NANOSECONDS_PER_SECOND / config.hz)
        )
        intake = Intake(self._state, self._boot_id, pwd.getpwuid(os.geteuid()).pw_name)
        self._marks = MarkService(intake, self, self._boot_id)
        self._telemetry = TelemetryService(
            self._node,
            self._state,
            self._vitals,
            name=config.node,
            boot_id=self._boot_id,
            sampler_pid=self._sampler_pid,
        )
        self._metrics = MetricsServer()
        self._announced = False
        self._second_nano = 0

    def _devices(self) -> list[dict[str, Any]]:
        return self._recorder.devices()

    def _checkpoint(self) -> orjson.Fragment:
        return orjson.Fragment(self._state.checkpoint())

    def append(self, lines: Sequence[dict[str, Any]]) -> None:
        """Write lines that the state knows, and account for them."""
        if lines:
            # The state has them already: marks have waited for room, and the other lines are few.
            self._archive.events.append([line_body(line) for line in lines], must=True)
            self._accounting.note(lines)

    def commit(self) -> "asyncio.Future[None]":
        """Done when all lines so far are on disk."""
        return self._archive.events.commit()

    async def room(self) -> None:
        """Wait while too much waits for the disk."""
        await self._archive.events.room()

    def _record_sampler_event(self, line: dict[str, Any]) -> None:
        if not self._state.is_known(line):
            self._state.apply(line)
            self.append([line])

    def _record_daemon(self, what: str, reason: str = "") -> None:
        line = {"type": "daemon", "monotonic_nano": time.monotonic_ns(), "what": what}
        self.append([{**line, "reason": reason} if reason else line])

    async def serve(self, lifeline_fd: int, ready_fd: int) -> int:
        """Bind, say ready, poll the ring until the lifeline ends, and leave everything written."""
        ended = asyncio.Event()
        with OwnerSocket(self._config.socket) as owner:
            server = make_server()
            marks_pb2_grpc.add_MarkServiceServicer_to_server(self._marks, server)
            telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(self._telemetry, server)
            if self._config.metrics:
                await self._metrics.start(self._config.metrics)
            owner.bind(server)
            self._archive.start()
            await server.start()
            self._marks.expect(self._state.clients_with_open())
            answer = {"ready": True, "socket": str(owner.path), "metrics": self._metrics.address}
            _say(ready_fd, {**answer, "archive": str(self._config.archive)})
            asyncio.get_running_loop().add_reader(lifeline_fd, _watch, lifeline_fd, ended)
            _tame_collector()
            await self._work_until(ended)
            asyncio.get_running_loop().remove_reader(lifeline_fd)
            self._marks.stop()
            await self._metrics.stop()
            await server.stop(_GRACE_SECONDS)
        return await self._finish()

    async def _work_until(self, ended: asyncio.Event) -> None:
        """Poll the ring and let the archive write; a fault in either ends the server, to be started anew."""
        polling = asyncio.create_task(self._keep_polling())
        ending = asyncio.create_task(ended.wait())
        parts = {polling, ending, *self._archive.tasks()}
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        polling.cancel()
        for part in done - {ending}:
            part.result()

    async def _keep_polling(self) -> None:
        """Poll the ring now and then: often only while somebody watches."""
        while True:
            self._poll()
            await asyncio.sleep(_WATCHED_POLL_SECONDS if self._telemetry.is_watched else _POLL_SECONDS)

    async def _finish(self) -> int:
        """Write what the sampler left behind, and close the archive."""
        self._poll()
        if os.getppid() != self._sampler_pid:
            self._record_daemon("fault", "the sampler died")
        self._record_daemon("stopped")
        lost = await self._archive.close()
        if lost:
            _logger.error("archive: %d lines could not be written and are lost", lost)
        return 1 if lost else 0

    def _poll(self) -> None:
        """Take what the ring holds; once a second, renew what is shown."""
        ticks = self._recorder.feed(self._reader.read(), self._reader.lost)
        self._telemetry.publish(ticks, self._recorder.offsets)
        if not self._announced and self._recorder.is_same_sampler is not None:
            self._announced = True
            self._record_daemon("server_restarted" if self._recorder.is_same_sampler else "started")
        now = time.monotonic_ns()
        if now - self._second_nano >= NANOSECONDS_PER_SECOND:
            self._second_nano = now
            self._accounting.settle(now)
            self._copy_calibrations()
            self._renew_page()

    def _copy_calibrations(self) -> None:
        """Put into the archive what `wattd calibrate` has left beside it, at the start and when it comes."""
        names = frozenset(view.name for view in self._node.devices.values())
        if names:
            lines, complaints = self._calibrations.news(names)
            self.append(lines)
            for complaint in complaints:
                _logger.warning("calibration %s", complaint)

    def _renew_page(self) -> None:
        if not self._metrics.address:
            return
        sources = Sources(
            node=self._node,
            state=self._state,
            ledger=self._accounting.ledger,
            phases=self._accounting.phases,
            vitals=self._vitals(),
        )
        self._metrics.page = Page(families(sources))

    def _vitals(self) -> Vitals:
        archive = self._archive
        logs = {"samples": archive.samples, "events": archive.events}
        pids = {"sampler": self._sampler_pid, "server": os.getpid()}
        found = {name: ProcessVitals.of(pid) for name, pid in pids.items()}
        return Vitals(
            archive=str(archive.folder),
            metrics=self._metrics.address,
            fault=archive.fault,
            free_bytes=archive.free_bytes(),
            torn_bytes=archive.torn_bytes,
            written_bytes={kind: log.written_bytes for kind, log in logs.items()},
            written_lines={kind: log.written_lines for kind, log in logs.items()},
            dropped_lines={kind: log.dropped_lines for kind, log in logs.items()},
            pending_bytes={kind: log.pending_bytes for kind, log in logs.items()},
            marks=self._marks.marks,
            refused_marks=self._marks.refused,
            dropped_marks=self._marks.dropped,
            clients=self._marks.clients,
            ring_lost=self._reader.lost,
            watch_dropped=self._telemetry.dropped_messages,
            processes={name: vitals for name, vitals in found.items() if vitals is not None},
        )


def _tame_collector() -> None:
    """Nearly nothing here is cyclic garbage: look for it rarely, and never through what is there now."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _watch(lifeline_fd: int, ended: asyncio.Event) -> None:
    if not os.read(lifeline_fd, 4096):
        ended.set()
