"""The thread that brings marks to the daemon, and into the spool while there is none.

It holds every request until the daemon has said that it is on disk. When the connection breaks, what
is held goes to the spool file, and so does all that follows; when a daemon is there again, the file
is replayed from its start, and removed once all of it is acknowledged.
"""

import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from kdclient import spool as spools
from kdclient.encode import MOST_MARKS_A_REQUEST, Encoder, Request, last_sequence
from kdclient.stream import Stream, connect
from wattd.v1 import marks_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdclient.client import Client

FLUSH_SECONDS = 0.1
_RETRY_SECONDS = 0.5
_HEARTBEAT_SECONDS = 5.0
_ORPHANS_SECONDS = 2.0
_IN_FLIGHT = 16
"""Replayed requests that may wait for their acknowledgement at once."""


class Sender(threading.Thread):
    """Sends what a client marked; a daemon thread of its process."""

    def __init__(self, client: "Client") -> None:
        super().__init__(name="wattd-sender", daemon=True)
        self._client = client
        # gRPC does not survive a fork: such a child writes its spool, and its parent delivers.
        self._may_connect = not (client.parent_id and client.parent_used_grpc)
        self._encoder = Encoder(client, tell_open=self._may_connect)
        self._spool = spools.Spool(client.spool, client.client_id, client.parent_id)
        self._stream: Stream | None = None
        self._held: deque[tuple[int, Request]] = deque()
        self._spooling = not self._may_connect
        self._replay: Iterator[tuple[int, Request]] | None = None
        self._replayed = 0
        self._retry_at = 0.0
        self._sent_at = 0.0
        self._deliverer: threading.Thread | None = None
        self._wake = threading.Event()
        self._turned = threading.Condition()
        self._turns = 0
        self._clean = False
        self._spool_now = self._stopping = False

    def run(self) -> None:
        """Work until told to stop; nothing that goes wrong here may reach the training."""
        while True:
            stopping = self._stopping
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - whatever it is: said once, and tried again
                self._client.warn(f"marks could not be sent just now: {error!r}")
            with self._turned:
                self._turns += 1
                self._turned.notify_all()
            if stopping:
                break
            self._pause()
        if self._stream is not None:
            self._stream.close()
        self._spool.release()

    def _pause(self) -> None:
        """Wait for the next flush, or for an acknowledgement while somebody waits for it."""
        if self._held and self._stream is not None and (self._wake.is_set() or self._replay is not None):
            self._stream.answered.wait(0.02)
            self._stream.answered.clear()
        else:
            self._wake.wait(FLUSH_SECONDS)

    def _turn(self) -> None:
        for _ in range(1 + len(self._client.queue) // MOST_MARKS_A_REQUEST):
            for request in self._encoder.collect():
                self._put(request)
        self._receive()
        if self._stream is not None and self._stream.broken:
            self._lose(self._stream)
        if self._stream is None and self._may_connect and time.monotonic() >= self._retry_at:
            self._connect()
        if self._spooling and self._stream is not None:
            self._replay_spool(self._stream)
        if self._stream is not None and time.monotonic() - self._sent_at > _HEARTBEAT_SECONDS:
            self._send(self._encoder.heartbeat())
        if self._spool_now and self._held and not self._spooling:
            self._spool_held()
        self._clean = not (self._client.queue or self._held or self._spooling)

    def _put(self, request: Request) -> None:
        """Take a fresh request: to the spool while it is in use, else to the daemon."""
        if self._spooling:
            self._to_spool(request)
        elif isinstance(request, marks_pb2.SendMarksRequest):
            self._held.append((last_sequence(request), request))
            if self._stream is not None:
                self._send(request)
        elif self._stream is None or not self._send_results(request):
            self._held.append((0, request))

    def _send(self, request: marks_pb2.SendMarksRequest) -> None:
        if self._stream is not None:
            self._stream.send(request)
            self._sent_at = time.monotonic()

    def _send_results(self, request: marks_pb2.SendResultsRequest) -> bool:
        """Send results; true when they are dealt with."""
        if self._stream is None:
            return False
        try:
            return self._stream.send_results(request)
        except ValueError as error:
            self._client.warn(f"the daemon refused results: {error}")
            return True

    def _to_spool(self, request: Request) -> None:
        try:
            if self._spool.append(request):
                return
            why = "the spool is full"
        except OSError as error:
            why = f"the spool {self._spool.path} can't be written: {error.strerror or error}"
        if isinstance(request, marks_pb2.SendMarksRequest):
            self._encoder.dropped += len(request.phases) + len(request.runs)
        self._client.warn(f"{why}; marks are dropped, and counted")

    def _receive(self) -> None:
        """Let go of what is on the daemon's disk."""
        stream = self._stream
        while stream is not None and not stream.responses.empty():
            response = stream.responses.get()
            if response.refused_marks:
                self._client.warn(f"the daemon refused {response.refused_marks} marks: {response.refusal}")
            if response.renamed_runs:
                self._encoder.rename(dict(response.renamed_runs))
            while self._held and self._held[0][0] <= response.acknowledged_sequence:
                self._held.popleft()

    def _lose(self, stream: Stream) -> None:
        """The connection has ended: what is held goes to the spool, in front of what follows."""
        if stream.refused:
            self._client.warn(
                f"the daemon refuses this client: {stream.refused}; its marks stay in the spool"
            )
        stream.close()
        self._stream = None
        self._retry_at = time.monotonic() + (30.0 if stream.refused else 0.05)
        if self._spooling:
            # Replaying: what was not acknowledged is in the file still.
            self._held.clear()
            self._replay = None
        elif self._held:
            self._spool_held()

    def _spool_held(self) -> None:
        held, self._held = self._held, deque()
        self._spooling, self._replay = True, None
        for _, request in held:
            self._to_spool(request)

    def _connect(self) -> None:
        try:
            self._stream = connect(self._client.sockets, self._client.token_file)
        except ConnectionError as error:
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            if not self._spooling:
                self._spool_held()
                self._spooling = True
                where = self._spool.path.parent
                self._client.warn(f"{error}; marks go to {where} and are delivered when one is there")
            return
        self._client.daemon_seen = True
        if not self._spooling:
            for _, request in self._held:
                if isinstance(request, marks_pb2.SendMarksRequest):
                    self._send(request)
        if self._deliverer is None:
            self._deliverer = threading.Thread(target=self._deliver_others, name="wattd-orphans", daemon=True)
            self._deliverer.start()

    def _replay_spool(self, stream: Stream) -> None:
        """Send the spool from its start, a few requests at a time, until all is acknowledged."""
        if self._replay is None:
            self._replay = spools.read(self._spool.path) if self._spool.size else iter(())
            self._replayed = 0
        while len(self._held) < _IN_FLIGHT:
            found = next(self._replay, None)
            if found is None:
                break
            self._replayed, request = found
            if isinstance(request, marks_pb2.SendMarksRequest):
                self._held.append((last_sequence(request), request))
                self._send(request)
            elif not self._send_results(request):
                self._replay = None  # from the start again; what is there already is passed over
                self._held.clear()
                return
        if not self._held:
            if self._replayed < self._spool.size:
                self._replay = spools.read(self._spool.path, self._replayed)  # it grew meanwhile
            else:
                self._spool.remove()
                self._spooling, self._replay = False, None
        stream.answered.clear()

    def _deliver_others(self) -> None:
        """Deliver what dead processes and forked children left in the folder, under their own names."""
        from kdclient.deliver import Deliverer  # noqa: PLC0415 - it imports what this module does

        client = self._client
        deliverer = Deliverer(client.sockets, client.token_file, Path(client.spool), client.client_id)
        while not self._stopping:
            deliverer.look()
            time.sleep(_ORPHANS_SECONDS)

    def flush(self, seconds: float) -> bool:
        """Wait until the daemon has everything; after `seconds` what it does not have is in the spool."""
        if not self.is_alive():
            return False
        deadline = time.monotonic() + seconds
        self._wake.set()
        with self._turned:
            turns = self._turns
            # Two turns from now, all that was marked before has been looked at.
            while not (self._clean and self._turns >= turns + 2) and time.monotonic() < deadline:
                if self._spooling and self._stream is None and self._turns >= turns + 2:
                    break
                self._turned.wait(0.05)
            clean = self._clean
            if not clean:
                self._spool_now, turns = True, self._turns
                self._turned.wait_for(lambda: self._turns >= turns + 2, timeout=1.0)
                self._spool_now = False
        self._wake.clear()
        if not clean and self._spool.size:
            self._spool.sync()
        return clean

    def close(self, seconds: float) -> None:
        """Flush and end."""
        self.flush(seconds)
        self._stopping = True
        self._spool_now = True
        self._wake.set()
        self.join(timeout=2.0)
